"""Find what is wrong with a dataset before hours are spent on it."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from meal_gpu.data.dataset import UNKNOWN, Dataset, Split
from meal_gpu.data.load import describe_unknown
from meal_gpu.errors import DataError
from meal_gpu.images.headers import label_kind
from meal_gpu.images.loader import decode
from meal_gpu.images.probing import Look, Problem, Progress, common_size


def check(dataset: Dataset, *, deep: bool = False, progress: Progress | None = None) -> list[Problem]:
    """Look at every file of both splits.

    Reads no pixels: that each file is there, is an image that is whole as far as its structure tells, and has
    the size of most images of its split, and that labels are 8-bit PNG files of ids. `deep` decodes every
    file as well and looks at every label id.

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
            if split.packed is not None:
                continue

            def look(index: int, split: Split = split) -> tuple[Look, Look | None, str | None]:
                return _pair(split, index, dataset, deep)

            pairs = []
            for pair in workers.map(look, range(len(split))):
                pairs.append(pair)
                if progress:
                    progress(1)
            native = common_size(image for image, _, _ in pairs)
            kinds = Counter(kind for _, _, kind in pairs if kind)
            for image, label, kind in pairs:
                problems += image.problems(native, "most images of the split have")
                if label is None:
                    continue
                problems += label.problems(native, "its image should have")
                if kind and kind != (usual := kinds.most_common(1)[0][0]):
                    told = f"a {kind} PNG, but most labels of the split are {usual} PNGs; store all alike"
                    problems.append(Problem(label.file, f"{label.file}: {told}"))
    return problems


def _pair(split: Split, index: int, dataset: Dataset, deep: bool) -> tuple[Look, Look | None, str | None]:
    """Image and label, and how the label stores ids, if it does."""
    image = Look.at(split.images[index], (decode,) if deep else ())
    if split.labels is None:
        return image, None, None
    kinds: list[str] = []
    steps: list[Callable[[Path], object]] = [lambda path: kinds.append(label_kind(path))]
    if deep:
        steps.append(lambda path: _check_ids(path, dataset))
    label = Look.at(split.labels[index], steps)
    return image, label, None if label.fault else kinds[0]


def without(dataset: Dataset, problems: Sequence[Problem]) -> Dataset:
    """The dataset without the images that have a problem, or whose label has.

    Raises:
        DataError: nothing is left of a split.
    """
    bad = {Path(problem.file) for problem in problems}

    def kept(split: Split, what: str) -> Split:
        labels = split.labels or split.images
        keep = [
            i for i, (image, label) in enumerate(zip(split.images, labels, strict=True))
            if image not in bad and label not in bad
        ]  # fmt: skip
        if len(split) and not keep:
            raise DataError(f"{dataset.root}: none of the {len(split)} {what} images can be used")
        left = None if split.labels is None else tuple(split.labels[i] for i in keep)
        return Split(split.root, tuple(split.images[i] for i in keep), left, split.packed)

    return replace(dataset, train=kept(dataset.train, "train"), val=kept(dataset.val, "val"))


def _check_ids(path: Path, dataset: Dataset) -> None:
    there = np.bincount(decode(path).reshape(-1), minlength=256)
    for label_id in np.flatnonzero(there):
        if dataset.lookup[label_id] == UNKNOWN:
            raise DataError(describe_unknown(path, int(label_id), dataset))
