"""Finished labels as a training set: every frame with a labelled patch, its mask 255 everywhere else.

"smp"     what `meal_gpu.data.folder` reads: images/train, masks/train, classes.txt; ids are train ids
"mmseg"   img_dir/train and ann_dir/train for MMSegmentation; classes.json has classes, palette and suffixes
"nnunet"  imagesTr, labelsTr and dataset.json of an nnU-Net v2 dataset; name OUT as it wants, DatasetXXX_NAME
"""

import io
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from meal_gpu import atomic, lock
from meal_gpu.annotate.asked import VOID, Box
from meal_gpu.annotate.labels import Info, LabelStore, classes_text
from meal_gpu.annotate.pictures import read_frame
from meal_gpu.data import palette
from meal_gpu.errors import ConfigError, DataError, RunError
from meal_gpu.grid import Grid
from meal_gpu.images.content import contents, digests, is_url
from meal_gpu.images.headers import SUFFIXES, image_size, orientation
from meal_gpu.images.local import mark
from meal_gpu.ledger import Ledger

_PLACES = {
    "smp": ("images/train", "masks/train"),
    "mmseg": ("img_dir/train", "ann_dir/train"),
    "nnunet": ("imagesTr", "labelsTr"),
}


class Exported(NamedTuple):
    """How much was written."""

    frames: int
    patches: int


def export(
    ledger_path: Path, files: Mapping[str, str], out: Path, *, to: str, changed: bool = False
) -> Exported:
    """Write all that the ledger says is labelled; `out` appears whole or not at all.

    Images become hard links where the file system allows it (so do not edit them in place), else copies;
    nnU-Net's become PNG files, as JPEGs do that their EXIF turns, and MMSegmentation's where they are of
    several kinds, for it wants one.

    Args:
        files: path or URL of every frame, by its name in the ledger.
        out: a folder that is new or empty.
        to: "smp", "mmseg" or "nnunet".
        changed: take frames, too, whose files are no longer those that were labelled.

    Raises:
        ConfigError: another `to`, or more classes than it can hold.
        DataError: nothing is labelled; a frame or mask, which is named, is missing, damaged, of another size
            or no longer what was labelled.
        RunError: `out` is not empty or cannot be written; ledger or labels are not readable.
    """
    if to not in _PLACES:
        raise ConfigError(f"format {to!r} is unknown; known: {', '.join(_PLACES)}")
    atomic.require_new(out)
    ledger = Ledger.read(ledger_path)
    patches = ledger.labelled().cpu().numpy()
    if not len(patches):
        raise DataError(f"{ledger_path}: no patch is labelled yet; `meal-gpu ingest` finished masks first")
    store = LabelStore.of(ledger_path)
    info = store.info
    if info.grid != (ledger.grid.rows, ledger.grid.columns):
        raise RunError(
            f"{store.folder}: labels of a grid of {info.grid[0]}×{info.grid[1]}, but {ledger_path} has "
            f"{ledger.grid.rows}×{ledger.grid.columns}; restore the one that belongs to the other"
        )
    by_image: dict[str, list[int]] = {}
    for patch in patches.tolist():
        by_image.setdefault(ledger.names[patch // ledger.grid.patches_per_image], []).append(patch)
    if gone := [name for name in by_image if name not in files]:
        raise DataError(
            f"{gone[0]}: a labelled frame of {ledger_path} that is not among the images ({len(gone)} of "
            f"{len(by_image)} are missing); bring it back"
        )
    with lock.alone(out), atomic.filled(out) as aside:
        mark(aside)
        _fill(aside, by_image, _stems(ledger.names, flat=to == "nnunet"), files, store, info, to)
        if not changed:
            _require_unchanged(by_image, files, store)
    return Exported(len(by_image), len(patches))


def _require_unchanged(
    by_image: Mapping[str, list[int]], files: Mapping[str, str], store: LabelStore
) -> None:  # fmt: skip
    """Raises DataError where a frame is not the one that a mask was made on."""
    now = dict(zip(by_image, digests([files[name] for name in by_image]), strict=True))
    other = {
        name: (patch, then)
        for name, patches in by_image.items()
        for patch in patches
        if (then := store.digest(patch)) not in ("", now[name])
    }
    if other:
        name, (patch, then) = next(iter(other.items()))
        raise DataError(
            f"{files[name]}: no longer the file that patch {patch} was labelled on (SHA-256 "
            f"{now[name][:12]}…, then {then[:12]}…; so {len(other)} of {len(by_image)} frames); restore "
            "it, or take the labels for it as they are with --changed"
        )


def _fill(
    root: Path, by_image: Mapping[str, list[int]], stems: Mapping[str, str], files: Mapping[str, str],
    store: LabelStore, info: Info, to: str,
) -> None:  # fmt: skip
    images, masks = (root / place for place in _PLACES[to])
    suffixes = {
        name: ".png" if _is_turned(files[name]) else PurePosixPath(files[name]).suffix for name in by_image
    }
    if to == "nnunet" or (to == "mmseg" and len(set(suffixes.values())) > 1):
        suffixes = dict.fromkeys(suffixes, ".png")
    suffixes = {name: end if end.lower() in SUFFIXES else ".png" for name, end in suffixes.items()}
    extra = "_0000" if to == "nnunet" else ""
    shift, labels = _nnunet_labels(info.classes) if to == "nnunet" else (0, {})
    ids = np.full(256, labels.get("ignore", VOID), np.uint8)
    ids[: len(info.classes)] = np.arange(len(info.classes)) + shift
    for name, patches in by_image.items():
        picture = images / f"{stems[name]}{extra}{suffixes[name]}"
        picture.parent.mkdir(parents=True, exist_ok=True)
        _place(files[name], picture, info.size)
        path = masks / f"{stems[name]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids[_mask(patches, store, info)]).save(path)
    if to == "smp":
        (root / "classes.txt").write_text(classes_text(info.classes), "utf-8")
    elif to == "mmseg":
        meta = {
            "classes": info.classes, "palette": palette.generate(len(info.classes)), "ignore_index": VOID,
            "reduce_zero_label": False, "img_suffix": next(iter(suffixes.values())), "seg_map_suffix": ".png",
        }  # fmt: skip
        _json(root / "classes.json", meta)
    else:
        meta = {
            "channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": labels, "numTraining": len(by_image),
            "file_ending": ".png", "overwrite_image_reader_writer": "NaturalImage2DIO",
        }  # fmt: skip
        _json(root / "dataset.json", meta)


def _is_turned(file: str) -> bool:
    """Whether it is a JPEG that its EXIF turns: masks are upright, and what trains may not look at EXIF."""
    if PurePosixPath(file).suffix.lower() not in (".jpg", ".jpeg"):
        return False
    try:
        with Image.open(io.BytesIO(contents([file])[0]) if is_url(file) else Path(file)) as image:
            return orientation(image) != 1
    except OSError:
        return False  # who reads it says so


def _mask(patches: Sequence[int], store: LabelStore, info: Info) -> np.ndarray:
    """[H, W] uint8: the labels of these patches of one frame, 255 around them."""
    mask = np.full(info.size, VOID, np.uint8)
    for patch, box in zip(patches, Grid(*info.grid, *info.size).boxes(patches).tolist(), strict=True):
        at = Box(*box)
        mask[at.top : at.bottom, at.left : at.right] = store.read(patch, (at.height, at.width))
    return mask


def _place(file: str, target: Path, size: tuple[int, int]) -> None:
    """Bring a frame of `size` to `target`. Raises DataError."""
    if PurePosixPath(file).suffix != target.suffix or target.parent.name == "imagesTr":
        Image.fromarray(read_frame(file, size)).save(target)  # also what is palette, grey or 16-bit
        return
    if is_url(file):
        target.write_bytes(contents([file])[0])
    else:
        real = Path(file).resolve()
        if not real.is_file():
            raise DataError(f"{file}: no such image file; bring it back")
        try:
            os.link(real, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(real, target)
    if (found := image_size(target)) != size:
        raise DataError(
            f"{file}: {found[0]}×{found[1]} pixels (height × width) found, its labels are of "
            f"{size[0]}×{size[1]}; restore the file"
        )


def _stems(names: Sequence[str], *, flat: bool) -> dict[str, str]:
    """A path without suffix for every image: inside the folder, and different from all before it.

    Where names are of letters that a file system or a tool may not take, "_" stands for these.
    """
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        end = PurePosixPath(name).suffix
        parts = PurePosixPath(name.removesuffix(end) if end.lower() in SUFFIXES else name).parts
        unsafe = r"[^A-Za-z0-9-]+" if flat else r"[\x00-\x1f<>:\"|?*\\]+"
        clean = [re.sub(unsafe, "_", part) for part in parts if part not in ("/", "..")]
        stem = wanted = ("_" if flat else "/").join(clean) or "image"
        number = 2
        while stem.lower() in taken:  # two suffixes, or a file system that takes a for A
            stem, number = f"{wanted}_{number}", number + 1
        taken.add(stem.lower())
        stems[name] = stem
    return stems


def _nnunet_labels(classes: Sequence[str]) -> tuple[int, dict[str, int]]:
    """What is added to train ids, and nnU-Net's ids by name.

    It wants a label "background" of id 0, unused where there is no such class, and "ignore" with the highest.
    """
    shift = 0 if classes[0].lower() == "background" else 1
    if len(classes) + shift > VOID:
        raise ConfigError(f"{len(classes)} classes: 8-bit masks of nnU-Net hold at most {VOID - shift}")
    labels = {"background": 0}
    for train_id, name in enumerate(classes):
        if train_id + shift:
            while name in labels or name == "ignore":
                name += "_"
            labels[name] = train_id + shift
    return shift, labels | {"ignore": len(classes) + shift}


def _json(path: Path, meta: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", "utf-8")
