import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_samples import MakeTree, random_image
from PIL import Image

from meal_gpu.data import Dataset, check, open_dataset, pack


def parts(dataset: Dataset) -> tuple[Path, Path]:
    assert dataset.train.labels is not None
    return dataset.train.images[1], dataset.train.labels[1]


def save(pixels: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(pixels).save(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size - 200])


def unknown(path: Path) -> None:
    pixels = np.array(Image.open(path))
    pixels[3, 4] = 200
    Image.fromarray(pixels).save(path)


DAMAGE = {
    # name: (of the label?, what happens, message, only found by a deep check?)
    "no image": (False, Path.unlink, "no such image file", False),
    "no label": (True, Path.unlink, "no such image file", False),
    "image size": (False, save(random_image((12, 48))), r"12×48 .* found, .* have 24×48", False),
    "label size": (True, save(np.zeros((24, 40), np.uint8)), r"24×40 .* its image should have 24×48", False),
    "text": (False, lambda path: path.write_text("x"), "not a readable image", False),
    "colours": (True, save(random_image((24, 48))), "8-bit RGB PNG; labels are", False),
    "truncated": (False, truncate, "truncated or damaged", False),
    "truncated label": (True, truncate, "truncated or damaged", False),
    "unknown id": (True, unknown, "label id 200 is unknown to cityscapes", True),
}


@pytest.mark.parametrize("deep", [False, True])
def test_a_good_dataset_has_no_problems(cityscapes: Dataset, deep: bool) -> None:
    counts: list[int] = []
    assert check(cityscapes, deep=deep, progress=counts.append) == []
    assert sum(counts) == 5


@pytest.mark.parametrize(("of_label", "damage", "message", "only_deep"), DAMAGE.values(), ids=DAMAGE)
def test_problems_are_named(
    cityscapes: Dataset, of_label: bool, damage: object, message: str, only_deep: bool
) -> None:
    path = parts(cityscapes)[of_label]
    damage(path)
    (problem,) = check(cityscapes, deep=True)
    assert problem.file == str(path)
    assert problem.message.startswith(f"{path}: ")
    assert re.search(message, problem.message)
    assert check(cityscapes) == ([] if only_deep else [problem])


def test_labels_that_are_not_stored_like_most_are_named(cityscapes: Dataset) -> None:
    path = parts(cityscapes)[1]
    grey = Image.open(path)
    palette = Image.fromarray(np.array(grey), "P")
    palette.putpalette([0] * 768)
    palette.save(path)
    (problem,) = check(cityscapes)
    assert problem.file == str(path)
    assert "a palette PNG, but most labels of the split are grey PNGs" in problem.message


def test_all_problems_are_found_in_order(cityscapes: Dataset) -> None:
    gone = [cityscapes.train.images[2], cityscapes.val.images[0], cityscapes.val.images[1]]
    for path in gone:
        path.unlink()
    assert [problem.file for problem in check(cityscapes)] == list(map(str, gone))


def test_an_unlabelled_folder(folder_tree: MakeTree) -> None:
    assert check(open_dataset("folder", folder_tree(masks=False)), deep=True) == []


def test_a_pack(cityscapes: Dataset, tmp_path: Path) -> None:
    assert check(open_dataset("cityscapes", pack(cityscapes, tmp_path / "pack")), deep=True) == []
