"""WebDataset shards: where in a tar file its images are, so that each can be read by itself.

https://github.com/webdataset/webdataset: the files of a sample have one name up to the basename's first dot.
"""

import hashlib
import json
import os
import tarfile
from contextlib import suppress
from typing import Any, NamedTuple

from meal_gpu import atomic
from meal_gpu.cache import cache_root
from meal_gpu.errors import DataError
from meal_gpu.images.headers import SUFFIXES


class Member(NamedTuple):
    """An image within a tar: its name there, and its bytes from the tar's first."""

    name: str
    offset: int
    size: int


class Members(NamedTuple):
    """The images of a tar in its order, and the names of files that end like images, of samples without."""

    images: list[Member]
    left_out: list[str]


def members(system: Any, path: str, url: str, stamp: str) -> Members:
    """The images of one tar. An image's extension, from the first dot on, is that of an image: `0001.jpg` is
    one, and `0001.mask.png` is not.

    The whole tar is read through once and its index kept in the cache for as long as `stamp` is the same;
    only headers are read where the file system can seek.

    Args:
        system, path: fsspec's.
        url: what errors call it.
        stamp: changes when the file does; "": nothing is kept.

    Raises:
        DataError: it is no plain tar, or cut off.
    """
    key = hashlib.sha256(f"{url}\0{stamp}".encode("utf-8", "surrogateescape")).hexdigest()
    kept = cache_root() / "tars" / f"{key}.json"
    if stamp:
        with suppress(OSError, ValueError, TypeError, KeyError):  # not there, or not ours: read anew
            index = json.loads(kept.read_text(encoding="utf-8"))
            return Members([Member(*row) for row in index["images"]], [*index["left_out"]])
    found = _read(system, path, url)
    if stamp:
        with suppress(OSError):  # without it, the next listing takes longer
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic.writing(kept, by=f"{os.getpid()}-") as aside:
                aside.write_text(json.dumps(found._asdict()), encoding="utf-8")
    return found


def _read(system: Any, path: str, url: str) -> Members:
    try:
        with system.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            found = []
            for item in tar:
                if item.isdir() or not item.name.lower().endswith(SUFFIXES):
                    continue
                if not item.isfile() or item.issparse():
                    raise DataError(
                        f"{url}: {item.name} is a link or has holes; write the shard with whole files: "
                        "tar --dereference --hard-dereference"
                    )
                found.append(Member(item.name.removeprefix("./"), item.offset_data, item.size))
            stream.seek(tar.offset)
            ended = stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
            more = stream.read(tarfile.RECORDSIZE).strip(b"\0")
    except tarfile.ReadError as error:
        raise DataError(
            f"{url}: not a plain tar file, or a damaged one ({error}); copy it again, and do not compress "
            "shards: images are read one by one"
        ) from error
    if not ended:
        raise DataError(f"{url}: the tar is cut off after {tar.offset} bytes; copy it again")
    if more:
        raise DataError(
            f"{url}: another tar follows behind the end of the first; join them with tar --concatenate"
        )
    images = [item for item in found if _split(item.name)[1] in SUFFIXES]
    keys = {_split(item.name)[0] for item in images}
    others = [item.name for item in found if _split(item.name)[0] not in keys]
    return Members(images, [name for name in others if not _split(name)[0].endswith("/")])  # no hidden ones


def _split(name: str) -> tuple[str, str]:
    """The key of a member's sample, with its folders, and its extension from the first dot on."""
    folder, _, base = name.rpartition("/")
    key, dot, extension = base.partition(".")
    return f"{folder}/{key}", (dot + extension).lower()
