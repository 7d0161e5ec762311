"""What a dataset was when a run began, so that a run is not continued on another one."""

import hashlib
import os
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from meal_gpu.data import packing
from meal_gpu.data.dataset import Dataset, Split

_UNCOMPRESSED = (".bmp", ".tif", ".tiff")  # most of them; a TIFF says only within


def snapshot(dataset: Dataset) -> dict[str, Any]:
    """Classes, ids, and by split the name of each image with the bytes of its file and its label's, as JSON.

    Not when files were changed: a dataset that was copied is the same. A file that is not there has None.
    Labels, and what is not compressed, may have one size whatever they show: of labels, packs, BMP and TIFF
    there are `contents` too.
    """
    contents = _contents(dataset.train) | _contents(dataset.val)
    return {
        **({"contents": contents} if contents else {}),
        "classes": list(dataset.classes),
        "ids": {str(i): dataset.lookup[i] for i in dataset.label_ids},
        **{name: _files(split) for name, split in (("train", dataset.train), ("val", dataset.val))},
    }


def _contents(split: Split) -> dict[str, str]:
    if split.packed is not None:
        return packing.contents(split.packed)
    labels = zip(
        (f"the label of {name}" for name in split.names), split.labels or (), strict=bool(split.labels)
    )
    images = zip(split.names, split.images, strict=True)
    found = {}
    for name, path in chain((each for each in images if each[0].lower().endswith(_UNCOMPRESSED)), labels):
        with suppress(OSError), path.open("rb") as file:
            found[name] = f"SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
    return found


def _files(split: Split) -> dict[str, list[int | None]]:
    if split.packed is not None:
        files = sorted(split.packed.parent.glob(f"{split.packed.name}.*"))
        return {file.name: [_bytes(file)] for file in files} | {name: [] for name in split.names}
    labels = split.labels or ()
    found = {name: [_bytes(image)] for name, image in zip(split.names, split.images, strict=True)}
    for name, label in zip(split.names, labels, strict=bool(labels)):
        found[name].append(_bytes(label))
    return found


def _bytes(file: Path) -> int | None:
    try:
        return os.stat(file).st_size  # noqa: PTH116 - a Path of each takes longer than this
    except OSError:
        return None


def difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What differs between two snapshots, with the first file and how many; None where nothing does."""
    for key in ("classes", "ids"):
        if before[key] != now[key]:
            return f"{key}: {before[key]} then, {now[key]} now"
    old, new = (each.get("encoder_weights") for each in (before, now))  # where they are a file
    if old is not None and new is not None and old != new:
        return f"encoder_weights: a file of SHA-256 {old[:12]}… then, {new[:12]}… now"
    for split in ("train", "val"):
        old, new = before[split], now[split]
        gone, added = [n for n in old if n not in new], [n for n in new if n not in old]
        for names, what in ((gone, "gone"), (added, "new")):
            if names:
                return f"{split}: {names[0]} is {what}{_more(len(names), what)}"
        if changed := [name for name in old if old[name] != new[name]]:
            name = changed[0]
            kind = "image" if old[name][:1] != new[name][:1] else "label"
            at = 0 if kind == "image" else -1
            sizes = f"{old[name][at]} bytes then, {new[name][at]} now"
            return f"{split}: the {kind} of {name} has changed, {sizes}{_more(len(changed), 'changed')}"
        if list(old) != list(new):
            return f"{split}: the images are in another order"
    old, new = (each.get("contents", {}) for each in (before, now))
    if changed := [name for name in old if new.get(name, old[name]) != old[name]]:
        then, later = (each[changed[0]][:32] for each in (old, new))  # of a hash its beginning
        return f"{changed[0]} has changed, {then} then, {later} now{_more(len(changed), 'changed')}"
    return None


def _more(count: int, what: str) -> str:
    return "" if count == 1 else f" ({count} files are {what})"
