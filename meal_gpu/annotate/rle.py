"""Run lengths of masks, counted from a run of False on: what CVAT and COCO store."""

import numpy as np
from numpy.typing import NDArray

from meal_gpu.errors import DataError


def runs(flat: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lengths (int64) of the runs of a flat mask, first of False (0 where it begins with True), in turn."""
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(edges, prepend=0, append=flat.size).astype(np.int64)
    return np.concatenate([[0], lengths]) if flat.size and flat[0] else lengths


def mask_of(runs: NDArray[np.int64], size_n: int) -> NDArray[np.bool_]:
    """The flat mask [size_n] that run lengths stand for; the inverse of `runs`.

    Raises:
        DataError: a length is negative, or they do not add up to `size_n`; nothing was allocated.
    """
    if runs.size and (runs.min() < 0 or runs.max() > size_n):
        raise DataError(f"run lengths of a mask of {size_n} pixels are 0 to {size_n}")
    total = int(runs.sum())  # cannot overflow: each is at most size_n
    if total != size_n:
        raise DataError(f"run lengths add up to {total} pixels, the mask has {size_n}")
    return np.repeat(np.arange(runs.size) % 2 == 1, runs)
