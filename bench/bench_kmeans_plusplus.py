"""K-Means++ seeding, plain D² sampling: ours against scikit-learn's, and cuML's on a GPU."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch

from bench.ceiling import Work
from bench.harness import Case
from meal_gpu.ops import select_for

N = 32


def cases(device: torch.device) -> Iterator[Case]:
    from sklearn.cluster import kmeans_plusplus as scikit_learn

    ours = select_for(device)
    on_gpu = device.type == "cuda"
    for rows in (200, 100_000, 1_000_000, *((10_000_000,) if on_gpu else ())):
        generator = torch.Generator().manual_seed(0)
        points = torch.randn(rows, 2, generator=generator)
        draws = torch.rand(N, 1, generator=generator, dtype=torch.float64)
        array = points.numpy()
        points, draws = points.to(device), draws.to(device)
        contenders: dict[str, Callable[[], object]] = {
            f"ours, {ours.name} ops": lambda points=points, draws=draws: ours.kmeans_plusplus(
                points, draws, None
            ),
            "scikit-learn": lambda array=array: scikit_learn(array, N, n_local_trials=1, random_state=0)[1],
        }
        if on_gpu and find_spec("cuml") is not None:
            contenders["cuML, with one round of Lloyd"] = lambda points=points: _cuml(points)

        def quality(name: str, result: Any, points: torch.Tensor = points) -> dict[str, Any]:
            """The potential of what was chosen, mean squared distance to the nearest, for one seed."""
            centres = points[torch.as_tensor(result, device=points.device)] if "cuML" not in name else result
            potential = float(torch.cdist(points, centres).square().amin(dim=1).mean())
            return {"potential": round(potential, 4)}

        # Each draw reads the points, and reads and writes their distance in float64
        yield Case(
            "kmeans_plusplus",
            {"points": rows, "dimensions": 2, "n": N, "dtype": "float32"},
            contenders,
            Work(N * rows * (2 * 4 + 2 * 8)),
            quality=quality,
            least=5 if rows < 1_000_000 else 3,
        )


def _cuml(points: torch.Tensor) -> torch.Tensor:
    from cuml.cluster import KMeans

    model = KMeans(n_clusters=N, init="k-means++", n_init=1, max_iter=1, random_state=0, output_type="cupy")
    centres = torch.as_tensor(model.fit(points).cluster_centers_, device=points.device)
    torch.cuda.synchronize(points.device)  # it has a stream of its own, which our events do not see
    return centres
