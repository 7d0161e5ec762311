"""Exact neighbours: ours against scikit-learn's brute force; and UMAP on ours against its own NN-descent."""

import torch
from sklearn.neighbors import NearestNeighbors

from bench.harness import Row, measure
from meal_gpu.manifold import Manifold
from meal_gpu.ops.neighbors import nearest_neighbors

ROWS, COLUMNS, NEIGHBORS = 5872, 320, 15  # CamVid's pool, the paper's encoder


def run(device: torch.device) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, COLUMNS, generator=generator)
    features = centres[torch.randint(40, (ROWS,), generator=generator)]
    features = (features + torch.randn(ROWS, COLUMNS, generator=generator)).to(device)
    array = features.cpu().numpy()
    sizes = {"rows": ROWS, "columns": COLUMNS, "neighbors": NEIGHBORS}
    search = NearestNeighbors(n_neighbors=NEIGHBORS, algorithm="brute").fit(array)
    rows = measure(
        "neighbors",
        sizes,
        {
            "ours": lambda: nearest_neighbors(features, NEIGHBORS),
            "scikit-learn brute": lambda: search.kneighbors(array),
        },
        device,
    )
    fits = {
        f"build {build}": lambda build=build: Manifold.fit(features, seed=0, build=build)
        for build in ("auto", "exact")
    }
    trust = {name: round(fit().trustworthiness(), 4) for name, fit in fits.items()}
    return rows + measure("umap", sizes | {"trustworthiness": trust}, fits, device, rounds=3)
