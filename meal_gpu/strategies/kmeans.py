"""The patches nearest to the n K-Means centres of the unlabelled pool's features."""

import torch

from meal_gpu.strategies.base import Pool, Selection, Strategy
from meal_gpu.strategies.geometry import k_means, squared_distances


def select(pool: Pool) -> Selection:
    if len(pool.unlabelled) <= pool.n:
        return Selection(pool.unlabelled)
    points = pool.features(pool.unlabelled)
    centres = k_means(points, pool.n, pool.uniforms("kmeans_plusplus", pool.n))
    taken = torch.zeros(len(points), device=points.device)
    rows = []
    for centre in torch.split(centres, 1):
        row = (squared_distances(points, centre) + taken).argmin(dim=0, keepdim=True)
        taken.index_fill_(0, row, torch.inf)
        rows.append(row)
    return Selection(pool.unlabelled[torch.cat(rows)])


STRATEGY = Strategy(
    name="kmeans",
    summary="patches nearest to the n K-Means centres of the unlabelled features",
    source="Lloyd 1982; after Zhdanov 2019, without weights of informativeness",
    choice=select,
    nested=False,
)
