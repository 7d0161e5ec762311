"""Sentences: who wins, what cannot be concluded and why, and what a reader must know of the runs."""

import math
from collections.abc import Iterator

from meal_gpu.compare.comparison import ALPHA, Comparison, Pair, supervised_score
from meal_gpu.compare.runs import Gathered, network, trained_apart


def winner(comparison: Comparison) -> str | None:
    """The strategy that is better than every other, each by a corrected test; None: none is shown to be."""
    others = len(comparison.summaries) - 1
    for summary in comparison.summaries:
        if others and sum(pair.better == summary.label for pair in comparison.pairs) == others:
            return summary.label
    return None


def verdict(comparison: Comparison) -> str:
    """What the tests allow to say, in plain text, and of which steps where some were cut."""
    if comparison.pairs and comparison.cut:
        return f"On {comparison.cut}: {_verdict(comparison)}"
    return _verdict(comparison)


def _verdict(comparison: Comparison) -> str:
    pairs = comparison.pairs
    if not pairs:
        return "Nothing can be concluded: there is one strategy, and none to compare it with."
    if not comparison.started:
        return (
            f"Nothing can be concluded: the strategies have {comparison.low:.2%} of the pool labelled in "
            "common and nothing more, and there one of them at least has queried no patch yet."
        )
    if all(pair.test is None for pair in pairs):
        return (
            "Nothing can be concluded: no two strategies share two seeds, so their spread is unknown. "
            "Run each strategy with the same 3 to 5 seeds."
        )
    name = winner(comparison)
    if name is not None:
        seeds = min(len(pair.seeds) for pair in pairs if name in (pair.first, pair.second))
        return (
            f"{name} wins: its area under the budget curve is above every other, each with a corrected p "
            f"below {ALPHA} and a {comparison.confidence} interval of the difference without zero "
            f"({seeds} shared seeds)."
        )
    shown = [_shown(pair) for pair in pairs if pair.better]
    found = f" Shown: {'; '.join(shown)}." if shown else ""
    if comparison.baseline is not None:
        open_ = [_open(pair, pair.first, comparison) for pair in pairs if not pair.better]
        left = f" Not shown: {'; '.join(open_)}." if open_ else ""
        return f"Against the baseline {comparison.baseline}:{found}{left}"
    known = [summary for summary in comparison.summaries if not math.isnan(summary.area.mean)]
    if not known:
        return "Nothing can be concluded: an mIoU of every strategy is NaN."
    leader = max(known, key=lambda summary: summary.area.mean).label
    why = [
        _open(pair, pair.second if pair.first == leader else pair.first, comparison)
        for pair in pairs
        if leader in (pair.first, pair.second) and pair.better != leader
    ]
    return f"No winner can be named: {leader} has the highest mean area, but {'; '.join(why)}.{found}"


def _shown(pair: Pair) -> str:
    worse = pair.second if pair.better == pair.first else pair.first
    return f"{pair.better} is above {worse} (corrected p {pair.corrected:.2g})"


def _open(pair: Pair, other: str, comparison: Comparison) -> str:
    """Why a pair decides nothing, about `other`; the difference is from the leader, or to the baseline."""
    if pair.test is None or pair.reason:
        return f"{other}: {pair.reason}"
    low, high = pair.test.low, pair.test.high
    if low <= 0 <= high:
        if other == pair.first and comparison.baseline is None:
            low, high = -high, -low
        return (
            f"{other}: the {comparison.confidence} interval of the difference, {low:.4f} to {high:.4f}, "
            "includes zero"
        )
    if pair.better:
        return f"{other}: it is the better one on the seeds that both have"
    return f"{other}: the corrected p, {pair.corrected:.2g}, is not below {ALPHA}"


def environment(gathered: Gathered) -> str:
    """Devices and commits of the runs; times are compared nowhere."""
    devices = sorted({device for curve in gathered.curves for device in curve.devices})
    commits = sorted({commit for curve in gathered.curves for commit in curve.commits})
    said = f"Environment: {'; '.join(devices)}; commit {', '.join(commits)}."
    differing = " and ".join(
        name for name, found in (("devices", devices), ("commits", commits)) if len(found) > 1
    )
    return f"{said} The {differing} differ: timings are not compared." if differing else said


def notes(comparison: Comparison) -> Iterator[str]:
    """What was left out, cut or assumed, one sentence each."""
    gathered = comparison.gathered
    groups = gathered.groups
    yield from gathered.notes
    if few := [group.label for group in groups if len(group.seeds) == 1]:
        yield f"One seed, hence no interval: {'; '.join(few)}."
    if any(len(pair.seeds) == 2 for pair in comparison.pairs):
        yield "Two shared seeds leave one degree of freedom: only a very large difference can be shown."
    if len({group.seeds for group in groups}) > 1:
        each = "; ".join(f"{group.label} {', '.join(map(str, group.seeds))}" for group in groups)
        yield f"The seeds differ ({each}): a pair is tested on the seeds that both have."
    yield from _steps(comparison)
    if unfinished := [
        f"{curve.name} (step {len(curve.labelled) - 1} of {steps})"
        for group in groups
        for curve in group.curves
        if len(curve.labelled) - 1 < (steps := curve.config.number_of_steps(curve.patches, curve.labelled[0]))
        and curve.labelled[-1] < curve.patches
    ]:
        yield f"Not finished, `--resume` goes on with them: {', '.join(unfinished)}."
    for curve in gathered.curves:
        if lost := [str(step) for step, score in enumerate(curve.score) if math.isnan(score)]:
            yield (
                f"The mIoU of {curve.name} is NaN at step {', '.join(lost)} (no class occurred): so is what "
                "is computed from it."
            )
    if any(math.isnan(iou.mean) for summary in comparison.summaries for iou in summary.class_iou):
        yield "A class whose IoU is nan occurs in neither labels nor predictions of a run."
    if gathered.supervised:
        for group in groups:
            reference = gathered.reference(group)
            if reference is None:
                yield (
                    f"No supervised run fits {group.label} (architecture, encoder weights, fine-tuning: "
                    f"{', '.join(map(str, network(group)))})."
                )
            elif supervised_score(gathered, group) is None:
                yield f"The supervised mIoU for {group.label} is not above 0: it is no reference."
            elif apart := trained_apart(group, reference):
                yield f"The supervised run for {group.label} has another {', another '.join(apart)}."


def _steps(comparison: Comparison) -> Iterator[str]:
    lengths = {len(curve.labelled) for group in comparison.gathered.groups for curve in group.curves}
    summaries = comparison.summaries
    if not comparison.aligned:
        yield (
            "The strategies do not label equally many patches per step: areas and last values are taken "
            f"between {comparison.low:.2%} and {comparison.high:.2%} of the pool, linear between steps."
        )
    elif len(lengths) > 1:
        last = len(summaries[0].labelled) - 1
        yield f"The runs have {_list(sorted(lengths))} steps: compared are steps 0 to {last}, which all have."
        if any(
            s.group.curves[0].config.final_epochs not in (0, s.group.curves[0].config.epochs)
            for s in summaries
        ):
            yield f"Step {last} is the last of some runs, trained for their final_epochs, and not of others."


def _list(numbers: list[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}"
