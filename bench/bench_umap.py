"""UMAP of a pool's features: time, and the trustworthiness of what comes out."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.bench_neighbors import clusters
from bench.harness import Case
from meal_gpu.manifold import Manifold
from meal_gpu.ops import why_not_cuda


def cases(device: torch.device) -> Iterator[Case]:
    on_gpu = device.type == "cuda"
    for rows in (5872, 47_600) if on_gpu else (5872,):
        features = clusters(rows).to(device)

        def fit(features: torch.Tensor = features, **settings: Any) -> Manifold:
            return Manifold.fit(features, seed=0, **settings)

        contenders: dict[str, Callable[[], object]] = {
            "ours": fit,
            "ours, exact neighbours": lambda fit=fit: fit(build="exact"),
        }
        if on_gpu and why_not_cuda() is None:
            contenders["ours, no seed"] = lambda fit=fit: fit(deterministic=False)
            contenders["ours, no seed, NN-descent"] = lambda fit=fit: fit(
                deterministic=False, build="nn_descent"
            )
        if rows < 10_000:
            contenders["umap-learn, seed"] = lambda features=features: umap_learn(features, seed=0)
        contenders["umap-learn, no seed"] = lambda features=features: umap_learn(features, seed=None)

        def quality(name: str, result: Any, features: torch.Tensor = features) -> dict[str, Any]:
            return {"trustworthiness": round(trustworthiness(features, result), 4)}

        yield Case(
            "umap",
            {"rows": rows, "columns": features.shape[1], "neighbors": 15, "dtype": "float32"},
            contenders,
            quality=quality,
            memory=False,
            seconds=5.0,
            least=3 if rows < 10_000 else 1,
        )


def umap_learn(features: torch.Tensor, seed: int | None) -> torch.Tensor:
    """As its documentation has it, with a seed (on one thread) or without."""
    from umap import UMAP

    model = UMAP(random_state=seed, n_jobs=1 if seed is not None else -1)
    return torch.from_numpy(model.fit_transform(features.cpu().numpy()))


def trustworthiness(features: torch.Tensor, result: Manifold | torch.Tensor) -> float:
    """Of 2,000 rows, the same for every contender."""
    from sklearn.manifold import trustworthiness as measure

    embedding = result.embedding if isinstance(result, Manifold) else result
    rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:2000]
    high, low = (x.detach().cpu()[rows].numpy() for x in (features, embedding))
    return float(measure(high, low, n_neighbors=15))
