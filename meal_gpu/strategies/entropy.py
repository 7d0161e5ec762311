"""The patches of highest mean softmax entropy."""

from meal_gpu.strategies.base import Measure, ranking

MEASURE = Measure(
    name="entropy",
    summary="mean softmax entropy",
    source="Shannon 1948; as the baseline of Sreenivasaiah et al. 2021",
    values=lambda pool: pool.uncertainty("entropy"),
)
STRATEGY = ranking(MEASURE)
