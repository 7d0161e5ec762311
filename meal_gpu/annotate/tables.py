"""The query as a table, for tools without a format of their own.

query.csv (.jsonl, .parquet)  one row per patch, in order of choice: `COLUMNS`
images/NAME.png               crops of the frames
prelabels/NAME.png            train ids that the model predicts, of the crop's size; 255 around the patch
masks/NAME.png                where finished masks go: `meal-gpu ingest` takes this folder back
classes.txt                   the train ids
"""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from meal_gpu.annotate.asked import Asked, Box, Item
from meal_gpu.annotate.labels import classes_text

COLUMNS = (
    "rank", "patch", "image", "file", *Box._fields, *(f"crop_{side}" for side in Box._fields), "score",
    "clicks", "seconds", "name", "crop", "prelabel", "mask",
)  # fmt: skip
"""Boxes are pixels of the frame, right and bottom exclusive; score is what the strategy ranks by, empty
where it ranks nothing; crop, prelabel and mask are paths relative to the table."""


def write(asked: Asked, out: Path, *, form: str) -> list[Path]:
    """Write crops with `asked.context` pixels around each patch, pre-labels and table; the files, table last.

    Args:
        form: "csv", "jsonl" or "parquet".

    Raises:
        DataError: a frame or prediction cannot be read.
    """
    rows = [_row(rank, item, asked.crop(item)) for rank, item in enumerate(asked.items)]
    content = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[form](rows)
    (out / "masks").mkdir(parents=True)
    written = []
    for item, _, pixels in asked.crops():
        for folder, values in (("images", pixels), ("prelabels", asked.prelabel(item))):
            path = out / folder / f"{item.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
            written.append(path)
    table, classes = out / f"query.{form}", out / "classes.txt"
    classes.write_text(classes_text(asked.classes), encoding="utf-8")
    table.write_bytes(content)
    return [*written, classes, table]


def _row(rank: int, item: Item, crop: Box) -> dict[str, Any]:
    box = item.box._asdict() | {f"crop_{side}": value for side, value in crop._asdict().items()}
    values = {
        "rank": rank, "patch": item.patch, "image": item.image, "file": item.file, **box,
        "score": item.score if math.isfinite(item.score) else None, "clicks": item.clicks,
        "seconds": item.seconds, "name": item.name, "crop": f"images/{item.name}.png",
        "prelabel": f"prelabels/{item.name}.png", "mask": f"masks/{item.name}.png",
    }  # fmt: skip
    return {column: values[column] for column in COLUMNS}


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"score": "float64"})
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()
