"""The embedding as the page draws it: coordinates of 16 bits in base64, for pools of any size."""

import base64
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meal_gpu.grid import Grid
from meal_gpu.report.table import Run

MOST = 50_000
"""Unlabelled patches of the pool that are drawn, over all runs of a page; the others are left out evenly."""

_NAMES = 200_000  # letters of image names; of a larger pool only the candidates' images are named
_FULL = 65_535


def embedding(run: Run, grid: Grid, names: tuple[str, ...], limit: int = MOST) -> dict[str, Any] | None:
    """Where patches lie, step by step; None where no step of the run has an embedding.

    `pool` holds `ids` (uint32) and `xy` (uint16, two each) of the manifold's own patches, and `since`, the
    steps that labelled them (int16, -1: none). `steps` hold the `candidates` of each query in the same way,
    with their scores (float32), and `chosen`, patch ids in order of choice. Arrays are little-endian, in
    base64. Without a pool (`shared` is false) each step has a map of its own.
    """
    drawn = []
    for row in run.steps[1:]:
        folder = run.folder.step(int(row["step"]))
        ledger, query = (pd.read_parquet(folder / f"{name}.parquet") for name in ("ledger", "query"))
        # A query without an embedding leaves that of the query before it in the ledger
        if "embedding_0" in query.columns and (coordinates := _coordinates(ledger)) is not None:
            drawn.append((int(row["step"]), ledger, coordinates, [int(patch) for patch in query["patch"]]))
    if not drawn:
        return None
    newest, pool, stored = drawn[-1][1], None, run.folder.path / "manifold" / "pool.parquet"
    size = len(newest)
    if stored.is_file():
        frame = pd.read_parquet(stored)
        if (fitted := _coordinates(frame)) is not None and len(frame) == size:
            even = np.linspace(0, size - 1, min(limit, size)).round().astype(np.int64)
            rows = np.union1d(even, np.flatnonzero(newest["step"].to_numpy() >= 0))
            pool = rows, fitted[rows]
    everything = [xy[np.isfinite(xy).all(axis=1)] for _, _, xy, _ in drawn]
    shared = None if pool is None else _Box([pool[1], *everything])
    steps = []
    for (step, ledger, xy, chosen), own in zip(drawn, everything, strict=True):
        candidates = np.flatnonzero(np.isfinite(xy).all(axis=1))
        steps.append(
            {
                "step": step, "chosen": chosen,
                "candidates": {
                    "ids": _base64(candidates, "<u4"),
                    "xy": _base64((shared or _Box([own])).quantised(xy[candidates]), "<u2"),
                    "scores": _base64(ledger["score"].to_numpy()[candidates], "<f4"),
                },
            }
        )  # fmt: skip
    return {
        "patches": size, "perImage": grid.patches_per_image, "shared": shared is not None,
        "dimension": sum(name.startswith("embedding_") for name in newest.columns),
        "pool": None if pool is None or shared is None else {
            "ids": _base64(pool[0], "<u4"), "xy": _base64(shared.quantised(pool[1]), "<u2"),
            "since": _base64(newest["step"].to_numpy()[pool[0]], "<i2"), "shown": len(pool[0]),
        },
        "labelled": [int(row["labelled"]) for row in run.steps],
        "steps": steps,
        "names": _named(names, grid, drawn),
    }  # fmt: skip


def _named(names: tuple[str, ...], grid: Grid, drawn: list[Any]) -> dict[str, str]:
    """Image names by number."""
    numbers = set(range(len(names)))
    if sum(map(len, names)) > _NAMES:
        numbers = {patch // grid.patches_per_image for _, _, _, chosen in drawn for patch in chosen}
    return {str(number): names[number] for number in sorted(numbers)}


def _coordinates(frame: pd.DataFrame) -> NDArray[np.float64] | None:
    """[P, 2]: the first two axes of an embedding, 0 where it has one; None where there is none."""
    columns = [name for name in ("embedding_0", "embedding_1") if name in frame.columns]
    if not columns or not frame[columns[0]].notna().any():
        return None
    xy = np.zeros((len(frame), 2))
    xy[:, : len(columns)] = frame[columns].to_numpy(np.float64)
    return xy


class _Box:
    """One scale for both axes, so that distances stay what they are."""

    def __init__(self, parts: list[NDArray[np.float64]]) -> None:
        both = np.concatenate(parts)
        low, high = both.min(axis=0), both.max(axis=0)
        self._span = max(float((high - low).max()), 1e-9)
        self._low = (low + high - self._span) / 2

    def quantised(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """[M, 2] -> 0..65535, the second axis upwards."""
        return np.asarray(((xy - self._low) / self._span * _FULL).round().clip(0, _FULL))


def _base64(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(dtype).tobytes()).decode()
