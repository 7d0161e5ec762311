"""Find what is wrong with a dataset before hours are spent on it."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meal_gpu.data.dataset import UNKNOWN, Dataset, Progress, Split
from meal_gpu.data.load import describe_unknown
from meal_gpu.errors import DataError
from meal_gpu.images.headers import Size, image_size, label_kind
from meal_gpu.images.loader import decode


@dataclass(frozen=True)
class Problem:
    """One file that cannot be used.

    Attributes:
        path: the file.
        message: what is wrong and how to mend it; it names the file too.
    """

    path: Path
    message: str


def check(dataset: Dataset, *, deep: bool = False, progress: Progress | None = None) -> list[Problem]:
    """Look at every file of both splits.

    Reads headers only: that each file is there, is an image, and has the size of the first image of its
    split, and that labels are 8-bit PNG files of ids. `deep` decodes every file as well and looks at
    every label id.

    Args:
        dataset: what to look at; a pack, checked when it was written, has no problems.
        deep: decode everything.
        progress: called with the number of images (each with its label) finished since the last call.

    Returns:
        The problems in the order of the files; empty when all is well.
    """
    problems: list[Problem] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        for split in (dataset.train, dataset.val):
            if not len(split) or split.packed is not None:
                continue
            native = _first_size(split)

            def look(index: int, split: Split = split, native: Size | None = native) -> list[Problem]:
                return list(_pair(split, index, native, dataset, deep))

            for found in workers.map(look, range(len(split))):
                problems += found
                if progress:
                    progress(1)
    return problems


def _first_size(split: Split) -> Size | None:
    for path in split.images:
        try:
            return image_size(path)
        except DataError:
            continue
    return None


def _pair(split: Split, index: int, native: Size | None, dataset: Dataset, deep: bool) -> Iterator[Problem]:
    image = split.images[index]
    yield from _file(image, native, "the first image of the split has", (decode,) if deep else ())
    if split.labels is None:
        return
    label = split.labels[index]
    steps: list[Callable[[Path], object]] = [label_kind]
    if deep:
        steps.append(lambda path: _check_ids(path, dataset))
    yield from _file(label, native, "its image should have", steps)


def _file(
    path: Path, native: Size | None, expected: str, steps: Sequence[Callable[[Path], object]]
) -> Iterator[Problem]:
    try:
        size = image_size(path)
        if native is not None and size != native:
            yield Problem(
                path,
                f"{path}: {size[0]}×{size[1]} pixels (height × width) found, "
                f"{expected} {native[0]}×{native[1]}; resize the file or remove it",
            )
        for step in steps:
            step(path)
    except DataError as error:
        yield Problem(path, str(error))


def _check_ids(path: Path, dataset: Dataset) -> None:
    there = np.bincount(decode(path).reshape(-1), minlength=256)
    for label_id in np.flatnonzero(there):
        if dataset.lookup[label_id] == UNKNOWN:
            raise DataError(describe_unknown(path, int(label_id), dataset))
