"""Small trees of random images, and the real CamVid where it is given."""

import os
from pathlib import Path

import pytest
from data_samples import MakeTree, random_image, random_labels
from PIL import Image

from meal_gpu.data import Dataset, open_dataset


@pytest.fixture
def cityscapes_tree(tmp_path: Path) -> MakeTree:
    def make(train: int = 3, val: int = 2, size: tuple[int, int] = (24, 48)) -> Path:
        root = tmp_path / "cityscapes"
        for split, count in (("train", train), ("val", val)):
            for i in range(count):
                stem = f"{split}/city{i % 2}/city{i % 2}_{i:06d}_000019"
                image = root / "leftImg8bit" / f"{stem}_leftImg8bit.png"
                label = root / "gtFine" / f"{stem}_gtFine_labelIds.png"
                for path in (image, label):
                    path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random_image(size, i)).save(image)
                Image.fromarray(random_labels(size, (*range(34), 255), i)).save(label)
        return root

    return make


@pytest.fixture
def cityscapes(cityscapes_tree: MakeTree) -> Dataset:
    return open_dataset("cityscapes", cityscapes_tree(), size=(24, 48))


@pytest.fixture
def folder_tree(tmp_path: Path) -> MakeTree:
    def make(
        classes: str | None = "void: 255\nroad\ncar\n",
        masks: bool = True,
        splits: tuple[str, ...] = ("train", "val"),
        count: int = 2,
    ) -> Path:
        root = tmp_path / "folder"
        for split in splits:
            for i in range(count):
                image = root / "images" / split / f"sub{i}" / f"{i}.png"
                mask = root / "masks" / split / f"sub{i}" / f"{i}.png"
                image.parent.mkdir(parents=True)
                Image.fromarray(random_image((16, 20), i)).save(image)
                if masks:
                    mask.parent.mkdir(parents=True)
                    Image.fromarray(random_labels((16, 20), (0, 1, 255), i)).save(mask)
        if classes is not None:
            (root / "classes.txt").write_text(classes)
        return root

    return make


@pytest.fixture
def camvid_root() -> Path:
    root = os.environ.get("MEAL_GPU_CAMVID")
    if not root:
        pytest.skip("set MEAL_GPU_CAMVID to the folder with CamVid's train.txt to run this test")
    return Path(root)
