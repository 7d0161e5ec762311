"""UMAP by cuML, on the tensors' own memory.

Facts about cuML 26.10 that the code rests on, none of them in its documentation:
- It works on the current GPU, on CUDA's per-thread default stream, which knows nothing of torch's, and is
  done when it returns.
- `n_epochs=0` means the default number; a map fitted with one or two epochs cannot transform.
- `transform` takes new rows that begin at the address of the fitted ones for the fitted ones, all of them.
- `transform` searches by brute force, and reads rows, embedding and settings of the fit, but not its graph.
- It keeps one handle a thread, made for the GPU that is current then, and its stream has one name in all
  threads: torch's allocator could give what one has freed to another too early. So: one GPU a thread, and one
  thread of a process at a time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from meal_gpu import memory
from meal_gpu.errors import InputError, UnavailableError
from meal_gpu.ops import FittedUmap, reference
from meal_gpu.ops.neighbors import nearest_neighbors

# Below, cuML warns, NN-descent is unstable; brute force takes no time there
DESCENT_ROWS = 150
_THREAD = threading.local()


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
        UnavailableError: cuML has worked on another GPU in this thread.
    """
    if not _serves(features):
        return reference.umap_fit(
            features, neighbors=neighbors, min_dist=min_dist, dimension=dimension, seed=seed, build=build,
            deterministic=deterministic, embedding=embedding,
        )  # fmt: skip
    memory.share_allocator(features.device)
    with _at_work(features.device):
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
        asked_on = new.device
        new = new.clone() if new.data_ptr() == rows.data_ptr() else new.to(rows.device).contiguous()
        with _at_work(rows.device):
            given = cupy.from_dlpack(new)
            _meet(rows.device)
            return _own(model.transform(given), rows.device).to(asked_on)

    return FittedUmap(_own(model.embedding_, rows.device), transform, f"cuml {cuml.__version__}")


@contextmanager
def _at_work(device: torch.device) -> Iterator[None]:
    """cuML on `device`, whatever the program has set."""
    import cuml

    first = vars(_THREAD).setdefault("device", device)
    if device != first:
        raise UnavailableError(
            f"cuML has worked on {first} in this thread and holds on to it: use manifolds on {device} "
            "in another thread or process"
        )
    with memory.current(device), cuml.using_output_type("cupy"):
        yield


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
