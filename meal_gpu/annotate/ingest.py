"""Finished masks into the ledger: all of what came back is checked before anything is changed."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from meal_gpu import lock
from meal_gpu.annotate import coco, cvat, label_studio, masks, received, segmentation_mask, voxel51
from meal_gpu.annotate.asked import VOID, Answer, Asked, Item
from meal_gpu.annotate.labels import LabelStore
from meal_gpu.errors import ConfigError, DataError, RunError
from meal_gpu.ledger import UNLABELLED, Ledger

Reader = Callable[[Mapping[str, bytes], Asked], Iterator[Answer]]

READERS: dict[str, Reader] = {
    "cvat": cvat.read,
    "segmentation-mask": segmentation_mask.read,
    "label-studio": label_studio.read,
    "coco": coco.read,
    "masks": masks.read,
}
"""By name: (files, asked) -> answers."""

FIFTYONE = "fiftyone"
"""Not files but the dataset of that name."""

_FLOOR = 64 << 20  # bytes that small queries may unpack to
_PER_PIXEL = 16  # bytes that a verbose format may take for a pixel


@dataclass(frozen=True)
class Ingested:
    """`labelled` patches went into the ledger; `replaced` ones were in it with another mask, and `known` ones
    with this one. `empty` ones had no label, and `missing` ones no answer: these are still asked. Of those
    that were taken, `untouched` are what the model had predicted, pixel for pixel.
    """

    labelled: tuple[Item, ...]
    replaced: tuple[Item, ...]
    known: tuple[Item, ...]
    empty: tuple[Item, ...]
    missing: tuple[Item, ...]
    untouched: int
    problems: tuple[str, ...]


def ingest(
    query: Path,
    answers: Path,
    ledger_path: Path,
    *,
    form: str = "auto",
    partial: bool = False,
    replace: bool = False,
) -> Ingested:
    """Check what a tool gave back for a query, store the masks, and mark their patches in the ledger.

    Labels where nothing is valid, as the query's --valid said, become void.

    The ledger is replaced in one step, after the masks are on the disk: a process killed in between leaves
    masks that the ledger does not know, which count nowhere and are written anew by the next ingest.

    Args:
        query: the query folder.
        answers: a folder, a .zip or a single file, as the tool exports it; never unpacked to the disk. The
            name of a dataset for "fiftyone".
        form: a name in `READERS`, "fiftyone", or "auto".
        partial: take what fits although something else does not.
        replace: a mask that differs from the one of a labelled patch takes its place, as after a correction;
            the patch stays labelled since the same step.

    Raises:
        DataError: something does not fit, with one line for each; nothing was changed.
        RunError: the query or the ledger cannot be read, the result cannot be written, or another process
            works on the ledger.
    """
    asked = Asked.read(query)
    if not ledger_path.is_file():
        raise RunError(f"{ledger_path}: no such ledger; pass the --ledger that the query was made with")
    with lock.of_ledger(ledger_path):
        ledger = Ledger.read(ledger_path)
        asked = asked.within(ledger)
        found = list(read(asked, answers, form=form))
        return accept(
            found, asked, ledger, ledger_path, partial=partial, replace=replace, source=str(answers)
        )


def read(asked: Asked, answers: Path, *, form: str = "auto") -> Iterator[Answer]:
    """The answers in what a tool gave back, as they are."""
    if form == FIFTYONE:
        yield from voxel51.read(str(answers), asked)
        return
    if form not in ("auto", *READERS):
        raise ConfigError(f"format {form!r} is unknown; known: auto, {', '.join(READERS)}, {FIFTYONE}")
    pixels = sum(box.width * box.height for box in map(asked.crop, asked.items))
    files = received.files(answers, limit=_FLOOR + _PER_PIXEL * pixels)
    chosen = _detect(files, answers) if form == "auto" else form
    try:
        yield from READERS[chosen](files, asked)
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(str(answers)) else f"{answers}: {text}") from error


def _detect(files: Mapping[str, bytes], answers: Path) -> str:
    found: dict[str, str] = {}  # a file of each format
    for path, content in files.items():
        name = path.rsplit("/", 1)[-1].lower()
        if name == "query.json":
            raise DataError(
                f"{answers}: holds the query itself, and not what came back alone: name the file or folder "
                "that the tool exported once people had worked on it"
            )
        if name == "labelmap.txt":
            found["segmentation-mask"] = path
        elif name.endswith(".xml") and name != "config.xml":
            found["cvat"] = path
        elif name.endswith(".json") and name != "labels.json":
            found["label-studio" if content.lstrip()[:1] == b"[" else "coco"] = path
    if len(found) > 1:
        each = " and ".join(f"{path} of {form}" for form, path in found.items())
        raise DataError(f"{answers}: holds {each}: give one of them, or name its format with --from")
    if found:
        return next(iter(found))
    if any(name.lower().endswith(".png") for name in files):
        return "masks"
    raise DataError(
        f"{answers}: holds nothing that is known: CVAT's annotations.xml or labelmap.txt, Label Studio's or "
        "COCO's .json, or .png masks; name the format with --from"
    )


def accept(
    answers: list[Answer],
    asked: Asked,
    ledger: Ledger,
    ledger_path: Path,
    *,
    partial: bool,
    replace: bool,
    source: str,
) -> Ingested:
    """Check answers, then store them; see `ingest`."""
    asked.require_of(ledger, ledger_path)
    steps = ledger.frame["step"].to_numpy()
    store = LabelStore.of(ledger_path)
    if (steps > 0).any() and not store.folder.is_dir():
        raise RunError(
            f"{store.folder}: no such folder, but {(steps > 0).sum()} patches of {ledger_path} are labelled: "
            "a second one would begin. Was the ledger moved? Bring its labels to it"
        )
    problems: list[str] = []
    good: list[tuple[Item, np.ndarray, bool]] = []
    known: list[Item] = []
    empty: list[Item] = []
    times = Counter(answer.name for answer in answers)
    for answer in answers:
        item = asked.by_name.get(answer.name)
        problem = answer.problem or (None if item else "not asked for in this query")
        labels = answer.labels
        if problem is None and times[answer.name] > 1:
            problem = f"given {times[answer.name]} times; one mask for a patch"
        if problem is None and item is not None and labels is not None:
            problem, labels = _fit(labels, item, asked)
            valid, untouched = None, False
            if problem is None and labels is not None:
                try:
                    predicted = asked.prediction(item)
                except DataError as error:
                    problem = str(error)
                else:
                    valid = predicted != VOID
                    labels[~valid] = VOID
                    untouched = np.array_equal(labels, predicted)
            if (
                valid is not None
                and labels is not None
                and _is_there(store, item, labels, valid, steps, replace)
            ):
                known.append(item)
                continue
            labelled = steps[item.patch] != UNLABELLED
            if problem is None and labelled and not replace:
                problem = (
                    f"patch {item.patch} is labelled since step {steps[item.patch]}, with another mask: "
                    "--replace takes this one"
                )
            elif problem is None and labels is not None:
                if bool((labels != VOID).any()):
                    good.append((item, labels, untouched))
                elif labelled:
                    problem = f"no pixel of a class, but patch {item.patch} is labelled: it keeps its mask"
                else:
                    empty.append(item)
        if problem is not None:
            problems.append(f"{answer.name}: {problem}")
    problems = list(dict.fromkeys(problems))
    if problems and not partial:
        more = f"\nnothing was changed; {len(good)} other patches fit: --partial takes them" if good else ""
        raise DataError(f"{source}: " + "\n".join(problems) + more)
    taken = [item for item, _, _ in good]
    fresh = tuple(item for item in taken if steps[item.patch] == UNLABELLED)
    replaced = tuple(item for item in taken if steps[item.patch] != UNLABELLED)
    if good:
        store.describe(asked.classes, asked.size, asked.grid)
        for item, labels, _ in good:
            store.write(item.patch, labels, item.digest)
    if fresh:
        ledger.label(torch.tensor([item.patch for item in fresh]), asked.step)
        ledger.write(ledger_path)
    missing = [i for i in asked.items if i.name not in times and steps[i.patch] == UNLABELLED]
    return Ingested(
        fresh, replaced, tuple(known), tuple(empty), tuple(missing), sum(same for _, _, same in good),
        tuple(problems),
    )  # fmt: skip


def _is_there(
    store: LabelStore, item: Item, labels: np.ndarray, valid: np.ndarray, steps: np.ndarray, replace: bool
) -> bool:
    """Whether this very mask was taken before, as where the same export comes once more with others.
    What was taken may have labels where nothing is `valid` (until 2026-11).

    To `replace` it, it has to be of the same file too: a frame that was replaced is labelled anew.
    """
    if steps[item.patch] == UNLABELLED:
        return False
    if replace and item.digest and store.digest(item.patch) != item.digest:
        return False
    there = store.read(item.patch, (item.box.height, item.box.width))
    return np.array_equal(np.where(valid, there, VOID), labels)


def _fit(labels: np.ndarray, item: Item, asked: Asked) -> tuple[str | None, np.ndarray | None]:
    """The patch's own part of a mask, or why it is none."""
    crop, box = asked.crop(item), item.box
    if labels.shape == (crop.height, crop.width):
        inside = labels[box.within(crop)]
    elif labels.shape == (box.height, box.width):
        inside = labels
    else:
        return (
            f"a mask of {labels.shape[0]}×{labels.shape[1]} pixels (height × width) found, "
            f"{crop.height}×{crop.width} expected"
        ), None
    unknown = np.unique(inside[(inside >= len(asked.classes)) & (inside != VOID)])
    if len(unknown):
        return (
            f"unknown class id {unknown[0]}; known: 0 to {len(asked.classes) - 1}, and {VOID} for void",
            None,
        )
    return None, np.array(inside)
