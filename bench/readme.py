"""Rewrite the README's tables from committed records, rows and the code: `python -m bench.readme`."""

import re
from pathlib import Path

from bench import performance
from bench.plot import draw
from meal_gpu import compare, report
from meal_gpu.report import Run
from meal_gpu.strategies import MEASURES, STRATEGIES

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "runs" / "camvid-short"
CAMVID = ("random", "entropy", "meal", "meal-ft")
SWEEP = ROOT / "runs" / "synthetic-sweep"
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
    readme.write_text(render(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
