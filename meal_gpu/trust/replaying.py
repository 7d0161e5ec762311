"""A past query made again from the run folder, and compared with the record bit by bit."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from meal_gpu.acquisition import Query, describe
from meal_gpu.config import Config
from meal_gpu.experiment import acquire, initial_patches
from meal_gpu.ledger import Ledger
from meal_gpu.preparation import Monitor, Silent
from meal_gpu.record import RunFolder, environment
from meal_gpu.strategies.base import Selection
from meal_gpu.trust.opening import here, open_past, open_run, recorded

_SHOWN = 8  # ids in a message


@dataclass(frozen=True)
class Replayed:
    """A query made again.

    Attributes:
        step: which.
        query: as it was made now.
        missing: ids that the record has and `query` has not; in the record's order.
        added: ids that `query` has and the record has not; in order of choice.
        differences: what of query.parquet differs, a line each; none: it is the same byte for byte.
        elsewhere: what differs between env.json and here, a line each.
    """

    step: int
    query: Query
    missing: tuple[int, ...]
    added: tuple[int, ...]
    differences: tuple[str, ...]
    elsewhere: tuple[str, ...]

    @property
    def same(self) -> bool:
        return not self.differences

    def text(self) -> str:
        """One line where it is the same on the same machine, else what differs."""
        if self.same:
            what = [f"{len(self.query)} patches"]
            if not bool(self.query.scores.isnan().all()):
                what.append("scores")
            if self.query.embedding is not None:
                what.append("embedding")
            listed = " and ".join(filter(None, (", ".join(what[:-1]), what[-1])))
            line = f"step {self.step}: the same {listed} byte for byte"
            return line + (f", although {'; '.join(self.elsewhere)}" if self.elsewhere else "")
        lines = [f"step {self.step}: not the recorded query", *(f"  {line}" for line in self.differences)]
        if self.elsewhere:
            lines += ["not as recorded here:", *(f"  {line}" for line in self.elsewhere)]
        else:
            lines.append("the environment is the recorded one: a file of the run or the dataset has changed")
        return "\n".join(lines)


def replay(
    run: Path, step: int, *, device: str | None = None, root: Path | None = None,
    monitor: Monitor | None = None,
) -> Replayed:  # fmt: skip
    """Make the query of step `step` of a run again, with the model of the step before.

    Nothing in the folder is changed.

    Args:
        device: where to compute instead of the recorded device; ops are then those of this one.
        root: where the dataset is now, if it was moved.

    Raises:
        RunError: no such run or step, or a file of it that cannot be read; it is named.
        DataError: the dataset cannot be used.
        UnavailableError: the recorded device or ops are not there.
    """
    monitor = monitor or Silent()
    folder = open_run(run, step)
    before = recorded(folder, step)
    config = here(folder.config, device, root)
    if step == 0:
        query = _initial(folder)
    else:
        past = open_past(folder, step, config, monitor)
        query = acquire(past.experiment, past.learner, past.manifold, past.ledger, step, monitor)
    now = query.to_frame()
    return Replayed(
        step, query,
        missing=tuple(_without(before, now)), added=tuple(_without(now, before)),
        differences=tuple(differences(before, now)), elsewhere=tuple(_elsewhere(folder, step, config)),
    )  # fmt: skip


def _initial(folder: RunFolder) -> Query:
    ledger = Ledger.read(folder.step(0) / "ledger.parquet")
    config = folder.config
    first = initial_patches(ledger.grid, len(ledger.names), config.initial_images, config.seed)
    return describe(Selection(first), ledger)


def _without(frame: pd.DataFrame, other: pd.DataFrame) -> list[int]:
    known = set(other["patch"])
    return [int(patch) for patch in frame["patch"] if patch not in known]


def differences(before: pd.DataFrame, now: pd.DataFrame) -> Iterator[str]:
    """What differs between two queries' tables, bit by bit, a line each."""
    if len(before) != len(now):
        yield f"{len(before)} patches recorded, {len(now)} made here"
    for frame, other, what in ((before, now, "recorded"), (now, before, "made here")):
        if only := _without(frame, other):
            yield f"only {what}: {_list(only)}"
        if names := [name for name in frame.columns if name not in other.columns]:
            yield f"columns only {what}: {_list(names)}"
    shared = set(before["patch"]) & set(now["patch"])
    orders = [[int(patch) for patch in frame["patch"] if patch in shared] for frame in (before, now)]
    if orders[0] != orders[1]:
        first = next(i for i, (a, b) in enumerate(zip_longest(*orders)) if a != b)
        yield f"another order from number {first + 1} of the patches in both: {_list(orders[0][first:])}"
    # Row by row of the patches in both, so that one other patch does not make all values differ
    rows = list(dict.fromkeys(orders[0]))
    a, b = (frame.drop_duplicates("patch").set_index("patch").loc[rows] for frame in (before, now))
    different: dict[str, np.ndarray[Any, np.dtype[np.bool_]]] = {}
    apart: dict[str, float] = {}
    for name in (name for name in a.columns if name in b.columns):
        what = "embedding" if name.startswith("embedding_") else name
        ours, theirs = a[name].to_numpy(), b[name].to_numpy()
        different[what] = different.get(what, False) | ~_same(ours, theirs)
        if ours.dtype.kind == theirs.dtype.kind == "f":
            apart[what] = float(np.nanmax(np.abs(ours - theirs), initial=apart.get(what, 0.0)))
    for what, where in different.items():
        if where.any():
            by = f", by {apart[what]:.3g} at most" if what in apart else ""
            yield f"{what}: {int(where.sum())} of {len(rows)} differ{by}"


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Row by row; floats by their bits, so that 0 is not -0. Parquet keeps NaN, but not which NaN."""
    if a.dtype != b.dtype:
        return np.zeros(len(a), dtype=np.bool_)
    if a.dtype.kind != "f":
        return np.asarray(a == b, dtype=np.bool_)
    bits = f"u{a.dtype.itemsize}"
    return np.asarray((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b)))


def _elsewhere(folder: RunFolder, step: int, config: Config) -> Iterator[str]:
    """What differs between the record and here, or cannot be repeated anywhere."""
    before = folder.environment(step)
    now = environment(torch.device(config.device))
    for key in ("device", "threads", "commit", "python"):
        if before.get(key) != now[key]:
            yield f"{key} {before.get(key)}, here {now[key]}"
    for name, version in now["packages"].items():
        if before["packages"].get(name) != version:
            yield f"{name} {before['packages'].get(name)}, here {version}"
    if folder.config.ops != config.ops:
        yield f"ops {folder.config.ops}, here {config.ops}"
    if not config.manifold_deterministic:
        yield "manifold_deterministic = false: UMAP had no seed, and no embedding can be made twice"


def _list(items: list[Any]) -> str:
    more = f", … ({len(items)} in all)" if len(items) > _SHOWN else ""
    return ", ".join(map(str, items[:_SHOWN])) + more
