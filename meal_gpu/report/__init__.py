"""Tables, learning curves and the page that holds them, from run folders alone."""

from meal_gpu.report.page import write
from meal_gpu.report.plot import plot
from meal_gpu.report.table import Run, load, text

__all__ = ["Run", "load", "plot", "text", "write"]
