"""A comparison as files: tidy CSV for other programs, LaTeX for a paper."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence

from meal_gpu.compare.comparison import REACHED, Comparison
from meal_gpu.compare.tables import NO_SUPERVISED, budget, outcome
from meal_gpu.statistics import Interval

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}",  # after a row's end [ would begin a length
}  # fmt: skip


def tidy(comparison: Comparison) -> str:
    """One row per strategy, seed and step, also of those not compared; what is not known is empty."""
    used = {summary.label: len(summary.labelled) for summary in comparison.summaries}
    gathered = comparison.gathered
    rows = [
        (
            group.label, group.strategy, curve.config.seed, step, labelled, curve.patches,
            _number(curve.share[step]), _number(curve.score[step]), _number(curve.last_epoch[step]),
            int(step < used.get(group.label, 0)), curve.name,
            *(_number(iou) for iou in curve.class_iou[step]),
        )
        for group in (*gathered.groups, *gathered.supervised)
        for curve in group.curves
        for step, labelled in enumerate(curve.labelled)
    ]  # fmt: skip
    header = (
        "label",
        "strategy",
        "seed",
        "step",
        "labelled",
        "patches",
        "share",
        "mean_iou",
        "last_epoch_mean_iou",
        "compared",
        "run",
    )
    return _csv((*header, *(f"iou {name}" for name in gathered.curves[0].classes)), rows)


def pairs(comparison: Comparison) -> str:
    """One row per pair that is tested, or that is not and why."""
    rows = []
    for pair in comparison.pairs:
        test = pair.test
        figures = [math.nan] * 4 if test is None else [test.difference, test.low, test.high, test.p]
        seeds = " ".join(map(str, pair.seeds))
        cells = ["" if math.isnan(x) else f"{x:.10g}" for x in (*figures, pair.corrected)]
        rows.append((pair.first, pair.second, len(pair.seeds), seeds, *cells, outcome(pair)))
    header = ("first", "second", "n", "seeds", "difference", "low", "high", "p", "p_holm", "outcome")
    return _csv(header, rows)


def _number(figure: float) -> str:
    return "" if math.isnan(figure) else repr(float(figure))


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def latex(comparison: Comparison) -> str:
    """The table of strategies for the package booktabs; ± is half of the interval."""
    rows = [
        (
            tex(s.label), str(len(s.group.seeds)), _plus_minus(s.area), _plus_minus(s.final),
            NO_SUPERVISED if s.relative is None else tex(f"{s.relative.mean:.1%}"), tex(budget(s)),
        )
        for s in comparison.summaries
    ]  # fmt: skip
    header = (
        "strategy", "seeds", "AUBC", "final mIoU", "of supervised", tex(f"budget for {REACHED:.0%} of it"),
    )  # fmt: skip
    lines = [
        rf"% \usepackage{{booktabs}}; $\pm$: half of Student's {comparison.confidence} interval over seeds",
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def tex(text: str) -> str:
    """Plain text in LaTeX."""
    return re.sub(r"[\\{}$&#%_~^<>|\[]", lambda found: _TEX[found.group()], " ".join(text.split()))


def _plus_minus(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{interval.mean:.4f}"
    return rf"{interval.mean:.4f} $\pm$ {(interval.high - interval.low) / 2:.4f}"
