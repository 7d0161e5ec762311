"""MEAL: uncertain candidates, spread by K-Means++ over the pool's manifold."""

from meal_gpu.strategies.base import Pool, Selection, Strategy, seed_over


def select(pool: Pool) -> Selection:
    return seed_over(
        pool, lambda candidates: pool.manifold().transform(pool.features(candidates), check=False)
    )


STRATEGY = Strategy(
    name="meal",
    summary="candidates spread by K-Means++ over UMAP of the whole pool",
    source="Sreenivasaiah, Otterbach, Wollmann 2021, Algorithm 1",
    choice=select,
    manifold=True,
    measured=True,
)
