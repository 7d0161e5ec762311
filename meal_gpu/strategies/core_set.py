"""Core-set: every patch of the pool near a labelled or chosen one, by greedy k-centre."""

import torch

from meal_gpu.strategies.base import Pool, Selection, Strategy
from meal_gpu.strategies.geometry import greedy_k_center


def select(pool: Pool) -> Selection:
    # Together: there may be no labelled patch, and nothing has no features
    features = pool.features(torch.cat([pool.labelled, pool.unlabelled]))
    covered, points = features[: len(pool.labelled)], features[len(pool.labelled) :]
    return Selection(pool.unlabelled[greedy_k_center(points, covered, pool.n)])


STRATEGY = Strategy(
    name="core-set",
    summary="greedy k-centre over the features of the pool, labelled patches covered",
    source="Sener and Savarese 2018, Algorithm 1",
    choice=select,
)
