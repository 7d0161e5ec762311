"""What a dataset was when a run began, so that a run is not continued on another one."""

import os
from pathlib import Path
from typing import Any

from meal_gpu.data.dataset import Dataset, Split


def snapshot(dataset: Dataset) -> dict[str, Any]:
    """Classes, ids, and by split the name of each image with the bytes of its file and its label's, as JSON.

    Not when files were changed: a dataset that was copied is the same. A pack is one file of its own. A file
    that is not there has None.
    """
    return {
        "classes": list(dataset.classes),
        "ids": {str(i): dataset.lookup[i] for i in dataset.label_ids},
        **{name: _files(split) for name, split in (("train", dataset.train), ("val", dataset.val))},
    }


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
    return None


def _more(count: int, what: str) -> str:
    return "" if count == 1 else f" ({count} files are {what})"
