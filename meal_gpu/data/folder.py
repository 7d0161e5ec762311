"""Your own images: a folder of images, a folder of masks and a file of class names.

    ROOT/images/train/**/X.jpg      the pool            (PNG, JPEG, BMP, TIFF or WebP)
    ROOT/images/val/**/X.jpg        validation
    ROOT/masks/train/**/X.png       same relative path, PNG, each pixel a class id
    ROOT/classes.txt

Without `train` and `val` all of ROOT/images is the pool and validation is empty. A split without a masks
folder is unlabelled; a split with one needs a mask for every image.

`classes.txt` has one class per line, in the order of the train ids. A class takes the id after the one
before it, beginning at 0, unless its line says which: `ID: NAME`. `void:` lists the ids to ignore
(255 when there is no such line). `#` begins a comment. There are 255 classes at most.

    void: 0, 255
    1: road
    sidewalk                        # id 2
    11: building
"""

from pathlib import Path

from meal_gpu.data import palette
from meal_gpu.data.dataset import UNKNOWN, VOID, Dataset, Split, require_classes
from meal_gpu.errors import DataError
from meal_gpu.images.headers import SUFFIXES, Size, image_size
from meal_gpu.images.local import files_below
from meal_gpu.images.probing import first_size

_LIKE_SPLITS = ("train", "training", "val", "valid", "validation")


def open_tree(root: Path, *, size: Size | None = None) -> Dataset:
    """Open a folder dataset.

    Args:
        root: the folder that holds `images`, `classes.txt` and, where there are labels, `masks`.
        size: working (height, width); default: that of the first image.

    Raises:
        DataError: no images, a missing mask, or a `classes.txt` that is missing or wrong.
    """
    names, lookup = read_classes(root / "classes.txt")
    images = root / "images"
    divided = any((images / split).is_dir() for split in ("train", "val"))
    if divided:
        train, val = _split(root, "train"), _split(root, "val")
    else:
        for folder in images.iterdir() if images.is_dir() else ():
            if folder.is_dir() and folder.name.lower() in _LIKE_SPLITS:
                raise DataError(f"{folder}: splits are called train and val; rename it in images and masks")
        train, val = _split(root, ""), Split(root, (), None)
    if not len(train):
        where = images / "train" if divided else images
        raise DataError(f"{where}: no images ({', '.join(SUFFIXES)}) found here; they are the pool")
    return Dataset(
        name="folder",
        root=root,
        classes=names,
        colors=palette.generate(len(names)),
        lookup=lookup,
        size=size or first_size(train.images) or image_size(train.images[0]),
        train=train,
        val=val,
    )


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Read a `classes.txt` -> (class names by train id, lookup of 256 entries).

    Raises:
        DataError: naming the file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Notepad begins files with a mark
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it holds one class name per line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    names: list[str] = []
    void: list[int] | None = None
    lookup: dict[int, int] = {}
    following = 0
    for number, raw in enumerate(lines, start=1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        where = f"{path}:{number}"
        key, colon, rest = (part.strip() for part in line.partition(":"))
        if colon and key.lower() == "void":
            void = (void or []) + [_label_id(part, where) for part in rest.replace(",", " ").split()]
            continue
        label_id, name = (_label_id(key, where), rest) if colon else (_label_id(following, where), line)
        if not name or name in names:
            raise DataError(f"{where}: class name {name!r} is {'used twice' if name else 'empty'}")
        if label_id in lookup:
            raise DataError(f"{where}: id {label_id} is used twice; give other ids as `ID: NAME`")
        lookup[label_id] = len(names)
        names.append(name)
        following = label_id + 1
    for label_id in [255] if void is None else void:
        if label_id in lookup:
            raise DataError(
                f"{path}: id {label_id} is void and also class {names[lookup[label_id]]!r}; "
                f"give the classes other ids as `ID: NAME`"
            )
    if not names:
        raise DataError(f"{path}: no classes; write one class name per line")
    require_classes(len(names), str(path))
    lookup.update(dict.fromkeys([255] if void is None else void, VOID))
    return tuple(names), tuple(lookup.get(i, UNKNOWN) for i in range(256))


def _label_id(text: str | int, where: str) -> int:
    try:
        label_id = int(text)
    except ValueError:
        label_id = -1
    if not 0 <= label_id <= 255:
        raise DataError(f"{where}: {text!r} is no label id; ids are 0 to 255")
    return label_id


def _split(root: Path, split: str) -> Split:
    folder, masks = root / "images" / split, root / "masks" / split
    found = files_below(folder) if folder.is_dir() else ()
    images = tuple(sorted(path for path in found if path.suffix.lower() in SUFFIXES))
    if not masks.is_dir() or not images:
        return Split(root, images, None)
    there = set(files_below(masks))
    labels = tuple((masks / image.relative_to(folder)).with_suffix(".png") for image in images)
    missing = [label for label in labels if label not in there]
    if missing:
        raise DataError(
            f"{missing[0]}: mask missing ({len(missing)} of {len(images)} images have none); "
            f"add it, or move {masks} away to use the images without labels"
        )
    if len(set(labels)) < len(labels):
        twice = next(label for i, label in enumerate(labels) if label in labels[:i])
        raise DataError(f"{twice}: two images share this mask; give them different names")
    return Split(root, images, labels)
