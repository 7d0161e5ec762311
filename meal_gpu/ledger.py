"""The table of the pool: one row per patch, with who is labelled since which step, score and embedding."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from meal_gpu.errors import InputError, RunError
from meal_gpu.grid import Grid

UNLABELLED = -1
_META = b"meal_gpu"


class Ledger:
    """Rows are in the order of the patch ids: `patch` int64, `image` int32, `row` and `column` int16,
    `step` int16 (-1: unlabelled, 0: initial, k: labelled by the k-th query), `score` float32 and
    `embedding_0`, `embedding_1`, ... float32 (NaN where not known).
    """

    def __init__(self, frame: pd.DataFrame, grid: Grid, names: tuple[str, ...]) -> None:
        self.frame = frame
        self.grid = grid
        self.names = names

    @classmethod
    def create(cls, grid: Grid, names: Sequence[str]) -> "Ledger":
        """A ledger of len(names) images with nothing labelled."""
        patches = np.arange(len(names) * grid.patches_per_image)
        image, row, column = grid.locate(patches)
        frame = pd.DataFrame(
            {
                "patch": patches,
                "image": image.astype(np.int32),
                "row": row.astype(np.int16),
                "column": column.astype(np.int16),
                "step": np.full(len(patches), UNLABELLED, dtype=np.int16),
                "score": np.full(len(patches), np.nan, dtype=np.float32),
            }
        )
        return cls(frame, grid, tuple(names))

    def __len__(self) -> int:
        return len(self.frame)

    def labelled(self) -> torch.Tensor:
        """[L] int64, ascending."""
        return self._where(self.frame["step"].to_numpy() != UNLABELLED)

    def unlabelled(self) -> torch.Tensor:
        """[U] int64, ascending."""
        return self._where(self.frame["step"].to_numpy() == UNLABELLED)

    @staticmethod
    def _where(mask: NDArray[np.bool_]) -> torch.Tensor:
        return torch.from_numpy(np.flatnonzero(mask).astype(np.int64))

    def label(self, patches: torch.Tensor, step: int) -> None:
        """Mark [n] distinct, unlabelled patches as labelled at `step`.

        Raises:
            InputError: a patch that is not in the pool, is given twice, or is labelled already.
        """
        ids = patches.cpu().numpy()
        if len(ids) == 0:
            return
        if ids.min() < 0 or ids.max() >= len(self):
            raise InputError(f"patch ids go from 0 to {len(self) - 1}; got {ids.min()} to {ids.max()}")
        if len(np.unique(ids)) != len(ids):
            raise InputError("a patch is given twice")
        steps = self.frame["step"].to_numpy(copy=True)
        if (taken := ids[steps[ids] != UNLABELLED]).size:
            raise InputError(f"patch {taken[0]} is labelled since step {steps[taken[0]]}")
        steps[ids] = step
        self.frame["step"] = steps

    def set_scores(self, scores: torch.Tensor) -> None:
        """[len(self)] float32: the newest scores of the whole pool."""
        self.frame["score"] = scores.float().cpu().numpy()

    def set_embedding(self, patches: torch.Tensor, embedding: torch.Tensor) -> None:
        """Store [M, d] coordinates of [M] patches; every other patch has none (NaN)."""
        rows = patches.cpu().numpy()
        for axis, values in enumerate(embedding.float().cpu().numpy().T):
            column = np.full(len(self), np.nan, np.float32)
            column[rows] = values
            self.frame[f"embedding_{axis}"] = column

    def write(self, path: Path) -> None:
        """Write Parquet; grid, image size and image names go into the file's metadata."""
        grid = self.grid
        meta = {
            "grid": [grid.rows, grid.columns],
            "size": [grid.height, grid.width],
            "images": self.names,
        }
        table = pa.Table.from_pandas(self.frame, preserve_index=False)
        pq.write_table(table.replace_schema_metadata({_META: json.dumps(meta).encode()}), path)

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """Read what `write` wrote. Raises RunError naming the file where it is something else."""
        try:
            table = pq.read_table(path)
            meta = json.loads((table.schema.metadata or {})[_META])
            grid, names = Grid(*meta["grid"], *meta["size"]), tuple(meta["images"])
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise RunError(f"{path}: not a ledger of meal-gpu: {error!r}") from error
        return cls(table.to_pandas(), grid, names)
