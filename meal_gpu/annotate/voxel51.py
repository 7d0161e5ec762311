"""FiftyOne: a query as a dataset, what was drawn there, and the whole pool to look at.

"query"        the patches asked for, as rectangles
"predictions"  what the model takes each of their pixels for: for each class a mask
"ground_truth" what a person makes of them; detections with masks, as FiftyOne's annotation backends import
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from meal_gpu.annotate.asked import PATCH_LABEL, VOID, Answer, Asked, Box, Item
from meal_gpu.annotate.crops import class_id, pieces
from meal_gpu.annotate.pictures import Pixels
from meal_gpu.errors import DataError, MealGpuError, RunError, UnavailableError
from meal_gpu.grid import Grid
from meal_gpu.images.content import is_url
from meal_gpu.images.headers import image_size

FINISHED = "finished"
"""The tag of a sample or of a rectangle in "query" whose predictions are right as they are."""

_FRAME = "meal_gpu_frame"  # the field of a sample that says which frame it is


def samples(asked: Asked) -> list[Any]:
    """One `fiftyone.Sample` for each frame, in the order of the query; it needs no database.

    Raises UnavailableError without FiftyOne; DataError for a prediction or frame that cannot be read here.
    """
    fo = _library()
    asked.require_unchanged()
    rank = {item.name: i for i, item in enumerate(asked.items)}
    made = []
    for file, items in _by_file(asked.items).items():
        sample = fo.Sample(filepath=_local(file), tags=["meal-gpu", f"step-{asked.step}"])
        query, predictions = [], []
        for item in items:
            more = {"rank": rank[item.name], "score": _finite(item.score), "clicks": item.clicks}
            box = _relative(item.box, asked.size)
            query.append(fo.Detection(label=PATCH_LABEL, bounding_box=box, patch=item.patch, **more))
            crop = asked.crop(item)
            for train_id, part, where in pieces(item, asked):
                label, box = asked.classes[train_id], _relative(part, asked.size)
                mask = where[part.within(crop)]
                predictions.append(fo.Detection(label=label, bounding_box=box, mask=mask, patch=item.patch))
        sample[_FRAME] = _content(items[0])
        sample["query"] = fo.Detections(detections=query)
        sample["predictions"] = fo.Detections(detections=predictions)
        made.append(sample)
    return made


def export(asked: Asked, name: str) -> None:
    """Make or replace the persistent dataset `name`.

    Raises UnavailableError where FiftyOne or its database is not there, RunError where there is a dataset of
    this name that meal-gpu did not make, DataError as `samples`.
    """
    fo = _library()
    made = samples(asked)
    with _database():
        if fo.dataset_exists(name) and "meal_gpu" not in fo.load_dataset(name).info:
            raise RunError(f"the FiftyOne dataset {name!r} is not of meal-gpu; name another with --project")
        dataset = fo.Dataset(name, persistent=True, overwrite=True)
        dataset.info = {"meal_gpu": {"step": asked.step, "strategy": asked.strategy, "seed": asked.seed}}
        dataset.default_classes = list(asked.classes)
        dataset.add_samples(made, dynamic=True)


def read(name: str, asked: Asked) -> Iterator[Answer]:
    """Finished patches of a dataset; see `answers`. Raises as `export`; DataError: it is not there."""
    fo = _library()
    with _database():
        if not fo.dataset_exists(name):
            raise DataError(f"there is no FiftyOne dataset {name!r}; known: {', '.join(fo.list_datasets())}")
        yield from answers(fo.load_dataset(name), asked)


def answers(found: Iterable[Any], asked: Asked) -> Iterator[Answer]:
    """The labels [height, width] of each finished patch in these samples, in their order.

    A patch is finished where its sample has a field "ground_truth"; or "predictions", corrected or not, where
    the sample or the patch's rectangle has the tag `FINISHED`. Later masks are painted over earlier ones.
    """
    by_file = _by_file(asked.items)
    frames = {str(Path(file).absolute()): items for file, items in by_file.items()}
    frames |= {_content(items[0]): items for items in by_file.values()}
    for sample in found:
        moved = (sample[_FRAME] if sample.has_field(_FRAME) else None) or ""
        items = frames.get(moved) or frames.get(str(Path(sample.filepath).absolute()))
        if items is None:
            yield Answer(Path(sample.filepath).name, None, "a frame of which nothing is asked in this query")
            continue
        truth = _detections(sample, "ground_truth")
        rectangles = _detections(sample, "query") or []
        tagged = {d["patch"] for d in rectangles if FINISHED in (d.tags or [])}
        for item in items:
            drawn = truth
            if drawn is None and (FINISHED in sample.tags or item.patch in tagged):
                drawn = _detections(sample, "predictions")
            if drawn is None:
                continue
            try:
                yield Answer(item.name, _painted(drawn, item, asked))
            except DataError as error:
                yield Answer(item.name, None, str(error))


def view(ledger_path: Path, files: Mapping[str, str], queries: Sequence[Path]) -> Any:
    """Open the whole pool in FiftyOne's app, and its embedding where the ledger has one; the session.

    Raises UnavailableError as `export`; RunError for ledger or query, DataError for frames that do not serve.
    """
    fo = _library()
    made, points = pool_samples(ledger_path, files, [Asked.read(path) for path in queries])
    with _database():
        dataset = fo.Dataset()
        dataset.add_samples(made, dynamic=True)
        if points:
            import fiftyone.brain as fob

            fob.compute_visualization(dataset, patches_field="pool", points=points, brain_key="embedding")
        return fo.launch_app(dataset)


def pool_samples(
    ledger_path: Path, files: Mapping[str, str], queries: Sequence[Asked]
) -> tuple[list[Any], dict[str, Any]]:
    """One sample for each frame, with every patch in "pool"; and by its id there the embedding [2] float64.

    Patches have step, score and embedding_0, ... (None: not known), and are tagged labelled and query-STEP.
    """
    from meal_gpu.frame import to_arrow
    from meal_gpu.ledger import UNLABELLED, Ledger

    fo = _library()
    ledger = Ledger.read(ledger_path)
    rows = to_arrow(ledger.frame).to_pylist()
    axes = [key for key in rows[0] if key.startswith("embedding_")] if rows else []
    tags: dict[int, list[str]] = {row["patch"]: ["labelled"] for row in rows if row["step"] != UNLABELLED}
    for query in queries:
        for item in query.items:
            tags.setdefault(item.patch, []).append(f"query-{query.step}")
    size = queries[0].size if queries else None
    made, points, per_image = [], {}, ledger.grid.patches_per_image
    for number, name in enumerate(ledger.names):
        if name not in files:
            raise DataError(f"{name}: a frame of {ledger_path} that is not among the images; bring it back")
        file = _local(files[name])
        size = size or image_size(Path(file))
        patches = list(range(number * per_image, (number + 1) * per_image))
        boxes = Grid(ledger.grid.rows, ledger.grid.columns, *size).boxes(patches)
        detections = []
        for patch, box in zip(patches, boxes.tolist(), strict=True):
            row = rows[patch]
            at = {axis: _finite(row[axis]) for axis in axes}
            more = {"patch": patch, "step": row["step"], "score": _finite(row["score"]), **at}
            box = _relative(Box(*box), size)
            detection = fo.Detection(label=PATCH_LABEL, bounding_box=box, tags=tags.get(patch, []), **more)
            detections.append(detection)
            if len(axes) > 1 and None not in at.values():
                points[detection.id] = np.array([at[axis] for axis in axes[:2]], np.float64)
        sample = fo.Sample(filepath=file, tags=["meal-gpu"])
        sample["pool"] = fo.Detections(detections=detections)
        made.append(sample)
    return made, points


def _painted(drawn: Iterable[Any], item: Item, asked: Asked) -> Pixels:
    """What is drawn inside a patch. Raises DataError."""
    labels = np.full((item.box.height, item.box.width), VOID, np.uint8)
    height, width = asked.size
    for detection in drawn:
        x, y, w, h = detection.bounding_box
        if not all(map(math.isfinite, (x, y, w, h))):
            raise DataError(f"a mask of {detection.label!r} with the box {detection.bounding_box}")
        left, top = round(x * width), round(y * height)
        box = Box(left, top, left + max(1, round(w * width)), top + max(1, round(h * height)))
        start = (max(a, b) for a, b in zip(box[:2], item.box[:2], strict=True))
        part = Box(*start, *(min(a, b) for a, b in zip(box[2:], item.box[2:], strict=True)))
        if detection.label == PATCH_LABEL or part.width <= 0 or part.height <= 0:
            continue
        mask = detection.get_mask()
        if mask is None:
            raise DataError(f"a box of {detection.label!r} without a mask; draw its pixels")
        train_id = class_id(detection.label, asked)
        pixels = np.asarray(mask) > 0
        if pixels.shape != (box.height, box.width):  # drawn at another scale
            pixels = np.array(
                Image.fromarray(pixels).resize((box.width, box.height), Image.Resampling.NEAREST)
            )
        labels[part.within(item.box)][pixels[part.within(box)]] = train_id
    return labels


def _detections(sample: Any, field: str) -> list[Any] | None:
    """Those of a field, or None where the sample has none."""
    value = sample[field] if sample.has_field(field) else None
    return None if value is None else list(value.detections)


def _content(item: Item) -> str:
    """Tells a frame apart wherever it lies."""
    return f"{item.image} {item.digest}"


def _by_file(items: Iterable[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.file, []).append(item)
    return found


def _relative(box: Box, size: tuple[int, int]) -> list[float]:
    """[left, top, width, height] as shares of a frame of (height, width)."""
    return [box.left / size[1], box.top / size[0], box.width / size[1], box.height / size[0]]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _local(file: str) -> str:
    if is_url(file):
        raise DataError(f"{file}: FiftyOne shows files of this machine; copy the frames here")
    return str(Path(file).absolute())


def _library() -> Any:
    try:
        import fiftyone
    except ImportError as error:
        raise UnavailableError(f"FiftyOne is missing ({error}): pip install 'meal-gpu[fiftyone]'") from error
    return fiftyone


@contextmanager
def _database() -> Iterator[None]:
    """Raises UnavailableError where FiftyOne cannot reach or start its MongoDB."""
    try:
        yield
    except MealGpuError:
        raise
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        if not names & {"FiftyOneConfigError", "ConnectionFailure", "ServiceException", "SubprocessError"}:
            raise
        fix = "start a MongoDB, set FIFTYONE_DATABASE_URI"
        raise UnavailableError(f"FiftyOne has no database: {' '.join(str(error).split())}; {fix}") from error
