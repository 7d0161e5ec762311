"""MEAL-FT: as MEAL, with UMAP fitted in each step on the candidates alone."""

from meal_gpu.strategies.base import Pool, Selection, Strategy, seed_over


def select(pool: Pool) -> Selection:
    return seed_over(pool, lambda candidates: pool.fit_manifold(pool.features(candidates)).embedding)


STRATEGY = Strategy(
    name="meal-ft",
    summary="candidates spread by K-Means++ over UMAP of the candidates",
    source="Sreenivasaiah, Otterbach, Wollmann 2021, variant FT",
    choice=select,
    measured=True,
)
