"""CamVid in SegNet's layout: train.txt and val.txt name one image and one label file per line.

The list files of the public archive hold another machine's paths (`/SegNet/CamVid/train/X.png ...;`),
so only the last two parts of each path count. Images may be PNG or JPEG whatever the list says.
"""

from pathlib import Path

from meal_gpu.data.dataset import UNKNOWN, VOID, Color, Dataset, Split
from meal_gpu.errors import DataError
from meal_gpu.images.headers import Size

SIZE = (360, 480)

_TABLE: tuple[tuple[str, Color], ...] = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
CLASSES = tuple(name for name, _ in _TABLE)
COLORS = tuple(color for _, color in _TABLE)
LOOKUP = (*range(len(CLASSES)), VOID, *[UNKNOWN] * (255 - len(CLASSES)))

_SUFFIXES = (".png", ".jpg", ".jpeg")


def open_tree(root: Path, *, size: Size | None = None) -> Dataset:
    """Open CamVid.

    Args:
        root: the folder that holds `train.txt` and `val.txt`.
        size: working (height, width); default 360×480.

    Raises:
        DataError: a list file or one it names is missing, a line cannot be read, or an image is named twice.
    """
    seen: dict[Path, str] = {}
    return Dataset(
        name="camvid",
        root=root,
        classes=CLASSES,
        colors=COLORS,
        lookup=LOOKUP,
        size=size or SIZE,
        train=_split(root, "train", seen),
        val=_split(root, "val", seen),
    )


def _split(root: Path, split: str, seen: dict[Path, str]) -> Split:
    """`seen` says which line names an image, and grows."""
    source = root / f"{split}.txt"
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{source}: no such list file; --root names the folder with train.txt and val.txt, "
            f"and `meal-gpu data download camvid` fetches one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read as UTF-8 text: {error}") from error
    folders: dict[Path, frozenset[str]] = {}
    images, labels = [], []
    for number, line in enumerate(lines, start=1):
        fields = line.strip().rstrip(";").split()
        if not fields:
            continue
        if len(fields) != 2:
            raise DataError(
                f"{source}:{number}: {len(fields)} paths, expected 2 (an image and its label file): {line!r}"
            )
        where = f"{source}:{number}"
        image, label = (_find(root, field, where, folders) for field in fields)
        for path in (image, label):
            if seen.setdefault(path, where) != where:
                raise DataError(f"{where}: {path} is in {seen[path]} too; remove one of the lines")
        images.append(image)
        labels.append(label)
    if not images:
        raise DataError(f"{source}: the list file names no images")
    return Split(root, tuple(images), tuple(labels))


def _find(root: Path, field: str, where: str, folders: dict[Path, frozenset[str]]) -> Path:
    parts = field.replace("\\", "/").strip("/").split("/")[-2:]
    path = root.joinpath(*parts)
    if ".." in parts:
        raise DataError(f"{where}: {field} leads out of {root}")
    if path.parent not in folders:
        there = path.parent.is_dir()
        folders[path.parent] = frozenset(p.name for p in path.parent.iterdir()) if there else frozenset()
    for name in (path.name, *(path.stem + suffix for suffix in _SUFFIXES)):
        if name in folders[path.parent]:
            return path.with_name(name)
    raise DataError(f"{path}: file missing, but {where} lists it (no PNG or JPEG of that name either)")
