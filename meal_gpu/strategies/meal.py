"""MEAL: uncertain candidates, spread by K-Means++ over the pool's manifold."""

import torch

from meal_gpu.strategies.base import Pool, Selection, Strategy, seed_over


def select(pool: Pool) -> Selection:
    def embed(candidates: torch.Tensor) -> torch.Tensor | None:
        manifold = pool.manifold()
        return None if manifold is None else manifold.transform(pool.features(candidates), check=False)

    return seed_over(pool, embed)


STRATEGY = Strategy(
    name="meal",
    summary="candidates spread by K-Means++ over UMAP of the whole pool",
    source="Sreenivasaiah, Otterbach, Wollmann 2021, Algorithm 1",
    choice=select,
    manifold=True,
    measured=True,
)
