"""Charts as SVG text: colours and fonts are the style sheet's, so that they follow light, dark and paper."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

SERIES = 8
"""Series of different colours (classes s0 … s7 of the style sheet); more begin anew."""

_LETTER = 7.0  # the width of a letter of 13 px, on average


class Bar(NamedTuple):
    """One row of stacked parts (series, value, what it is), with a label behind."""

    name: str
    parts: tuple[tuple[int, float, str], ...]
    label: str


def lines(curves: Sequence[dict[str, Any]], width: int) -> str:
    """Validation mIoU against the labelled share, with bands where curves have any; `width` in pixels.

    Args:
        curves: `curves.Curve`s as plain data, None for what is not a number.
    """
    height = round(min(380, width * 0.78))
    left, right, top, bottom = 50, width - 14, 12, height - 62
    drawn = [curve for curve in curves if curve["points"]]
    every = [point for curve in drawn for point in curve["points"]]
    shares = [100 * p["share"] for curve in drawn if not curve["supervised"] for p in curve["points"]]
    shares = shares or [0.0, 100.0]
    values = [v for p in every for v in (p["mean"], p["low"], p["high"]) if v is not None] or [0.0, 1.0]
    # A band of few seeds may leave 0..1; mIoU cannot
    ys = ticks(max(0.0, min(values)), min(1.0, max(values)), 5)
    xs = ticks(min(shares), max(shares), 6 if width > 500 else 4)

    def x(share: float) -> float:
        return left + (share - xs[0]) / (xs[-1] - xs[0]) * (right - left)

    def y(value: float) -> float:
        return bottom - (min(max(value, ys[0]), ys[-1]) - ys[0]) / (ys[-1] - ys[0]) * (bottom - top)

    parts = [
        f'<path class="grid" d="M{left} {y(v):.1f}H{right}"/>'
        f'<text class="y" x="{left - 8}" y="{y(v) + 4:.1f}">{v:.{_digits(ys)}f}</text>'
        for v in ys
    ]
    pools = {round(p["labelled"] / p["share"]) for p in every if p["share"]}
    for value in xs:
        parts.append(f'<text class="x" x="{x(value):.1f}" y="{bottom + 18}">{value:.{_digits(xs)}f}%</text>')
        if len(pools) == 1:
            patches = f"{value / 100 * next(iter(pools)):.0f}"
            parts.append(f'<text class="x soft" x="{x(value):.1f}" y="{bottom + 34}">{patches}</text>')
    unit = "labelled, % of the pool and patches" if len(pools) == 1 else "labelled patches, % of the pool"
    parts.append(f'<text class="x" x="{(left + right) / 2}" y="{height - 8}">{unit}</text>')
    for number, curve in enumerate(curves):
        parts.append(_curve(curve, number % SERIES, x, y, (left, right)))
    told = "; ".join(
        f"{curve['label']}: " + ", ".join(_figure(point["mean"]) for point in curve["points"])
        for curve in curves
    )
    return _svg(width, height, f"Validation mIoU by labelled share. {told}", parts)


def _curve(curve: dict[str, Any], series: int, x: Any, y: Any, ends: tuple[int, int]) -> str:
    points = curve["points"]
    if curve["supervised"]:
        last = points[-1]
        if last["mean"] is None:
            return ""
        places = [(float(ends[0]), last), (float(ends[1]), last)]
    else:
        places = [(x(100 * point["share"]), point) for point in points]
    parts = []
    for run in _unbroken(places, "low"):
        upper = " ".join(f"{at:.1f},{y(point['high']):.1f}" for at, point in run)
        lower = " ".join(f"{at:.1f},{y(point['low']):.1f}" for at, point in reversed(run))
        parts.append(f'<polygon class="band s{series}" points="{upper} {lower}"/>')
    for run in _unbroken(places, "mean"):
        line = " ".join(f"{at:.1f},{y(point['mean']):.1f}" for at, point in run)
        parts.append(f'<polyline class="line s{series}" points="{line}"/>')
        if not curve["supervised"]:
            parts += [
                f'<circle class="mark s{series}" cx="{at:.1f}" cy="{y(point["mean"]):.1f}" r="4">'
                f"<title>{escape(_told(curve, point))}</title></circle>"
                for at, point in run
            ]
    return "".join(parts)


def _unbroken(places: list[tuple[float, Any]], key: str) -> list[list[tuple[float, Any]]]:
    """The stretches in which `key` is a number."""
    runs: list[list[tuple[float, Any]]] = [[]]
    for place in places:
        if place[1][key] is None:
            runs.append([])
        else:
            runs[-1].append(place)
    return [run for run in runs if run]


def _told(curve: dict[str, Any], point: dict[str, Any]) -> str:
    band = "" if point["low"] is None else f" ({point['low']:.4f} to {point['high']:.4f})"
    return (
        f"{curve['label']}, step {point['step']}: {_figure(point['mean'])}{band} "
        f"with {point['labelled']:.0f} patches, {point['share']:.2%}"
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def bars(rows: Sequence[Bar], width: int, what: str) -> str:
    """Stacked horizontal bars; `what` says what the chart shows."""
    left = 12 + round(_LETTER * max(len(row.name) for row in rows))
    right = width - 12 - round(_LETTER * max(len(row.label) for row in rows))
    most = max(sum(value for _, value, _ in row.parts) for row in rows) or 1.0
    height = 26 * len(rows) + 8
    parts = []
    for number, row in enumerate(rows):
        top, at = 4 + 26 * number, float(left)
        parts.append(f'<text x="0" y="{top + 15}">{escape(row.name)}</text>')
        for series, value, told in row.parts:
            length = value / most * (right - left)
            parts.append(
                f'<rect class="part s{series % SERIES}" x="{at:.1f}" y="{top}" width="{length:.1f}" '
                f'height="20"><title>{escape(told)}</title></rect>'
            )
            at += length
        parts.append(f'<text class="soft" x="{at + 8:.1f}" y="{top + 15}">{escape(row.label)}</text>')
    told = "; ".join(f"{row.name}: {', '.join(told for _, _, told in row.parts)}" for row in rows)
    return _svg(width, height, f"{what}. {told}", parts)


def swatch(series: int) -> str:
    """The sign of a series, for a legend."""
    return (
        '<svg class="swatch" width="28" height="14" viewBox="0 0 28 14" aria-hidden="true">'
        f'<path class="line s{series % SERIES}" d="M0 7H28"/></svg>'
    )


def box(color: str) -> str:
    """A square of one colour, #rrggbb or a class of the style sheet, for a legend."""
    paint = f'fill="{escape(color)}"' if color.startswith("#") else f'class="{escape(color)}"'
    return (
        '<svg class="swatch" width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">'
        f'<rect {paint} width="14" height="14" rx="2"/></svg>'
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers, evenly spread, that enclose low … high."""
    span = high - low
    if span <= 1e-9 * abs(high):  # equal, but for rounding
        span = max(abs(high), 1.0) * 0.1
    magnitude = 10 ** math.floor(math.log10(span / count))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _digits(values: Sequence[float]) -> int:
    return max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))


def _svg(width: int, height: int, told: str, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" aria-label="{escape(told)}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{"".join(parts)}</svg>'
    )
