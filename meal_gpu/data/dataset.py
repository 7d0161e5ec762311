"""What a dataset is: classes, the ids its files use, and two splits of image and label files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from meal_gpu.errors import DataError
from meal_gpu.images.headers import Size

VOID = 255
"""The label of pixels that count nowhere, everywhere inside the package, whatever the files use."""

UNKNOWN = -1
"""The `lookup` entry of an id that the dataset does not have."""

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Split:
    """The images of one split in a fixed order, and their labels.

    Attributes:
        root: the folder that `names` are relative to.
        images: absolute image paths. In a packed split they are names only: the pixels lie in the pack.
        labels: absolute label paths in the same order; None for an unlabelled split.
        packed: beginning of the pack's file names (`ROOT/train`), or None when images are files.
    """

    root: Path
    images: tuple[Path, ...]
    labels: tuple[Path, ...] | None
    packed: Path | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.images):
            raise DataError(f"{self.root}: {len(self.images)} images but {len(self.labels)} label files")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Image paths relative to `root`, with forward slashes."""
        return tuple(path.relative_to(self.root).as_posix() for path in self.images)


@dataclass(frozen=True)
class Dataset:
    """Images, labels and what the labels mean.

    Attributes:
        name: "cityscapes", "camvid", "folder" or "synthetic".
        root: the folder it was opened from.
        classes: class names by train id.
        colors: RGB by train id, for reports.
        lookup: 256 entries: id in the label files -> train id, `VOID`, or `UNKNOWN` (an error).
        size: working (height, width); images and labels of another size are resized to it.
        train: the pool.
        val: the validation images.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    lookup: tuple[int, ...]
    size: Size
    train: Split
    val: Split

    def __post_init__(self) -> None:
        if len(self.lookup) != 256:
            raise DataError(f"a lookup has 256 entries, one per label value; {len(self.lookup)} were given")
        require_classes(len(self.classes), str(self.root))
        if len(self.colors) != len(self.classes):
            raise DataError(f"{len(self.classes)} classes but {len(self.colors)} colours")
        if min(self.size) < 1:
            raise DataError(f"a working size needs at least 1×1 pixels; {self.size} was given")

    @property
    def label_ids(self) -> tuple[int, ...]:
        """The ids that may occur in label files, ascending."""
        return tuple(i for i, train_id in enumerate(self.lookup) if train_id != UNKNOWN)


def require_classes(count: int, where: str) -> None:
    """Raises DataError where train ids would reach `VOID`."""
    if count > VOID:
        raise DataError(f"{where}: {count} classes, at most {VOID}: train id {VOID} is void; leave some out")


@dataclass(frozen=True)
class DatasetInfo:
    """One row of `meal-gpu data list`.

    Attributes:
        summary: one line on what it is.
        size: default working (height, width); None: the size of the first image.
        env: environment variable that names its root, or None.
        url: where it comes from, or None.
        licence: one line on its terms.
    """

    name: str
    summary: str
    size: Size | None
    env: str | None
    url: str | None
    licence: str
