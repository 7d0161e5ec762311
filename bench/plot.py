"""Rows as a picture: a panel for each case, ours on top; and what grows, against its size."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from bench import results
from bench.results import Growth, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, PEER, INK = "#0072b2", "#b8bec6", "#22252a"
PANELS = 3  # in a row
LABEL = 26  # letters in a line of a contender's name


def draw(rows: Rows, path: Path) -> None:
    """Write .svg or .png; the same rows give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    measured = [row for row in rows if not row["over"]]
    cases = [group for _, group in results.grouped(measured, lambda row: results.key(row)[:2])]
    curves = results.growth(rows)
    if not cases and not curves:
        return
    across = min(PANELS, len(cases) + len(curves))
    down = -(-(len(cases) + len(curves)) // across)
    with mpl.rc_context({"svg.hashsalt": "meal-gpu", "font.size": 7, "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.6 * across, 2.1 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).flatten()
        for axes, group in zip(panels, cases, strict=False):
            _bars(axes, group)
        for axes, growth in zip(panels[len(cases) :], curves, strict=False):
            _curve(axes, growth)
        for axes in panels[len(cases) + len(curves) :]:
            axes.set_axis_off()
        figure.suptitle(f"{rows[0]['device']} · commit {rows[0]['commit']}", fontsize=8, color=INK)
        plain = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, metadata=plain, dpi=150)


def _bars(axes: "Axes", group: Rows) -> None:
    names = [textwrap.fill(row["contender"], LABEL) for row in group]
    medians = [1e3 * row["median"] for row in group]
    spread = [
        [1e3 * max(0.0, row["median"] - row["p20"]) for row in group],
        [1e3 * max(0.0, row["p80"] - row["median"]) for row in group],
    ]
    colours = [OURS if name.startswith("ours") else PEER for name in names]
    axes.barh(range(len(names)), medians, xerr=spread, color=colours, ecolor=INK, error_kw={"linewidth": 0.8})
    for place, row in enumerate(group):
        axes.annotate(
            f" {results.seconds(row['median'])}",
            (1e3 * row["p80"], place),
            va="center",
            color=INK,
            fontsize=6,
        )
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_title(f"{group[0]['case']}: {results.sizes(group[0])}", fontsize=6.5, loc="left", color=INK)
    axes.set_xlabel("ms", fontsize=6)
    axes.spines[["top", "right"]].set_visible(False)


def _curve(axes: "Axes", growth: Growth) -> None:
    axes.loglog(growth.sizes, [1e3 * median for median in growth.medians], "o-", color=OURS, markersize=3)
    axes.set_title(
        f"{growth.case}: time grows with {growth.over}^{growth.time:.2f}", fontsize=6.5, loc="left", color=INK
    )
    axes.set_xlabel(growth.over, fontsize=6)
    axes.set_ylabel("ms", fontsize=6)
    axes.spines[["top", "right"]].set_visible(False)
