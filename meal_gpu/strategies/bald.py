"""BALD: what the label would say of the weights, by passes with dropout."""

from meal_gpu.strategies.base import Measure, ranking

MEASURE = Measure(
    name="bald",
    summary="mutual information of label and weights, by passes with dropout",
    source="Houlsby et al. 2011, eq. 2; Gal, Islam, Ghahramani 2017",
    values=lambda pool: pool.committee("dropout").information,
)
STRATEGY = ranking(MEASURE)
