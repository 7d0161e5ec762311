"""COCO instances: what FiftyOne, Datumaro, CVAT and Label Studio read and write beside their own formats.

images/NAME.png     crops of the frames
annotations.json    one image per crop; for each class that is predicted in it, one mask: uncompressed RLE

Both ways an image is known by its file_name, so that tools may number images and categories as they like.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meal_gpu.annotate.asked import PATCH_LABEL, VOID, Answer, Asked, Pixels
from meal_gpu.annotate.brush import filled
from meal_gpu.annotate.rle import mask_of, runs
from meal_gpu.errors import DataError

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)
"""What values of a wrong type or range raise while a tool's file is read."""

_DEPTH = 64  # folders and file of the longest name that is looked for
_UPLOADED = re.compile(r"(?<![^/])[0-9a-f]{8}-(?=[^/]*$)")  # what Label Studio puts before a file's name


def write(asked: Asked, out: Path) -> list[Path]:
    """Write crops with `asked.context` pixels around each patch, and predictions; the files, crops first.

    Each image also holds its patch, frame, box [left, top, right, bottom] and score under "meal_gpu".

    Raises:
        DataError: a frame or prediction cannot be read.
    """
    written = save_crops(asked, out)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(asked.items, 1):
        crop = asked.crop(item)
        own = {
            "patch": item.patch, "frame": item.image, "box": list(item.box),
            "score": item.score if math.isfinite(item.score) else None,
        }  # fmt: skip
        images.append(
            {
                "id": number, "file_name": f"{item.name}.png", "width": crop.width, "height": crop.height,
                "meal_gpu": own,
            }
        )  # fmt: skip
        labels = np.full((crop.height, crop.width), VOID, np.uint8)
        labels[item.box.within(crop)] = asked.prediction(item)
        for train_id in np.unique(labels[labels < len(asked.classes)]).tolist():
            mask = labels == train_id
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            left, top = int(columns[0]), int(rows[0])
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": train_id + 1,
                    "segmentation": {"size": list(mask.shape), "counts": runs(mask.T.reshape(-1)).tolist()},
                    "area": int(mask.sum()),
                    "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                    "iscrowd": 1,
                }
            )  # fmt: skip
    document = {
        "info": {"description": f"meal-gpu step {asked.step}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(asked.classes, 1)],
    }
    path = out / "annotations.json"
    path.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
    return [*written, path]


def read(files: Mapping[str, bytes], asked: Asked) -> Iterator[Answer]:
    """The labels of every image in the one COCO file among `files`.

    Masks are painted in the file's order, later ones on top; categories are known by name. Polygons hold the
    pixels whose centre lies in any of their parts, as does the box of a rectangle, which has no parts. An
    image without annotations is all void.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    found = [
        (name, document)
        for name, document in documents(files)
        if isinstance(document, dict) and "images" in document and "annotations" in document
    ]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise DataError(f"one .json of COCO instances (images and annotations) expected, found: {names}")
    name, document = found[0]
    try:
        categories = {entry["id"]: entry["name"] for entry in document.get("categories") or []}
        images = {entry["id"]: entry for entry in document["images"]}
        if len(images) < len(document["images"]):
            raise ValueError("two images have the same id")
        drawn: dict[Any, list[Any]] = {key: [] for key in images}
        for annotation in document["annotations"]:
            if annotation["image_id"] not in drawn:
                raise ValueError(f"an annotation is of image {annotation['image_id']!r}, which is not there")
            drawn[annotation["image_id"]].append(annotation)
        file_names = {key: str(entry["file_name"]) for key, entry in images.items()}
    except MALFORMED as error:
        raise DataError(f"{name}: not COCO instances: {said(error)}") from error
    for key, entry in images.items():
        crop_name = matching(file_names[key], asked)
        try:
            labels = _painted(entry, drawn[key], categories, asked, crop_name)
        except MALFORMED as error:
            yield Answer(crop_name, None, said(error))
        else:
            yield Answer(crop_name, labels)


def _painted(
    image: Any, annotations: list[Any], categories: dict[Any, Any], asked: Asked, name: str
) -> Pixels:
    """The labels of one image. Raises DataError, or one of `MALFORMED`, where it has none."""
    labels = blank(asked, name, (image["height"], image["width"]))
    for annotation in annotations:
        category = categories.get(annotation["category_id"])
        if category is None:
            raise DataError(f"category {annotation['category_id']!r} is not in the file")
        if category != PATCH_LABEL:
            labels[_mask(annotation, labels.shape)] = class_id(category, asked)
    return labels


def _mask(annotation: Any, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels [h, w] of one annotation: RLE, compressed or not, polygons, or a rectangle."""
    height, width = size
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise DataError(f"a mask of size {segmentation['size']}, the image is {[height, width]}")
        counts = segmentation["counts"]
        lengths = _uncompressed(counts) if isinstance(counts, str) else counts
        if not isinstance(lengths, list) or any(type(n) is not int or not 0 <= n <= 2**40 for n in lengths):
            raise DataError("RLE counts are run lengths of at least 0")
        column_major = mask_of(np.asarray(lengths, np.int64), height * width)
        mask: NDArray[np.bool_] = column_major.reshape(width, height).T
        return mask
    if not isinstance(segmentation, list):
        raise DataError("a segmentation is RLE or a list of polygons")
    if not segmentation:  # so are rectangles written
        left, top, across, down = annotation["bbox"]
        right, bottom = left + across, top + down
        segmentation = [[left, top, right, top, right, bottom, left, bottom]]
    mask = np.zeros((height, width), bool)
    for part in segmentation:
        mask |= filled(np.asarray(part, float).reshape(-1, 2), (height, width))
    return mask


def _uncompressed(text: str) -> list[int]:
    """Run lengths of COCO's compressed RLE.

    Each number takes characters of 6 bits above "0": 5 bits from the lowest up and one that says more follow;
    the last one's 5th bit is the sign. From the fourth number on, what stands there is added to the second
    last.
    """
    lengths: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise DataError(f"damaged compressed RLE at {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise DataError("truncated compressed RLE")
    return lengths


def save_crops(asked: Asked, out: Path) -> list[Path]:
    """OUT/images/NAME.png for every item; the files, in the order of frames."""
    written = []
    for item, _, pixels in asked.crops():
        path = out / "images" / f"{item.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        written.append(path)
    return written


def documents(files: Mapping[str, bytes]) -> Iterator[tuple[str, Any]]:
    """The .json files by name, parsed. Raises DataError where one is damaged."""
    for name, content in files.items():
        if name.lower().endswith(".json"):
            try:
                yield name, json.loads(content)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{name}: truncated or not JSON ({error})") from error


def matching(file_name: str, asked: Asked) -> str:
    """The name of the crop that a tool calls `file_name`, however many folders it put in front.

    Tools that flatten folders (CVAT, of single files) leave the last part of the name: where one crop alone
    has it, and no folder but `images` says otherwise, that is the crop. An unknown name is returned as it is.
    """
    path = file_name.replace("\\", "/")
    stem, dot, suffix = path.rpartition(".")
    names = [stem, path] if dot and "/" not in suffix else [path]
    uploaded = [_UPLOADED.sub("", name) for name in names if _UPLOADED.search(name)]
    for candidate in (*names, *uploaded):
        parts = candidate.split("/")
        for first in range(max(0, len(parts) - _DEPTH), len(parts)):
            if (name := "/".join(parts[first:])) in asked.by_name:
                return name
    flat = [name for name in names if name.rpartition("/")[0].rsplit("/", 1)[-1] in ("", "images")]
    for candidate in (*flat, *uploaded):
        if item := asked.by_last.get(candidate.rsplit("/", 1)[-1]):
            return item.name
    return names[0]


def blank(asked: Asked, name: str, size: tuple[Any, Any]) -> Pixels:
    """Void labels of a crop that a tool says has `size`. Raises DataError unless it has and is asked for."""
    item = asked.by_name.get(name)
    if item is None:
        last = name.rsplit("/", 1)[-1]
        several = last in asked.by_last and asked.by_last[last] is None
        raise DataError(
            "two crops of the query end in this name; upload the whole folder or a .zip, so that theirs stay"
            if several
            else "not asked for in this query"
        )
    crop = asked.crop(item)
    if size != (crop.height, crop.width):
        raise DataError(
            f"an image of {size[0]}×{size[1]} pixels (height × width) found, "
            f"{crop.height}×{crop.width} expected"
        )
    return np.full((crop.height, crop.width), VOID, np.uint8)


def class_id(label: Any, asked: Asked) -> int:
    """The train id of a class. Raises DataError, with those there are, where there is none."""
    if label not in asked.classes:
        raise DataError(f"unknown class {label!r}; known: {', '.join(asked.classes)}")
    return asked.classes.index(label)


def said(error: Exception) -> str:
    """One line: what a DataError says, else what was met where something else belongs."""
    return (
        str(error)
        if isinstance(error, DataError)
        else f"not as the format says: {error!r}".replace("\n", " ")
    )
