"""UMAP by cuML, on the tensors' own memory.

Facts about cuML 26.10 that the code rests on, none of them in its documentation:
- It works on the current GPU, on CUDA's per-thread default stream, which knows nothing of torch's, and is
  done when it returns.
- `n_epochs=0` means the default number; a map fitted with one or two epochs cannot transform.
- `transform` takes new rows that begin at the address of the fitted ones for the fitted ones, all of them.
- `transform` searches by brute force, and reads rows, embedding and settings of the fit, but not its graph.
"""

from typing import Any

import torch

from meal_gpu.errors import InputError
from meal_gpu.memory import current
from meal_gpu.ops import FittedUmap, reference
from meal_gpu.ops.neighbors import nearest_neighbors

# Below, cuML warns, NN-descent is unstable; brute force takes no time there
DESCENT_ROWS = 150


def umap_fit(
    features: torch.Tensor,
    *,
    neighbors: int,
    min_dist: float,
    dimension: int,
    seed: int,
    build: str,
    deterministic: bool,
    embedding: torch.Tensor | None,
) -> FittedUmap:
    """As the Protocol says; where cuML cannot be imported it is the twin in `reference`, as `library` tells.

    Raises:
        InputError: cuML's NN-descent was asked for, and to be deterministic, which it is not.
    """
    if not _serves(features):
        return reference.umap_fit(
            features, neighbors=neighbors, min_dist=min_dist, dimension=dimension, seed=seed, build=build,
            deterministic=deterministic, embedding=embedding,
        )  # fmt: skip
    with current(features.device):
        return _fitted(
            features, neighbors=neighbors, min_dist=min_dist, dimension=dimension, seed=seed, build=build,
            deterministic=deterministic, embedding=embedding,
        )  # fmt: skip


def _fitted(
    features: torch.Tensor, *, neighbors: int, min_dist: float, dimension: int, seed: int, build: str,
    deterministic: bool, embedding: torch.Tensor | None,
) -> FittedUmap:  # fmt: skip
    import cuml
    import cupy

    if build == "nn_descent" and deterministic and embedding is None:
        raise InputError("cuML's NN-descent is not repeatable: pass deterministic=False, or another build")
    rows, k = features.contiguous(), min(neighbors, len(features) - 1)
    descends = build == "nn_descent" and embedding is None and len(rows) >= DESCENT_ROWS
    model = cuml.UMAP(
        n_neighbors=k,
        min_dist=min_dist,
        n_components=dimension,
        random_state=seed if deterministic else None,
        build_algo="nn_descent" if descends else "auto" if build == "auto" else "brute_force_knn",
        # cuML's own figures, raised where they would hold fewer than k
        build_kwds={"nnd_graph_degree": max(64, k), "nnd_intermediate_graph_degree": max(128, 2 * k)},
        output_type="cupy",
    )
    graph = None
    if build == "exact" and embedding is None:
        graph = tuple(cupy.from_dlpack(part) for part in nearest_neighbors(rows, k))
    if embedding is not None:
        # One epoch from the stored embedding, which then takes its place again
        model.set_params(init=cupy.from_dlpack(embedding.contiguous()), n_epochs=1)
    given = cupy.from_dlpack(rows)
    _meet(rows.device)
    model.fit(given, knn_graph=graph)
    if embedding is not None:
        model.set_params(n_epochs=None)
        with cupy.cuda.Stream.ptds:
            model.embedding_[...] = model.init

    def transform(new: torch.Tensor) -> torch.Tensor:
        new = new.clone() if new.data_ptr() == rows.data_ptr() else new.contiguous()
        with current(rows.device):
            given = cupy.from_dlpack(new)
            _meet(rows.device)
            return _own(model.transform(given), rows.device)

    return FittedUmap(_own(model.embedding_, rows.device), transform, f"cuml {cuml.__version__}")


def _serves(features: torch.Tensor) -> bool:
    try:
        import cuml  # noqa: F401
    except ImportError:
        return False
    return features.is_cuda


def _meet(device: torch.device) -> None:
    """What comes next on torch's stream or on cuML's comes after all that both hold now; the host goes on."""
    import cupy

    ours = cupy.cuda.Stream.from_external(torch.cuda.current_stream(device))
    theirs = cupy.cuda.Stream.ptds
    now = ours.record(), theirs.record()
    theirs.wait_event(now[0])
    ours.wait_event(now[1])


def _own(array: Any, device: torch.device) -> torch.Tensor:
    """A copy in torch's memory. cuML's is free for reuse, on its stream, when the array goes."""
    _meet(device)
    copy = torch.utils.dlpack.from_dlpack(array).clone()
    _meet(device)
    return copy
