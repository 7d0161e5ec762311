"""MEAL without an embedding: K-Means++ over the candidates' features as they are."""

from meal_gpu.strategies.base import Strategy, seed_over

STRATEGY = Strategy(
    name="meal-raw",
    summary="candidates spread by K-Means++ over their features",
    source="ablation of Sreenivasaiah et al. 2021",
    choice=lambda pool: seed_over(pool, pool.features),
    measured=True,
)
