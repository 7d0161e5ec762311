"""The query folder: which patches a person is asked to label, with the model's guess of each.

query.json          what was asked of which pool; the classes
query.parquet       one row per patch, in order of choice: `Item`
predictions/ID.png  predicted train ids of the patch, at the frame's own resolution
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from meal_gpu.annotate.pictures import Pixels, read_frame, read_mask, require_same
from meal_gpu.data import palette
from meal_gpu.data.dataset import VOID, Color
from meal_gpu.errors import DataError, RunError
from meal_gpu.images.content import anywhere, digests
from meal_gpu.images.headers import SUFFIXES
from meal_gpu.ledger import Ledger

PATCH_LABEL = "patch"
"""The label of the rectangle that shows an annotator which part of a crop is asked for; never a class."""

_FORMAT = "meal_gpu.query/1"
_BOX = re.compile(r"__l[0-9]+_t[0-9]+_r[0-9]+_b[0-9]+$")


class Box(NamedTuple):
    """Pixels of a frame; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    def within(self, other: "Box") -> tuple[slice, slice]:
        """(rows, columns) of this box in an array that holds `other`."""
        top, left = self.top - other.top, self.left - other.left
        return slice(top, top + self.height), slice(left, left + self.width)

    def grown(self, margin: int, size: tuple[int, int]) -> "Box":
        """With `margin` pixels more on every side, inside a frame of (height, width)."""
        return Box(
            max(0, self.left - margin),
            max(0, self.top - margin),
            min(size[1], self.right + margin),
            min(size[0], self.bottom + margin),
        )


@dataclass(frozen=True)
class Item:
    """One patch that a person is asked to label.

    Attributes:
        patch: its id in the ledger.
        image: its frame, as the ledger calls it.
        file: where the frame lies: an absolute path or URL.
        box: the patch, in pixels of the frame as decoded.
        score: what the strategy ranks by (entropy in nats, if it says nothing else), NaN where there is none.
        clicks, seconds: what labelling it is estimated to take, without opening its frame.
        digest: SHA-256 of the frame's file, in hex, when it was asked for; "" where nobody took it.
    """

    patch: int
    image: str
    file: str
    box: Box
    score: float
    clicks: float
    seconds: float
    digest: str = ""

    @property
    def name(self) -> str:
        """Of the crop, without suffix: frame and box, such as `seq1/0042__l120_t90_r240_b180`."""
        return f"{stem(self.image)}__l{self.box.left}_t{self.box.top}_r{self.box.right}_b{self.box.bottom}"


@dataclass(frozen=True)
class Asked:
    """A query folder, read or about to be written.

    Attributes:
        path: the folder.
        step: that the ledger will hold for these patches once they are labelled.
        strategy, seed: how they were chosen.
        classes: names by train id; train ids are what every mask of this package holds, 255 is void.
        size: (height, width) of the frames, in which boxes are given.
        grid: rows and columns of patches.
        items: in order of choice; the first k are the query of k patches where the strategy is nested.
        notes: what else the query says of itself; plain JSON.
        pool: the stems of all frames of the ledger, where it is at hand.
    """

    path: Path
    step: int
    strategy: str
    seed: int
    classes: tuple[str, ...]
    size: tuple[int, int]
    grid: tuple[int, int]
    items: tuple[Item, ...]
    notes: dict[str, Any]
    pool: frozenset[str] = frozenset()

    def within(self, ledger: Ledger) -> "Asked":
        """With the frames of the ledger as `pool`."""
        return replace(self, pool=frozenset(composed(stem(name)) for name in ledger.names))

    def knows(self, name: str) -> bool:
        """Whether `name` is that of a crop of the query, or of another frame of the pool."""
        return name in self.by_name or composed(_BOX.sub("", name)) in self.pool

    @cached_property
    def by_name(self) -> dict[str, Item]:
        """The items by the name of their crop."""
        return {item.name: item for item in self.items}

    @cached_property
    def _composed(self) -> dict[str, str]:
        return {composed(name): name for name in self.by_name}

    def spelled(self, name: str) -> str:
        """`name` as here, where a file system or tool has written its accents as letters of their own."""
        return name if name in self.by_name else self._composed.get(composed(name), name)

    @cached_property
    def by_last(self) -> dict[str, Item | None]:
        """The items by the last part of that name, composed; None where several have it."""
        found: dict[str, Item | None] = {}
        for item in self.items:
            last = composed(item.name.rsplit("/", 1)[-1])
            found[last] = None if last in found else item
        return found

    def require_of(self, ledger: Ledger, path: Path) -> None:
        """Raises DataError unless every patch of the query is that of the ledger, which lies at `path`."""
        pool = self.notes.get("pool")
        if pool and ledger.origin and ledger.origin.digest not in ("", pool):
            raise DataError(
                f"{self.path}: a query of another pool than {path}, though names may be the same: the first "
                f"frame was another file (SHA-256 {str(pool)[:12]}…, here {ledger.origin.digest[:12]}…); "
                "pass the --ledger that it was made with"
            )
        grid = ledger.grid
        for item in self.items:
            image = item.patch // grid.patches_per_image
            if self.grid != (grid.rows, grid.columns) or not (
                0 <= image < len(ledger.names) and ledger.names[image] == item.image
            ):
                raise DataError(
                    f"{self.path}: patch {item.patch} of {item.image} is not in {path}; another pool's query"
                )

    def at(self, files: Mapping[str, str]) -> "Asked":
        """With frames that were moved since: `files` has path or URL of each by its name in the ledger.

        Raises:
            DataError: one is not there.
        """
        if gone := [item.image for item in self.items if item.image not in files]:
            raise DataError(f"{gone[0]}: a frame of {self.path} that is not among the images; bring it back")
        return replace(
            self, items=tuple(replace(item, file=anywhere(files[item.image])) for item in self.items)
        )

    def require_unchanged(self) -> None:
        """Raises DataError where a frame is missing, or no longer the file that was queried."""
        known = {item.file: item.digest for item in self.items if item.digest}
        for file, found in zip(known, digests(list(known)), strict=True):
            require_same(file, found, known[file])

    @property
    def context(self) -> int:
        """Pixels around each patch that annotators see."""
        return int(self.notes.get("context", 0))

    @property
    def colors(self) -> tuple[Color, ...]:
        """RGB by train id."""
        return palette.generate(len(self.classes))

    def crop(self, item: Item) -> Box:
        """What an annotator sees: the patch with `context` pixels around it, inside the frame."""
        return item.box.grown(self.context, self.size)

    def prediction(self, item: Item) -> Pixels:
        """[height, width] uint8 train ids that the model predicts for the patch; 255 where it must not.

        Raises:
            DataError: the file is missing, damaged or of another size.
        """
        path = self.path / "predictions" / f"{item.patch}.png"
        try:
            return read_mask(path, (item.box.height, item.box.width))
        except DataError as error:
            raise DataError(f"{path}: {error}; restore the query folder") from error

    def prelabel(self, item: Item) -> Pixels:
        """uint8 [h, w] of the crop: the prediction, void around it. Raises as `prediction`."""
        crop = self.crop(item)
        labels = np.full((crop.height, crop.width), VOID, np.uint8)
        labels[item.box.within(crop)] = self.prediction(item)
        return labels

    def crops(self) -> Iterator[tuple[Item, Box, Pixels]]:
        """Every item with its crop and the crop's RGB pixels [h, w, 3]; each frame is opened once.

        Raises:
            DataError: a frame is missing, damaged or no longer the file that was queried.
        """
        by_file: dict[str, list[Item]] = {}
        for item in self.items:
            by_file.setdefault(item.file, []).append(item)
        for file, items in by_file.items():
            frame = read_frame(file, self.size, items[0].digest)
            for item in items:
                box = self.crop(item)
                yield item, box, frame[box.top : box.bottom, box.left : box.right]

    def write_into(self, folder: Path, predictions: Sequence[Pixels]) -> None:
        """Fill an empty folder; `predictions` are those of the items, in their order.

        Raises:
            DataError: two crops would have one name.
        """
        if len(self.by_name) < len(self.items):
            names = [item.name for item in self.items]
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise DataError(f"two frames would have crops called {twice}; give them names of their own")
        (folder / "predictions").mkdir()
        for item, mask in zip(self.items, predictions, strict=True):
            Image.fromarray(mask).save(folder / "predictions" / f"{item.patch}.png")
        rows = [
            {k: v for k, v in asdict(item).items() if k != "box"} | item.box._asdict() for item in self.items
        ]
        pd.DataFrame(rows, columns=_COLUMNS).to_parquet(folder / "query.parquet", index=False)
        meta = {
            "format": _FORMAT, "step": self.step, "strategy": self.strategy, "seed": self.seed,
            "classes": self.classes, "size": self.size, "grid": self.grid, "notes": self.notes,
        }  # fmt: skip
        (folder / "query.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path) -> "Asked":
        """Read a query folder. Raises RunError where it is none."""
        try:
            meta = json.loads((path / "query.json").read_text(encoding="utf-8"))
            if meta["format"] != _FORMAT:
                raise ValueError(f"format {meta['format']!r}, this version reads {_FORMAT!r}")
            table = pd.read_parquet(path / "query.parquet")
            items = tuple(_item(row) for row in table.to_dict("records"))
            return cls(
                path, int(meta["step"]), str(meta["strategy"]), int(meta["seed"]), tuple(meta["classes"]),
                _pair(meta["size"]), _pair(meta["grid"]), items, dict(meta["notes"]),
            )  # fmt: skip
        except FileNotFoundError as error:
            raise RunError(
                f"{path}: not a query folder of meal-gpu: no {Path(error.filename).name}"
            ) from None
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path}: not a query folder of meal-gpu: {error!r}") from error


def stem(image: str) -> str:
    """A frame's name without suffix; below a folder, as a manifest may call frames by paths or URLs."""
    plain = PurePosixPath(image.split("://")[-1])
    if plain.suffix.lower() in SUFFIXES:
        plain = plain.with_suffix("")
    return "/".join(part for part in plain.parts if part not in ("/", ".."))


def composed(name: str) -> str:
    """A name with every accent in its letter (NFC)."""
    return unicodedata.normalize("NFC", name)


_COLUMNS = [f.name for f in fields(Item) if f.name != "box"] + list(Box._fields)


def _item(row: dict[Any, Any]) -> Item:
    box = Box(*(int(row[side]) for side in Box._fields))
    return Item(
        int(row["patch"]), str(row["image"]), str(row["file"]), box, float(row["score"]),
        float(row["clicks"]), float(row["seconds"]), str(row.get("digest", "")),
    )  # fmt: skip


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


@dataclass(frozen=True)
class Answer:
    """What a tool gave back for one crop: labels of the patch, or why there are none.

    Attributes:
        name: of the crop, as the tool calls it, without folders that the tool put in front or a suffix.
        labels: uint8 train ids and 255 (void), of the crop or of the patch alone; None with a `problem`.
        problem: what is wrong with it, one line without the name.
    """

    name: str
    labels: Pixels | None
    problem: str | None = None


__all__ = ["PATCH_LABEL", "VOID", "Answer", "Asked", "Box", "Item"]
