"""Rows as people read them: tables, growth, and whether two files of rows agree."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.table import Table

Rows = list[dict[str, Any]]
Key = tuple[str, str, str]


def key(row: dict[str, Any]) -> Key:
    """What tells a row from the others of a file: case, sizes, contender."""
    return row["case"], sizes(row), row["contender"]


def sizes(row: dict[str, Any]) -> str:
    """Such as "images 4, height 512, dtype bfloat16"."""
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
        for name, value in row["sizes"].items()
    )


def grouped(rows: Rows, by: Callable[[dict[str, Any]], Any]) -> Iterator[tuple[Any, Rows]]:
    """Neighbouring rows of which `by` gives the same."""
    for value, group in groupby(rows, by):
        yield value, list(group)


def seconds(value: float) -> str:
    """Three figures, in s, ms or µs."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1 or unit == "µs":
            return f"{figures(value * scale)} {unit}"
    raise AssertionError


def size_of(value: float) -> str:
    """Three figures, in GiB, MiB or KiB."""
    for unit, scale in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value >= 2**scale or unit == "KiB":
            return f"{figures(value / 2**scale)} {unit}"
    raise AssertionError


def figures(value: float, count: int = 3) -> str:
    """`count` significant figures, without an exponent."""
    if value == 0:
        return "0"
    decimals = max(0, count - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def noted(row: dict[str, Any]) -> str:
    """What a contender's result was worth."""
    known = row["quality"] | {name: value for name, value in row["extra"].items() if name != "stages"}
    return ", ".join(f"{name} {value}" for name, value in known.items())


def table(rows: Rows) -> Table:
    """One case for the terminal; `×` is the time beside ours."""
    shown = Table(title=f"{rows[0]['case']}: {sizes(rows[0])}", title_justify="left", title_style="bold")
    shown.add_column("contender")
    for head in ("median", "p20", "p80", "CPU", "first", "peak", "×", "of limit"):
        shown.add_column(head, justify="right")
    shown.add_column("result")
    for row in rows:
        times = [seconds(row[name]) for name in ("median", "p20", "p80", "cpu", "first")]
        peak = "" if row["peak_bytes"] is None else size_of(row["peak_bytes"])
        share = "" if row["share"] is None else f"{row['share']:.0%} {row['limit']}"
        ratio = f"{row['median'] / rows[0]['median']:.2f}"
        shown.add_row(row["contender"], *times, peak, ratio, share, noted(row))
    return shown


@dataclass(frozen=True)
class Growth:
    """Time and memory of a contender grow with size^exponent at the end of `sizes`; None: too few figures."""

    case: str
    over: str
    sizes: tuple[int, ...]
    medians: tuple[float, ...]
    peaks: tuple[int, ...]
    time: float
    memory: float | None


def growth(rows: Iterable[dict[str, Any]]) -> list[Growth]:
    """Of every case that says along which size it is to be fitted, and was measured at three or more."""
    along: dict[tuple[str, str, str], Rows] = {}
    for row in rows:
        if row["over"]:
            along.setdefault((row["case"], row["contender"], row["over"]), []).append(row)
    found = []
    for (case, _, over), group in along.items():
        lengths = tuple(row["sizes"][over] for row in group)
        if len(set(lengths)) < 3:
            continue
        medians = tuple(row["median"] for row in group)
        peaks = tuple(row["peak_bytes"] for row in group)
        # What is lost in the rounding to pages, or in memory that was there, says nothing
        told = [(n, peak) for n, peak in zip(lengths, peaks, strict=True) if peak >= 1 << 20]
        memory = exponent(*zip(*told, strict=True)) if len(told) > 1 else None
        found.append(Growth(case, over, lengths, medians, peaks, exponent(lengths, medians), memory))
    return found


def exponent(sizes: Iterable[float], values: Iterable[float]) -> float:
    """The slope in the logarithms between the two largest sizes: before, fixed costs rule."""
    (small, first), (large, last) = sorted(zip(sizes, values, strict=True))[-2:]
    return math.log(last / first) / math.log(large / small)


# Two processes on one machine differ by up to this much beyond what either sees of its own spread: their
# memory lies elsewhere, and neighbours come and go
DRIFT = 0.1


@dataclass(frozen=True)
class Difference:
    """One contender in two files. `agree`: the spreads, p20 to p80, come as near to each other as DRIFT."""

    key: Key
    before: float
    after: float
    agree: bool

    @property
    def ratio(self) -> float:
        return self.after / self.before


def compared(before: Rows, after: Rows) -> list[Difference]:
    """Every contender that is in both."""
    known = {key(row): row for row in before}
    found = []
    for row in after:
        if (old := known.get(key(row))) is not None:
            agree = all(a["p20"] <= (1 + DRIFT) * b["p80"] for a, b in ((row, old), (old, row)))
            found.append(Difference(key(row), old["median"], row["median"], agree))
    return found
