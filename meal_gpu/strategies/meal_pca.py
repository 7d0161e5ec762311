"""MEAL-FT with principal components in place of UMAP."""

import torch

from meal_gpu.strategies.base import Strategy, seed_over


def principal(features: torch.Tensor, dimension: int) -> torch.Tensor:
    """[M, D] -> [M, min(dimension, M, D)] scores of the first principal components.

    The host waits for the device: the library's decomposition looks at whether it converged.
    """
    centred = features - features.mean(dim=0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    scores: torch.Tensor = left[:, :dimension] * values[:dimension]
    return scores


STRATEGY = Strategy(
    name="meal-pca",
    summary="candidates spread by K-Means++ over their principal components",
    source="our ablation of Sreenivasaiah et al. 2021; Pearson 1901",
    choice=lambda pool: seed_over(
        pool, lambda candidates: principal(pool.features(candidates), pool.dimension)
    ),
    measured=True,
)
