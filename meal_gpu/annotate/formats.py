"""The formats a query is exported in, by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from meal_gpu import atomic, lock
from meal_gpu.annotate import coco, cvat, label_studio, segmentation_mask, tables
from meal_gpu.annotate.asked import Asked
from meal_gpu.images.local import mark

Writer = Callable[[Asked, Path], list[Path]]

WRITERS: dict[str, Writer] = {
    "cvat": cvat.write,
    "segmentation-mask": segmentation_mask.write,
    "label-studio": label_studio.write,
    "coco": coco.write,
    "csv": partial(tables.write, form="csv"),
    "jsonl": partial(tables.write, form="jsonl"),
    "parquet": partial(tables.write, form="parquet"),
}
"""By name: (asked, out) -> the files written."""

TRAINING = ("smp", "mmseg", "nnunet")
"""What finished labels are exported to."""

FIFTYONE = "fiftyone"
"""A dataset of that program, not files."""


def options(form: str) -> tuple[str, ...]:
    """Those of `meal-gpu export` that mean something for a format."""
    if form in TRAINING:
        return "--ledger", "--images", "--out", "--changed"
    if form == FIFTYONE:
        return "--query", "--images"
    sent = {"cvat": ("--push",), "label-studio": ("--push", "--no-predictions")}
    return "--query", "--out", "--images", *sent.get(form, ())


def export(asked: Asked, out: Path, *, form: str) -> list[Path]:
    """Write a query for a tool into a new or empty folder. Raises RunError where it cannot be written."""
    atomic.require_new(out)
    with lock.alone(out), atomic.filled(out) as aside:
        mark(aside)
        written = WRITERS[form](asked, aside)
    return [out / path.relative_to(aside) for path in written]
