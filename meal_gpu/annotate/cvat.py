"""CVAT: what its "CVAT for images 1.1" exports and imports.

images/NAME.png    crops of the frames
annotations.xml    one image per crop: its patch as a rectangle, and one mask per class predicted in it
labels.json        for the "Raw" tab of CVAT's label constructor
"""

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meal_gpu.annotate.asked import PATCH_LABEL, Answer, Asked, Item
from meal_gpu.annotate.brush import filled
from meal_gpu.annotate.crops import blank, class_id, matching, pieces, save_crops
from meal_gpu.annotate.pictures import Pixels
from meal_gpu.annotate.rle import mask_of, runs
from meal_gpu.errors import DataError

_PATCH_COLOR = "#ffffff"
_PATCH_LAYER = "-1"  # below what is drawn, which starts at 0: no click on a mask meets the rectangle
_SHAPES = ("mask", "polygon", "box", "polyline", "points", "ellipse", "cuboid", "skeleton")


def write(asked: Asked, out: Path) -> list[Path]:
    """Write crops with `asked.context` pixels around each patch, and predictions; the files, crops first.

    Raises:
        DataError: a frame or prediction cannot be read.
    """
    written = save_crops(asked, out)
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    for key, value in (("name", f"meal-gpu step {asked.step}"), ("size", len(asked.items))):
        ET.SubElement(task, key).text = str(value)
    ET.SubElement(task, "mode").text = "annotation"
    described = ET.SubElement(task, "labels")
    for label in labels(asked):
        element = ET.SubElement(described, "label")
        for key in ("name", "color", "type"):
            ET.SubElement(element, key).text = label[key]
        ET.SubElement(element, "attributes")
    for number, item in enumerate(asked.items):
        root.append(_image(number, item, asked))
    ET.indent(root)
    annotations, constructor = out / "annotations.xml", out / "labels.json"
    annotations.write_bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
    constructor.write_text(json.dumps(labels(asked), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [*written, annotations, constructor]


def labels(asked: Asked) -> list[dict[str, Any]]:
    """The labels of a CVAT project for this query: the classes by train id, then the patch rectangle."""
    names = [
        (name, "#{:02x}{:02x}{:02x}".format(*c)) for name, c in zip(asked.classes, asked.colors, strict=True)
    ]
    kinds = [(*pair, "any") for pair in names] + [(PATCH_LABEL, _PATCH_COLOR, "rectangle")]
    return [{"name": name, "color": color, "type": kind, "attributes": []} for name, color, kind in kinds]


def _image(number: int, item: Item, asked: Asked) -> ET.Element:
    crop = asked.crop(item)
    image = ET.Element(
        "image",
        {
            "id": str(number), "name": f"{item.name}.png",
            "width": str(crop.width), "height": str(crop.height),
        },
    )  # fmt: skip
    rows, columns = item.box.within(crop)
    corners = {"xtl": columns.start, "ytl": rows.start, "xbr": columns.stop, "ybr": rows.stop}
    common = {"source": "auto", "occluded": "0"}
    ET.SubElement(
        image,
        "box",
        {"label": PATCH_LABEL, **common}
        | {key: f"{value:.2f}" for key, value in corners.items()}
        | {"z_order": _PATCH_LAYER},
    )
    for train_id, box, mask in pieces(item, asked):
        rows, columns = box.within(crop)
        ET.SubElement(
            image,
            "mask",
            {"label": asked.classes[train_id], **common}
            | {
                "rle": ", ".join(map(str, runs(mask[rows, columns].reshape(-1)).tolist())),
                "left": str(columns.start), "top": str(rows.start),
                "width": str(box.width), "height": str(box.height), "z_order": "0",
            },
        )  # fmt: skip
    return image


def read(files: Mapping[str, bytes], asked: Asked) -> Iterator[Answer]:
    """The labels of every image in `annotations.xml`, or the one .xml file there is.

    Shapes are painted from the lowest z_order up, in the file's order where it is the same. Polygons and
    boxes hold the pixels whose centre lies within. Tags and the patch rectangle paint nothing; an image
    without other shapes is all void. Predictions that come back as they were sent are labels: the annotator
    accepted them.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    name, root = _parsed(files)
    for image in root.findall("image"):
        if image.get("name") is None:
            raise DataError(f"{name}: an image without a name; export it again as CVAT for images 1.1")
        crop_name = matching(image.attrib["name"], asked)
        try:
            yield Answer(crop_name, _painted(image, asked, crop_name))
        except DataError as error:
            yield Answer(crop_name, None, str(error))


def _parsed(files: Mapping[str, bytes]) -> tuple[str, ET.Element]:
    """The file that holds the annotations, and its root. Raises DataError."""
    every = [name for name in files if name.lower().endswith(".xml")]
    found = [name for name in every if name.rsplit("/", 1)[-1] == "annotations.xml"] or every
    if len(found) != 1:
        raise DataError(f"one annotations.xml expected, found: {', '.join(found) or 'none'}")
    name = found[0]
    try:
        # In text without NUL the parser sees no other encoding, in which a declaration could hide.
        text = files[name].decode("utf-8-sig")
        if re.search("<!(DOCTYPE|ENTITY)|\0", text, re.IGNORECASE):
            raise DataError(f"{name}: declares a document type or entities, or is not UTF-8; not trusted")
        root = ET.fromstring(text)
    except (UnicodeDecodeError, ET.ParseError) as error:
        raise DataError(f"{name}: truncated or not XML in UTF-8 ({error})") from error
    if root.tag != "annotations" or root.find("track") is not None:
        raise DataError(f"{name}: not CVAT for images 1.1; choose that format when exporting")
    return name, root


def _painted(image: ET.Element, asked: Asked, name: str) -> Pixels:
    """The labels of one image. Raises DataError where it has none."""
    painted = blank(asked, name, (_whole(image, "height"), _whole(image, "width")))
    shapes = [shape for shape in image if shape.tag in _SHAPES and shape.get("label") != PATCH_LABEL]
    for shape in sorted(shapes, key=lambda shape: _whole(shape, "z_order", "0")):
        train_id = class_id(shape.get("label"), asked)
        if shape.tag == "mask":
            rows, columns, mask = _mask(shape, painted.shape)
            painted[rows, columns][mask] = train_id
        elif shape.tag in ("polygon", "box"):
            points = _corners(shape) if shape.tag == "box" else _points(shape)
            painted[filled(points, painted.shape)] = train_id
        else:
            raise DataError(f"a {shape.tag} of {shape.get('label')!r}: draw masks, polygons or rectangles")
    return painted


def _mask(shape: ET.Element, size: tuple[int, ...]) -> tuple[slice, slice, NDArray[np.bool_]]:
    """The rows and columns [h, w] of the image that a mask takes, and which pixels of them."""
    left, top, width, height = (_whole(shape, key) for key in ("left", "top", "width", "height"))
    if min(left, top, width, height) < 0 or left + width > size[1] or top + height > size[0]:
        raise DataError(
            f"a mask of {height}×{width} pixels (height × width) at left {left}, top {top} reaches outside "
            f"the image of {size[0]}×{size[1]}"
        )
    try:
        lengths = np.asarray([int(number) for number in shape.get("rle", "").split(",")], np.int64)
    except (ValueError, OverflowError):
        raise DataError(f"the rle of a mask is not run lengths: {shape.get('rle', '')[:40]!r}") from None
    mask = mask_of(lengths, height * width).reshape(height, width)
    return slice(top, top + height), slice(left, left + width), mask


def _points(shape: ET.Element) -> NDArray[np.float64]:
    """The corners [n, 2] of a polygon, (x, y)."""
    text = shape.get("points", "")
    try:
        return np.asarray([[float(part) for part in pair.split(",")] for pair in text.split(";")]).reshape(
            -1, 2
        )
    except ValueError:
        raise DataError(f"the points of a polygon are not x,y;x,y: {text[:40]!r}") from None


def _corners(shape: ET.Element) -> NDArray[np.float64]:
    """The corners [4, 2] of a box, (x, y), turned clockwise about its centre by its rotation in degrees."""
    x0, y0, x1, y1, turn = (
        _number(shape, key, default)
        for key, default in (("xtl", ""), ("ytl", ""), ("xbr", ""), ("ybr", ""), ("rotation", "0"))
    )
    corners = np.asarray([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if turn:
        centre, sine, cosine = corners.mean(0), math.sin(math.radians(turn)), math.cos(math.radians(turn))
        corners = (corners - centre) @ np.asarray([[cosine, sine], [-sine, cosine]]) + centre
    return corners


def _number(element: ET.Element, key: str, default: str = "") -> float:
    try:
        number = float(element.get(key, default))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{element.tag} {key}={element.get(key)!r}: a number expected")
    return number


def _whole(element: ET.Element, key: str, default: str = "") -> int:
    number = _number(element, key, default)
    if number != int(number):
        raise DataError(f"{element.tag} {key}={element.get(key)!r}: a whole number expected")
    return int(number)
