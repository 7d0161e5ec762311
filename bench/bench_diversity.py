"""32 of 47,600 patches by their 1,280 features: core-set, K-Means and BADGE, beside scikit-learn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.harness import Case
from meal_gpu import rng, strategies
from meal_gpu.ops import PatchClasses
from meal_gpu.strategies import Selection

PATCHES, LABELLED, FEATURES, CLASSES, N = 47_600, 476, 1280, 19, 32


@dataclass(frozen=True)
class Known:
    """What these strategies ask of a pool, there already: the network is timed by `acquisition`."""

    every: torch.Tensor
    found: PatchClasses
    labelled: torch.Tensor
    unlabelled: torch.Tensor
    n: int = N

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        return self.every[patches]

    def classes(self) -> PatchClasses:
        return self.found

    def uniforms(self, purpose: str, n: int) -> torch.Tensor:
        return rng.uniforms(0, 1, purpose, n)


def cases(device: torch.device) -> Iterator[Case]:
    pool = _pool(device)
    points = pool.features(pool.unlabelled).cpu().numpy()
    covered = pool.features(pool.labelled).cpu().numpy()

    def choose(name: str) -> Callable[[], Selection]:
        return lambda: strategies.get(name).select(pool)  # type: ignore[arg-type]

    def farthest_first() -> Any:
        """The greedy as it is mostly written, with scikit-learn's distances."""
        from sklearn.metrics import pairwise_distances, pairwise_distances_argmin_min

        nearest = pairwise_distances_argmin_min(points, covered)[1]
        picks = []
        for _ in range(N):
            picks.append(int(nearest.argmax()))
            nearest = np.minimum(nearest, pairwise_distances(points, points[picks[-1:]])[:, 0])
        return np.array(picks)

    def clusters() -> Any:
        from sklearn.cluster import KMeans
        from sklearn.metrics import pairwise_distances_argmin

        fitted = KMeans(N, n_init=1, max_iter=20, tol=0, random_state=0).fit(points)
        return pairwise_distances_argmin(fitted.cluster_centers_, points)

    peers: dict[str, dict[str, Callable[[], object]]] = {
        "core-set": {"scikit-learn's distances": farthest_first},
        "kmeans": {"scikit-learn KMeans": clusters},
        "badge": {},
    }
    for name, others in peers.items():

        def quality(contender: str, result: Any) -> dict[str, Any]:
            rows = result
            if isinstance(result, Selection):
                rows = torch.searchsorted(pool.unlabelled, result.patches).cpu().numpy()
            return {"mean distance to the chosen": round(_spread(points, rows), 4)}

        yield Case(
            "diversity",
            {"strategy": name, "patches": PATCHES, "labelled": LABELLED, "features": FEATURES, "n": N},
            {"ours": choose(name)} | others,
            quality=quality,
            least=3,
            most=5,
        )


def _pool(device: torch.device) -> Known:
    """Features of 200 groups, as ReLU leaves them: not negative, many of them 0."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(200, FEATURES, generator=draw)
    groups = torch.randint(200, (PATCHES,), generator=draw)
    features = torch.randn(PATCHES, FEATURES, generator=draw).mul_(0.5).add_(centres[groups]).relu_()
    probabilities = torch.randn(PATCHES, CLASSES, generator=draw).mul_(2).softmax(dim=1)
    counts = (probabilities * 128 * 256).int()
    order = torch.randperm(PATCHES, generator=draw)
    labelled, unlabelled = order[:LABELLED].sort().values, order[LABELLED:].sort().values
    return Known(
        features.to(device), PatchClasses(probabilities.to(device), counts.to(device)),
        labelled.to(device), unlabelled.to(device),
    )  # fmt: skip


def _spread(points: Any, rows: Any) -> float:
    """Mean distance of the points to the nearest chosen: lower covers better."""
    from sklearn.metrics import pairwise_distances_argmin_min

    return float(pairwise_distances_argmin_min(points, points[rows])[1].mean())
