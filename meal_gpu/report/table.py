"""Runs as rows: labelled patches and mIoU per step."""

import dataclasses
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meal_gpu.config import PLACES, Config
from meal_gpu.errors import RunError
from meal_gpu.record import RunFolder

# Which sample it is, and where it was computed: they keep no two runs apart
SAMPLE = ("seed", "device", "ops", *PLACES)


@dataclass(frozen=True)
class Run:
    """One run folder, read: `steps` are its `metrics.json`, in order, made on `devices` by `commits`."""

    name: str
    config: Config
    devices: list[str]
    commits: list[str]
    steps: list[dict[str, Any]]
    folder: RunFolder


def configuration(config: Config) -> Hashable:
    """What was computed: runs in which it is equal are seeds of one strategy."""
    return tuple((k, v) for k, v in dataclasses.asdict(config).items() if k not in SAMPLE)


def elsewhere(name: str, configs: Sequence[Config]) -> list[str]:
    """Sentences where the seeds of the strategy `name` were not computed in one way."""
    found = {key: sorted({str(getattr(config, key)) for config in configs}) for key in ("device", "ops")}
    return [
        f"The seeds of {name} were computed with more than one {key} ({', '.join(values)}), which may round "
        "otherwise; they are taken as one strategy."
        for key, values in found.items()
        if len(values) > 1
    ]


def find(paths: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """Run folders among `paths` and among their children, each once; and those that were skipped: children
    without a complete step, such as a sweep has where a run failed.

    Raises:
        RunError: a folder without a run, or whose runs have no complete step.
    """
    found: dict[Path, Path] = {}
    skipped: list[Path] = []
    for path in map(Path, paths):
        runs = [path]
        if not (path / "config.toml").is_file():
            children = sorted(child.parent for child in path.glob("*/config.toml"))
            runs = [child for child in children if any(s.name.isdecimal() for s in child.glob("steps/*"))]
            if not children:
                raise RunError(
                    f"{path} holds no run and no folder of runs (no config.toml, no */config.toml)"
                )
            if not runs:
                raise RunError(f"none of the {len(children)} runs in {path} holds a complete step yet")
            skipped += [child for child in children if child not in runs]
        found |= {run.resolve(): run for run in runs}
    return list(found.values()), skipped


def skips(skipped: Sequence[Path]) -> str:
    """A sentence on what `find` skipped; "" where it is nothing."""
    names = ", ".join(map(str, skipped))
    return f"Left out, without a complete step: {names}." if skipped else ""


def load(path: Path) -> Run:
    """Read a run folder. Raises RunError naming it where it holds no complete step."""
    folder = RunFolder.resume(path)
    try:
        steps = folder.metrics()
        makers = folder.makers()
        devices, commits = (
            [str(made.get(key) or "unknown") for made in makers] for key in ("device", "commit")
        )
        for number, step in enumerate(steps):
            if not _is_sound(step, number):
                raise ValueError(f"metrics.json of step {number} is damaged")
            if step["mean_iou"] is None:  # no class occurred
                step["mean_iou"] = math.nan
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: the run's records cannot be read: {error!r}") from error
    if not steps:
        raise RunError(f"{path} holds no complete step yet: continue it with --resume")
    return Run(path.resolve().name, folder.config, devices, commits, steps, folder)


def _is_sound(step: dict[str, Any], number: int) -> bool:
    """Whether a step's metrics are what a run writes."""
    counts = [step[key] for key in ("labelled", "patches", "epoch")]
    control = step.get("control") or {}
    figures = [step["mean_iou"], *step["class_iou"].values(), *control.values()]
    return (
        all(type(count) is int for count in counts)
        and step["step"] == number
        and 0 < step["labelled"] <= step["patches"]
        and all(_is_finite(figure) for figure in [step["share"], *(x for x in figures if x is not None)])
    )


def _is_finite(figure: object) -> bool:
    return type(figure) in (int, float) and math.isfinite(figure)  # type: ignore[arg-type]


def load_all(paths: Sequence[Path]) -> list[Run]:
    """As `load`; runs of one name, as sweeps have, are told apart by their parent folders."""
    runs = [load(path) for path in paths]
    times = Counter(run.name for run in runs)
    folders = [f"{path.resolve().parent.name}/" for path in paths]
    return [
        dataclasses.replace(run, name=folder * (times[run.name] > 1) + run.name)
        for folder, run in zip(folders, runs, strict=True)
    ]


HEADER = ("step", "labelled", "share", "mIoU", "best epoch")


def rows(run: Run) -> list[tuple[str, ...]]:
    """One row per step under `HEADER`."""
    return [
        (
            str(step["step"]),
            str(step["labelled"]),
            f"{step['share']:.2%}",
            f"{step['mean_iou']:.4f}",
            str(step["epoch"]),
        )
        for step in run.steps
    ]


def title(run: Run) -> str:
    """What was run, with seed, device and commit."""
    config = run.config
    places = dict.fromkeys(zip(run.devices, run.commits, strict=True))
    made = "; ".join(f"{device}, commit {commit}" for device, commit in places)
    encoder = "fine-tuned" if config.finetune else "frozen"
    return (
        f"{run.name}: {config.strategy} on {config.dataset}, {config.architecture}, encoder {encoder}, "
        f"seed {config.seed}; {made}"
    )


def text(paths: Sequence[Path]) -> str:
    """Every run as a Markdown table, which also reads well on a terminal."""
    blocks = []
    for run in load_all(paths):
        cells = [HEADER, *rows(run)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
        blocks.append("\n".join([title(run), "", *lines, ""]))
    return "\n".join(blocks)
