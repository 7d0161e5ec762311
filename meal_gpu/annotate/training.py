"""Finished labels as a training set: every frame with a labelled patch, its mask 255 everywhere else.

"smp"     what `meal_gpu.data.folder` reads: images/train, masks/train, classes.txt; ids are train ids
"mmseg"   img_dir/train and ann_dir/train for MMSegmentation; classes.json has classes, palette and suffixes
"nnunet"  imagesTr, labelsTr and dataset.json of an nnU-Net v2 dataset; name OUT as it wants, DatasetXXX_NAME
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from meal_gpu import atomic, lock
from meal_gpu.annotate.asked import VOID, Box
from meal_gpu.annotate.labels import Info, LabelStore, classes_text
from meal_gpu.annotate.pictures import decoded
from meal_gpu.data import palette
from meal_gpu.errors import ConfigError, DataError, RunError
from meal_gpu.grid import Grid
from meal_gpu.images.content import aside, digests, fetch_into, is_url, local
from meal_gpu.images.headers import SUFFIXES, image_size, orientation
from meal_gpu.images.local import mark
from meal_gpu.ledger import Ledger

_PLACES = {
    "smp": ("images/train", "masks/train"),
    "mmseg": ("img_dir/train", "ann_dir/train"),
    "nnunet": ("imagesTr", "labelsTr"),
}
_ASIDE = ".frames"  # where they lie until they are written


CHANGED = ("stop", "skip", "take")
"""What to do about labels of frames that are no longer the files that were labelled."""


class Exported(NamedTuple):
    """How much was written, and how many labelled patches were not, as their frames had changed."""

    frames: int
    patches: int
    left_out: int


def export(
    ledger_path: Path, files: Mapping[str, str], out: Path, *, to: str, changed: str = "stop"
) -> Exported:
    """Write all that the ledger says is labelled; `out` appears whole or not at all.

    Images become hard links where the file system allows it (so do not edit them in place), else copies;
    nnU-Net's become PNG files, as JPEGs do that their EXIF turns, and MMSegmentation's where they are of
    several kinds, for it wants one. Frames behind URLs are fetched once.

    Args:
        files: path or URL of every frame, by its name in the ledger.
        out: a folder that is new or empty.
        to: "smp", "mmseg" or "nnunet".
        changed: where a frame is no longer the file that a patch was labelled on: "stop"; "skip" the patch;
            or "take" its labels for the new file.

    Raises:
        ConfigError: another `to` or `changed`, or more classes than it can hold.
        DataError: nothing is labelled, or left; a frame or mask, which is named, is missing, damaged, of
            another size or no longer what was labelled.
        RunError: `out` is not empty or cannot be written; ledger or labels are not readable.
    """
    if to not in _PLACES:
        raise ConfigError(f"format {to!r} is unknown; known: {', '.join(_PLACES)}")
    if changed not in CHANGED:
        raise ConfigError(f"changed is {changed!r}; known: {', '.join(CHANGED)}")
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
    then = {patch: store.digest(patch) for patch in patches.tolist()}
    if to == "smp":  # before anything slow
        classes_text(info.classes)
    elif to == "nnunet":
        _nnunet_labels(info.classes)
    with lock.alone(out), atomic.filled(out) as root:
        mark(root)
        there = _brought({name: files[name] for name in by_image}, root / _ASIDE)
        left = by_image if changed == "take" else _unchanged(by_image, there, then, stop=changed == "stop")
        _fill(root, left, _stems(ledger.names, flat=to == "nnunet"), there, store, info, to)
        shutil.rmtree(root / _ASIDE)
    count = sum(map(len, left.values()))
    return Exported(len(left), count, len(patches) - count)


class _Frame(NamedTuple):
    """Where a frame came from, and where its file lies now."""

    file: str
    at: Path

    @property
    def suffix(self) -> str:
        """As what it is written: masks are upright, and what trains may not look at the EXIF of a JPEG."""
        end = PurePosixPath(self.file).suffix
        if end.lower() not in SUFFIXES:
            return ".png"
        if end.lower() in (".jpg", ".jpeg"):
            # Who reads it says so
            with suppress(OSError, Image.DecompressionBombError), Image.open(self.at) as image:
                return end if orientation(image) == 1 else ".png"
        return end

    @property
    def digest(self) -> str:
        """SHA-256. Raises DataError, as all that follows, where it cannot be read."""
        with self._named():
            return digests([str(self.at)])[0]

    def write(self, target: Path, size: tuple[int, int], *, plain: bool) -> None:
        """Move it to `target`, or write its pixels there, also what is grey, palette or 16-bit: `plain` RGB.

        Raises:
            DataError: it is damaged, or not of `size`.
        """
        if plain or PurePosixPath(self.file).suffix != target.suffix:
            with self._named():
                pixels = decoded(local(self.at), self.file, size)
            Image.fromarray(pixels).save(target)
            self.at.unlink()
            return
        with self._named():
            found = image_size(self.at)
        if found != size:
            raise DataError(
                f"{self.file}: {found[0]}×{found[1]} pixels (height × width) found, its labels are of "
                f"{size[0]}×{size[1]}; restore the file"
            )
        self.at.rename(target)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors name where it came from."""
        try:
            yield
        except DataError as error:
            raise DataError(str(error).replace(str(self.at), self.file)) from error


def _brought(files: Mapping[str, str], folder: Path) -> dict[str, _Frame]:
    """Every frame by its name, linked, copied or fetched into a new folder. Raises DataError."""
    folder.mkdir()
    frames = {
        name: _Frame(file, aside(folder, place, file)) for place, (name, file) in enumerate(files.items())
    }
    for file, at in frames.values():
        if is_url(file):
            continue
        real = Path(file).resolve()
        if not real.is_file():
            raise DataError(f"{file}: no such image file; bring it back")
        if not os.access(real, os.R_OK):
            raise DataError(f"{file}: cannot be read (Permission denied); make the file readable")
        try:
            os.link(real, at)
        except OSError:  # another file system, or one without links
            shutil.copyfile(real, at)
    remote = [frame for frame in frames.values() if is_url(frame.file)]
    fetch_into([frame.file for frame in remote], [frame.at for frame in remote])
    return frames


def _unchanged(
    by_image: Mapping[str, list[int]], there: Mapping[str, _Frame], then: Mapping[int, str], *, stop: bool
) -> dict[str, list[int]]:
    """The patches that were labelled on the very files. Raises DataError where others are not to be left."""
    now = {name: there[name].digest for name in by_image}
    left = {
        name: [patch for patch in patches if then[patch] in ("", now[name])]
        for name, patches in by_image.items()
    }
    other = {name: set(patches) - set(left[name]) for name, patches in by_image.items()}
    other = {name: patches for name, patches in other.items() if patches}
    if other and (stop or not any(left.values())):
        name, patches = next(iter(other.items()))
        first = min(patches)
        skip = "leaves such labels out" if any(left.values()) else "would leave none"
        raise DataError(
            f"{there[name].file}: no longer the file that patch {first} was labelled on (SHA-256 "
            f"{now[name][:12]}…, then {then[first][:12]}…; so {len(other)} of {len(by_image)} "
            f"frames); restore it, or take the labels for it as they are with --changed take; --changed skip "
            f"{skip}"
        )
    return {name: patches for name, patches in left.items() if patches}


def _fill(
    root: Path, by_image: Mapping[str, list[int]], stems: Mapping[str, str], frames: Mapping[str, _Frame],
    store: LabelStore, info: Info, to: str,
) -> None:  # fmt: skip
    images, masks = (root / place for place in _PLACES[to])
    plain = to == "nnunet"
    suffixes = {name: frames[name].suffix for name in by_image}
    if plain or (to == "mmseg" and len(set(suffixes.values())) > 1):
        suffixes = dict.fromkeys(suffixes, ".png")
    extra = "_0000" if plain else ""
    shift, labels = _nnunet_labels(info.classes) if plain else (0, {})
    ids = np.full(256, labels.get("ignore", VOID), np.uint8)
    ids[: len(info.classes)] = np.arange(len(info.classes)) + shift
    for name, patches in by_image.items():
        picture = images / f"{stems[name]}{extra}{suffixes[name]}"
        picture.parent.mkdir(parents=True, exist_ok=True)
        frames[name].write(picture, info.size, plain=plain)
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


def _mask(patches: Sequence[int], store: LabelStore, info: Info) -> np.ndarray:
    """[H, W] uint8: the labels of these patches of one frame, 255 around them."""
    mask = np.full(info.size, VOID, np.uint8)
    for patch, box in zip(patches, Grid(*info.grid, *info.size).boxes(patches).tolist(), strict=True):
        at = Box(*box)
        mask[at.top : at.bottom, at.left : at.right] = store.read(patch, (at.height, at.width))
    return mask


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
