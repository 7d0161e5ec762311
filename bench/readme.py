"""Rewrite the README's tables from committed records, rows and the code: `python -m bench.readme`."""

import re
from pathlib import Path
from typing import Any

from bench import harness, performance, results
from bench.plot import draw
from meal_gpu import compare, report
from meal_gpu.report import Run
from meal_gpu.strategies import MEASURES, STRATEGIES

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "runs" / "camvid-short"
CAMVID = ("random", "entropy", "meal", "meal-ft")
SWEEP = ROOT / "runs" / "synthetic-sweep"
SCALE = ROOT / "docs" / "SCALE.md"
SCALE_ROWS = [ROOT / "bench" / "results" / name for name in ("scale.jsonl", "gpu.jsonl")]
PLOT = ROOT / "docs" / "camvid-short.svg"


def render(readme: str) -> str:
    """The README with its result blocks made anew from what is committed."""
    runs = [report.load(RECORDS / name) for name in CAMVID]
    speed = performance.section(performance.committed()) + "\n\n"
    blocks = {
        "camvid": _camvid(runs), "strategies": _strategies(), "sweep": _sweep(), "performance": speed,
    }  # fmt: skip
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", flags=re.DOTALL)
        readme, count = pattern.subn(lambda match, block=block: match[1] + block + match[2], readme)
        assert count == 1, f"the README has {count} blocks called {name}"
    return readme


def render_scale(page: str) -> str:
    """docs/SCALE.md with its table made anew."""
    rows = [row for path in SCALE_ROWS if path.is_file() for row in harness.read(path)]
    rows = [row for row in rows if row["case"].startswith(performance.LARGE)]
    block = "\n\n".join(_large(group) for _, group in results.grouped(rows, lambda row: row["device"]))
    pattern = re.compile(r"(<!-- large -->\n).*?(<!-- /large -->)", flags=re.DOTALL)
    made, count = pattern.subn(lambda match: match[1] + block + "\n" + match[2], page)
    assert count == 1
    return made


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


def _camvid(runs: list[Run]) -> str:
    first = runs[0]
    head = [f"{step['labelled']} patches ({step['share']:.2%})" for step in first.steps]
    rows = [["strategy", *head], ["---"] + ["--:"] * len(head)]
    rows += [[run.config.strategy, *(f"{s['mean_iou']:.3f}" for s in run.steps)] for run in runs]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    command = " ".join(first.environment["command"]).replace(f"strategy {CAMVID[0]}", "strategy NAME")
    command = command.replace(f"/{CAMVID[0]}", "/NAME")
    commits = sorted({str(run.environment["commit"]) for run in runs})
    devices = sorted({f"{run.environment['device']}, {run.environment['threads']} thread" for run in runs})
    config = first.config
    return (
        f"![Learning curves of four strategies on CamVid]({PLOT.relative_to(ROOT)})\n\n"
        f"Validation mIoU on CamVid (367 + 101 real images, 11 classes), encoder frozen, seed {config.seed}. "
        f"**A shortened schedule, not the paper's**: {config.epochs} epochs after each of "
        f"{len(first.steps) - 1} steps, validated every {config.validate_every}, `{config.architecture}` "
        "network. One seed: the order of the strategies means nothing yet.\n\n"
        f"{table}\n\n`{command}`, on {' / '.join(devices)}, commit {', '.join(commits)}. "
        "The records lie in `runs/camvid-short`; `python -m bench.readme` makes this block from them.\n\n"
    )


def _strategies() -> str:
    lines = ["| strategy | what it takes | source |", "|---|---|---|"]
    for name, strategy in STRATEGIES.items():
        mark = " \\*" if name in MEASURES else ""
        lines.append(f"| `{name}`{mark} | {strategy.summary} | {strategy.source} |")
    return "\n".join(lines) + "\n\n"


def _sweep() -> str:
    """The parts of the comparison that fit a page; the rest is in the committed compare.md."""
    runs = sorted(path.parent for path in SWEEP.glob("*/config.toml"))
    first = report.load(runs[0])
    text = compare.markdown(compare.compare(compare.gather([SWEEP])))
    intro, *sections = text.split("\n## ")
    verdict = next(line for line in intro.splitlines() if line.startswith("**Verdict"))
    environment = next(line for line in intro.splitlines() if line.startswith("Environment"))
    shown = [section.partition("\n\n") for section in sections if section.startswith(("Strategies", "Pairs"))]
    tables = "\n\n".join(f"**{title}**\n\n{body.strip()}" for title, _, body in shown)
    config = first.config
    return (
        f"The drawn scenes, {config.epochs} epochs after each of {len(first.steps) - 1} steps. "
        f"{environment}\n\n"
        f"{verdict}\n\n{tables}\n\nThe records, the whole comparison and the report lie in "
        "`runs/synthetic-sweep`; `python -m bench.readme` makes this block from them.\n\n"
    )


def main() -> None:
    readme = ROOT / "README.md"
    PLOT.parent.mkdir(exist_ok=True)
    report.plot([RECORDS / name for name in CAMVID], PLOT)
    for device, rows in performance.committed().items():
        draw(rows, performance.PLOTS[device])
    for page, made in ((readme, render), (SCALE, render_scale)):
        page.write_text(made(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
