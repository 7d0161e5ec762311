"""The patches whose most likely class is least likely."""

from meal_gpu.strategies.base import Measure, ranking

MEASURE = Measure(
    name="least-confidence",
    summary="mean of 1 - p1, the most likely class",
    source="Lewis and Gale 1994",
    needs=("least-confidence",),
    values=lambda pool: pool.uncertainty("least-confidence"),
)
STRATEGY = ranking(MEASURE)
