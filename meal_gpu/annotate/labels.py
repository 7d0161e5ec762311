"""Finished labels beside a ledger: one small mask for every patch that a person has labelled.

pool.labels/labels.json          classes, (height, width) of the frames, rows and columns of the grid
pool.labels/000006/6789.png      train ids of patch 6789, 255 is void, at the frame's own resolution; says of
                                 which file they are

The ledger says what is labelled. A mask that it does not know is left over from a killed ingest.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from meal_gpu import atomic
from meal_gpu.annotate.asked import VOID
from meal_gpu.annotate.pictures import Pixels, read_mask
from meal_gpu.errors import ConfigError, DataError, RunError

_PER_FOLDER = 1000
_FRAME = "frame SHA-256"  # a text of the PNG file


@dataclass(frozen=True)
class Info:
    """What all masks of a store share: classes by train id, (height, width) of frames, (rows, columns)."""

    classes: tuple[str, ...]
    size: tuple[int, int]
    grid: tuple[int, int]

    def __str__(self) -> str:
        return (
            f"{len(self.classes)} classes ({', '.join(self.classes)}), frames of "
            f"{self.size[0]}×{self.size[1]} pixels, a grid of {self.grid[0]}×{self.grid[1]}"
        )


def unnamed(number: int) -> tuple[str, ...]:
    """Names of so many classes of which only their ids are known."""
    return tuple(f"class {k}" for k in range(number))


class LabelStore:
    """The masks in one folder, which the first write makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, ledger: Path) -> "LabelStore":
        """Of the ledger `pool.parquet`: `pool.labels` beside it."""
        return cls(ledger.with_suffix(".labels"))

    @property
    def info(self) -> Info:
        """What `describe` wrote. Raises RunError where there is nothing or something else."""
        path = self.folder / "labels.json"
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
            return Info(tuple(map(str, meta["classes"])), _pair(meta["size"]), _pair(meta["grid"]))
        except FileNotFoundError:
            raise RunError(
                f"{path}: no such file; `meal-gpu ingest` makes it with the first labels. Was the ledger "
                f"moved? {self.folder.name} belongs beside it"
            ) from None
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path}: damaged ({error!r}); restore it from a copy") from error

    @property
    def _known(self) -> tuple[str, ...] | None:
        return self.info.classes if (self.folder / "labels.json").exists() else None

    def named(self, number: int) -> tuple[str, ...]:
        """Names of a model's `number` classes: as in the labels so far, else "class 0", …

        Raises:
            ConfigError: the labels so far have more classes, or fewer; or there are more than `VOID`.
        """
        if number > VOID:
            raise ConfigError(f"the model has {number} classes; labels are 8-bit ids, 0 to {VOID - 1}")
        known = self._known
        found = known if known is not None and len(known) == number else unnamed(number)
        self.require(found)
        return found

    def require(self, classes: tuple[str, ...]) -> None:
        """Raises ConfigError where the labels so far have other classes; placeholders fit any names."""
        known = self._known
        if known is not None and known not in (classes, unnamed(len(classes))):
            raise ConfigError(
                f"the labels so far, in {self.folder}, are of {len(known)} classes ({', '.join(known)}), the "
                f"model's of {len(classes)} ({', '.join(classes)}): name the same classes, or begin another "
                "--ledger"
            )

    def require_size(self, size: tuple[int, int]) -> None:
        """Raises RunError where the labels so far are of frames of another size."""
        path = self.folder / "labels.json"
        if path.exists() and (known := self.info.size) != size:
            raise RunError(
                f"{path}: the labels so far are of frames of {known[0]}×{known[1]} pixels (height × width), "
                f"and those of the pool have {size[0]}×{size[1]} now: restore the frames, or begin another "
                "--ledger"
            )

    def describe(self, classes: tuple[str, ...], size: tuple[int, int], grid: tuple[int, int]) -> None:
        """Say what the masks are of; the first call decides, but for names where it had none.

        Raises:
            RunError: an earlier call said something else, or the folder cannot be written.
        """
        given = Info(classes, size, grid)
        path = self.folder / "labels.json"
        if path.exists():
            known, nameless = self.info, unnamed(len(classes))
            if given in (known, replace(known, classes=nameless)) and len(known.classes) == len(classes):
                return
            if known != replace(given, classes=nameless):
                raise RunError(
                    f"{path}: the labels so far are of {known}; these are of {given}; "
                    "a pool keeps its classes and sizes: begin another --ledger"
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic.write(path, json.dumps(asdict(given), indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise _unwritten(path, error) from error

    def path(self, patch: int) -> Path:
        """Where the mask of a patch lies or would lie."""
        return self.folder / f"{patch // _PER_FOLDER:06d}" / f"{patch}.png"

    def write(self, patch: int, mask: Pixels, digest: str = "") -> None:
        """Store uint8 [h, w] train ids, whole or not at all, with the SHA-256 of the frame that they are of.

        Raises:
            RunError: that is not possible.
        """
        text = PngInfo()
        if digest:
            text.add_text(_FRAME, digest)
        path = self.path(patch)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.writing(path) as aside:
                Image.fromarray(mask).save(aside, pnginfo=text)
        except OSError as error:
            raise _unwritten(path, error) from error

    def digest(self, patch: int) -> str:
        """SHA-256 of the frame's file that a patch was labelled on, "" where it is not known.

        Raises:
            DataError: the mask is missing or damaged; it is named.
        """
        path = self.path(patch)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                return str(image.info.get(_FRAME, ""))
        except FileNotFoundError:
            raise _missing(path, patch) from None
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path}: damaged ({error}); restore the file from a copy") from error

    def read(self, patch: int, size: tuple[int, int]) -> Pixels:
        """uint8 [h, w] train ids of a patch of `size`. Raises DataError, which names the file."""
        path = self.path(patch)
        try:
            return read_mask(path, size)
        except DataError as error:
            if not path.exists():
                raise _missing(path, patch) from None
            raise DataError(f"{path}: {error}; restore the file from a copy") from error


def classes_text(classes: tuple[str, ...]) -> str:
    """The `classes.txt` that `meal_gpu.data.folder` reads. Raises DataError for a name it cannot hold."""
    for name in classes:
        if not name.strip() or name != name.strip() or "#" in name or len(name.splitlines()) > 1:
            raise DataError(
                f"class {name!r} cannot stand in a classes.txt; take `#` and line breaks out of it"
            )
    return "".join(f"{train_id}: {name}\n" for train_id, name in enumerate(classes))


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def _missing(path: Path, patch: int) -> DataError:
    return DataError(
        f"{path}: no such mask, but the ledger says that patch {patch} is labelled; restore the file from a "
        "copy"
    )


def _unwritten(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path}: the labels could not be written: {error.strerror or error}; free some room or set the "
        "folder's permissions, then repeat the command"
    )
