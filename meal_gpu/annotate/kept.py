"""What is known of a pool from earlier queries, beside its ledger: what passes found, and the manifold.

What a pass finds is keyed by the fingerprint of the model (its weights and how it is applied), by the pool
and by the stamp of each file, so that a new frame, a changed frame or another model is computed, and nothing
else is.
"""

import hashlib
import io
import os
import posixpath
import re
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from meal_gpu import atomic
from meal_gpu.errors import RunError
from meal_gpu.images.content import filesystem, is_url
from meal_gpu.images.listing import Listing
from meal_gpu.manifold import Manifold
from meal_gpu.ops import Ops

Tensors = dict[str, torch.Tensor]
_AT_ONCE = 16  # files that are read together


class Kept:
    """The folder `pool.cache` of a ledger `pool.parquet`.

    Φ is that of the first query, as in the paper, until one is asked with `refit`. Deleting the folder costs
    time, and has Φ fitted anew too.
    """

    def __init__(self, ledger: Path, space: str) -> None:
        self.folder = ledger.with_suffix(".cache")
        self._manifold = self.folder / f"manifold-{space[:16]}.safetensors"

    def manifold(self, device: torch.device, ops: Ops) -> Manifold | None:
        """Φ, where an earlier query fitted it to features of this space: for `ops`, on `device`."""
        if not self._manifold.is_file():
            return None
        return Manifold.load(self._manifold, device=device, ops=ops)

    @property
    def begun(self) -> bool:
        """Whether Φ was fitted before, to features of whichever space."""
        return any(self.folder.glob("manifold-*.safetensors"))

    def write_manifold(self, manifold: Manifold) -> None:
        """Raises RunError where it cannot be written."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritten(str(self.folder), error) from error
        manifold.save(self._manifold)


class Shards:
    """What passes of one model found, in Parquet files of some frames each: a row is a frame.

    Columns are `name`, `stamp` and lists of numbers, one for each patch, or D or C for each.

    Args:
        place: a folder, or a URL that fsspec opens, that all processes reach.
        fingerprint: of the model and how it is applied.
        pool: of which pool, where several share the place: their frames may have the same names.
    """

    def __init__(self, place: str, fingerprint: str, pool: str = "") -> None:
        self.place = place.rstrip("/")
        self.pool = pool
        self._key = f"{fingerprint[:16]}-{pool[:16]}" if pool else fingerprint[:16]
        self._columns: Sequence[str] = ()
        self._parts: dict[str, _Part] = {}  # what was read, by file

    def read(self, frames: Listing, columns: Sequence[str]) -> tuple[torch.Tensor, Tensors]:
        """-> known frames [N] bool, and what is known of these, [K, P, ...] for each of the `columns`.

        Files that are damaged count as not there.

        Raises:
            RunError: the place cannot be read.
        """
        if columns != self._columns:
            self._columns, self._parts = columns, {}
        try:
            files = self._files()
        except Exception as error:  # each file system has errors of its own
            raise RunError(f"{self.place}: the cache cannot be read: {error}") from error
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            new = [file for file in files if file not in self._parts]  # what is whole never changes
            read = zip(new, pool.map(self._part, new), strict=True)
            self._parts |= {file: part for file, part in read if part is not None}
        parts = [self._parts[file] for file in files if file in self._parts]
        where = {key: (i, row) for i, part in enumerate(parts) for row, key in enumerate(part.frames)}
        found = [where.get(key, (-1, -1)) for key in zip(frames.names, frames.stamps, strict=True)]
        places = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
        known = places[:, 0] >= 0
        if not known.any():
            return known, {}
        starts = torch.tensor([0, *(len(part.frames) for part in parts)]).cumsum(0)
        rows = (starts[places[:, 0]] + places[:, 1])[known]
        return known, {name: torch.cat([part.tensors[name] for part in parts])[rows] for name in columns}

    def write(self, frames: Listing, found: Mapping[str, torch.Tensor]) -> None:
        """Keep what a pass found of the frames, [K, P, ...] each: whole or not at all.

        Raises:
            RunError: the place cannot be written.
        """
        columns: dict[str, pa.Array] = {"name": pa.array(frames.names), "stamp": pa.array(frames.stamps)}
        for name, values in found.items():
            flat = values.reshape(len(values), -1).cpu().numpy()
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        shapes = {name: ",".join(map(str, values.shape[1:])) for name, values in found.items()}
        table = pa.table(columns).replace_schema_metadata(shapes)
        key = hashlib.sha256(repr((frames.names, frames.stamps, sorted(found))).encode()).hexdigest()[:16]
        try:
            self._put(f"{self._key}-{key}.parquet", table)
        except Exception as error:  # each file system has errors of its own
            raise _unwritten(self.place, error) from error

    def clean(self) -> None:
        """Remove what killed processes left half-written, and forget what was read."""
        self._parts = {}
        if not is_url(self.place):
            for leftover in Path(self.place).glob(".partial-*.parquet"):
                leftover.unlink(missing_ok=True)

    def _put(self, name: str, table: pa.Table) -> None:
        if is_url(self.place):
            system, path = filesystem(self.place)
            content = io.BytesIO()
            pq.write_table(table, content)
            system.makedirs(path, exist_ok=True)
            system.pipe_file(f"{path}/{name}", content.getvalue())
            return
        folder = Path(self.place)
        folder.mkdir(parents=True, exist_ok=True)
        # A worker that was given up for lost may be at the same file
        with atomic.writing(folder / name, by=f"{socket.gethostname()}-{os.getpid()}-") as aside:
            pq.write_table(table, aside)

    def _part(self, file: str) -> "_Part | None":
        """The columns of a file; None where it has not all of them, or is damaged."""
        try:
            with self._opened(file) as opened, pq.ParquetFile(opened) as parquet:
                table = parquet.read(columns=["name", "stamp", *self._columns])
            keys = zip(table["name"].to_pylist(), table["stamp"].to_pylist(), strict=True)
            return _Part(list(keys), {name: _tensor(table, name) for name in self._columns})
        except (OSError, KeyError, ValueError, pa.ArrowException):
            return None

    def _files(self) -> list[str]:
        if not is_url(self.place):
            return sorted(str(file) for file in Path(self.place).glob("*.parquet") if self._has(file.name))
        system, path = filesystem(self.place)
        system.invalidate_cache()
        try:
            there = map(str, system.ls(path, detail=False))  # not `glob`: the place may have brackets
        except FileNotFoundError:
            return []
        names = {file: posixpath.basename(file) for file in there}
        return sorted(file for file, name in names.items() if self._has(name))

    def _has(self, name: str) -> bool:
        """Whether a file is of this model and pool; those of no pool begin as those of all do."""
        return re.fullmatch(rf"{self._key}-[0-9a-f]+\.parquet", name) is not None

    def _opened(self, file: str) -> Any:
        return filesystem(self.place)[0].open(file, "rb") if is_url(self.place) else Path(file).open("rb")


class _Part(NamedTuple):
    """One file: names and stamps of its frames, and its columns [K, P, ...]."""

    frames: list[tuple[str, str]]
    tensors: Tensors


def _tensor(table: pa.Table, name: str) -> torch.Tensor:
    shape = [int(side) for side in table.schema.metadata[name.encode()].decode().split(",")]
    values = table[name].combine_chunks()
    flat = values.flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(flat).reshape(table.num_rows, *shape))


def _unwritten(place: str, error: Exception) -> RunError:
    why = atomic.reason(error) if isinstance(error, OSError) else error
    return RunError(f"{place}: the cache cannot be written: {why}")
