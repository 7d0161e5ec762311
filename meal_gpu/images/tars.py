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


def members(system: Any, path: str, url: str, stamp: str) -> list[Member]:
    """The images of one tar, in its order. An image's extension, from the first dot on, is that of an image:
    `0001.jpg` is one, and `0001.mask.png` is not.

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
        with suppress(OSError, ValueError, TypeError):  # not there, or not ours: read anew
            return [Member(*row) for row in json.loads(kept.read_text(encoding="utf-8"))]
    found = _read(system, path, url)
    if stamp:
        with suppress(OSError):  # without it, the next listing takes longer
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic.writing(kept, by=f"{os.getpid()}-") as aside:
                aside.write_text(json.dumps(found), encoding="utf-8")
    return found


def _read(system: Any, path: str, url: str) -> list[Member]:
    try:
        with system.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            found = [
                Member(item.name.removeprefix("./"), item.offset_data, item.size)
                for item in tar
                if item.isfile() and not item.issparse() and _is_image(item.name)
            ]
            stream.seek(tar.offset)
            ended = stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except tarfile.ReadError as error:
        raise DataError(
            f"{url}: not a plain tar file, or a damaged one ({error}); copy it again, and do not compress "
            "shards: images are read one by one"
        ) from error
    if not ended:
        raise DataError(f"{url}: the tar is cut off after {tar.offset} bytes; copy it again")
    return found


def _is_image(name: str) -> bool:
    _, _, extension = name.rpartition("/")[2].partition(".")
    return f".{extension.lower()}" in SUFFIXES
