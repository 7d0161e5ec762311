"""MEAL without an embedding: K-Means++ over the candidates' features as they are."""

from meal_gpu.strategies.base import Pool, Selection, Strategy, seed_over


def select(pool: Pool) -> Selection:
    seeded = seed_over(pool, pool.features)
    return Selection(seeded.patches, seeded.scores)  # features are no embedding: nobody draws D axes


STRATEGY = Strategy(
    name="meal-raw",
    summary="candidates spread by K-Means++ over their features",
    source="our ablation of Sreenivasaiah et al. 2021",
    choice=select,
    measured=True,
)
