"""A dataset decoded and resized once: one array file per split, opened without decoding.

OUT/pack.json           name, classes, colours, lookup, size, image names and the arrays' SHA-256
OUT/train.images.npy    [N, H, W, 3] uint8
OUT/train.labels.npy    [N, H, W] uint8, train ids with void 255; absent when unlabelled
OUT/val.images.npy  OUT/val.labels.npy
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from meal_gpu import atomic, lock
from meal_gpu.cache import expanded
from meal_gpu.data.dataset import Dataset, Split
from meal_gpu.data.load import fill_labels
from meal_gpu.errors import DataError
from meal_gpu.images.headers import Size
from meal_gpu.images.opening import fill
from meal_gpu.images.probing import Progress

MANIFEST = "pack.json"
_VERSION = 1


def pack(dataset: Dataset, out: str | Path, *, progress: Progress | None = None) -> Path:
    """Write `dataset` as a pack; `open_dataset(dataset.name, out)` then gives the pixels that a CPU decodes.

    The folder appears complete or not at all.

    Args:
        dataset: what to decode, at its working size.
        out: the folder to make; it must not exist or be empty.
        progress: called with the number of image and label files finished since the last call.

    Returns:
        The absolute path of `out`.

    Raises:
        DataError: `out` holds something, `dataset` is a pack itself, or a file of the dataset cannot be used.
        RunError: another process packs into `out`, which is named; or it cannot be written.
    """
    if dataset.train.packed is not None:
        raise DataError(f"{dataset.root}: a pack already; copy the folder instead")
    target = expanded(out).absolute()
    manifest: dict[str, Any] = {
        "version": _VERSION,
        "name": dataset.name,
        "classes": dataset.classes,
        "colors": dataset.colors,
        "lookup": dataset.lookup,
        "size": dataset.size,
        "splits": {
            name: {"names": split.names, "labelled": split.labels is not None}
            for name, split in (("train", dataset.train), ("val", dataset.val))
        },
    }
    with lock.alone(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise DataError(f"{target}: exists already; choose another folder or remove it")
        with atomic.filled(target) as aside:
            for name, split in (("train", dataset.train), ("val", dataset.val)):
                manifest["splits"][name]["sha256"] = _write_split(aside / name, split, dataset, progress)
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return target


def open_pack(root: Path, name: str, *, size: Size | None = None) -> Dataset:
    """Open what `pack` wrote.

    Raises:
        DataError: the pack is of another dataset, size or version, or cannot be read.
    """
    path = root / MANIFEST
    with _reading(path):
        return _opened(_read(path), root, name, size)


def _opened(manifest: dict[str, Any], root: Path, name: str, size: Size | None) -> Dataset:
    height, width = manifest["size"]
    packed_size = (int(height), int(width))
    if manifest["name"] != name:
        raise DataError(f"{root}: a pack of {manifest['name']}, not of {name}; ask for {manifest['name']}")
    if size is not None and tuple(size) != packed_size:
        raise DataError(
            f"{root}: packed at {packed_size[0]}×{packed_size[1]} pixels, {size[0]}×{size[1]} was asked for; "
            f"pack the dataset at that size"
        )
    return Dataset(
        name=name,
        root=root,
        classes=tuple(manifest["classes"]),
        colors=tuple((int(r), int(g), int(b)) for r, g, b in manifest["colors"]),
        lookup=tuple(map(int, manifest["lookup"])),
        size=packed_size,
        train=_open_split(root, "train", manifest["splits"]["train"]),
        val=_open_split(root, "val", manifest["splits"]["val"]),
    )


def contents(packed: Path) -> dict[str, str]:
    """What changes with the pixels of a packed split, by array file: SHA-256, or the time of a file without.

    Raises:
        DataError: as `open_pack`.
    """
    manifest = packed.parent / MANIFEST
    with _reading(manifest):
        hashes = dict(_read(manifest)["splits"][packed.name].get("sha256", {}))
    return {
        file.name: f"SHA-256 {hashes[file.name]}"
        if file.name in hashes
        else f"modified at {file.stat().st_mtime_ns} ns"
        for file in sorted(packed.parent.glob(f"{packed.name}.*.npy"))
    }


def _read(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    version = manifest["version"]
    if version != _VERSION:
        raise DataError(f"{path}: pack version {version}, expected {_VERSION}; pack the dataset again")
    return manifest


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """DataError for whatever a manifest lacks or has of another kind."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a readable pack ({error!r}); pack the dataset again") from error


def _open_split(root: Path, split: str, entry: dict[str, Any]) -> Split:
    images = tuple(root / PurePosixPath(name) for name in entry["names"])
    labels = tuple(root / f"{split}.labels.npy" for _ in images) if entry["labelled"] else None
    return Split(root, images, labels, packed=root / split)


def _write_split(stem: Path, split: Split, dataset: Dataset, progress: Progress | None) -> dict[str, str]:
    """SHA-256 of the pixels by array file."""
    found = {}
    with _created(Path(f"{stem}.images.npy"), (len(split), *dataset.size, 3)) as images:
        hashed = _Hashed(images, progress)
        fill(images, split.images, hashed)
        found[f"{stem.name}.images.npy"] = hashed.sha256.hexdigest()
    if split.labels is not None:
        with _created(Path(f"{stem}.labels.npy"), (len(split), *dataset.size)) as labels:
            hashed = _Hashed(labels, progress)
            fill_labels(labels, split, dataset, hashed)
            found[f"{stem.name}.labels.npy"] = hashed.sha256.hexdigest()
    return found


class _Hashed:
    """A progress that hashes what was just written, while memory still has it."""

    def __init__(self, pixels: torch.Tensor, progress: Progress | None) -> None:
        self.sha256 = hashlib.sha256()
        self._pixels = pixels
        self._progress = progress
        self._done = 0

    def __call__(self, count: int) -> None:
        self.sha256.update(self._pixels[self._done : self._done + count].numpy().data)
        self._done += count
        if self._progress:
            self._progress(count)


@contextmanager
def _created(path: Path, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """A tensor over a new array file, so that no split needs to fit into memory."""
    if shape[0] == 0:  # an empty file cannot be mapped
        np.save(path, np.empty(shape, dtype=np.uint8))
        yield torch.empty(shape, dtype=torch.uint8)
        return
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:  # a full disk is an error now, and a SIGBUS later
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    yield torch.from_numpy(mapped)
    mapped.flush()
