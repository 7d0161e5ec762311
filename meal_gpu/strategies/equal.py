"""EquAL: uncertain under mirroring. Its training loss, which asks for consistency, is no part of a query."""

from meal_gpu.strategies.base import Measure, ranking

MEASURE = Measure(
    name="equal",
    summary="entropy of the mean prediction for an image and its mirror image",
    source="after Golestaneh and Kitani 2020",
    values=lambda pool: pool.committee("mirrored").total,
)
STRATEGY = ranking(MEASURE)
