"""UMAP by umap-learn, on the CPU: the reference's, and the CPU ops'."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from meal_gpu.ops import FittedUmap
from meal_gpu.ops.neighbors import nearest_neighbors

if TYPE_CHECKING:
    import numpy as np


@contextmanager
def _torch_threads() -> Iterator[None]:
    """Keep torch's number of threads: numba, inside, sets OpenMP's for the whole process."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _seeded_arpack(seed: int | None) -> Iterator[None]:
    """Seed the restarts of ARPACK, inside; from SciPy 1.17 on they are drawn from the system's entropy.

    Where the graph of neighbours falls apart, umap-learn lays its pieces out by eigenvectors of matrices so
    small that the solver restarts, and the fit is another one each time, whatever its random_state.
    """
    from scipy.sparse.linalg import eigsh

    defaults = eigsh.__defaults__
    # The default, because scikit-learn too calls it on umap-learn's behalf, by a name of its own
    if list(inspect.signature(eigsh).parameters)[-1] == "rng":
        eigsh.__defaults__ = (*defaults[:-1], seed)
    try:
        yield
    finally:
        eigsh.__defaults__ = defaults


@_torch_threads()
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
    """umap-learn's. It has no exact search of many rows: "brute_force_knn" is "exact" here."""
    import numba
    from umap import UMAP

    # numba's OpenMP layer makes every later torch operation of this process start its threads anew: an Adam
    # step took 180 ms instead of 14. Whoever set NUMBA_THREADING_LAYER knows better.
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "workqueue"
    # n_jobs=1 is what a fixed seed costs: umap-learn's parallel optimiser is not deterministic
    model = UMAP(
        n_neighbors=min(neighbors, len(features) - 1),
        min_dist=min_dist,
        n_components=dimension,
        random_state=seed if deterministic else None,
        transform_seed=seed if deterministic else None,
        n_jobs=1 if deterministic else -1,
        force_approximation_algorithm=build == "nn_descent",
    )
    if build in ("exact", "brute_force_knn"):
        search = _ExactSearch(features)
        model.set_params(precomputed_knn=(*search.find(model.n_neighbors), search))
    rows = features.cpu().float().numpy()
    if embedding is not None:
        # No epochs: only the neighbour graph is rebuilt, then the stored embedding is put in place
        model.set_params(init=embedding.cpu().numpy(), n_epochs=0)
    with warnings.catch_warnings():
        # It takes any search for one that cannot transform, save its own
        warnings.filterwarnings("ignore", r"precomputed_knn\[2\]", UserWarning)
        with _seeded_arpack(seed if deterministic else None):
            model.fit(rows)
    if embedding is not None:
        model.n_epochs = None
        model.embedding_ = embedding.cpu().numpy().copy()

    @_torch_threads()
    def transform(new: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(model.transform(new.cpu().float().numpy())).to(new.device)

    library = f"umap-learn {metadata.version('umap-learn')}"
    return FittedUmap(torch.from_numpy(model.embedding_).to(features.device), transform, library)


class _ExactSearch:
    """What umap-learn asks of a search index, with the attribute that it reads."""

    _angular_trees = False

    def __init__(self, features: torch.Tensor) -> None:
        self._features = features

    def find(self, k: int, queries: torch.Tensor | None = None) -> tuple[Any, Any]:
        """Neighbours [Q, k] int32, as umap-learn's own are, and their distances."""
        indices, distances = nearest_neighbors(self._features, k, queries=queries)
        return indices.int().cpu().numpy(), distances.cpu().numpy()

    def query(self, rows: "np.ndarray[Any, Any]", k: int, epsilon: float) -> tuple[Any, Any]:
        return self.find(k, torch.from_numpy(rows).to(self._features))
