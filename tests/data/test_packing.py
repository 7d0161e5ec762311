import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import MakeTree

from meal_gpu.data import Dataset, load_images, load_labels, open_dataset, pack
from meal_gpu.errors import DataError


@pytest.mark.parametrize("size", [(24, 48), (12, 24)])
def test_a_pack_holds_the_same_pixels(
    cityscapes_tree: MakeTree, tmp_path: Path, size: tuple[int, int]
) -> None:
    dataset = open_dataset("cityscapes", cityscapes_tree(train=11), size=size)
    counts: list[int] = []
    out = pack(dataset, tmp_path / "pack", progress=counts.append)
    assert sum(counts) == 2 * 13
    packed = open_dataset("cityscapes", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cityscapes", "pack"]
    for field in ("name", "classes", "colors", "lookup", "size"):
        assert getattr(packed, field) == getattr(dataset, field)
    for ours, theirs in ((packed.train, dataset.train), (packed.val, dataset.val)):
        assert ours.names == theirs.names
        assert torch.equal(load_images(ours, size), load_images(theirs, size))
        assert torch.equal(load_labels(ours, packed), load_labels(theirs, dataset))


def test_nothing_is_decoded_and_nothing_written_back(
    cityscapes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = pack(cityscapes, tmp_path / "pack")
    before = (out / "train.images.npy").read_bytes()
    monkeypatch.setattr("meal_gpu.data.load.Loader", None)
    monkeypatch.setattr("meal_gpu.images.opening.Loader", None)
    packed = open_dataset("cityscapes", out)
    images = load_images(packed.train, packed.size)
    images[:] = 0
    assert (out / "train.images.npy").read_bytes() == before
    assert np.load(out / "train.labels.npy").shape == (3, 24, 48)


def test_unlabelled_and_empty_splits(folder_tree: MakeTree, tmp_path: Path) -> None:
    dataset = open_dataset("folder", folder_tree(masks=False, splits=("",)))
    packed = open_dataset("folder", pack(dataset, tmp_path / "pack"))
    assert packed.train.labels is None
    assert len(packed.val) == 0
    assert load_images(packed.train, packed.size).shape == (2, 16, 20, 3)
    assert load_images(packed.val, packed.size).shape == (0, 16, 20, 3)


def test_another_name_or_size_is_refused(cityscapes: Dataset, tmp_path: Path) -> None:
    out = pack(cityscapes, tmp_path / "pack")
    with pytest.raises(DataError, match="a pack of cityscapes, not of camvid"):
        open_dataset("camvid", out)
    with pytest.raises(DataError, match="packed at 24×48 pixels, 12×24 was asked for"):
        open_dataset("cityscapes", out, size=(12, 24))
    with pytest.raises(DataError, match="packed at 24×48 pixels, 12×24 was asked for"):
        load_images(open_dataset("cityscapes", out).train, (12, 24))


def test_a_folder_that_holds_something_is_left_alone(cityscapes: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        pack(cityscapes, tmp_path)
    with pytest.raises(DataError, match="a pack already"):
        pack(open_dataset("cityscapes", pack(cityscapes, tmp_path / "pack")), tmp_path / "again")


def test_nothing_is_left_behind_when_it_fails(cityscapes: Dataset, tmp_path: Path) -> None:
    assert cityscapes.val.labels is not None
    cityscapes.val.labels[0].write_text("x")
    with pytest.raises(DataError, match="labelIds"):
        pack(cityscapes, tmp_path / "pack")
    assert [p.name for p in tmp_path.iterdir()] == ["cityscapes"]


def rewrite(out: Path, **change: object) -> None:
    manifest = json.loads((out / "pack.json").read_text())
    (out / "pack.json").write_text(json.dumps(manifest | change))


def renamed(out: Path, count: int) -> None:
    """`count` names of training images in pack.json."""
    splits = json.loads((out / "pack.json").read_text())["splits"]
    splits["train"]["names"] = [f"{i}.png" for i in range(count)]
    rewrite(out, splits=splits)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "pack.json").write_text("{"), r"pack\.json: not a readable pack"),
        (
            lambda out: (out / "pack.json").write_text(json.dumps({"version": 99})),
            "pack version 99, expected 1",
        ),
        *(
            (lambda out, change=change: rewrite(out, **change), r"pack\.json: not a readable pack")
            for change in (
                {"size": "x"},
                {"size": [24, 48, 3]},
                {"size": 24},
                {"splits": {}},
                {"lookup": ["x"]},
                {"colors": [1]},
                {"classes": 3},
                {"splits": []},
                {"splits": {"train": 3, "val": 3}},
            )
        ),
        (lambda out: (out / "pack.json").write_text('{"version": 1}'), "not a readable pack"),
        (lambda out: (out / "pack.json").write_text("[]"), "not a readable pack"),
        (lambda out: rewrite(out, lookup=[0]), "a lookup has 256 entries, one per label value; 1 were given"),
        (lambda out: renamed(out, 2), r"train\.images\.npy: 3 images, pack\.json names 2"),
        (lambda out: renamed(out, 4), r"train\.images\.npy: 3 images, pack\.json names 4"),
        (
            lambda out: np.save(out / "train.images.npy", np.zeros((3, 24, 48, 3), np.int16)),
            r"train\.images\.npy: int16 \[3, 24, 48, 3\], uint8 \[3, 24, 48, 3\] expected",
        ),
        (
            lambda out: np.save(out / "train.images.npy", np.zeros((3, 24, 48), np.uint8)),
            r"train\.images\.npy: uint8 \[3, 24, 48\], uint8 \[3, 24, 48, 3\] expected",
        ),
        (lambda out: (out / "train.images.npy").write_text("x"), r"train\.images\.npy: not a readable pack"),
        (lambda out: (out / "train.images.npy").unlink(), r"train\.images\.npy: not a readable pack"),
    ],
)
def test_a_damaged_pack_is_named(cityscapes: Dataset, tmp_path: Path, damage: object, message: str) -> None:
    out = pack(cityscapes, tmp_path / "pack")
    damage(out)

    def use() -> None:
        packed = open_dataset("cityscapes", out)
        load_images(packed.train, packed.size)

    with pytest.raises(DataError, match=message):
        use()
