"""Learning curves as a picture: validation mIoU against the share of labelled patches."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meal_gpu.errors import InputError, RunError
from meal_gpu.report.curves import gather
from meal_gpu.report.table import Run, load_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# No date in the file: equal runs give equal bytes
_METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def plot(paths: Sequence[Path], out: Path) -> None:
    """Write the curves of some runs; the suffix of `out` (.svg, .png, .pdf) says how.

    Raises:
        InputError: another suffix.
        RunError: a folder without a complete step, or a file that cannot be written.
    """
    form = plot_format(out)
    picture = curves(load_all(paths), form)
    try:
        out.write_bytes(picture)
    except OSError as error:
        raise RunError(f"{out}: the plot cannot be written: {error.strerror}") from error


def plot_format(out: Path) -> str:
    """svg, png or pdf, by the suffix of `out`. Raises InputError for another one."""
    form = out.suffix.lstrip(".")
    if form not in _METADATA:
        raise InputError(f"{out}: a plot ends in .svg, .png or .pdf")
    return form


def curves(runs: Sequence[Run], form: str = "svg") -> bytes:
    """The figure as a file of the format `form`; equal runs give equal bytes."""

    def draw(axes: "Axes") -> Iterator[tuple["Line2D", str]]:
        for curve in gather(runs):
            share = [100 * point.share for point in curve.points]
            score = [point.mean for point in curve.points]
            low, high = [point.low for point in curve.points], [point.high for point in curve.points]
            if curve.supervised:
                line = axes.axhline(score[-1], color="0.5", linestyle="--")
                if len(curve.runs) > 1:
                    axes.axhspan(low[-1], high[-1], color="0.5", alpha=0.15, linewidth=0)
            else:
                (line,) = axes.plot(share, score, marker="o", markersize=4)
                if len(curve.runs) > 1:
                    axes.fill_between(share, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
            yield line, curve.label

    return figure(draw, "validation mIoU", form)


def figure(draw: Callable[["Axes"], Iterable[tuple["Line2D", str]]], score: str, form: str = "svg") -> bytes:
    """Learning curves over the labelled share, as a file of the format `form`; equal ones give equal bytes.

    Args:
        draw: puts the curves into the axes and gives each line with its name, as it is written.
        score: what they show.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(
        # names are no formulas, whatever dollars are in them
        {"svg.hashsalt": "meal-gpu", "svg.fonttype": "none", "font.size": 10, "text.parse_math": False}
    ):
        picture = Figure(figsize=(7, 4.2), layout="constrained")
        axes = picture.subplots()
        lines, names = [], []
        for line, name in draw(axes):
            lines.append(line)
            names.append(name)
        axes.set_xlabel("labelled patches, % of the pool")
        axes.set_ylabel(score)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        # Given as lists: a label of its own would be left out where it begins with an underscore
        axes.legend(lines, names, frameon=False)
        buffer = io.BytesIO()
        picture.savefig(buffer, format=form, dpi=150, metadata=_METADATA[form])
    return buffer.getvalue()
