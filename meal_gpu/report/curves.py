"""Learning curves as numbers: one per run, or the mean of the runs that differ in their seed alone."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from meal_gpu.report.table import Run, configuration, elsewhere

LEVEL = 0.95


@dataclass(frozen=True)
class Point:
    """Validation mIoU with `labelled` patches of a pool, a `share` in 0..1 of it; means over the seeds.

    `low` and `high` bound the mean at confidence `LEVEL`; they are NaN for a single seed. `seeds` have the
    step: those of runs that ended before are missing in its mean.
    """

    step: int
    seeds: int
    labelled: float
    share: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """`points` by step; `runs` are the names of the folders, a seed each; `notes` are of its mean."""

    name: str
    supervised: bool
    runs: tuple[str, ...]
    points: tuple[Point, ...]
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The name, and of how many seeds it is the mean."""
        if len(self.runs) == 1:
            return self.name
        least = min(point.seeds for point in self.points)
        seeds = f"{least} to {len(self.runs)}" if least < len(self.runs) else str(least)
        return f"{self.name}, mean of {seeds} seeds"


def gather(runs: Sequence[Run]) -> list[Curve]:
    """The curves of some runs, in the order of their first runs.

    Runs are averaged where their seeds are all there is between them, at each step those that have it.
    """
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(configuration(run.config), []).append(run)
    parts: list[list[Run]] = []
    for group in groups.values():
        repeated = len({run.config.seed for run in group}) == len(group)
        parts += [group] if repeated else [[run] for run in group]
    strategies = [part[0].config.strategy for part in parts]
    return [_curve(part, strategies.count(part[0].config.strategy) == 1) for part in parts]


def _curve(runs: list[Run], unique: bool) -> Curve:
    """`unique`: the strategy alone tells it from the other curves."""
    names, strategy = tuple(run.name for run in runs), runs[0].config.strategy
    supervised = runs[0].config.is_supervised
    if supervised and unique:
        name = "supervised, all labels"
    elif unique:
        name = strategy
    elif len(names) == 1:
        name = names[0]
    else:
        folders = {name.rpartition("/")[0] for name in names}  # of a sweep it says enough
        name = f"{strategy} ({min(folders) if len(folders) == 1 and '' not in folders else ', '.join(names)})"
    rows = zip_longest(*(run.steps for run in runs))
    points = tuple(_point([step for step in row if step is not None]) for row in rows)
    notes = elsewhere(name, [run.config for run in runs])
    if fewer := [f"{point.seeds} at step {point.step}" for point in points if point.seeds < len(runs)]:
        notes.append(f"Not all seeds of {name} have every step: the mean is of {', '.join(fewer)}.")
    return Curve(name, supervised, names, points, tuple(notes))


def _point(row: Sequence[dict[str, float]]) -> Point:
    from meal_gpu.statistics import mean_interval

    scores = [step["mean_iou"] for step in row]
    low = high = math.nan
    mean = scores[0]
    if len(scores) > 1:
        interval = mean_interval(scores, LEVEL)
        mean, low, high = interval.mean, interval.low, interval.high
    labelled, share = (math.fsum(step[key] for step in row) / len(row) for key in ("labelled", "share"))
    return Point(int(row[0]["step"]), len(row), labelled, share, mean, low, high)
