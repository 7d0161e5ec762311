"""COCO instances: what FiftyOne, Datumaro, CVAT and Label Studio read and write beside their own formats.

images/NAME.png     crops of the frames
annotations.json    one image per crop; for each class that is predicted in it, one mask: uncompressed RLE

Both ways an image is known by its file_name, so that tools may number images and categories as they like.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meal_gpu.annotate.asked import PATCH_LABEL, Answer, Asked
from meal_gpu.annotate.brush import filled
from meal_gpu.annotate.crops import MALFORMED, blank, class_id, documents, matching, pieces, said, save_crops
from meal_gpu.annotate.pictures import Pixels
from meal_gpu.annotate.rle import mask_of, runs
from meal_gpu.errors import DataError


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
        for train_id, box, mask in pieces(item, asked):
            rows, columns = box.within(crop)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": train_id + 1,
                    "segmentation": {"size": list(mask.shape), "counts": runs(mask.T.reshape(-1)).tolist()},
                    "area": int(mask.sum()),
                    "bbox": [columns.start, rows.start, box.width, box.height],
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
        categories: dict[Any, Any] = {}
        for entry in document.get("categories") or []:
            if categories.setdefault(entry["id"], entry["name"]) != entry["name"]:
                one, other = categories[entry["id"]], entry["name"]
                raise ValueError(f"category {entry['id']!r} is both {one!r} and {other!r}")
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
