"""Tables, learning curves and the page that holds them, from run folders alone."""

from meal_gpu.report.page import write
from meal_gpu.report.plot import plot, plot_format
from meal_gpu.report.table import Run, find, load, skips, text

__all__ = ["Run", "find", "load", "plot", "plot_format", "skips", "text", "write"]
