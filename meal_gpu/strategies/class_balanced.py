"""Entropy weighted against the classes that the pool is full of."""

import torch

from meal_gpu.strategies.base import Measure, Pool, ranking


def values(pool: Pool) -> torch.Tensor:
    counts = pool.classes().counts
    dominant = counts.argmax(dim=1)
    unlabelled = dominant[pool.unlabelled]
    frequency = torch.zeros(counts.shape[1], dtype=torch.int64, device=counts.device)
    frequency.index_add_(0, unlabelled, torch.ones_like(unlabelled))  # float32 cannot count beyond 2^24
    weights = torch.exp(-frequency / frequency.sum().clamp(min=1))
    return pool.uncertainty("entropy") * weights[dominant]


MEASURE = Measure(
    name="class-balanced",
    summary="entropy times exp(-share of patches with the same dominant predicted class)",
    source="after Cai et al. 2021, class-balanced acquisition, of the entropy as it is",
    values=values,
    needs=("classes",),
)
STRATEGY = ranking(MEASURE)
