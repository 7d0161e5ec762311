"""RIPU with the patch as the region: many classes predicted, and none of them surely."""

import torch

from meal_gpu.strategies.base import Measure, ranking


def impurity(counts: torch.Tensor) -> torch.Tensor:
    """[P, C] pixels predicted to be of each class -> [P] float32, the entropy of their shares in nats."""
    shares = counts.float() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    entropy: torch.Tensor = torch.special.entr(shares).sum(dim=1)
    return entropy


MEASURE = Measure(
    name="ripu",
    summary="entropy times the impurity of the predicted classes",
    source="Xie et al. 2022, eq. 2 to 4, a patch for the region",
    values=lambda pool: pool.uncertainty("entropy") * impurity(pool.classes().counts),
    needs=("classes",),
)
STRATEGY = ranking(MEASURE)
