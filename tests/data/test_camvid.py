from pathlib import Path

import numpy as np
import pytest
from data_samples import random_image, random_labels
from PIL import Image

from meal_gpu.data import UNKNOWN, VOID, check, load_images, load_labels, open_dataset
from meal_gpu.data.camvid import CLASSES, LOOKUP
from meal_gpu.errors import DataError
from meal_gpu.images.loader import decode


def make(root: Path, line: str, suffix: str = ".png") -> Path:
    """A tree of one training and one validation frame; `line` is its list files' pattern."""
    for split in ("train", "val"):
        for folder, pixels, end in (
            (split, random_image((36, 48)), suffix),
            (split + "annot", random_labels((36, 48), tuple(range(12))), ".png"),
        ):
            (root / folder).mkdir(parents=True)
            Image.fromarray(pixels).save(root / folder / f"X{end}")
        (root / f"{split}.txt").write_text(line.format(s=split), encoding="utf-8")
    return root


LINES = {
    "relative": "{s}/X.png {s}annot/X.png\n",
    "the public archive": "/SegNet/CamVid/{s}/X.png /SegNet/CamVid/{s}annot/X.png\n",
    "with semicolons and blank lines": "\n/SegNet/CamVid/{s}/X.png /SegNet/CamVid/{s}annot/X.png;\r\n\n",
    "other suffix": "{s}/X.jpg {s}annot/X.png",
    "byte-order mark": "\ufeff{s}/X.png {s}annot/X.png",
    "backslashes": "D:\\CamVid\\{s}\\X.png D:\\CamVid\\{s}annot\\X.png\n",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_list_files(tmp_path: Path, line: str, suffix: str) -> None:
    dataset = open_dataset("camvid", make(tmp_path, line, suffix))
    assert dataset.train.images == (tmp_path / f"train/X{suffix}",)
    assert dataset.train.labels == (tmp_path / "trainannot/X.png",)
    assert dataset.val.names == (f"val/X{suffix}",)
    assert dataset.size == (360, 480)


def test_lookup() -> None:
    assert (*range(11), VOID, *[UNKNOWN] * 244) == LOOKUP
    assert (CLASSES[0], CLASSES[3], CLASSES[10]) == ("sky", "road", "bicyclist")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{s}/X.png", r"train\.txt:1: 1 paths, expected 2"),
        ("{s}/Y.png {s}annot/X.png", r"train/Y\.png: file missing, but .*train\.txt:1 lists it"),
        ("../X.png {s}annot/X.png", "leads out of"),
        ("\n", "names no images"),
        (
            "{s}/X.png {s}annot/X.png\n\nCamVid/{s}/X.jpg {s}annot/X.png",
            r"train\.txt:3: .*train/X\.png is in .*train\.txt:1 too; remove one",
        ),
        (
            "{s}/X.png {s}annot/X.png\n{s}annot/X.png {s}annot/X.png",
            r"train\.txt:2: .*trainannot/X\.png is in .*train\.txt:1 too; remove one",
        ),
        (
            "train/X.png trainannot/X.png",
            r"val\.txt:1: .*train/X\.png is in .*train\.txt:1 too; remove one",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset("camvid", make(tmp_path, line))


def test_a_list_file_of_another_encoding_is_named(tmp_path: Path) -> None:
    make(tmp_path, LINES["relative"])
    (tmp_path / "val.txt").write_text(LINES["relative"], encoding="utf-16")
    with pytest.raises(DataError, match=r"val\.txt: cannot be read as UTF-8 text"):
        open_dataset("camvid", tmp_path)


def test_a_missing_list_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.txt: no such list file.*data download camvid"):
        open_dataset("camvid", tmp_path)


@pytest.mark.camvid
def test_the_real_images(camvid_root: Path) -> None:
    dataset = open_dataset("camvid", camvid_root)
    assert (len(dataset.train), len(dataset.val)) == (367, 101)
    assert check(dataset) == []
    images = load_images(dataset.val, dataset.size)
    labels = load_labels(dataset.val, dataset)
    assert images.shape == (101, 360, 480, 3)
    assert set(labels.unique().tolist()) == {*range(11), VOID}
    for i in (0, 50, 100):
        assert dataset.val.labels is not None
        expected = np.array(LOOKUP)[decode(dataset.val.labels[i])]
        assert np.array_equal(labels[i].numpy(), expected)
        difference = images[i].numpy().astype(int) - decode(dataset.val.images[i])
        assert np.abs(difference).max() <= 2
