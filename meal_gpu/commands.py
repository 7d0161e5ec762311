"""The commands around an annotation tool: acquire, export, ingest, view. Thin: parse → call → print."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meal_gpu import options
from meal_gpu.errors import ConfigError, DataError

if TYPE_CHECKING:
    from meal_gpu.annotate.asking import Report

LEDGER, QUERY = Path("pool.parquet"), Path("query")

LedgerOption = Annotated[
    Path, typer.Option(callback=options.ledger, help="The pool's table, a .parquet; made by the first query.")
]


def acquire(
    images: Annotated[
        str, typer.Option(help="A folder, manifest .parquet, '*.tar' shards, or a URL of these.")
    ],
    model: Annotated[str, typer.Option(help="pkg.module:factory. This, and only this, runs code of yours.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights: .safetensors, or .pt, of which no code is run.")
    ] = None,
    model_arg: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument of the factory; repeat it.")
    ] = None,
    member: Annotated[
        list[Path] | None, typer.Option(help="Weights of a further network of an ensemble; repeat it.")
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", "-n", help="32patches, 2%, 5000clicks or 6h.")
    ] = "32patches",
    strategy: Annotated[str, typer.Option(help="See `meal-gpu strategies`.")] = "meal",
    measure: Annotated[str, typer.Option(help="What proposes candidates, as listed there.")] = "entropy",
    ledger: LedgerOption = LEDGER,
    out: Annotated[Path, typer.Option(help="Query folder to write.")] = QUERY,
    classes: Annotated[Path | None, typer.Option(help="A classes.txt: one name per line.")] = None,
    grid: Annotated[str, typer.Option(metavar="RxC", help="Rows and columns of patches.")] = "4x4",
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Resize to it first.", show_default="the frames' own")
    ] = None,
    window: Annotated[
        str | None, typer.Option(metavar="HxW", help="Slide a window of this size over larger frames.")
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(help="Share of a window that the next one covers again.", show_default="0.25"),
    ] = None,
    valid: Annotated[
        Path | None,
        typer.Option(help="A .png like the frames: where it is 0 (bonnet, border) nothing counts."),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="N_I, the patches of highest --measure.",
            show_default="200, for more than 32 patches 6.25 for each",
        ),
    ] = None,
    manifold_limit: Annotated[
        int, typer.Option(min=4, help="Patches that the manifold is fitted on, of a pool of more.")
    ] = 50_000,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit the manifold anew, to a pool that has grown since.")
    ] = False,
    features: Annotated[str, typer.Option(help="crop, or shared (one pass).")] = "crop",
    layer: Annotated[str | None, typer.Option(help="Submodule whose output gives features.")] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Mean of the values in 0..1 that the model was trained on.",
            show_default="ImageNet's",
        ),
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Their standard deviation.", show_default="ImageNet's")
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="With dropout, for mc-entropy and bald.")] = 8,
    temperature: Annotated[
        float | None, typer.Option(help="Logits are divided by it; needed for meal-calibrated.")
    ] = None,
    cost: Annotated[
        str, typer.Option(help="Such as click=1.1,frame=8: seconds; vertex=12: pixels a click.")
    ] = "",
    pack: Annotated[int, typer.Option(min=1, help="At most so many patches in a row from a frame.")] = 1,
    context: Annotated[int, typer.Option(min=0, help="Pixels that annotators see around a patch.")] = 0,
    exclude: Annotated[
        list[Path] | None, typer.Option(help="A query folder that is still with the annotators; repeat it.")
    ] = None,
    on_bad: Annotated[
        str, typer.Option(help="New frames that cannot be used: stop, or skip and list them.")
    ] = "stop",
    cluster: Annotated[
        str | None,
        typer.Option(help="Score on Dask: local:N processes, local-cuda, or a scheduler's tcp://host:port."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            help="Folder or URL of the scores; all machines of a cluster must reach it.",
            show_default="beside the ledger",
        ),
    ] = None,
    shard: Annotated[
        int, typer.Option(min=1, help="Frames scored and kept together: what is lost with a process.")
    ] = 256,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    ops: Annotated[str, typer.Option(help="auto, reference, cpu or cuda.")] = "auto",
) -> None:
    """Choose, for your model and your frames, the patches to label within a budget."""
    from meal_gpu.annotate.budget import Budget
    from meal_gpu.annotate.cost import CostModel

    amount, costs = Budget.parse(budget), CostModel.parse(cost)  # before the slow imports
    rows = options.pair(grid, "grid")
    assert rows is not None
    from torch.nn import Module

    from meal_gpu import checkpoint as checkpoints
    from meal_gpu.annotate.asking import ask
    from meal_gpu.annotate.plan import Plan
    from meal_gpu.annotate.shards import Cluster
    from meal_gpu.cluster import connected
    from meal_gpu.models import IMAGENET_MEAN, IMAGENET_STD
    from meal_gpu.pool import FEATURES
    from meal_gpu.progress import Terminal

    if features not in FEATURES:
        raise ConfigError(f"features is {features!r}; known: {', '.join(FEATURES)}")
    names = None if classes is None else options.class_names(classes)
    arguments = options.key_values("--model-arg", model_arg or [])
    plan = Plan(
        budget=amount, strategy=strategy, measure=measure, seed=seed, grid=rows, candidates=candidates,
        manifold_limit=manifold_limit, refit=refit, features=features,
        size=options.pair(size, "size"), window=options.pair(window, "window"),
        overlap=Plan.overlap if overlap is None else overlap,
        valid=valid, classes=names, cost=costs, pack=pack, context=context, exclude=tuple(exclude or ()),
        layer=layer, passes=passes, temperature=temperature, on_bad=on_bad, cache=cache, shard=shard,
        precision=precision, device=device, ops=ops, made_by=(model, sorted(arguments.items())),
        mean=options.triple(mean, "mean") or IMAGENET_MEAN, std=options.triple(std, "std") or IMAGENET_STD,
    )  # fmt: skip
    if overlap is not None and window is None:
        raise ConfigError("--overlap is that of the windows of --window, which is not given")
    if temperature is not None and not 0 < temperature < float("inf"):
        raise ConfigError(f"temperature is {temperature}; it must be above 0")

    network = checkpoints.build(model, arguments, checkpoint)
    others = [checkpoints.build(model, arguments, weights) for weights in member or []]
    members = [other for other in others if isinstance(other, Module)]
    stage = Terminal().stage
    if cluster is None:
        report = ask(images, network, ledger, out, plan, stage, members)
    else:
        with connected(cluster) as run:
            there = Cluster(run, model, arguments, checkpoint)
            report = ask(images, network, ledger, out, plan, stage, members, there)
    typer.echo(describe(report))


def describe(report: "Report") -> str:
    """The query in all units, and what smaller ones would be."""
    from meal_gpu import strategies

    totals, n = report.totals, len(report.asked.items)
    nested = strategies.get(report.asked.strategy).nested
    lines = [
        f"pool: {report.pool} patches, {report.added} new frames, {report.scored} frames scored now",
        f"query {report.asked.step}: {n} patches ({n / report.pool:.2%}) in {totals.frames[-1]} frames, "
        f"about {totals.clicks[-1]:.0f} clicks, {totals.hours[-1]:.2f} h",
    ]
    for k in sorted({max(1, n // 4), max(1, n // 2), n}) if nested else ():
        covered = "" if report.coverage is None else f", coverage {report.coverage[k - 1]:.0%}"
        lines.append(
            f"  the first {k}: {totals.frames[k - 1]} frames, {totals.clicks[k - 1]:.0f} clicks, "
            f"{totals.hours[k - 1]:.2f} h{covered}"
        )
    if report.limited:
        lines.append("the budget pays for more than the candidates: raise --candidates")
    curves = " (budget.svg: coverage, score and cost of every smaller query)" if nested else ""
    lines.append(f"written: {report.asked.path}{curves}")
    return "\n".join(lines)


def export(
    to: Annotated[
        str,
        typer.Option(
            help="cvat, segmentation-mask, label-studio, coco, csv, jsonl, parquet or "
            "fiftyone; of finished labels: smp, mmseg or nnunet."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="New folder.", show_default="QUERY/… or labels/…")] = None,
    query: Annotated[
        Path | None,
        typer.Option(help="Query folder; not for smp, mmseg and nnunet.", show_default=str(QUERY)),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(callback=options.ledger, help="For smp, mmseg and nnunet.", show_default=str(LEDGER)),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(help="As for acquire; for smp, mmseg and nnunet, and where frames were moved."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="URL", help="Also send it to this CVAT or Label Studio.")
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="MEAL_GPU_TOKEN", help="For --push.")] = None,
    project: Annotated[
        str, typer.Option(help="For --push, and the name of a FiftyOne dataset.")
    ] = "meal-gpu",
    predictions: Annotated[
        bool,
        typer.Option("--predictions/--no-predictions", help="For --push to Label Studio: send them too."),
    ] = True,
    changed: Annotated[
        str | None,
        typer.Option(
            help="For smp, mmseg and nnunet: skip or take labels of frames that were replaced since.",
            show_default="stop",
        ),
    ] = None,
) -> None:
    """Write a query for an annotation tool, or the finished labels for training."""
    from meal_gpu.annotate import formats

    known = (*formats.WRITERS, formats.FIFTYONE, *formats.TRAINING)
    if to not in known:
        raise ConfigError(f"format {to!r} is unknown; known: {', '.join(known)}")
    given = {
        "--query": query, "--ledger": ledger, "--images": images, "--out": out, "--push": push,
        "--no-predictions": None if predictions else True, "--changed": changed,
    }  # fmt: skip
    for option, value in given.items():
        if value is not None and option not in formats.options(to):
            raise ConfigError(f"{option} means nothing for --to {to}: leave it out")
    files: dict[str, str] = {}
    if images is not None:
        from meal_gpu.images.listing import list_images

        files = list_images(images).by_name
    if to in formats.TRAINING:
        if images is None:
            raise ConfigError(f"--to {to} needs --images, the frames that the masks belong to")
        from meal_gpu.annotate import training

        target = out or Path("labels") / to
        done = training.export(ledger or LEDGER, files, target, to=to, changed=changed or "stop")
        typer.echo(f"{to}: {done.patches} patches in {done.frames} frames, {target}")
        if done.left_out:
            typer.echo(f"left out: {done.left_out} patches, of frames that were replaced since")
        return
    from meal_gpu.annotate.asked import Asked

    query = query or QUERY
    asked = Asked.read(query)
    if images is not None:
        asked = asked.at(files)
    if to == formats.FIFTYONE:
        from meal_gpu.annotate import voxel51

        voxel51.export(asked, project)
        typer.echo(f"fiftyone: dataset {project!r}, {len(asked.items)} patches")
        return
    target = out or query / to
    if not predictions and push is None:
        raise ConfigError("--no-predictions is for --push; files hold them always")
    if push is not None and token is None:
        raise ConfigError("--push needs --token, or the variable MEAL_GPU_TOKEN")
    if push is None or not (target.is_dir() and any(target.iterdir())):  # of a push that failed it is there
        formats.export(asked, target, form=to)
        typer.echo(f"{to}: {len(asked.items)} patches, {target}")
    if push is not None and token is not None:
        from meal_gpu.annotate import push_cvat, push_label_studio

        send = push_cvat.push
        if to == "label-studio":
            send = partial(push_label_studio.push, predictions=predictions)
        sent = send(asked, target, url=push, token=token, project=project)
        typer.echo(f"pushed: {sent}")


def ingest(
    answers: Annotated[
        Path, typer.Argument(help="What the tool exported: a folder, .zip or file; a FiftyOne dataset.")
    ],
    query: Annotated[Path, typer.Option(help="Query folder.")] = QUERY,
    ledger: LedgerOption = LEDGER,
    form: Annotated[
        str,
        typer.Option("--from", help="auto, cvat, segmentation-mask, label-studio, coco, masks or fiftyone."),
    ] = "auto",
    partial: Annotated[
        bool, typer.Option("--partial", help="Take what fits, although not all does.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take other masks of labelled patches: corrections.")
    ] = False,
) -> None:
    """Check finished masks and mark their patches as labelled; all or nothing."""
    from meal_gpu.annotate.ingest import ingest as take

    done = take(query, answers, ledger, form=form, partial=partial, replace=replace)
    for line in done.problems:
        typer.echo(f"left out: {line}")
    if not (done.labelled or done.replaced or done.known or done.problems):
        raise DataError(
            f"{answers}: no patch of {query} is labelled there: {len(done.empty)} have no pixel of a class, "
            f"{len(done.missing)} no answer; label some and export them again"
        )
    typer.echo(f"labelled: {len(done.labelled)} patches, {ledger}")
    if done.known:
        typer.echo(f"taken before: {len(done.known)} patches")
    if done.replaced:
        typer.echo(f"masks replaced: {', '.join(item.name for item in done.replaced)}")
    if done.untouched:
        typer.echo(f"exactly as predicted: {done.untouched} of the patches taken now")
    if done.empty:
        typer.echo(f"still without a label: {', '.join(item.name for item in done.empty)}")
    if done.missing:
        typer.echo(f"without an answer yet: {len(done.missing)} patches of {query}")


def view(
    images: Annotated[str, typer.Option(help="As for acquire.")],
    ledger: LedgerOption = LEDGER,
    query: Annotated[list[Path] | None, typer.Option(help="A query folder to show; repeat it.")] = None,
) -> None:
    """Open pool, scores, embedding and queries in FiftyOne."""
    from meal_gpu.annotate import voxel51
    from meal_gpu.images.listing import list_images

    voxel51.view(ledger, list_images(images).by_name, query or []).wait()


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    for command in (acquire, export, ingest, view):
        app.command()(command)
