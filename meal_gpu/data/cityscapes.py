"""Cityscapes in its official layout: leftImg8bit/SPLIT/CITY/*.png and gtFine/SPLIT/CITY/*_labelIds.png."""

from pathlib import Path

from meal_gpu.data.dataset import UNKNOWN, VOID, Color, Dataset, Split
from meal_gpu.errors import DataError
from meal_gpu.images.headers import Size
from meal_gpu.images.local import hidden

SIZE = (512, 1024)
IMAGE_SUFFIX = "_leftImg8bit.png"
LABEL_SUFFIX = "_gtFine_labelIds.png"

# (name, id in the files, RGB) in the order of the train ids.
_TABLE: tuple[tuple[str, int, Color], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CLASSES = tuple(name for name, _, _ in _TABLE)
COLORS = tuple(color for _, _, color in _TABLE)
LABEL_IDS = {name: label_id for name, label_id, _ in _TABLE}


def _lookup() -> tuple[int, ...]:
    table = [UNKNOWN] * 256
    table[:34] = [VOID] * 34
    table[255] = VOID  # licence plate: id -1, stored in 8 bits
    for train_id, (_, label_id, _) in enumerate(_TABLE):
        table[label_id] = train_id
    return tuple(table)


LOOKUP = _lookup()


def open_tree(root: Path, *, size: Size | None = None, name: str = "cityscapes") -> Dataset:
    """Open a tree in Cityscapes' layout; images may have any native size.

    Args:
        root: the folder that holds `leftImg8bit` and `gtFine`.
        size: working (height, width); default 512×1024.
        name: the dataset's name.

    Raises:
        DataError: a folder or a label file is missing.
    """
    return Dataset(
        name=name,
        root=root,
        classes=CLASSES,
        colors=COLORS,
        lookup=LOOKUP,
        size=size or SIZE,
        train=_split(root, "train"),
        val=_split(root, "val"),
    )


def _split(root: Path, split: str) -> Split:
    folder = root / "leftImg8bit" / split
    found = folder.glob(f"*/*{IMAGE_SUFFIX}")
    images = tuple(sorted(path for path in found if not hidden(f"{path.parent.name}/{path.name}")))
    if not images:
        raise DataError(
            f"{folder}: no CITY/*{IMAGE_SUFFIX} here; unpack leftImg8bit_trainvaltest.zip and "
            f"gtFine_trainvaltest.zip of https://www.cityscapes-dataset.com into {root}"
        )
    annotations = root / "gtFine" / split
    there = set(annotations.glob(f"*/*{LABEL_SUFFIX}"))
    labels = tuple(
        annotations / image.parent.name / (image.name.removesuffix(IMAGE_SUFFIX) + LABEL_SUFFIX)
        for image in images
    )
    missing = [label for label in labels if label not in there]
    if missing:
        raise DataError(
            f"{missing[0]}: label file missing ({len(missing)} of {len(images)} {split} images have none); "
            f"unpack gtFine_trainvaltest.zip into {root} or remove the image"
        )
    return Split(root, images, labels)
