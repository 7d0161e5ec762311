"""Rewrite the tables of README and docs from committed records, rows, code: `python -m bench.readme`."""

import os
import re
from pathlib import Path
from typing import Any

from bench import harness, performance, results
from bench.plot import draw
from bench.table1 import BEYOND, FOLDER, FRESH, PAPER, ROWS
from meal_gpu import compare
from meal_gpu.compare import tables
from meal_gpu.compare.verdict import environment
from meal_gpu.config import Config
from meal_gpu.strategies import MEASURES, STRATEGIES

ROOT = Path(__file__).parent.parent
SCALE = ROOT / "docs" / "SCALE.md"
EXPERIMENTS = ROOT / "docs" / "EXPERIMENTS.md"
SUBSAMPLE = ROOT / "bench" / "results" / "subsample.jsonl"
# Lines that say where it was run, what it shows, and what else a pair compares
_NOTES = ("Environment", "**Verdict", "- At step 0")
SCALE_ROWS = [ROOT / "bench" / "results" / name for name in ("scale.jsonl", "gpu-pool.jsonl")]


def render(readme: str) -> str:
    """The README with its result blocks made anew from what is committed."""
    speed = performance.section(performance.committed()) + "\n\n"
    compared = compare.compare(compare.gather(_rows(ROOT)))
    blocks = {
        "camvid": _table1(compared), "strategies": _strategies(), "sweep": _sweep(compared),
        "performance": speed,
    }  # fmt: skip
    return _filled(readme, blocks)


def render_experiments(page: str) -> str:
    """docs/EXPERIMENTS.md with its tables made anew."""
    return _filled(page, {"beyond": _beyond(ROOT), "fresh": _fresh()})


def _filled(page: str, blocks: dict[str, str]) -> str:
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", flags=re.DOTALL)
        page, count = pattern.subn(lambda match, block=block: match[1] + block + match[2], page)
        assert count == 1, f"the page has {count} blocks called {name}"
    return page


def render_scale(page: str) -> str:
    """docs/SCALE.md with its tables made anew."""
    rows = [row for path in SCALE_ROWS if path.is_file() for row in harness.read(path)]
    rows = [row for row in rows if row["case"].startswith(performance.LARGE)]
    large = "\n\n".join(_large(group) for _, group in results.grouped(rows, lambda row: row["device"]))
    hours = "\n\n".join(_hours(rows) for rows in performance.committed().values())
    blocks = {"large": large, "subsample": _subsample(harness.read(SUBSAMPLE)), "hours": hours}
    return _filled(page, {name: f"{block}\n" for name, block in blocks.items()})


def _hours(rows: list[dict[str, Any]]) -> str:
    """What the passes over 100 million frames take one device of these rows."""
    lines, whole = [], 0.0
    for case in ("decode", "forward", "patch_entropy"):
        each = {
            row["median"] / row["sizes"]["images"]: row for row in rows
            if row["case"] == case and row["contender"].startswith("ours")
            and (row["sizes"]["height"], row["sizes"]["width"]) == (512, 1024)
        }  # fmt: skip
        seconds, row = min(each.items())
        whole += seconds
        lines.append([
            case.replace("_", " "), results.sizes(row), results.seconds(seconds),
            f"{seconds * 1e8 / 3600:,.0f}",
        ])  # fmt: skip
    lines.append(["all", "", results.seconds(whole), f"{whole * 1e8 / 3600:,.0f}"])
    first = rows[0]
    return (
        f"{performance.markdown(['stage', 'sizes', 'one frame', 'hours'], lines, 'llrr')}\n\n"
        f"{first['device']}, {first['threads']} threads, commit {first['commit']}.\n"
    )


def _subsample(rows: list[dict[str, Any]]) -> str:
    lines = []
    for pool, case in dict.fromkeys((row["patches"], row["fitted on"]) for row in rows):
        group = [row for row in rows if (row["patches"], row["fitted on"]) == (pool, case)]
        shared = [row["shared"] for row in group]
        spread = [
            f"{mean:.2f} ({min(values):.2f} – {max(values):.2f})"
            for key in ("embedding", "features")
            if (values := [row[key] for row in group]) and (mean := sum(values) / len(values))
        ]
        same = f"{sum(shared) / len(shared):.1f} ({min(shared)} – {max(shared)})"
        lines.append([f"{pool:,}", case, same, *spread])
    first = rows[0]
    head = ["pool", "Φ fitted on", "of 32 the same", "distance in the embedding", "distance in features"]
    return (
        f"{performance.markdown(head, lines, 'llrrr')}\n\n{first['device']}, commit {first['commit']}, "
        f"{len({row['seed'] for row in rows})} seeds: `{' '.join(first['command'])}`; "
        "mean (least – most).\n"
    )


def _large(rows: list[dict[str, Any]]) -> str:
    lines = []
    order = list(dict.fromkeys(row["case"] for row in rows))
    rows = sorted(rows, key=lambda row: order.index(row["case"]))
    for case, group in results.grouped(rows, lambda row: row["case"]):
        grown = {growth.case: growth for growth in results.growth(group)}
        for row in group:
            peak = "–" if row["peak_bytes"] is None else results.size_of(row["peak_bytes"])
            time, memory = "", ""
            if row is group[-1] and case in grown:
                time = f"{grown[case].time:.2f}"
                memory = "–" if grown[case].memory is None else f"{grown[case].memory:.2f}"
            lines.append([
                case.removeprefix(f"{performance.LARGE}, "), results.sizes(row),
                results.seconds(row["median"]), peak, time, memory,
            ])  # fmt: skip
    first = rows[0]
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    head = ["stage", "sizes", "time", "memory", "time ∝ n^", "memory ∝ n^"]
    return (
        f"{performance.markdown(head, lines, 'llrrrr')}\n\n{first['device']}, {first['threads']} threads, "
        f"commit {commits}, {first['time'][:10]}: `{' '.join(first['command'])}`. Memory is what a call had "
        "allocated at most beyond its inputs; one that is below 1 MiB says nothing of its growth.\n"
    )


def _table1(compared: compare.Comparison) -> str:
    """Our runs of the paper's Table 1 beside its figures."""
    summaries = compared.summaries
    measured = any(summary.supervised is not None for summary in summaries)
    lines = [
        [
            summary.label, ", ".join(f"{curve.score[-1]:.3f}" for curve in summary.group.curves),
            tables.with_bounds(summary.final), tables.with_bounds(summary.area),
            *([tables.relative(summary), tables.budget(summary)] if measured else []),
            f"{summary.last_epoch.mean:.4f}",
            f"{PAPER[config.finetune][config.strategy]:.3f}",
        ]
        for summary in summaries
        for config in [summary.group.curves[0].config]
    ]  # fmt: skip
    head = [
        "strategy", "final mIoU, each seed", "mean [95 %]", "AUBC [95 %]",
        *(["of supervised", "budget for 95 % of it"] if measured else []), "by the last epoch",
        "paper, final mIoU",
    ]  # fmt: skip
    first = summaries[0]
    config = first.group.curves[0].config
    reference = "".join(
        f"With all labels: {curve.score[-1]:.3f} (seed {curve.config.seed}, `--strategy supervised`; "
        f"{curve.last_epoch[-1]:.3f} by the last epoch; the paper "
        f"{PAPER[curve.config.finetune]['supervised']:.3f}). "
        for group in compared.gathered.supervised
        for curve in group.curves
    )
    folder = FOLDER.as_posix()
    notes = [
        line.removeprefix("- ") for line in compare.markdown(compared).splitlines() if line.startswith(_NOTES)
    ]
    return (
        f"![Learning curves on CamVid]({folder}/compare/curves.svg)\n\n"
        f"CamVid, 367 + 101 images, {config.architecture} network, encoder "
        f"{'fine-tuned' if config.finetune else 'frozen'}, {config.epochs} epochs after each of "
        f"{len(first.labelled) - 1} steps ({config.final_epochs} after the last), validated after every "
        f"{config.validate_every}; {first.labelled[-1]} patches ({first.share[-1]:.2%}) at the end. "
        f"The paper's figures are of {'the same' if config.architecture == 'paper' else 'a larger'} network, "
        f"validated after every epoch.{_weights(config)} {tables.SELECTED} Those images are labelled whole, "
        "outside of the budget.\n\n"
        f"{performance.markdown(head, lines, 'l' + 'r' * (len(head) - 1))}\n\n"
        + "\n\n".join(notes)
        + f"\n\n{_again()}\n\n{reference}Each seed has its own initial patches, the same for all "
        f"strategies. The records, and what `meal-gpu compare` makes of them, lie in `{folder}`; "
        f"`python -m bench.table1 {' '.join(path.name for path in _rows(ROOT))} --jobs 2{_file(config)}` "
        "runs them.\n\n"
    )


def _weights(config: Config) -> str:
    if config.encoder_weights == "imagenet":
        return ""
    return (
        " Our encoder begins with ImageNet weights from a file, whose BatchNorm statistics were estimated "
        "anew: they are not quite those that `--encoder-weights imagenet` fetches."
    )


def _file(config: Config) -> str:
    return "" if config.encoder_weights == "imagenet" else " --encoder-weights FILE"


def _sweep(compared: compare.Comparison) -> str:
    """The parts of the comparison that fit a page; the rest is in the committed compare.md."""
    text = "\n\n".join(
        f"**{title}**\n\n{body}"
        for title, body in _sections(compared)
        if title.startswith(("mIoU per", "Pairs"))
    )
    file = FOLDER / "compare" / "compare.md"
    return (
        f"The runs on CamVid above (IoU of each class and the penalty matrix: [{file.name}]({file})):\n\n"
        f"{text}\n\n"
    )


def _beyond(root: Path) -> str:
    """What the paper left open: rows with something changed, each against the one that they change."""
    rows = sorted((root / BEYOND).iterdir(), key=lambda row: (row.name.count("+"), row.name))
    gathered = compare.gather(rows)
    base = next(
        group.label for group in gathered.groups if Path(group.curves[0].name).is_relative_to(rows[0])
    )
    sections = _sections(compare.compare(gathered, baseline=base))
    shown = [body for title, body in sections if title.startswith(("Strategies", "Pairs"))]
    seeds = sorted({curve.config.seed for curve in gathered.curves})
    of_strategy: dict[str, set[str]] = {}
    for group in gathered.groups:
        of_strategy.setdefault(group.strategy, set()).add(Path(group.curves[0].name).parent.name)
    commands = [
        "`OMP_NUM_THREADS=1 python -m bench.table1 "
        f"{' '.join(row.name for row in rows if row.name in named)} --strategy {strategy} "
        f"--seeds {seeds[0]}..{seeds[-1]} --folder {BEYOND.as_posix()}{_file(gathered.curves[0].config)}`"
        for strategy, named in of_strategy.items()
    ]
    return "\n\n".join([*shown, f"{environment(gathered)} {'; '.join(commands)}."]) + "\n\n"


def _compared_again() -> compare.Comparison:
    """Seeds that the question was written down for, before they ran."""
    return compare.compare(compare.gather(sorted((ROOT / FRESH).iterdir())))


def _fresh() -> str:
    """Their answer in full."""
    compared = _compared_again()
    shown = [body for title, body in _sections(compared) if title.startswith(("Strategies", "Pairs"))]
    return "\n\n".join([*shown, environment(compared.gathered)]) + "\n\n"


def _again() -> str:
    """And in a sentence."""
    (pair,) = _compared_again().pairs
    difference, p, _ = tables.cells(pair)
    file = EXPERIMENTS.relative_to(ROOT).as_posix()
    return (
        f"**Asked once more**, of seeds {pair.seeds[0]} to {pair.seeds[-1]} alone, in bfloat16, with "
        f"question and test written down before they ran ([{file}]({file}), `{FRESH.as_posix()}`): the "
        f"area of {pair.first} less that of {pair.second} is {difference}, p = {p}; "
        f"{tables.outcome(pair)}."
    )


def _sections(compared: compare.Comparison) -> list[tuple[str, str]]:
    """Title and body of each section of the comparison's Markdown, but for what is above the first."""
    parts = [section.partition("\n\n") for section in compare.markdown(compared).split("\n## ")[1:]]
    return [(title, body.strip()) for title, _, body in parts]


def _rows(root: Path) -> list[Path]:
    """The rows that were run, but for those that are there to show what patches alone lack."""
    within = [row for row, given in ROWS.items() if "context=patch" not in given]
    return [path for row in within if (path := root / FOLDER / row).is_dir()]


def _strategies() -> str:
    lines = ["| strategy | what it takes | source |", "|---|---|---|"]
    for name, strategy in STRATEGIES.items():
        mark = " \\*" if name in MEASURES else ""
        lines.append(f"| `{name}`{mark} | {strategy.summary} | {strategy.source} |")
    return "\n".join(lines) + "\n\n"


def main() -> None:
    readme = ROOT / "README.md"
    os.chdir(ROOT)  # compare.csv holds the paths of the runs as they are given
    compare.write(compare.compare(compare.gather(_rows(Path()))), FOLDER / "compare")
    for device, rows in performance.committed().items():
        draw(rows, performance.PLOTS[device])
    for page, made in ((readme, render), (SCALE, render_scale), (EXPERIMENTS, render_experiments)):
        page.write_text(made(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
