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


def coverage(embedding: NDArray[np.float64], chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """[M, d] and [n] rows in order -> [n]: the share of the potential that the first k removed.

    The potential is the sum of squared distances to the nearest chosen; 0 after the first, 1 where
    every point coincides with a chosen one.
    """
    nearest = ((embedding - embedding[chosen[0]]) ** 2).sum(axis=1)
    start = float(nearest.sum())
    shares = []
    for row in chosen:
        nearest = np.minimum(nearest, ((embedding - embedding[row]) ** 2).sum(axis=1))
        shares.append(1 - float(nearest.sum()) / start if start else 1.0)
    return np.array(shares)
