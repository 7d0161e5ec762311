"""Label Studio: tasks with the model's guess as brush regions, and the annotations that it exports as "JSON".

images/NAME.png   crops of the frames
tasks.json        one task per crop
config.xml        the labelling config of the project

The tasks name their images as local files: start Label Studio with
LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=OUT, and give the
project a source storage of local files at OUT/images (no need to sync it).
"""

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from meal_gpu.annotate import brush
from meal_gpu.annotate.asked import PATCH_LABEL, Answer, Asked, Box, Item
from meal_gpu.annotate.crops import MALFORMED, blank, class_id, documents, matching, pieces, said, save_crops
from meal_gpu.annotate.pictures import Pixels
from meal_gpu.errors import DataError

_LOCAL_FILES = "/data/local-files/?d="
_DRAWN = ("brushlabels", "polygonlabels", "rectanglelabels")


def write(asked: Asked, out: Path) -> list[Path]:
    """Write crops with `asked.context` pixels around each patch, tasks and config; the files, crops first.

    Raises:
        DataError: a frame or prediction cannot be read.
    """
    written = save_crops(asked, out)
    lines = []
    for item in asked.items:
        image = _LOCAL_FILES + quote(f"images/{item.name}.png")
        lines.append(json.dumps(task(item, asked, image), ensure_ascii=False))
    tasks, settings = out / "tasks.json", out / "config.xml"
    tasks.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    settings.write_text(config(asked), encoding="utf-8")
    return [*written, tasks, settings]


def config(asked: Asked) -> str:
    """The labelling config: brush and polygons for the classes, a rectangle for the patch."""
    labels = [
        f'    <Label value={quoteattr(name)} background="#{r:02x}{g:02x}{b:02x}"/>'
        for name, (r, g, b) in zip(asked.classes, asked.colors, strict=True)
    ]
    lines = [
        "<View>",
        '  <Image name="image" value="$image" zoom="true" zoomControl="true" rotateControl="false"/>',
        '  <BrushLabels name="brush" toName="image">',
        *labels,
        "  </BrushLabels>",
        '  <PolygonLabels name="polygon" toName="image">',
        *labels,
        "  </PolygonLabels>",
        '  <RectangleLabels name="patch" toName="image">',
        f'    <Label value={quoteattr(PATCH_LABEL)} background="#ffffff"/>',
        "  </RectangleLabels>",
        "</View>",
    ]
    return "\n".join(lines) + "\n"


def task(item: Item, asked: Asked, image: str) -> dict[str, Any]:
    """One task: `image` is the address of its crop. Raises DataError where its prediction cannot be read."""
    crop = asked.crop(item)
    score = item.score if math.isfinite(item.score) else None
    regions = [_patch(item, crop)]
    for train_id, _, mask in pieces(item, asked):
        value = {"format": "rle", "rle": brush.encode(mask), "brushlabels": [asked.classes[train_id]]}
        regions.append(_region(f"p{item.patch}c{train_id}", "brush", "brushlabels", value, crop))
    return {
        "data": {
            "image": image, "patch": item.name, "frame": item.image, "box": list(item.box),
            "score": score, "clicks": item.clicks, "seconds": item.seconds,
        },
        "predictions": [
            {
                "model_version": f"meal-gpu step {asked.step}",
                "score": None if score is None else _share(score, len(asked.classes)),
                "result": regions,
            }
        ],
    }  # fmt: skip


def _share(score: float, classes: int) -> float:
    """An entropy as a share of the greatest that there is: Label Studio takes scores from 0 to 1 only."""
    return min(1.0, max(0.0, score / math.log(classes))) if classes > 1 else 0.0


def _patch(item: Item, crop: Box) -> dict[str, Any]:
    """The rectangle that shows which part of a crop is asked for."""
    rows, columns = item.box.within(crop)
    value = {
        "x": 100 * columns.start / crop.width, "y": 100 * rows.start / crop.height,
        "width": 100 * item.box.width / crop.width, "height": 100 * item.box.height / crop.height,
        "rotation": 0, "rectanglelabels": [PATCH_LABEL],
    }  # fmt: skip
    return _region(f"p{item.patch}", "patch", "rectanglelabels", value, crop)


def _region(key: str, control: str, kind: str, value: dict[str, Any], crop: Box) -> dict[str, Any]:
    return {
        "id": key, "from_name": control, "to_name": "image", "type": kind, "original_width": crop.width,
        "original_height": crop.height, "image_rotation": 0, "value": value,
    }  # fmt: skip


def read(files: Mapping[str, bytes], asked: Asked) -> Iterator[Answer]:
    """The labels of every annotated task in the one Label Studio export ("JSON") among `files`.

    Of several annotations the one changed last counts; skipped ones and predictions do not. Brush, polygon
    and rectangle regions are painted in their order, later ones on top; a polygon or rectangle holds the
    pixels whose centre lies in it. The rectangle of the patch is no label.

    Raises:
        DataError: there is no such export, or it is damaged.
    """
    found = [(name, tasks) for name, tasks in documents(files) if isinstance(tasks, list)]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise DataError(f"one .json with Label Studio's list of tasks expected, found: {names}")
    name, tasks = found[0]
    for number, entry in enumerate(tasks):
        if not isinstance(entry, dict) or not isinstance(entry.get("data"), dict):
            raise DataError(f"{name}: task {number} has no data; export as JSON, not as JSON-MIN")
        crop_name = _name(entry["data"], asked)
        try:
            annotation = _newest(entry.get("annotations") or [])
            if annotation is None:
                continue
            labels = _painted(annotation["result"], asked, crop_name)
        except MALFORMED as error:
            yield Answer(crop_name, None, said(error))
        else:
            yield Answer(crop_name, labels)


def _name(data: dict[str, Any], asked: Asked) -> str:
    """The crop that a task shows: what it was written with, else its image's file name."""
    if isinstance(own := data.get("patch"), str) and own in asked.by_name:
        return own
    address = str(data.get("image", own))
    if address.startswith("data:"):
        return str(own)
    try:
        parts = urlsplit(address)
        path = parse_qs(parts.query)["d"][0] if "d=" in parts.query else unquote(parts.path)
    except (KeyError, ValueError):
        path = address
    return matching(path, asked)


def _newest(annotations: list[Any]) -> dict[str, Any] | None:
    """Of the annotations that were not skipped the one changed last, the last one where that is not known."""
    kept: list[dict[str, Any]] = [entry for entry in annotations if not entry.get("was_cancelled")]
    try:
        times = [datetime.fromisoformat(entry["updated_at"]) for entry in kept]
    except (KeyError, TypeError, ValueError):
        return kept[-1]
    stamps = [(time if time.tzinfo else time.replace(tzinfo=UTC), i) for i, time in enumerate(times)]
    return kept[max(stamps)[1]] if stamps else None


def _painted(regions: Any, asked: Asked, name: str) -> Pixels:
    """The labels of one annotation. Raises DataError, or one of `MALFORMED`, where it has none."""
    item = asked.by_name.get(name)
    crop = asked.crop(item) if item else Box(0, 0, 0, 0)
    labels = blank(asked, name, (crop.height, crop.width))
    for region in regions:
        kind, value = region["type"], region.get("value")
        if kind not in _DRAWN:
            if isinstance(value, dict) and (kind.endswith("labels") or "points" in value or "rle" in value):
                raise DataError(
                    f"a region of type {kind!r}; brush, polygons and rectangles with a class are read"
                )
            continue
        named = value.get(kind) or []
        if named == [PATCH_LABEL]:
            continue
        if len(named) != 1:
            raise DataError(f"a region with {len(named)} classes; each has one")
        train_id = class_id(named[0], asked)
        blank(asked, name, (region["original_height"], region["original_width"]))
        if region.get("image_rotation"):
            raise DataError(
                f"drawn on an image turned by {region['image_rotation']}°; turn it back and draw anew"
            )
        labels[_mask(kind, value, (crop.height, crop.width))] = train_id
    return labels


def _mask(kind: str, value: dict[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels [h, w] of one region."""
    if kind == "brushlabels":
        return brush.decode(value["rle"], size)
    scale = np.array([size[1], size[0]]) / 100
    if kind == "polygonlabels":
        return brush.filled(np.asarray(value["points"], float).reshape(-1, 2) * scale, size)
    corner, extent = (
        np.array([value[x], value[y]], float) * scale for x, y in (("x", "y"), ("width", "height"))
    )
    turn = math.radians(value.get("rotation") or 0)  # clockwise, about the corner
    across = np.array([math.cos(turn), math.sin(turn)]) * extent[0]
    down = np.array([-math.sin(turn), math.cos(turn)]) * extent[1]
    return brush.filled(np.stack([corner, corner + across, corner + across + down, corner + down]), size)
