"""The table of the pool: one row per patch, with who is labelled since which step, score and embedding."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import index
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from meal_gpu import atomic
from meal_gpu import frame as frames
from meal_gpu.errors import InputError, RunError
from meal_gpu.frame import Frame
from meal_gpu.grid import Grid

UNLABELLED = -1
_LAST_STEP = torch.iinfo(torch.int16).max
_META = b"meal_gpu"
_NAME = "name"  # of the image, in its first row: a file's metadata may hold no more than 100 MB


class Origin(NamedTuple):
    """The first frame when a ledger began: the SHA-256 of its file, which tells apart pools whose frames have
    the same names, and its (height, width), which all frames have.
    """

    digest: str
    size: tuple[int, int]


class Ledger:
    """Rows are in the order of the patch ids: `patch` int64, `image` int32, `row` and `column` int16,
    `step` int16 (-1: unlabelled, 0: initial, k: labelled by the k-th query), `score` float32 and
    `embedding_0`, `embedding_1`, ... float32 (NaN where not known).

    Attributes:
        frame: the table, in pandas on the CPU and in cuDF on a GPU.
        grid: the patches of an image.
        names: the images.
        origin: how their files began, where they are files that people label.
    """

    def __init__(
        self, frame: Frame, grid: Grid, names: tuple[str, ...], origin: Origin | None = None
    ) -> None:
        self.frame = frame
        self.grid = grid
        self.names = names
        self.origin = origin

    @classmethod
    def create(
        cls, grid: Grid, names: Sequence[str | Path], *, device: str | torch.device = "cpu",
        origin: Origin | None = None,
    ) -> "Ledger":  # fmt: skip
        """A ledger of len(names) images with nothing labelled.

        Raises:
            InputError: `grid` is none, a name is given twice, or `names` is no list of them.
            UnavailableError: `device` is a GPU that is not there, or for which cuDF is not installed.
        """
        if not isinstance(grid, Grid):
            raise InputError(f"grid must be a meal_gpu.Grid, got {grid!r}")
        names = _named(names)
        patches = np.arange(len(names) * grid.patches_per_image)
        image, row, column = (torch.from_numpy(values) for values in grid.locate(patches))
        step = torch.full((len(patches),), UNLABELLED, dtype=torch.int16)
        score = torch.full((len(patches),), torch.nan, dtype=torch.float32)
        columns = {
            "patch": torch.from_numpy(patches), "image": image.int(), "row": row.short(),
            "column": column.short(), "step": step, "score": score,
        }  # fmt: skip
        return cls(frames.build(columns, torch.device(device)), grid, names, origin)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def device(self) -> torch.device:
        """Where the frame lies, and the tensors that it gives."""
        return frames.device_of(self.frame)

    def labelled(self) -> torch.Tensor:
        """[L] int64, ascending. The host waits for it."""
        return (self._steps() != UNLABELLED).nonzero().flatten()

    def unlabelled(self) -> torch.Tensor:
        """[U] int64, ascending. The host waits for it."""
        return (self._steps() == UNLABELLED).nonzero().flatten()

    def _steps(self) -> torch.Tensor:
        return frames.tensor(self.frame["step"])

    def last_step(self) -> int:
        """The newest step that labelled a patch; -1 where none is labelled."""
        return int(self._steps().max()) if len(self) else UNLABELLED

    def label(self, patches: torch.Tensor | np.ndarray | Sequence[int], step: int) -> None:
        """Mark [n] distinct, unlabelled patches, ids of any integer dtype but uint8, as labelled at `step`.

        Raises:
            InputError: something else than ids; a patch that is not in the pool, is given twice, or is
                labelled already; a step outside 0 to 32,767.
        """
        try:
            number = index(step)
        except TypeError:
            number = UNLABELLED
        if not 0 <= number <= _LAST_STEP:
            raise InputError(f"step must be 0 to {_LAST_STEP}, and whole; got {step}")
        steps = self._steps().clone()
        ids = _ids(patches).to(steps.device)
        if len(ids) == 0:
            return
        least, greatest = int(ids.min()), int(ids.max())
        if least < 0 or greatest >= len(self):
            raise InputError(f"patch ids go from 0 to {len(self) - 1}; got {least} to {greatest}")
        if len(torch.unique(ids)) != len(ids):
            raise InputError("a patch is given twice")
        if len(taken := ids[steps[ids] != UNLABELLED]):
            raise InputError(f"patch {int(taken[0])} is labelled since step {int(steps[taken[0]])}")
        steps[ids] = number
        self.frame["step"] = frames.column(steps)

    def set_scores(self, scores: torch.Tensor) -> None:
        """[len(self)] float32: the newest scores of the whole pool. Raises InputError for another shape."""
        if scores.shape != (len(self),):
            raise InputError(f"scores must be [{len(self)}], one for each patch; got {list(scores.shape)}")
        self.frame["score"] = frames.column(scores.detach().to(self.device, torch.float32, copy=True))

    def set_embedding(self, patches: torch.Tensor, embedding: torch.Tensor) -> None:
        """Store [M, d] coordinates of [M] patches; every other patch has none (NaN)."""
        rows = patches.to(self.device)
        for axis, values in enumerate(embedding.detach().to(rows.device, torch.float32).T):
            column = torch.full((len(self),), torch.nan, dtype=torch.float32, device=rows.device)
            column[rows] = values
            self.frame[f"embedding_{axis}"] = frames.column(column)

    def extended(self, names: Sequence[str | Path]) -> "Ledger":
        """This ledger, and unlabelled patches of the images among `names` that it does not have yet.

        Raises:
            InputError: as `create`.
        """
        known = set(self.names)
        added = [name for name in _named(names) if name not in known]
        if not added:
            return self
        together = (*self.names, *added)
        new = Ledger.create(self.grid, together, device=self.device).frame
        columns: dict[str, torch.Tensor] = {}
        for name in self.frame.columns:
            old = frames.tensor(self.frame[name])
            if name in new.columns:
                rest = frames.tensor(new[name])[len(old) :]
            else:  # an embedding
                rest = old.new_full((len(new) - len(old),), torch.nan)
            columns[name] = torch.cat([old, rest])
        return Ledger(frames.build(columns, self.device), self.grid, together, self.origin)

    def write(self, path: str | Path) -> None:
        """Write Parquet, whole or not at all.

        Beside the columns of the frame there is `name`, the image's, in the first of its rows and null in the
        others; grid, image size and origin go into the file's metadata.

        Raises:
            RunError: the file, which is named, cannot be written.
        """
        grid = self.grid
        meta = {"grid": [grid.rows, grid.columns], "size": [grid.height, grid.width], "origin": self.origin}
        table = frames.to_arrow(self.frame)
        image, place = np.divmod(np.arange(len(table)), grid.patches_per_image)
        names = pa.array(self.names, pa.large_string()).take(pa.array(image, mask=place != 0))
        table = table.append_column(_NAME, names)
        table = table.replace_schema_metadata({_META: json.dumps(meta).encode()})
        try:
            with atomic.writing(Path(path)) as aside:
                pq.write_table(table, aside)
        except OSError as error:
            raise RunError(
                f"{path}: the ledger could not be written: {error.strerror or error}; it is as it was before"
            ) from error

    @classmethod
    def read(cls, path: str | Path, *, device: str | torch.device = "cpu") -> "Ledger":
        """Read what `write` wrote, from whichever device.

        Raises:
            RunError: the file, which is named, is something else, or its rows are no longer the pool's.
            UnavailableError: `device` is a GPU that is not there, or for which cuDF is not installed.
        """
        try:
            table = pq.read_table(path)
            meta = json.loads((table.schema.metadata or {})[_META])
            grid = Grid(*meta["grid"], *meta["size"])
            origin = None
            if given := meta.get("origin"):
                digest, (height, width) = given
                origin = Origin(str(digest), (int(height), int(width)))
            if _NAME in table.column_names:
                names = tuple(table[_NAME].drop_null().to_pylist())
                table = table.drop_columns([_NAME])
            else:  # as it was written until 2026-11
                names = tuple(meta["images"])
            patches = table["patch"].to_numpy()
        except FileNotFoundError:
            raise RunError(f"{path}: no such ledger") from None
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise RunError(f"{path}: not a ledger of meal-gpu: {error!r}") from error
        if not np.array_equal(patches, np.arange(len(names) * grid.patches_per_image)):
            raise RunError(
                f"{path}: not a ledger of meal-gpu: {len(patches)} rows, not the patches 0 to "
                f"{len(names) * grid.patches_per_image - 1} of {len(names)} images in their order; was it "
                "sorted or filtered?"
            )
        return cls(frames.from_arrow(table, torch.device(device)), grid, names, origin)


def _named(names: Sequence[str | Path]) -> tuple[str, ...]:
    """The images' names as text, each of them once."""
    if isinstance(names, str | Path) or not isinstance(names, Iterable):
        raise InputError(f"names must be a list of the images' names, got {names!r}")
    texts = tuple(map(str, names))
    if len(set(texts)) != len(texts):
        twice = Counter(texts).most_common(1)[0][0]
        raise InputError(f"image {twice!r} is given twice")
    return texts


def _ids(patches: torch.Tensor | np.ndarray | Sequence[int]) -> torch.Tensor:
    """[n] int64."""
    try:
        ids = patches if isinstance(patches, torch.Tensor) else torch.from_numpy(np.array(patches))
    except (TypeError, ValueError) as error:
        raise InputError(f"patches must be a list of ids, [n] of integers: {error}") from error
    if ids.shape == (0,):
        return ids.long()
    # Of uint8 torch makes a mask where it is an index
    unfit = ids.is_floating_point() or ids.is_complex() or ids.dtype in (torch.bool, torch.uint8)
    if ids.ndim != 1 or unfit:
        raise InputError(
            f"patches must be ids, [n] of integers, got {list(ids.shape)} {ids.dtype}; of a mask take "
            "mask.nonzero().flatten()"
        )
    return ids.long()
