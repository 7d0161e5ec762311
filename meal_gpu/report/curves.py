"""Learning curves as numbers: one per run, or the mean of the runs that differ in their seed alone."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from meal_gpu.config import PLACES, SUPERVISED
from meal_gpu.report.table import Run

LEVEL = 0.95
# Where a run was computed, not what: it keeps no two runs apart
_PLACE = ("seed", "device", "ops", *PLACES)


@dataclass(frozen=True)
class Point:
    """Validation mIoU with `labelled` patches of a pool, a `share` in 0..1 of it; means over the seeds.

    `low` and `high` bound the mean at confidence `LEVEL`; they are NaN for a single seed.
    """

    step: int
    labelled: float
    share: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """`points` by step; `runs` are the names of the folders, a seed each."""

    name: str
    supervised: bool
    runs: tuple[str, ...]
    points: tuple[Point, ...]

    @property
    def label(self) -> str:
        """The name, and of how many seeds it is the mean."""
        return f"{self.name}, mean of {len(self.runs)} seeds" if len(self.runs) > 1 else self.name


def gather(runs: Sequence[Run]) -> list[Curve]:
    """The curves of some runs, in the order of their first runs.

    Runs are averaged where their seeds are all there is between them; the mean ends with the shortest one.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = dataclasses.asdict(run.config)
        groups.setdefault(repr([settings[key] for key in settings if key not in _PLACE]), []).append(run)
    parts: list[list[Run]] = []
    for group in groups.values():
        repeated = len({run.config.seed for run in group}) == len(group)
        parts += [group] if repeated else [[run] for run in group]
    strategies = [part[0].config.strategy for part in parts]
    return [_curve(part, strategies.count(part[0].config.strategy) == 1) for part in parts]


def _curve(runs: list[Run], unique: bool) -> Curve:
    """`unique`: the strategy alone tells it from the other curves."""
    names, strategy = tuple(run.name for run in runs), runs[0].config.strategy
    supervised = strategy == SUPERVISED
    if supervised and unique:
        name = "supervised, all labels"
    elif unique:
        name = strategy
    else:
        name = names[0] if len(names) == 1 else f"{strategy} ({', '.join(names)})"
    rows = zip(*(run.steps for run in runs), strict=False)
    return Curve(name, supervised, names, tuple(_point(row) for row in rows))


def _point(row: Sequence[dict[str, float]]) -> Point:
    from meal_gpu.statistics import mean_interval

    scores = [step["mean_iou"] for step in row]
    low = high = math.nan
    mean = scores[0]
    if len(scores) > 1:
        interval = mean_interval(scores, LEVEL)
        mean, low, high = interval.mean, interval.low, interval.high
    labelled, share = (math.fsum(step[key] for step in row) / len(row) for key in ("labelled", "share"))
    return Point(int(row[0]["step"]), labelled, share, mean, low, high)
