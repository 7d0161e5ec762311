"""Entropy of the mean prediction of several passes with dropout."""

from meal_gpu.strategies.base import Measure, ranking

MEASURE = Measure(
    name="mc-entropy",
    summary="entropy of the mean of several passes with dropout",
    source="Gal and Ghahramani 2016; Gal, Islam, Ghahramani 2017",
    values=lambda pool: pool.committee("dropout").total,
)
STRATEGY = ranking(MEASURE)
