"""Learning curves: validation mIoU against the share of labelled patches."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meal_gpu.config import SUPERVISED
from meal_gpu.errors import InputError, RunError
from meal_gpu.report.table import Run, load

# No date in the file: equal runs give equal bytes
_METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def plot(paths: Sequence[Path], out: Path) -> None:
    """Write the curves of some runs; the suffix of `out` (.svg, .png, .pdf) says how.

    Raises:
        InputError: another suffix.
        RunError: a folder without a complete step, or a file that cannot be written.
    """
    form = out.suffix.lstrip(".")
    if form not in _METADATA:
        raise InputError(f"{out}: a plot ends in .svg, .png or .pdf")
    figure = curves([load(path) for path in paths], form)
    try:
        out.write_bytes(figure)
    except OSError as error:
        raise RunError(f"{out}: the plot cannot be written: {error.strerror}") from error


def curves(runs: Sequence[Run], form: str = "svg") -> bytes:
    """The figure as a file of the format `form`; equal runs give equal bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(
        # names are no formulas, whatever dollars are in them
        {"svg.hashsalt": "meal-gpu", "svg.fonttype": "none", "font.size": 10, "text.parse_math": False}
    ):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        lines, names = [], []
        for run in runs:
            share = [100 * step["share"] for step in run.steps]
            score = [step["mean_iou"] for step in run.steps]
            if run.config.strategy == SUPERVISED:
                lines.append(axes.axhline(score[-1], color="0.5", linestyle="--"))
                names.append("supervised, all labels")
            else:
                lines += axes.plot(share, score, marker="o", markersize=4)
                names.append(_label(run, runs))
        axes.set_xlabel("labelled patches, % of the pool")
        axes.set_ylabel("validation mIoU")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        # Given as lists: a label of its own would be left out where it begins with an underscore
        axes.legend(lines, names, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=150, metadata=_METADATA[form])
    return buffer.getvalue()


def _label(run: Run, runs: Sequence[Run]) -> str:
    """The strategy alone where that tells the runs apart, the folder's name elsewhere."""
    unique = len({other.config.strategy for other in runs}) == len(runs)
    return run.config.strategy if unique else run.name
