"""What is known of a pool from earlier queries, beside its ledger: scores, features, the manifold.

Scores and features are keyed by the fingerprint of the model (its weights and how it is applied) and by the
stamp of each file, so that a new frame, a changed frame or another model is computed, and nothing else is.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from meal_gpu import atomic
from meal_gpu.errors import RunError
from meal_gpu.manifold import Manifold


class Kept:
    """The folder `pool.cache` of a ledger `pool.parquet`; deleting it costs time only."""

    def __init__(self, ledger: Path, fingerprint: str, space: str) -> None:
        self.folder = ledger.with_suffix(".cache")
        self._path = self.folder / f"{fingerprint[:16]}.safetensors"
        self._manifold = self.folder / f"manifold-{space[:16]}.safetensors"

    def read(
        self, names: Sequence[str], stamps: Sequence[str]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """-> known images [N] bool, and of these "scores" [K, P] and perhaps "features" [K, P, D]."""
        try:
            tensors = load_file(self._path)
            keys = pd.read_parquet(self._keys())
            if any(len(values) != len(keys) for values in tensors.values()):
                raise ValueError
        except (OSError, ValueError, KeyError, SafetensorError):
            return torch.zeros(len(names), dtype=torch.bool), {}
        row = {key: i for i, key in enumerate(zip(keys["name"], keys["stamp"], strict=True))}
        found = [row.get(key, -1) for key in zip(names, stamps, strict=True)]
        rows = torch.tensor(found, dtype=torch.int64)
        return rows >= 0, {name: values[rows[rows >= 0]] for name, values in tensors.items()}

    def write(self, names: Sequence[str], stamps: Sequence[str], tensors: dict[str, torch.Tensor]) -> None:
        """Keep "scores" [N, P], and perhaps "features" [N, P, D], of all images."""
        try:
            self.folder.mkdir(exist_ok=True)
            with atomic.writing(self._keys()) as aside:
                pd.DataFrame({"name": list(names), "stamp": list(stamps)}).to_parquet(aside, index=False)
            with atomic.writing(self._path) as aside:
                save_file({name: values.cpu().contiguous() for name, values in tensors.items()}, aside)
        except (OSError, SafetensorError) as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: Exception) -> RunError:
        return RunError(f"{self.folder}: the cache cannot be written: {error}; free some room")

    def _keys(self) -> Path:
        return self._path.with_suffix(".parquet")

    def manifold(self) -> Manifold | None:
        """Φ, where an earlier query of this pool fitted it to features of this space."""
        return Manifold.load(self._manifold) if self._manifold.is_file() else None

    def write_manifold(self, manifold: Manifold) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
            with atomic.writing(self._manifold) as aside:
                manifold.save(aside)
        except (OSError, SafetensorError) as error:
            raise self._unwritten(error) from error


def coverage(embedding: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[M, d] and [n] rows in order -> [n]: the share of the potential that the first k removed.

    The potential is the sum of squared distances to the nearest chosen; 0 after the first, 1 where
    every point coincides with a chosen one.
    """
    nearest = ((embedding - embedding[chosen[0]]) ** 2).sum(axis=1)
    start = float(nearest.sum())
    shares = []
    for row in chosen:
        nearest = np.minimum(nearest, ((embedding - embedding[row]) ** 2).sum(axis=1))
        shares.append(1 - float(nearest.sum()) / start if start else 1.0)
    return np.array(shares)
