"""What a query of k patches would give and cost, for every k: before anything is paid."""

import io

import numpy as np
from numpy.typing import NDArray


def plot(
    clicks: NDArray[np.float64],
    hours: NDArray[np.float64],
    frames: NDArray[np.int64],
    scores: NDArray[np.float64],
    coverage: NDArray[np.float64] | None,
) -> bytes:
    """An SVG of coverage, mean score and estimated cost of the first 1 … n patches; all arrays are [n]."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    patches = np.arange(1, len(clicks) + 1)
    curves = [("score, mean", np.cumsum(scores) / patches), ("clicks", clicks), ("hours", hours),
              ("frames to open", frames)]  # fmt: skip
    if coverage is not None:
        curves.insert(0, ("coverage of the candidates", coverage))
    with rc_context({"svg.hashsalt": "meal-gpu", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(2.6 * len(curves), 2.6), layout="constrained")
        for axes, (name, values) in zip(figure.subplots(1, len(curves)), curves, strict=True):
            axes.plot(patches, values, color="C0")
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("patches")
            axes.grid(alpha=0.3)
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
