"""Learning curves: the mean over seeds, with the band of its interval."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from meal_gpu.compare.comparison import Comparison
from meal_gpu.report.plot import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


def curves(comparison: Comparison) -> bytes:
    """The figure as SVG; equal runs give equal bytes."""

    def draw(axes: "Axes") -> Iterator[tuple["Line2D", str]]:
        for summary in comparison.summaries:
            share = 100 * summary.share
            mean, low, high = np.array([(s.mean, s.low, s.high) for s in summary.score]).T
            (line,) = axes.plot(share, mean, marker="o", markersize=4)
            axes.fill_between(share, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
            yield line, f"{summary.label}, n = {len(summary.group.seeds)}"
        for score in sorted({s.supervised for s in comparison.summaries if s.supervised is not None}):
            yield axes.axhline(score, color="0.5", linestyle="--"), "supervised, all labels"

    return figure(draw, f"validation mIoU, mean and {comparison.confidence} interval")
