"""What all tools' formats share: crops and what is predicted in them out; names, sizes and classes back."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meal_gpu.annotate.asked import VOID, Asked, Box, Item, composed
from meal_gpu.annotate.pictures import Pixels
from meal_gpu.errors import DataError

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)
"""What values of a wrong type or range raise while a tool's file is read."""

_DEPTH = 64  # folders and file of the longest name that is looked for
_UPLOADED = re.compile(r"(?<![^/])[0-9a-f]{8}-(?=[^/]*$)")  # what Label Studio puts before a file's name


def save_crops(asked: Asked, out: Path) -> list[Path]:
    """OUT/images/NAME.png for every item; the files, in the order of frames."""
    written = []
    for item, _, pixels in asked.crops():
        path = out / "images" / f"{item.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        written.append(path)
    return written


def pieces(item: Item, asked: Asked) -> Iterator[tuple[int, Box, NDArray[np.bool_]]]:
    """Every class predicted in a patch: its train id, the least box around it, and where in the crop it is.

    Raises:
        DataError: the prediction cannot be read.
    """
    crop, labels = asked.crop(item), asked.prelabel(item)
    for train_id in np.unique(labels[labels < len(asked.classes)]).tolist():
        mask = labels == train_id
        top, bottom = np.flatnonzero(mask.any(1))[[0, -1]].tolist()
        left, right = np.flatnonzero(mask.any(0))[[0, -1]].tolist()
        box = Box(crop.left + left, crop.top + top, crop.left + right + 1, crop.top + bottom + 1)
        yield train_id, box, mask


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
    names = []
    for path in dict.fromkeys((file_name.replace("\\", "/"), file_name)):
        stem, dot, suffix = path.rpartition(".")
        names += [stem, path] if dot and "/" not in suffix else [path]
    uploaded = [_UPLOADED.sub("", name) for name in names if _UPLOADED.search(name)]
    for candidate in (*names, *uploaded):
        parts = candidate.split("/")
        for first in range(max(0, len(parts) - _DEPTH), len(parts)):
            if asked.knows(name := asked.spelled("/".join(parts[first:]))):
                return name
    flat = [name for name in names if name.rpartition("/")[0].rsplit("/", 1)[-1] in ("", "images")]
    for candidate in (*flat, *uploaded):
        if item := asked.by_last.get(composed(candidate.rsplit("/", 1)[-1])):
            return item.name
    return names[0]


def blank(asked: Asked, name: str, size: tuple[Any, Any]) -> Pixels:
    """Void labels of a crop that a tool says has `size`. Raises DataError unless it has and is asked for."""
    item = asked.by_name.get(name)
    if item is None:
        last = composed(name.rsplit("/", 1)[-1])
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
