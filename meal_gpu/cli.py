"""The command line: parse → config → call → print. Nothing is computed here.

Imports of the engine stand inside the commands, so that --help loads no torch.
"""

import io
import os
import shlex
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meal_gpu import commands, options, research
from meal_gpu.cache import expanded
from meal_gpu.errors import ConfigError, MealGpuError, UnavailableError
from meal_gpu.saying import out_of_memory, say, settle, told

if TYPE_CHECKING:
    from meal_gpu.config import Config

app = typer.Typer(
    help="GPU engine for region-based active learning in semantic segmentation (MEAL).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
datasets = typer.Typer(help="List, download, check, pack and draw datasets.", no_args_is_help=True)
app.add_typer(datasets, name="data")
options.register(app)
commands.register(app)
research.register(app)

Root = Annotated[Path | None, typer.Option(help="Folder of the dataset.", show_default="its own variable")]
SizeOption = Annotated[str | None, typer.Option(metavar="HxW", help="Working size, such as 512x1024.")]


def main() -> None:
    """Entry point: what goes wrong is one line on stderr, and the exit code says what kind it is.

    0 done, 1 an error that the user can mend, 2 options that cannot be parsed, 70 a defect of ours, whose
    traceback goes into a file that is named, 130 Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a sign that a terminal has not stops no command
            stream.reconfigure(errors="replace")
    try:
        app()
    except (MealGpuError, OSError) as error:
        say(told(error))
        sys.exit(1)
    except Exception as error:
        if out_of_memory(error):
            what = " ".join(str(error).split())
            say(f"out of memory ({what}): lower size, and in a run cache_gib or pool_share")
            sys.exit(1)
        with tempfile.NamedTemporaryFile("w", prefix="meal-gpu-", suffix=".log", delete=False) as log:
            log.write(traceback.format_exc())
        what = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"a defect of meal-gpu ({what}); please report it with {log.name}")
        sys.exit(70)
    finally:
        settle()


@app.command()
def run(
    dataset: Annotated[str | None, typer.Option(help="synthetic, cityscapes, camvid or folder.")] = None,
    root: Root = None,
    preset: Annotated[str | None, typer.Option(help="A row of the paper's Table 1, such as camvid.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A .toml or .yaml file; what it leaves out is as in meal_gpu/config.py."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="See `meal-gpu strategies`; or supervised, the baseline. Of a sweep: a,b,c."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all randomness.")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="0..4", help="A sweep over seeds: 0..4 (both ends), 0,2,5 or 3.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Of a sweep: runs at once. On a GPU they share its memory.", show_default="1"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Acquisition steps, in place of the budget.")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs after each step, also the last (with --set epochs=N all but the last)."),
    ] = None,
    size: SizeOption = None,
    architecture: Annotated[str | None, typer.Option(help="smp, or paper.")] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(help="imagenet (model hub), none, or a .safetensors file.")
    ] = None,
    finetune: Annotated[
        bool | None, typer.Option("--finetune/--frozen", help="Train the encoder, or keep it.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="crop (each patch by itself), or shared (one pass)."),
    ] = None,
    on_bad: Annotated[
        str | None, typer.Option(help="Files that cannot be used: stop, or skip and list them.")
    ] = None,
    ops: Annotated[str | None, typer.Option(help="auto, reference, cpu or cuda.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the config.")
    ] = None,
    stability: Annotated[
        bool, typer.Option("--stability", help="Print how far each query depends on seeds and precision.")
    ] = False,
    track: Annotated[
        list[str] | None, typer.Option(help="Also log to tensorboard, wandb or mlflow; repeat it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; of a sweep, theirs.", show_default="runs/…")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue what is in --out.")] = False,
) -> None:
    """Run active learning: train, evaluate, acquire, label; then write a report.

    Several strategies or seeds are a sweep: a run for each pair, in a folder of its own.
    """
    changes = {
        "root": str(expanded(root).absolute()) if root else None, "strategy": strategy, "seed": seed,
        "steps": steps, "epochs": epochs, "final_epochs": epochs, "size": options.pair(size, "size"),
        "architecture": architecture, "encoder_weights": encoder_weights, "finetune": finetune,
        "features": features, "on_bad": on_bad, "ops": ops, "device": device,
    }  # fmt: skip
    given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    given |= options.other_keys(settings or [], given)
    given |= {"dataset": dataset} if resume and dataset else {}
    if resume and out is None:
        raise ConfigError("--resume needs --out, the folder of the run to continue")
    from meal_gpu import config as configs
    from meal_gpu.sweep import request

    if request.is_asked(str(given.get("strategy", "")), seeds, resume, out):
        if stability:
            raise ConfigError("--stability is for a single run; of a sweep, meal-gpu stability RUN --step K")
        _sweep(preset, dataset, config, given, seeds, 1 if jobs is None else jobs, track or [], out, resume)
        return
    if jobs is not None:
        raise ConfigError("--jobs is for a sweep: give --seeds, or several strategies")
    if resume:
        from meal_gpu.record import RunFolder

        assert out is not None
        if preset or config:
            raise ConfigError("--resume goes on with the run's own settings: leave out --preset and --config")
        chosen = RunFolder.resume(out).config.replace(**given)
    else:
        base, said = _base(preset, dataset, config)
        if given.get("strategy", base.strategy) == configs.SUPERVISED:
            base = configs.supervised(base, said)
        chosen = base.replace(**given)
    target = out or Path("runs") / f"{chosen.dataset}-{chosen.strategy}-{chosen.seed}"

    from meal_gpu import experiment, report, tracking
    from meal_gpu.progress import Terminal
    from meal_gpu.trust.perturbing import stability_lines

    trackers = tracking.open_trackers(track or [], target, resume=resume)
    examine = stability_lines if stability else None
    try:
        folder = experiment.run(
            chosen, target, resume=resume, monitor=Terminal(), trackers=trackers, examine=examine
        )
    except KeyboardInterrupt:
        again = shlex.join(["meal-gpu", "run", "--out", str(target), "--resume"])
        begun = (target / "config.toml").is_file()
        say(f"stopped; complete steps are kept: {again}" if begun else "stopped; nothing was begun")
        sys.exit(130)
    finally:
        for tracker in trackers:
            tracker.close()
    page = report.write([folder.path])
    typer.echo(report.text([folder.path]))
    typer.echo(f"report: {page}")


def _sweep(
    preset: str | None, dataset: str | None, config: Path | None, given: dict[str, Any], seeds: str | None,
    jobs: int, track: list[str], out: Path | None, resume: bool,
) -> None:  # fmt: skip
    from meal_gpu.sweep import command, request

    strategy, seed = (given.pop(key, None) for key in ("strategy", "seed"))
    if seed is not None and seeds is not None:
        raise ConfigError(f"--seed {seed} and --seeds {seeds} exclude each other: choose one")
    stored = request.read(out) if resume and out else None
    whole = preset is not None or config is not None
    base, said = (stored.base, ()) if stored and not whole else _base(preset, dataset, config)
    names = None if strategy is None else str(strategy)
    seeds = seeds if seed is None else str(seed)
    asked = request.build(base, given, strategy=names, seeds=seeds, stored=stored, said=said)
    target = out or Path("runs") / f"{asked.base.dataset}-sweep"
    sys.exit(command.execute(asked, target, resume=resume, jobs=jobs, track=track))


def _base(preset: str | None, dataset: str | None, file: Path | None) -> tuple["Config", tuple[str, ...]]:
    """What options are applied to: a file, a preset, or the dataset's preset with the faster network; and the
    keys that the file gives.
    """
    from meal_gpu import config as configs

    if sum(x is not None for x in (preset, file)) > 1:
        raise ConfigError("--preset and --config both give a whole configuration: choose one")
    if file:
        base = configs.read(file)
        return base.replace(dataset=dataset) if dataset else base, configs.keys(file)
    if preset:
        if preset not in configs.PRESETS:
            raise ConfigError(f"unknown preset {preset!r}; known: {', '.join(configs.PRESETS)}")
        base = configs.PRESETS[preset]
        if dataset not in (None, base.dataset):
            raise ConfigError(f"preset {preset!r} is for {base.dataset}, but --dataset is {dataset}")
        return base, ()
    name = dataset or "synthetic"
    if name not in configs.PRESETS:
        raise ConfigError(f"unknown dataset {name!r}; known: synthetic, cityscapes, camvid, folder")
    return configs.PRESETS[name].replace(architecture="smp"), ()


@app.command()
def doctor() -> None:
    """Say what is installed, what works here, and why the rest does not."""
    from meal_gpu.doctor import examine, ops_taken

    typer.echo(options.version())
    signs = {True: "works  ", False: "FAILS  ", None: "absent "}
    for finding in examine():
        typer.echo(f"{signs[finding.works]} {finding.part} {finding.version or ''}".rstrip())
        typer.echo(f"         {finding.detail}")
        if finding.fix:
            typer.echo(f"         fix: {finding.fix}")
    typer.echo(f"ops: {ops_taken()}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)
def bench(context: typer.Context) -> None:
    """Measure ours beside what a user would pick instead; needs a source checkout."""
    root = Path(__file__).parents[1]
    if not (root / "bench" / "__main__.py").is_file():
        raise UnavailableError(
            f"the benchmarks are not part of an installed package ({root} holds no bench/): "
            "clone the repository and call `make bench` there"
        )
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "bench", *context.args]
    sys.exit(subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode)


@datasets.command("list")
def data_list() -> None:
    """List the datasets, and where each is looked for."""
    from meal_gpu.data import DATASETS

    for info in DATASETS.values():
        place = f"${info.env}" if info.env else "--root" if info.name == "folder" else "the cache"
        typer.echo(f"{info.name:11} {info.summary}\n            from {place}; {info.licence}")


@datasets.command("download")
def data_download(
    dataset: Annotated[str, typer.Argument(help="camvid.")],
    root: Annotated[Path | None, typer.Option(help="Where to put it.", show_default="the cache")] = None,
    url: Annotated[str | None, typer.Option(help="Another archive than the public one.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Checksum that the archive must have.")] = None,
) -> None:
    """Fetch a public dataset; a broken download is continued."""
    from meal_gpu import data
    from meal_gpu.progress import Terminal

    with Terminal().transfer(f"download {dataset}") as progress:
        where = data.download(dataset, root, url=url, sha256=sha256, progress=progress)
    typer.echo(f"{dataset}: {where}")


@datasets.command("check")
def data_check(
    dataset: Annotated[str, typer.Argument(help="synthetic, cityscapes, camvid or folder.")],
    root: Root = None,
    size: SizeOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every file and look at every label.")] = False,
) -> None:
    """Look at every file: is it there, of the right size and, with --deep, of known labels?"""
    from meal_gpu import data
    from meal_gpu.progress import Terminal

    opened = data.open_dataset(dataset, root, size=options.pair(size, "size"))
    with Terminal().stage("check files", len(opened.train) + len(opened.val)) as advance:
        problems = data.check(opened, deep=deep, progress=advance)
    for problem in problems:
        typer.echo(problem.message)
    count = f"{len(opened.train)} train and {len(opened.val)} val images"
    typer.echo(f"{opened.root}: {count}, {len(problems)} problem{'s' * (len(problems) != 1)}")
    if problems:
        raise typer.Exit(1)


@datasets.command("pack")
def data_pack(
    dataset: Annotated[str, typer.Argument(help="synthetic, cityscapes, camvid or folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write; pass it as --root afterwards.")],
    root: Root = None,
    size: SizeOption = None,
) -> None:
    """Decode once into raw arrays that later runs map from disk."""
    from meal_gpu import data
    from meal_gpu.progress import Terminal

    opened = data.open_dataset(dataset, root, size=options.pair(size, "size"))
    with Terminal().stage("pack", 2 * (len(opened.train) + len(opened.val))) as advance:
        where = data.pack(opened, out, progress=advance)
    typer.echo(f"{dataset}: packed in {where}")


@datasets.command("draw")
def data_draw(
    out: Annotated[Path, typer.Argument(help="Folder to write, in Cityscapes' layout.")],
    train: Annotated[int, typer.Option(help="Images in the pool.")] = 96,
    val: Annotated[int, typer.Option(help="Images for validation.")] = 24,
    size: Annotated[str, typer.Option(metavar="HxW", help="Size of the images.")] = "192x384",
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
) -> None:
    """Draw a synthetic dataset; open it as `--dataset cityscapes --root OUT --size HxW`, the size drawn."""
    from meal_gpu.data import synthetic
    from meal_gpu.progress import Terminal

    pixels = options.pair(size, "size")
    assert pixels is not None
    with Terminal().stage("draw", train + val) as advance:
        synthetic.write(out, train=train, val=val, size=pixels, seed=seed, progress=advance)
    typer.echo(f"synthetic: {train} train and {val} val images in {out}")
    typer.echo(f"open it with --dataset cityscapes --root {out} --size {pixels[0]}x{pixels[1]}")
