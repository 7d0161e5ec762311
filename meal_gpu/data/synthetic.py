"""The built-in dataset: drawn street scenes with Cityscapes' classes, four of them rare.

The scenes are drawn once into the cache, in Cityscapes' layout. A frame depends on the seed, its split
and its number only, so a longer tree begins with the frames of a shorter one.
"""

from pathlib import Path

from PIL import Image

from meal_gpu import atomic, lock, rng
from meal_gpu.cache import cache_root, expanded
from meal_gpu.data import cityscapes
from meal_gpu.data.dataset import Dataset
from meal_gpu.data.street.scene import RARE, draw
from meal_gpu.errors import DataError
from meal_gpu.images.headers import Size, image_size
from meal_gpu.images.probing import Progress

VERSION = 1
"""Counts up whenever the drawing changes; part of the cache folder's name."""

SIZE = (192, 384)
TRAIN, VAL = 96, 24
_CITY = "drawn"
_RARE_EVERY = 3  # one frame in three shows one of the rare classes, each in turn


def open_tree(root: Path, *, size: Size | None = None) -> Dataset:
    """Open a tree that `write` made; the default working size is its native one."""
    dataset = cityscapes.open_tree(root, size=size or SIZE, name="synthetic")
    if size is not None:
        return dataset
    return cityscapes.open_tree(root, size=image_size(dataset.train.images[0]), name="synthetic")


def cached() -> Path:
    """The default tree in the cache; drawn first when it is not there, once for all processes."""
    name = f"synthetic-v{VERSION}-{SIZE[0]}x{SIZE[1]}-{TRAIN}-{VAL}"
    root = cache_root() / name
    if not root.is_dir():
        with lock.alone(root, wait=True):
            if not root.is_dir():
                _draw(root, {"train": TRAIN, "val": VAL}, SIZE, 0, None)
    return root


def write(
    root: str | Path, *, train: int, val: int, size: Size, seed: int = 0, progress: Progress | None = None
) -> Path:
    """Draw a tree in Cityscapes' layout; it appears complete or not at all.

    Args:
        root: the folder to make.
        train: number of training frames, at least 1.
        val: number of validation frames, at least 1.
        size: native (height, width), for instance (1024, 2048).
        seed: of every choice.
        progress: called with the number of frames drawn since the last call.

    Returns:
        The absolute path of `root`.

    Raises:
        DataError: `root` exists, a count is below 1, or the size is below 16×16.
        RunError: another process draws it, which is named; or it cannot be written.
    """
    target = expanded(root).absolute()
    if train < 1 or val < 1 or min(size) < 16:
        raise DataError(
            f"a drawn tree needs at least 1 frame in each split and 16×16 pixels; "
            f"train={train}, val={val}, size={size} was asked for"
        )
    with lock.alone(target):
        if target.exists():
            raise DataError(f"{target}: exists already; choose another folder or remove it")
        _draw(target, {"train": train, "val": val}, size, seed, progress)
    return target


def _draw(root: Path, counts: dict[str, int], size: Size, seed: int, progress: Progress | None) -> None:
    with atomic.filled(root) as aside:
        for split, count in counts.items():
            for index in range(count):
                _write_frame(aside, split, index, size, seed)
                if progress:
                    progress(1)


def _write_frame(root: Path, split: str, index: int, size: Size, seed: int) -> None:
    block, place = divmod(index, _RARE_EVERY)
    rare = RARE[block % len(RARE)] if place == _RARE_EVERY - 1 else None
    image, labels = draw(size, rng.stream(seed, index, f"synthetic/{split}"), rare=rare)
    stem = f"{_CITY}_{index:06d}_000019"
    for folder, suffix, pixels in (
        ("leftImg8bit", cityscapes.IMAGE_SUFFIX, image),
        ("gtFine", cityscapes.LABEL_SUFFIX, labels),
    ):
        path = root / folder / split / _CITY / (stem + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=3)
