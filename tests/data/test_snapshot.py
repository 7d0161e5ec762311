"""What tells one dataset from another that looks like it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import MakeTree, random_image
from PIL import Image

from meal_gpu.data import Dataset, difference, open_dataset, pack, snapshot


def stored(dataset: Dataset) -> Any:
    return json.loads(json.dumps(snapshot(dataset)))


def altered(root: Path, what: str) -> None:
    """Other pixels in one file of a folder dataset."""
    path = next((root / what).rglob("*.png"))
    pixels = np.array(Image.open(path))
    pixels[0, 0] = 1 - pixels[0, 0] % 2
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(
    ("what", "file"),
    [
        ("images/train", "train.images"),
        ("masks/train", "train.labels"),
        ("images/val", "val.images"),
        ("masks/val", "val.labels"),
    ],
)
def test_a_pack_of_other_pixels_is_another(
    folder_tree: MakeTree, tmp_path: Path, what: str, file: str
) -> None:
    root = folder_tree()
    first = pack(open_dataset("folder", root), tmp_path / "first")
    before = stored(open_dataset("folder", first))
    copy = shutil.copytree(first, tmp_path / "copy", copy_function=shutil.copyfile)
    assert difference(before, stored(open_dataset("folder", copy))) is None
    again = pack(open_dataset("folder", root), tmp_path / "again")
    assert difference(before, stored(open_dataset("folder", again))) is None
    altered(root, what)
    other = pack(open_dataset("folder", root), tmp_path / "other")
    found = difference(before, stored(open_dataset("folder", other)))
    assert found is not None
    assert found.startswith(f"{file}.npy has changed, SHA-256 ")


def test_a_pack_without_hashes_is_told_by_its_time(folder_tree: MakeTree, tmp_path: Path) -> None:
    root = pack(open_dataset("folder", folder_tree()), tmp_path / "pack")
    manifest = json.loads((root / "pack.json").read_text())
    for split in manifest["splits"].values():
        del split["sha256"]
    (root / "pack.json").write_text(json.dumps(manifest))
    before = stored(open_dataset("folder", root))
    assert difference(before, stored(open_dataset("folder", root))) is None
    os.utime(root / "val.labels.npy", ns=(1, 1))
    found = difference(before, stored(open_dataset("folder", root)))
    assert found is not None
    assert found.endswith("then, modified at 1 ns now")


@pytest.mark.parametrize("suffix", [".bmp", ".tiff"])
def test_an_uncompressed_image_of_other_pixels_is_another(folder_tree: MakeTree, suffix: str) -> None:
    root = folder_tree(masks=False)
    for path in (*root.glob("images/*/*/*.png"),):
        Image.open(path).save(path.with_suffix(suffix))
        path.unlink()
    before = stored(open_dataset("folder", root))
    Image.fromarray(random_image((16, 20), 7)).save(root / f"images/val/sub1/1{suffix}")
    found = difference(before, stored(open_dataset("folder", root)))
    assert found is not None
    assert found.startswith(f"images/val/sub1/1{suffix} has changed, SHA-256 ")


def test_a_label_of_as_many_bytes_and_other_ids_is_another(folder_tree: MakeTree) -> None:
    root = folder_tree()
    label = sorted(root.glob("masks/train/**/*.png"))[0]
    ids = np.array(Image.open(label))
    Image.fromarray(ids).save(label, compress_level=0)
    before, size = stored(open_dataset("folder", root)), label.stat().st_size
    Image.fromarray(ids[::-1, ::-1].copy()).save(label, compress_level=0)
    assert label.stat().st_size == size
    found = difference(before, stored(open_dataset("folder", root)))
    assert found is not None
    assert found.startswith("the label of images/train/") and " has changed, SHA-256 " in found


def test_a_snapshot_of_sizes_alone_is_compared_by_them(folder_tree: MakeTree, tmp_path: Path) -> None:
    root = folder_tree()
    for opened in (
        open_dataset("folder", root),
        open_dataset("folder", pack(open_dataset("folder", root), tmp_path / "pack")),
    ):
        before = stored(opened)
        before.pop("contents", None)
        assert difference(before, stored(opened)) is None
