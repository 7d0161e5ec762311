"""CVAT's "Segmentation mask 1.1": colour images in a zip file laid out like Pascal VOC.

labelmap.txt                            NAME:R,G,B::, one line per class
ImageSets/Segmentation/default.txt      names of the crops
SegmentationClass/NAME.png              the class of every pixel of a crop, as its colour
SegmentationObject/NAME.png             one object per class: without it, CVAT takes background for a class
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meal_gpu.annotate.asked import PATCH_LABEL, VOID, Answer, Asked
from meal_gpu.annotate.crops import blank, matching
from meal_gpu.annotate.pictures import Pixels
from meal_gpu.errors import DataError

_BACKGROUND = "background"
_FOLDER = "SegmentationClass"
_NOTHING = (_BACKGROUND, PATCH_LABEL)  # CVAT exports rectangles too, as filled ones
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def write(asked: Asked, out: Path) -> list[Path]:
    """Write segmentation_mask.zip: predictions, to be imported into a task that has the crops.

    Raises:
        DataError: a prediction cannot be read, or the classes cannot be told apart in this format.
    """
    colors = _colors(asked)
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = colors
    object_table = _object_colors()
    lines = ["# label:color_rgb:parts:actions", f"{_BACKGROUND}:0,0,0::"]
    lines += [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(asked.classes, colors, strict=True)]
    path = out / "segmentation_mask.zip"
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        _add(archive, "labelmap.txt", ("\n".join(lines) + "\n").encode())
        names = "".join(f"{item.name}\n" for item in asked.items)
        _add(archive, "ImageSets/Segmentation/default.txt", names.encode())
        for item in asked.items:
            labels = asked.prelabel(item)
            objects = np.where(labels < len(colors), labels + np.uint8(1), np.uint8(0))
            _add(archive, f"{_FOLDER}/{item.name}.png", _png(table[labels]))
            _add(archive, f"SegmentationObject/{item.name}.png", _png(object_table[objects]))
    return [path]


def _png(rgb: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "png")
    return stream.getvalue()


def _object_colors() -> Pixels:
    """Pascal VOC's colours [256, 3] of objects: red, green and blue take a number's bits in turn."""
    numbers = np.arange(256)
    shift = np.arange(8)
    bits = numbers[:, None, None] >> (3 * shift[None, :, None] + np.arange(3)) & 1
    colors: Pixels = (bits << (7 - shift)[None, :, None]).sum(1).astype(np.uint8)
    return colors


def _colors(asked: Asked) -> list[tuple[int, int, int]]:
    """RGB by train id. Raises DataError unless every class is known by its name and colour."""
    _check_background(asked)
    if bad := [name for name in asked.classes if ":" in name or "\n" in name]:
        raise DataError(f"class {bad[0]!r}: a labelmap.txt has no place for ':' and line breaks; rename it")
    colors = list(asked.colors)
    if len({(0, 0, 0), *colors}) <= len(colors):
        raise DataError(f"the colours of {len(colors)} classes are not all different; use another format")
    return colors


def _check_background(asked: Asked) -> None:
    if _BACKGROUND in asked.classes:
        raise DataError(
            f"{_BACKGROUND!r} is what this format calls pixels without a label, and a class here; "
            "use another format, such as cvat"
        )


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name, _NO_DATE)
    member.external_attr = 0o644 << 16
    archive.writestr(member, content, zipfile.ZIP_DEFLATED)


def read(files: Mapping[str, bytes], asked: Asked) -> Iterator[Answer]:
    """The labels of every PNG file, in colours or of a palette, in SegmentationClass.

    Colours mean what labelmap.txt says; "background" and the patch rectangle are void.

    Raises:
        DataError: there is no labelmap.txt or it is damaged, or there are no PNG files.
    """
    _check_background(asked)
    names_by_color = _labelmap(files)
    known = np.asarray(sorted(names_by_color), np.uint32)
    names = [names_by_color[color] for color in known.tolist()]
    ids = [asked.classes.index(name) if name in asked.classes else -1 for name in names]
    ids = [VOID if name in _NOTHING else i for name, i in zip(names, ids, strict=True)]
    found = 0
    for file, content in files.items():
        parts = file.split("/")
        if _FOLDER not in parts[:-1] or not file.lower().endswith(".png"):
            continue
        found += 1
        name = matching("/".join(parts[parts.index(_FOLDER) + 1 :]), asked)
        try:
            packed = _packed(content, asked, name)
            yield Answer(name, _translated(packed, known, ids, names, asked))
        except DataError as error:
            yield Answer(name, None, str(error))
    if not found:
        raise DataError(f"no PNG file in {_FOLDER}/; export it again as Segmentation mask 1.1")


def _labelmap(files: Mapping[str, bytes]) -> dict[int, str]:
    """The labels by colour, 0xRRGGBB. Raises DataError."""
    found = [name for name in files if name.rsplit("/", 1)[-1] == "labelmap.txt"]
    if len(found) != 1:
        raise DataError(f"one labelmap.txt expected, found: {', '.join(found) or 'none'}")
    labels: dict[int, str] = {}
    for line in files[found[0]].decode("utf-8-sig", "replace").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, color, _, _ = line.rsplit(":", 3)
            red, green, blue = bytes(int(part) for part in color.split(","))
        except ValueError:
            raise DataError(f"{found[0]}: NAME:R,G,B:: expected, found {line[:60]!r}") from None
        other = labels.setdefault(red << 16 | green << 8 | blue, name)
        if other != name:
            raise DataError(f"{found[0]}: {other!r} and {name!r} have the same colour {color}")
    return labels


def _packed(content: bytes, asked: Asked, name: str) -> NDArray[np.uint32]:
    """The colours [h, w] of a PNG file, 0xRRGGBB; nothing is decoded of one that has another size."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            blank(asked, name, (image.height, image.width))
            rgb = np.asarray(image.convert("RGB"), np.uint32)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"not a readable PNG file ({error})".replace("\n", " ")) from error
    packed: NDArray[np.uint32] = (rgb << np.array([16, 8, 0], np.uint32)).sum(axis=-1, dtype=np.uint32)
    return packed


def _translated(
    packed: NDArray[np.uint32], known: NDArray[np.uint32], ids: list[int], names: list[str], asked: Asked
) -> Pixels:
    """uint8 train ids [h, w] of colours. Raises DataError for one that stands for no class."""
    used, inverse = np.unique(packed, return_inverse=True)
    for color in used[~np.isin(used, known)].tolist():
        raise DataError(f"colour {color >> 16},{color >> 8 & 255},{color & 255} is not in labelmap.txt")
    at = np.searchsorted(known, used)
    translated = np.asarray(ids)[at]
    for label in at[translated < 0].tolist():
        raise DataError(f"unknown class {names[label]!r}; known: {', '.join(asked.classes)}")
    return translated.astype(np.uint8)[inverse].reshape(packed.shape)
