"""Where the members of an ensemble disagree: the Jensen-Shannon divergence of their predictions."""

import torch

from meal_gpu.strategies.base import Measure, Pool, ranking


def values(pool: Pool) -> torch.Tensor:
    committee = pool.committee("members")
    return committee.total - committee.expected


MEASURE = Measure(
    name="ensemble",
    summary="Jensen-Shannon divergence of the members of an ensemble",
    source="Lakshminarayanan, Pritzel, Blundell 2017; McCallum and Nigam 1998",
    values=values,
    members=True,
)
STRATEGY = ranking(MEASURE)
