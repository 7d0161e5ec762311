"""Where the members of an ensemble disagree: the Jensen-Shannon divergence of their predictions."""

from meal_gpu.strategies.base import Measure, ranking

MEASURE = Measure(
    name="ensemble",
    summary="Jensen-Shannon divergence of the members of an ensemble",
    source="Lakshminarayanan, Pritzel, Blundell 2017; McCallum and Nigam 1998",
    values=lambda pool: pool.committee("members").information,
    members=True,
)
STRATEGY = ranking(MEASURE)
