"""BALD: what the label would say of the weights, by passes with dropout."""

import torch

from meal_gpu.strategies.base import Measure, Pool, ranking


def values(pool: Pool) -> torch.Tensor:
    committee = pool.committee("dropout")
    return committee.total - committee.expected


MEASURE = Measure(
    name="bald",
    summary="mutual information of label and weights, by passes with dropout",
    source="Houlsby et al. 2011, eq. 2; Gal, Islam, Ghahramani 2017",
    values=values,
)
STRATEGY = ranking(MEASURE)
