"""Learning curves: validation mIoU against the share of labelled patches."""

import io
from collections.abc import Sequence
from pathlib import Path

from meal_gpu.config import SUPERVISED
from meal_gpu.report.table import Run, load


def plot(paths: Sequence[Path], out: Path) -> None:
    """Write the curves of some runs; the suffix of `out` (.svg, .png, .pdf) says how."""
    out.write_bytes(curves([load(path) for path in paths], out.suffix.lstrip(".")))


def curves(runs: Sequence[Run], form: str = "svg") -> bytes:
    """The figure as a file of the format `form`; equal runs give equal bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "meal-gpu", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        for run in runs:
            share = [100 * step["share"] for step in run.steps]
            score = [step["mean_iou"] for step in run.steps]
            if run.config.strategy == SUPERVISED:
                axes.axhline(score[-1], color="0.5", linestyle="--", label="supervised, all labels")
            else:
                axes.plot(share, score, marker="o", markersize=4, label=_label(run, runs))
        axes.set_xlabel("labelled patches, % of the pool")
        axes.set_ylabel("validation mIoU")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        buffer = io.BytesIO()
        # No date in the file: equal runs give equal bytes
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(buffer, format=form, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _label(run: Run, runs: Sequence[Run]) -> str:
    """The strategy alone where that tells the runs apart, the folder's name elsewhere."""
    unique = len({other.config.strategy for other in runs}) == len(runs)
    return run.config.strategy if unique else run.name
