"""The patches of highest mean softmax entropy."""

from meal_gpu.strategies.base import Pool, Selection, Strategy


def select(pool: Pool) -> Selection:
    return Selection(pool.candidates()[: pool.n])


STRATEGY = Strategy(
    name="entropy",
    summary="patches of highest mean softmax entropy",
    source="Shannon 1948; as the baseline of Sreenivasaiah et al. 2021",
    select=select,
)
