"""MEAL-FT: as MEAL, with UMAP fitted in each step on the candidates alone."""

import torch

from meal_gpu.strategies.base import Pool, Selection, Strategy, seed_over


def select(pool: Pool) -> Selection:
    def embed(candidates: torch.Tensor) -> torch.Tensor | None:
        manifold = pool.fit_manifold(pool.features(candidates))
        return None if manifold is None else manifold.embedding

    return seed_over(pool, embed)


STRATEGY = Strategy(
    name="meal-ft",
    summary="candidates spread by K-Means++ over UMAP of the candidates",
    source="Sreenivasaiah, Otterbach, Wollmann 2021, variant FT",
    choice=select,
    measured=True,
)
