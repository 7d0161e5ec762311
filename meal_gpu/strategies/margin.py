"""The patches where the two most likely classes are closest."""

from meal_gpu.strategies.base import Measure, ranking

MEASURE = Measure(
    name="margin",
    summary="mean of 1 - (p1 - p2), the two most likely classes",
    source="Scheffer, Decomain, Wrobel 2001",
    needs=("margin",),
    values=lambda pool: pool.uncertainty("margin"),
)
STRATEGY = ranking(MEASURE)
