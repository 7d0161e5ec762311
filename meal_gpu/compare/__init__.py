"""Strategies compared over seeds, from run folders alone: intervals, paired tests, what they allow to say."""

from pathlib import Path

from meal_gpu import atomic
from meal_gpu.compare import files, plots
from meal_gpu.compare.comparison import Comparison, compare
from meal_gpu.compare.runs import gather
from meal_gpu.compare.tables import markdown
from meal_gpu.compare.verdict import verdict, winner
from meal_gpu.errors import RunError

__all__ = ["Comparison", "compare", "gather", "markdown", "verdict", "winner", "write"]


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write compare.md, compare.csv, pairs.csv, compare.tex and curves.svg into a folder.

    Raises:
        RunError: a file that cannot be written.
    """
    texts = {
        "compare.md": markdown(comparison), "compare.csv": files.tidy(comparison),
        "pairs.csv": files.pairs(comparison), "compare.tex": files.latex(comparison),
    }  # fmt: skip
    contents = texts | {"curves.svg": plots.curves(comparison)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            atomic.write(out / name, content)
    except OSError as error:
        raise RunError(f"{out}: the comparison cannot be written: {error.strerror}") from error
    return [out / name for name in contents]
