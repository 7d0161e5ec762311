"""Learning curves: the mean over seeds, with the band of its interval."""

import io

import numpy as np

from meal_gpu.compare.comparison import Comparison


def curves(comparison: Comparison) -> bytes:
    """The figure as SVG; equal runs give equal bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(
        # names are no formulas, whatever dollars are in them
        {"svg.hashsalt": "meal-gpu", "svg.fonttype": "none", "font.size": 10, "text.parse_math": False}
    ):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        lines, names = [], []
        for summary in comparison.summaries:
            share = 100 * summary.share
            mean, low, high = np.array([(s.mean, s.low, s.high) for s in summary.score]).T
            lines += axes.plot(share, mean, marker="o", markersize=4)
            axes.fill_between(share, low, high, color=lines[-1].get_color(), alpha=0.15, linewidth=0)
            names.append(f"{summary.label}, n = {len(summary.group.seeds)}")
        for score in sorted({s.supervised for s in comparison.summaries if s.supervised is not None}):
            lines.append(axes.axhline(score, color="0.5", linestyle="--"))
            names.append("supervised, all labels")
        axes.set_xlabel("labelled patches, % of the pool")
        axes.set_ylabel(f"validation mIoU, mean and {comparison.confidence} interval")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        # Given as lists: a label of its own would be left out where it begins with an underscore
        axes.legend(lines, names, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
