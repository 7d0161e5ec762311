from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import MakeTree
from PIL import Image

from meal_gpu.data import UNKNOWN, VOID, Dataset, load_labels, open_dataset
from meal_gpu.data.cityscapes import CLASSES, COLORS, LOOKUP
from meal_gpu.errors import DataError

official = pytest.importorskip("cityscapesscripts.helpers.labels")


@pytest.mark.parametrize("label", official.labels, ids=lambda label: label.name)
def test_every_id_has_the_official_train_id(label: object) -> None:
    stored = label.id % 256  # -1, the licence plate, is 255 in 8 bits
    expected = VOID if label.trainId in (255, -1) else label.trainId
    assert LOOKUP[stored] == expected


def test_ids_outside_the_official_table_are_unknown() -> None:
    known = {label.id % 256 for label in official.labels}
    assert {i for i in range(256) if LOOKUP[i] != UNKNOWN} == known


def test_names_and_colours_are_the_official_ones() -> None:
    by_train_id = {label.trainId: label for label in official.labels if 0 <= label.trainId < 255}
    assert [by_train_id[i].name for i in range(19)] == list(CLASSES)
    assert [by_train_id[i].color for i in range(19)] == list(COLORS)


def test_opens_the_official_layout(cityscapes_tree: MakeTree) -> None:
    root = cityscapes_tree()
    dataset = open_dataset("cityscapes", root)
    assert dataset.size == (512, 1024)
    assert dataset.train.names == (
        "leftImg8bit/train/city0/city0_000000_000019_leftImg8bit.png",
        "leftImg8bit/train/city0/city0_000002_000019_leftImg8bit.png",
        "leftImg8bit/train/city1/city1_000001_000019_leftImg8bit.png",
    )
    assert dataset.train.labels is not None
    assert dataset.train.labels[1] == root / "gtFine/train/city0/city0_000002_000019_gtFine_labelIds.png"
    assert len(dataset.val) == 2


def test_what_is_hidden_is_no_image(cityscapes_tree: MakeTree) -> None:
    root = cityscapes_tree()
    names = open_dataset("cityscapes", root).train.names
    for name in ("city0/._city0_000000_000019", ".trash/city0_000000_000019"):
        path = root / f"leftImg8bit/train/{name}_leftImg8bit.png"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert open_dataset("cityscapes", root).train.names == names


def test_root_comes_from_the_environment(cityscapes_tree: MakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITYSCAPES_DATASET", str(cityscapes_tree()))
    assert len(open_dataset("cityscapes").train) == 3


def test_a_missing_label_file_is_named(cityscapes_tree: MakeTree) -> None:
    root = cityscapes_tree()
    gone = root / "gtFine/val/city1/city1_000001_000019_gtFine_labelIds.png"
    gone.unlink()
    with pytest.raises(DataError, match=r"city1_000001_000019_gtFine_labelIds\.png.*1 of 2 val images"):
        open_dataset("cityscapes", root)


def test_an_empty_folder_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"leftImg8bit.train.*leftImg8bit_trainvaltest\.zip"):
        open_dataset("cityscapes", tmp_path)


def test_labels_come_out_as_train_ids(cityscapes: Dataset) -> None:
    assert cityscapes.train.labels is not None
    expected = np.stack([np.array(LOOKUP)[np.array(Image.open(p))] for p in cityscapes.train.labels])
    found = load_labels(cityscapes.train, cityscapes)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), expected)


def test_an_unknown_id_is_named_with_its_file_and_the_known_ones(cityscapes: Dataset) -> None:
    assert cityscapes.train.labels is not None
    path = cityscapes.train.labels[1]
    pixels = np.array(Image.open(path))
    pixels[5, 7] = 77
    Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match=rf"{path.name}: label id 77 is unknown .* 0, 1, .* 33, 255"):
        load_labels(cityscapes.train, cityscapes)
