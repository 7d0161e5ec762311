"""What runs say about strategies: areas under the budget curve, paired tests, and what cannot be said."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from meal_gpu.compare.runs import Gathered, Group
from meal_gpu.errors import ConfigError, RunError
from meal_gpu.statistics import (
    Array,
    Interval,
    Paired,
    area_under_curve,
    at_budget,
    budget_reaching,
    holm,
    mean_interval,
    paired_test,
    penalty_matrix,
    require_level,
)

ALPHA = 0.05
REACHED = 0.95  # of the supervised mIoU


@dataclass(frozen=True, eq=False)
class Summary:
    """A strategy over its seeds; the steps are those that are compared. Areas, mIoU and IoU lie in [0, 1]."""

    group: Group
    labelled: tuple[int, ...]
    share: Array
    score: tuple[Interval, ...]
    areas: Array  # one per seed
    area: Interval  # mean mIoU over the budgets compared (AUBC)
    final: Interval  # mIoU at the largest budget compared
    last_epoch: Interval  # there, where training ended, whatever epoch was kept
    class_iou: tuple[Interval, ...]  # there
    supervised: float | None  # mIoU with all labels
    relative: Interval | None  # final, of the supervised mIoU, which is taken as exact
    budget: float | None  # at which the mean curve reaches REACHED of the supervised mIoU
    reached: int  # seeds whose own curve reaches it

    @property
    def label(self) -> str:
        return self.group.label


@dataclass(frozen=True)
class Pair:
    """Areas of `first` − `second` over shared seeds; `reason` says why no test is sound, where none is."""

    first: str
    second: str
    seeds: tuple[int, ...]
    test: Paired | None
    corrected: float
    reason: str

    @property
    def better(self) -> str | None:
        """The strategy whose area is larger: Holm's p below ALPHA, and an interval without zero."""
        if self.test is None or not self.corrected < ALPHA:
            return None
        return self.first if self.test.low > 0 else self.second if self.test.high < 0 else None


@dataclass(frozen=True, eq=False)
class Penalty:
    """The penalty matrix over the seeds that all strategies share, and `steps` with a query; None, for the
    reason told.
    """

    matrix: Array | None
    seeds: tuple[int, ...]
    steps: int
    reason: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that the tables and plots show, by ascending label."""

    gathered: Gathered
    level: float
    baseline: str | None
    low: float  # the shares labelled between which areas are taken
    high: float
    aligned: bool  # all strategies label equally many patches per step
    cut: str  # what alone is compared, where a strategy has more; else ""
    summaries: tuple[Summary, ...]
    pairs: tuple[Pair, ...]
    penalty: Penalty

    @property
    def started(self) -> bool:
        """Whether more than one budget is common: at the first, one strategy at least has queried nothing."""
        return self.low < self.high

    @property
    def confidence(self) -> str:
        """Of the intervals: 95%."""
        return f"{100 * self.level:.6g}%"


def compare(gathered: Gathered, *, baseline: str | None = None, level: float = 0.95) -> Comparison:
    """Compare strategies over seeds; with a `baseline`, a strategy or label, it alone is tested against.

    Strategies are compared on the steps that all have; where they label at another pace, on the budgets that
    all have, linear between steps. Where that is one budget no test is made. Tests are paired t-tests of
    areas per seed (`statistics.paired_test`), corrected after Holm for all pairs tested.

    Raises:
        ConfigError: an unknown or ambiguous baseline.
        RunError: no budget that all strategies have.
        InputError: a level outside (0, 1).
    """
    require_level(level)
    groups = gathered.groups
    against = None if baseline is None else _baseline(groups, baseline)
    steps = min(group.steps for group in groups)
    aligned = len({group.curves[0].labelled[:steps] for group in groups}) == 1
    used = [steps if aligned else group.steps for group in groups]
    shares = [group.curves[0].share[:k] for group, k in zip(groups, used, strict=True)]
    low, high = max(x[0] for x in shares), min(x[-1] for x in shares)
    if low > high:
        late, early = (
            groups[i].label for i in (np.argmax([x[0] for x in shares]), np.argmin([x[-1] for x in shares]))
        )
        raise RunError(
            f"{early} ends with {high:.2%} of the pool labelled and {late} begins with {low:.2%}: "
            "no budget is common to all"
        )
    summaries = tuple(
        _summary(gathered, group, k, (low, high), level) for group, k in zip(groups, used, strict=True)
    )
    why = "" if low < high else f"only {low:.2%} of the pool labelled is common to all"
    return Comparison(
        gathered=gathered, level=level, baseline=against, low=float(low), high=float(high), aligned=aligned,
        cut=_cut(groups, steps if aligned else 0, (low, high)),
        summaries=summaries, pairs=_pairs(summaries, against, level, why),
        penalty=_penalty(groups, steps if aligned else 0, why),
    )  # fmt: skip


def _cut(groups: Sequence[Group], steps: int, budgets: tuple[float, float]) -> str:
    low, high = budgets
    if steps:
        shortest = [group.label for group in groups if group.steps == steps]
        last = f"step{'s 0 to' * (steps > 1)} {steps - 1}"
        return "" if len(shortest) == len(groups) else f"{last} alone, all there is of {', '.join(shortest)}"
    ends = {(group.curves[0].share[0], group.curves[0].share[-1]) for group in groups}
    return "" if ends == {budgets} else f"{low:.2%} to {high:.2%} of the pool labelled, which all have"


def _baseline(groups: Sequence[Group], name: str) -> str:
    if any(group.label == name for group in groups):
        return name
    found = [group.label for group in groups if group.strategy == name]
    if not found:
        known = ", ".join(group.label for group in groups)
        raise ConfigError(f"baseline {name!r} is not among the runs; known: {known}")
    if len(found) > 1:
        raise ConfigError(f"baseline {name!r} could be any of: {'; '.join(found)}: give one of these")
    return found[0]


def _summary(
    gathered: Gathered, group: Group, steps: int, budgets: tuple[float, float], level: float
) -> Summary:
    low, high = budgets
    first = group.curves[0]
    share, scores = first.share[:steps], group.scores(steps)
    classes = np.stack([curve.class_iou[:steps].T for curve in group.curves])  # [n, C, K]
    final = mean_interval(at_budget(share, scores, [high])[:, 0], level)
    ended = np.stack([curve.last_epoch[:steps] for curve in group.curves])
    areas = area_under_curve(share, scores, low, high)
    target = supervised_score(gathered, group)
    budget, reached, relative = None, 0, None
    if target is not None:
        relative = final.scaled(1 / target)
        budget = budget_reaching(share, scores.mean(axis=0), REACHED * target)
        reached = sum(budget_reaching(share, row, REACHED * target) is not None for row in scores)
    return Summary(
        group=group, labelled=first.labelled[:steps], share=share,
        score=tuple(mean_interval(column, level) for column in scores.T),
        areas=areas, area=mean_interval(areas, level), final=final,
        last_epoch=mean_interval(at_budget(share, ended, [high])[:, 0], level),
        class_iou=tuple(mean_interval(c, level) for c in at_budget(share, classes, [high])[..., 0].T),
        supervised=target, relative=relative, budget=budget, reached=reached,
    )  # fmt: skip


def supervised_score(gathered: Gathered, group: Group) -> float | None:
    """Mean mIoU of the supervised runs of the group's network; None without one, or if it is not above 0."""
    reference = gathered.reference(group)
    if reference is None:
        return None
    score = float(np.mean([curve.score[-1] for curve in reference.curves]))
    return score if score > 0 else None


def _pairs(summaries: Sequence[Summary], baseline: str | None, level: float, why: str) -> tuple[Pair, ...]:
    """`why`: no pair can be tested; "" where it can."""
    if baseline is None:
        chosen = list(combinations(summaries, 2))
    else:
        base = next(s for s in summaries if s.label == baseline)
        chosen = [(other, base) for other in summaries if other is not base]
    found = [_test(first, second, level, why) for first, second in chosen]
    corrected = iter(holm([pair.test.p for pair in found if pair.test and not pair.reason]))
    return tuple(
        pair if pair.test is None or pair.reason
        else Pair(pair.first, pair.second, pair.seeds, pair.test, float(next(corrected)), pair.reason)
        for pair in found
    )  # fmt: skip


def _test(first: Summary, second: Summary, level: float, why: str) -> Pair:
    seeds = tuple(sorted(set(first.group.seeds) & set(second.group.seeds)))
    a, b = (_of_seeds(summary, seeds) for summary in (first, second))
    test, reason = None, ""
    if why:
        reason = f"no test: {why}"
    elif len(seeds) < 2:
        reason = f"no test: {len(seeds) or 'no'} shared seed"
    else:
        test = paired_test(a, b, level)
        if math.isnan(test.difference):
            reason = "no test: an mIoU is NaN"
        elif math.isnan(test.p):
            reason = "no test: the difference is the same for every seed"
    return Pair(first.label, second.label, seeds, test, math.nan, reason)


def _of_seeds(summary: Summary, seeds: Sequence[int]) -> Array:
    return summary.areas[np.isin(summary.group.seeds, seeds)]


def _penalty(groups: Sequence[Group], steps: int, why: str) -> Penalty:
    seeds = tuple(sorted(set.intersection(*(set(group.seeds) for group in groups))))
    reason = (
        "one strategy" if len(groups) < 2
        else "the strategies label at another pace" if not steps
        else why if why
        else f"{len(seeds) or 'no'} seed shared by all strategies" if len(seeds) < 2
        else ""
    )  # fmt: skip
    if reason:
        return Penalty(None, seeds, steps, reason)
    scores = np.stack([group.scores(steps)[np.isin(group.seeds, seeds), 1:] for group in groups])
    return Penalty(penalty_matrix(scores, ALPHA), seeds, steps - 1, "")
