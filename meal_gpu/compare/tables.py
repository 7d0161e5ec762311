"""A comparison as Markdown that also reads well on a terminal. Every name is escaped."""

import math
import re
from collections.abc import Sequence

import numpy as np

from meal_gpu.compare.comparison import ALPHA, REACHED, Comparison, Pair, Summary
from meal_gpu.compare.verdict import environment, notes, verdict
from meal_gpu.statistics import Interval

NO_SUPERVISED = "no supervised run"
SELECTED = (
    'Every mIoU is of the epoch that is best on the images it is measured on, and higher for that; "by the '
    'last epoch" is the final mIoU without.'
)


def markdown(comparison: Comparison) -> str:
    """The whole comparison: verdict, notes and tables."""
    sections = [
        f"# Comparison of strategies\n\n{escape(_what(comparison))}",
        escape(environment(comparison.gathered)),
        f"**Verdict.** {escape(verdict(comparison))}",
        "\n".join(f"- {escape(note)}" for note in notes(comparison)),
        _summaries(comparison),
        _steps(comparison),
        _pairs(comparison),
        _penalty(comparison),
        _classes(comparison),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def escape(text: str) -> str:
    """Plain text in Markdown: nothing in a name is taken for a mark, a cell's border, HTML or a formula."""
    text = " ".join(text.split())
    text = re.sub(r"[\\`*\[\]<>|~$&]", r"\\\g<0>", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # inside a word it is no mark


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells, already escaped; the first column to the left, the others to the right."""
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        first, *others = zip(row, widths, strict=True)
        lines.append("| " + " | ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)]) + " |")
    rule = "|:" + "-" * (widths[0] + 1) + "|" + "|".join("-" * (w + 1) + ":" for w in widths[1:]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def with_bounds(interval: Interval, digits: int = 4) -> str:
    """0.4169 [0.4100, 0.4238]; the mean alone where there is no interval."""
    if math.isnan(interval.low):
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def relative(summary: Summary) -> str:
    """Final mIoU as a share of the supervised one."""
    return NO_SUPERVISED if summary.relative is None else f"{summary.relative.mean:.1%}"


def budget(summary: Summary) -> str:
    """Share labelled at which REACHED of the supervised mIoU is reached, and by how many seeds."""
    if summary.supervised is None:
        return NO_SUPERVISED
    where = f"not by {summary.share[-1]:.2%}" if summary.budget is None else f"{summary.budget:.2%}"
    return f"{where} ({summary.reached} of {len(summary.group.seeds)} seeds)"


def p_value(p: float) -> str:
    """Never 0: a small p is bounded."""
    return "–" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def outcome(pair: Pair) -> str:
    """Who is better, or why that is not said."""
    if pair.reason:
        return pair.reason
    return f"{pair.better} is better" if pair.better else "not shown"


def _what(comparison: Comparison) -> str:
    first = comparison.gathered.curves[0]
    config = first.config
    size = "x".join(map(str, config.size)) if config.size else "the dataset's own"
    groups = (*comparison.gathered.groups, *comparison.gathered.supervised)
    runs = "; ".join(f"{group.label}, seed {', '.join(map(str, group.seeds))}" for group in groups)
    return (
        f"{config.dataset}, size {size}, grid {config.grid[0]}x{config.grid[1]}, {first.patches} patches, "
        f"{len(first.classes)} classes. Runs: {runs}."
    )


def _summaries(comparison: Comparison) -> str:
    level = comparison.confidence
    header = (
        "strategy", "seeds", f"AUBC [{level} interval]", f"final mIoU [{level} interval]", "of supervised",
        f"budget for {REACHED:.0%} of it", "by the last epoch",
    )  # fmt: skip
    rows = [
        (
            escape(s.label), str(len(s.group.seeds)), with_bounds(s.area), with_bounds(s.final), relative(s),
            budget(s), with_bounds(s.last_epoch),
        )
        for s in comparison.summaries
    ]  # fmt: skip
    text = (
        f"AUBC: mean mIoU between {comparison.low:.2%} and {comparison.high:.2%} of the pool labelled. "
        "Intervals: Student's t over seeds."
    )
    if references := {s.supervised for s in comparison.summaries if s.supervised is not None}:
        scores = ", ".join(f"{score:.4f}" for score in sorted(references))
        text += f" Supervised mIoU: {scores}, taken as exact."
    if any(curve.config.keep == "best" for curve in comparison.gathered.curves):
        text += f" {SELECTED}"
    return f"## Strategies\n\n{table(header, rows)}\n\n{text}"


def _steps(comparison: Comparison) -> str:
    summaries = comparison.summaries
    share = {n: s for summary in summaries for n, s in zip(summary.labelled, summary.share, strict=True)}
    score = [dict(zip(summary.labelled, summary.score, strict=True)) for summary in summaries]
    rows = [
        (str(n), f"{share[n]:.2%}", *(with_bounds(curve[n]) if n in curve else "" for curve in score))
        for n in sorted(share)
    ]
    header = ("labelled", "share", *(escape(summary.label) for summary in summaries))
    return f"## mIoU per step [{comparison.confidence} interval]\n\n{table(header, rows)}"


def _pairs(comparison: Comparison) -> str:
    if not comparison.pairs:
        return ""
    rows = [
        (escape(pair.first), escape(pair.second), str(len(pair.seeds)), *cells(pair), escape(outcome(pair)))
        for pair in comparison.pairs
    ]
    difference = f"AUBC, first - second [{comparison.confidence} interval]"
    header = ("first", "second", "seeds", difference, "p", "p (Holm)", "outcome")
    tests = sum(not pair.reason for pair in comparison.pairs)
    text = "Paired t-tests of the AUBC per seed, two-sided; Holm's correction is for"
    method = f"\n\n{text} {tests} test{'s' * (tests != 1)}." if tests else ""
    return f"## Pairs\n\n{table(header, rows)}{method}"


def cells(pair: Pair) -> tuple[str, str, str]:
    """The difference with its bounds, p, and p corrected; dashes where no test is sound."""
    if pair.test is None:
        return "–", "–", "–"
    test = pair.test
    difference = with_bounds(Interval(test.difference, test.low, test.high, test.n))
    return difference, p_value(test.p), p_value(pair.corrected)


def _penalty(comparison: Comparison) -> str:
    penalty = comparison.penalty
    if penalty.matrix is None:
        return f"## Penalty matrix\n\nNone: {escape(penalty.reason)}." if comparison.pairs else ""
    labels = [escape(summary.label) for summary in comparison.summaries]
    rows = [(label, *(f"{x:.2f}" for x in row)) for label, row in zip(labels, penalty.matrix, strict=True)]
    rows.append(("mean of the column", *(f"{x:.2f}" for x in np.mean(penalty.matrix, axis=0))))
    text = (
        f"Share of the {penalty.steps} steps with a query at which the row beats the column: paired t-tests "
        f"at {ALPHA} over {len(penalty.seeds)} seeds, not corrected (Ash et al. 2020). A low mean of the "
        "column ranks high; it proves nothing."
    )
    return f"## Penalty matrix\n\n{table(('', *labels), rows)}\n\n{text}"


def _classes(comparison: Comparison) -> str:
    names = comparison.gathered.curves[0].classes
    rows = [
        (escape(name), *(with_bounds(summary.class_iou[k], 3) for summary in comparison.summaries))
        for k, name in enumerate(names)
    ]
    header = ("class", *(escape(summary.label) for summary in comparison.summaries))
    where = f"at {comparison.high:.2%} of the pool labelled [{comparison.confidence} interval]"
    return f"## IoU per class {where}\n\n{table(header, rows)}"
