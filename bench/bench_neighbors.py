"""Exact nearest neighbours of every row: ours against scikit-learn's brute force, and cuML's on a GPU."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from sklearn.neighbors import NearestNeighbors

from bench.ceiling import Work
from bench.harness import Case
from meal_gpu.ops.neighbors import nearest_neighbors

COLUMNS, NEIGHBORS = 320, 15  # the paper's encoder, UMAP's default


def clusters(rows: int, columns: int = COLUMNS) -> torch.Tensor:
    """[rows, columns] float32 in 40 clouds, as features of street scenes fall into groups."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, columns, generator=generator)
    chosen = centres[torch.randint(40, (rows,), generator=generator)]
    return chosen + torch.randn(rows, columns, generator=generator)


def cases(device: torch.device) -> Iterator[Case]:
    on_gpu = device.type == "cuda"
    for rows in (5872, 47_600) if on_gpu else (5872,):
        features = clusters(rows).to(device)
        array = features.cpu().numpy()
        search = NearestNeighbors(n_neighbors=NEIGHBORS, algorithm="brute").fit(array)
        contenders: dict[str, Callable[[], object]] = {
            "ours": lambda features=features: nearest_neighbors(features, NEIGHBORS)[0],
            "scikit-learn, brute": lambda search=search, array=array: search.kneighbors(array)[1],
        }
        if on_gpu and find_spec("cuml") is not None:
            contenders["cuML, brute"] = lambda features=features: _cuml(features)
        exact = nearest_neighbors(features, NEIGHBORS)[0].cpu()

        def quality(name: str, result: Any, exact: torch.Tensor = exact) -> dict[str, Any]:
            found = torch.as_tensor(result).cpu()
            return {"rows with another set": int((found.sort(1).values != exact.sort(1).values).any(1).sum())}

        precision = "float16" if on_gpu else "float32"
        yield Case(
            "neighbors",
            {"rows": rows, "columns": COLUMNS, "neighbors": NEIGHBORS, "dtype": "float32"},
            contenders,
            Work(features.nbytes + rows * NEIGHBORS * 12, 2 * rows**2 * COLUMNS, precision=precision),
            quality=quality,
            least=3,
        )


def _cuml(features: torch.Tensor) -> Any:
    from cuml.neighbors import NearestNeighbors as Search

    search = Search(n_neighbors=NEIGHBORS, algorithm="brute", output_type="cupy").fit(features)
    found = torch.as_tensor(search.kneighbors(features)[1], device=features.device)
    torch.cuda.synchronize(features.device)  # it has a stream of its own, which our events do not see
    return found
