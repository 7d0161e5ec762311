"""The manifold Φ: UMAP fitted once on the features of the pool, then applied to candidates."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from meal_gpu import atomic, rng
from meal_gpu.errors import InputError, RunError, UnavailableError
from meal_gpu.ops import BUILDS, FittedUmap, Ops, select_for
from meal_gpu.ops.public import require_tensor, whole

_FORMAT = "meal_gpu.manifold/2"
# Version 1 had no `build` and no `deterministic`: their defaults are what it did
_READABLE = (_FORMAT, "meal_gpu.manifold/1")
TRUST_SAMPLE = 2000
LIMIT = 50_000
"""Rows that a manifold is fitted on, at most."""


@dataclass(frozen=True)
class _Settings:
    neighbors: int
    min_dist: float
    dimension: int
    seed: int
    build: str = "auto"
    deterministic: bool = True


class Manifold:
    """A fitted UMAP. Build one with `fit` or `load`.

    Attributes:
        features: [M, D] float32, the rows it was fitted on.
        rows: [M] int64, which of the rows given to `fit` these are (all, or a subsample).
        embedding: [M, d] float32, their coordinates.
        library: what computes here, such as "umap-learn 0.5.12" or "cuml 26.10.00".
    """

    def __init__(
        self, features: torch.Tensor, rows: torch.Tensor, umap: FittedUmap, settings: _Settings
    ) -> None:
        self.features = features
        self.rows = rows
        self.embedding = umap.embedding
        self.library = umap.library
        self._umap = umap
        self._settings = settings

    @classmethod
    def fit(
        cls,
        features: torch.Tensor,
        *,
        seed: int,
        neighbors: int = 15,
        min_dist: float = 0.1,
        dimension: int = 2,
        limit: int = LIMIT,
        build: str = "auto",
        deterministic: bool = True,
        check: bool = True,
        ops: Ops | None = None,
    ) -> "Manifold":
        """Fit on [M, D] floating point features (MEAL, Step 0); above `limit` rows on a `subsample`.

        `neighbors` is lowered to M - 1 where M is small.

        Args:
            seed: of the fit and of the subsample, below 2**32.
            neighbors, min_dist: of UMAP, as its documentation has them.
            dimension: d, of the embedding.
            limit: rows that are fitted at most.
            build: how neighbours are found. "auto": as the library likes, umap-learn by NN-descent from 4,096
                rows on, cuML by brute force while `deterministic`. "exact": by
                `meal_gpu.ops.neighbors.nearest_neighbors`. "brute_force_knn": by cuML, or as "exact" with
                umap-learn, which has no such search. "nn_descent": by the library's NN-descent.
            deterministic: one seed gives one result on one machine; umap-learn then runs on one thread.
                False: no seed, in parallel, faster.
            check: as in `transform`.
            ops: what computes; default: the fastest on the features' device.

        Raises:
            InputError: no tensor, wrong rank or dtype, a value that is not finite, fewer than dimension + 2
                rows, or than 2 neighbors, a seed of 2**32 or more, a min_dist outside 0 to 1, an unknown
                build, or one that cannot be deterministic: cuML's NN-descent.
        """
        seed, neighbors = whole("seed", seed, 0), whole("neighbors", neighbors, 2)
        dimension, limit = whole("dimension", dimension, 1), whole("limit", limit, 1)
        if seed >= 2**32:
            raise InputError(f"seed must be below 2**32, as umap-learn wants it; got {seed}")
        if not 0 <= min_dist <= 1:
            raise InputError(f"min_dist must be between 0 and 1, got {min_dist}")
        _check(features, finite=check)
        if build not in BUILDS:
            raise InputError(f"unknown build {build!r}; known: {', '.join(BUILDS)}")
        if min(len(features), limit) < least_rows(dimension):
            raise InputError(
                f"{min(len(features), limit)} rows are too few to embed in {dimension} dimensions, "
                f"which takes {least_rows(dimension)}"
            )
        rows = subsample(len(features), limit, seed)
        kept = features.detach()[rows.to(features.device, non_blocking=True)].float()
        settings = _Settings(neighbors, float(min_dist), dimension, seed, build, deterministic)
        umap = (ops or select_for(features.device)).umap_fit(kept, **vars(settings), embedding=None)
        return cls(kept, rows, umap, settings)

    def transform(self, features: torch.Tensor, *, check: bool = True) -> torch.Tensor:
        """[K, D] -> [K, d] float32.

        `check` looks for values that are not finite, for which the host waits for the device. A caller who
        does without looks at what he makes of the result; the library may still find them, at no extra wait.

        Raises:
            InputError: D, rank or dtype differ, or a value is not finite.
        """
        _check(features, finite=check)
        if features.shape[1] != self.features.shape[1]:
            raise InputError(
                f"the manifold was fitted on {self.features.shape[1]} features a row, got {features.shape[1]}"
            )
        try:
            return self._umap.transform(features.detach().float())
        except ValueError:
            _check(features)
            raise

    def trustworthiness(self) -> float:
        """Trustworthiness (Venna & Kaski 2001) in [0, 1] at 15 neighbours; over 2,000 rows on a sample."""
        from sklearn.manifold import trustworthiness

        drawn = rng.stream(self._settings.seed, 0, "trustworthiness").permutation(len(self.features))
        rows = torch.from_numpy(drawn[:TRUST_SAMPLE])
        neighbors = min(15, (len(rows) - 1) // 2)
        high, low = (x.cpu()[rows].numpy() for x in (self.features, self.embedding))
        return float(trustworthiness(high, low, n_neighbors=neighbors))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all: tensors and numbers only, no pickled objects.

        Raises:
            RunError: the file, which is named, cannot be written.
        """
        # One key: safetensors writes several in random order, and equal manifolds should be equal bytes
        meta = {_FORMAT: json.dumps(vars(self._settings))}
        tensors = {"features": self.features, "rows": self.rows, "embedding": self.embedding}
        content = serialise({k: v.cpu().contiguous() for k, v in tensors.items()}, meta)
        try:
            atomic.write(Path(path), content)
        except OSError as error:
            raise RunError(
                f"{path}: the manifold could not be written: {error.strerror or error}; free some room, "
                "or name a folder that is there and can be written to"
            ) from error

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | torch.device = "cpu", ops: Ops | None = None
    ) -> "Manifold":
        """Read what `save` wrote onto `device`; the neighbour graph is rebuilt, the embedding the stored one.

        Raises:
            RunError: the file is missing, damaged or something else; it is named.
            UnavailableError: `device` is a GPU, and torch sees none.
        """
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise UnavailableError(f"device {str(device)!r}: torch sees no GPU; load it onto the CPU")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                meta = file.metadata() or {}
                version = next((known for known in _READABLE if known in meta), None)
                if version is None:
                    raise RunError(f"{path}: not a manifold of meal-gpu ({' or '.join(_READABLE)})")
                settings = _Settings(**json.loads(meta[version]))
                features, rows, embedding = (
                    file.get_tensor(name) for name in ("features", "rows", "embedding")
                )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise RunError(f"{path}: not a readable manifold: {error}") from error
        if not bool(features.isfinite().all() and embedding.isfinite().all()):
            raise RunError(f"{path}: holds NaN or infinite values; restore the file")
        try:
            umap = (ops or select_for(features.device)).umap_fit(
                features, **vars(settings), embedding=embedding
            )
        except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
            raise RunError(f"{path}: damaged: no manifold has these settings ({error})") from error
        return cls(features, rows.cpu(), umap, settings)


def least_rows(dimension: int) -> int:
    """How many rows a UMAP takes, at least."""
    return dimension + 2


def subsample(count: int, limit: int, seed: int) -> torch.Tensor:
    """[min(count, limit)] int64, ascending: one row drawn from each of `limit` equal runs of the rows.

    Patches are numbered frame by frame, so that every stretch of a drive has its share.
    """
    if count <= limit:
        return torch.arange(count)
    starts = torch.arange(limit + 1, dtype=torch.int64) * count // limit
    drawn = torch.from_numpy(rng.stream(seed, 0, "manifold subsample").random(limit))
    return starts[:-1] + (drawn * starts.diff()).long()


def _check(features: torch.Tensor, *, finite: bool = True) -> None:
    require_tensor("features", features)
    if features.ndim != 2 or not features.numel() or not features.is_floating_point():
        raise InputError(
            f"features must be [M, D] floating point, not empty; got {list(features.shape)} {features.dtype}"
        )
    if finite and not bool(features.isfinite().all()):
        bad = int((~features.isfinite()).any(dim=1).nonzero()[0])
        raise InputError(f"features must be finite; row {bad} is not")
