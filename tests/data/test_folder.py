import dataclasses
from pathlib import Path

import numpy as np
import pytest
from data_samples import MakeTree, random_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from meal_gpu.data import UNKNOWN, VOID, load_images, load_labels, open_dataset
from meal_gpu.data.folder import read_classes
from meal_gpu.errors import DataError
from meal_gpu.images.loader import decode

CLASSES = [
    # (classes.txt, names, known ids -> train id)
    ("road\ncar\n", ("road", "car"), {0: 0, 1: 1, 255: VOID}),
    ("# all\n\nroad # grey\ncar", ("road", "car"), {0: 0, 1: 1, 255: VOID}),
    ("void: 0, 255\n1: road\ncar\n", ("road", "car"), {0: VOID, 255: VOID, 1: 0, 2: 1}),
    ("void: 0 9\n7: road\n3: car\nbus", ("road", "car", "bus"), {0: VOID, 9: VOID, 7: 0, 3: 1, 4: 2}),
    ("void:\nroad", ("road",), {0: 0}),
    ("255: road\nvoid: 0", ("road",), {255: 0, 0: VOID}),
    ("traffic light\nVoid: 1", ("traffic light",), {0: 0, 1: VOID}),
    ("\ufeffroad\ncar", ("road", "car"), {0: 0, 1: 1, 255: VOID}),
    ("\ufeffvoid: 0\n1: road", ("road",), {0: VOID, 1: 0}),
]

WRONG = [
    ("", "no classes"),
    ("road\nroad", r"classes\.txt:2: class name 'road' is used twice"),
    ("3:", "is empty"),
    ("1: road\n0: car\nbus", r"classes\.txt:3: id 1 is used twice"),
    ("x: road", "'x' is no label id"),
    ("256: road", "'256' is no label id"),
    ("255: road\ncar", "256 is no label id"),
    ("void: 0\nroad", "id 0 is void and also class 'road'"),
    ("255: road", "id 255 is void and also class 'road'"),
    ("void:\n" + "\n".join(f"c{i}" for i in range(256)), r"classes\.txt: 256 classes, at most 255: train id"),
]


@pytest.mark.parametrize(("text", "names", "ids"), CLASSES)
def test_classes(tmp_path: Path, text: str, names: tuple[str, ...], ids: dict[int, int]) -> None:
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    found, lookup = read_classes(tmp_path / "classes.txt")
    assert found == names
    assert {i: t for i, t in enumerate(lookup) if t != UNKNOWN} == ids


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_classes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "classes.txt")


@given(st.lists(st.integers(0, 254), unique=True, min_size=1, max_size=40))
def test_explicit_ids_map_to_their_lines(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    path = tmp_path_factory.mktemp("classes") / "classes.txt"
    path.write_text("".join(f"{label_id}: class {label_id}\n" for label_id in ids))
    names, lookup = read_classes(path)
    assert [lookup[label_id] for label_id in ids] == list(range(len(ids)))
    assert names == tuple(f"class {label_id}" for label_id in ids)


def test_as_many_classes_as_there_are_train_ids(folder_tree: MakeTree) -> None:
    names = [f"c{i}" for i in range(255)]
    dataset = open_dataset("folder", folder_tree(classes="\n".join(names)))
    assert len(dataset.classes) == 255
    many = {"classes": (*names, "c255"), "colors": ((0, 0, 0),) * 256}
    with pytest.raises(DataError, match="256 classes, at most 255"):
        dataclasses.replace(dataset, **many)


def test_opens_both_splits(folder_tree: MakeTree) -> None:
    dataset = open_dataset("folder", folder_tree())
    assert dataset.size == (16, 20)
    assert dataset.train.names == ("images/train/sub0/0.png", "images/train/sub1/1.png")
    assert dataset.label_ids == (0, 1, 255)
    assert len(dataset.colors) == 2
    assert load_labels(dataset.val, dataset).shape == (2, 16, 20)


def test_without_masks_it_is_unlabelled(folder_tree: MakeTree) -> None:
    dataset = open_dataset("folder", folder_tree(masks=False))
    assert dataset.train.labels is None
    with pytest.raises(DataError, match="no labels"):
        load_labels(dataset.train, dataset)


def test_without_splits_all_is_the_pool(folder_tree: MakeTree) -> None:
    dataset = open_dataset("folder", folder_tree(splits=("",)))
    assert (len(dataset.train), len(dataset.val)) == (2, 0)
    assert dataset.train.labels is not None
    assert load_images(dataset.val, dataset.size).shape == (0, 16, 20, 3)


def test_splits_by_another_name_are_no_pool(folder_tree: MakeTree) -> None:
    """The validation images would be in it."""
    root = folder_tree()
    for split, name in (("train", "Train"), ("val", "Validation")):
        (root / "images" / split).rename(root / "images" / name)
    with pytest.raises(DataError, match=r"(Train|Validation): splits are called train and val; rename"):
        open_dataset("folder", root)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "masks/train/sub1/1.png").unlink(), r"sub1/1\.png: mask missing \(1 of 2"),
        (lambda root: (root / "classes.txt").unlink(), r"classes\.txt: no such file"),
        (lambda root: [p.unlink() for p in root.glob("images/train/*/*")], "no images"),
        (
            lambda root: Image.fromarray(random_image((16, 20))).save(root / "images/train/sub0/0.jpg"),
            r"sub0/0\.png: two images share this mask",
        ),
    ],
)
def test_what_is_missing_is_named(folder_tree: MakeTree, damage: object, message: str) -> None:
    root = folder_tree()
    damage(root)
    with pytest.raises(DataError, match=message):
        open_dataset("folder", root)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "1"])
def test_images_of_other_kinds_become_rgb(folder_tree: MakeTree, mode: str) -> None:
    root = folder_tree(masks=False)
    grey = Image.fromarray(random_image((16, 20))[..., 0])
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert(mode)
    for path in root.glob("images/train/*/*"):
        image.save(path)
    dataset = open_dataset("folder", root)
    found = load_images(dataset.train, dataset.size)
    expected = np.asarray(grey.convert("1") if mode == "1" else grey.convert("L"), dtype=np.uint8)
    if mode == "1":
        expected = expected * 255
    assert decode(dataset.train.images[0]).shape[:2] == (16, 20)
    assert np.array_equal(found[0].numpy(), np.repeat(expected[..., None], 3, axis=2))
