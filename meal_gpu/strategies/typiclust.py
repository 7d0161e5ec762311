"""TypiClust: the most typical patch of every large cluster that nothing is labelled of yet.

Its features are the network's own, where the paper has self-supervised ones.
"""

import torch

from meal_gpu.ops.neighbors import nearest_neighbors
from meal_gpu.strategies.base import Pool, Selection, Strategy
from meal_gpu.strategies.geometry import k_means, nearest_centre

MOST_CLUSTERS = 500
NEIGHBORS = 20
SMALL = 5  # patches of a cluster that is taken for outliers, as in the authors' code


def typicality(points: torch.Tensor) -> torch.Tensor:
    """[M, D] -> [M] float32: one over the mean distance to the (at most 20) nearest others; 0 for M = 1."""
    neighbors = min(NEIGHBORS, len(points) - 1)
    if not neighbors:
        return points.new_zeros(len(points))
    distances = nearest_neighbors(points, neighbors + 1)[1][:, 1:]
    return 1 / distances.mean(dim=1).clamp(min=torch.finfo(distances.dtype).tiny)


def turns(clusters: torch.Tensor, covered: torch.Tensor, n: int) -> list[int]:
    """Which cluster each of n choices comes from: the fewest labelled first, then the largest of these; of
    SMALL patches or less where no larger one is left.

    `clusters` [U] int64 are those of the unlabelled patches, `covered` [K] how many are labelled of each.
    """
    labelled, left = covered.tolist(), torch.bincount(clusters, minlength=len(covered)).tolist()
    small = [known + other <= SMALL for known, other in zip(labelled, left, strict=True)]
    chosen = []
    for _ in range(n):
        open_ = (k for k in range(len(left)) if left[k])
        cluster = min(open_, key=lambda k: (small[k], labelled[k], -left[k], k))
        labelled[cluster] += 1
        left[cluster] -= 1
        chosen.append(cluster)
    return chosen


def select(pool: Pool) -> Selection:
    unlabelled, labelled = pool.unlabelled, pool.labelled
    points = pool.features(torch.cat([labelled, unlabelled]))
    k = min(len(labelled) + pool.n, MOST_CLUSTERS, len(points))
    centres = k_means(points, k, pool.uniforms("kmeans_plusplus", k))
    numbers = nearest_centre(points, centres)[1]
    covered = torch.bincount(numbers[: len(labelled)], minlength=k)
    clusters, points = numbers[len(labelled) :], points[len(labelled) :]
    # Here the host waits for the device: how large the clusters are says how much memory the rest takes
    order: dict[int, list[int]] = {}
    picks = []
    for cluster in turns(clusters, covered, pool.n):
        if cluster not in order:
            inside = (clusters == cluster).nonzero().flatten()
            ranked = typicality(points[inside]).argsort(descending=True, stable=True)
            order[cluster] = inside[ranked].tolist()[::-1]
        picks.append(order[cluster].pop())
    return Selection(unlabelled[torch.tensor(picks, dtype=torch.int64, device=unlabelled.device)])


STRATEGY = Strategy(
    name="typiclust",
    summary="the most typical patch of the largest clusters without a label",
    source="after Hacohen, Dekel, Weinshall 2022, Algorithm 1",
    choice=select,
    nested=False,
)
