"""The bytes behind the files of a listing: local paths, fsspec URLs, and images within tar shards."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from meal_gpu.errors import DataError, UnavailableError

_MEMBER = re.compile(r"(.+?)#([0-9]+)\+([0-9]+)/.+", re.DOTALL)


class Span(NamedTuple):
    """Bytes `start` to `end` (exclusive) of what lies behind a URL; None, None: all of them."""

    url: str
    start: int | None
    end: int | None


def is_url(file: str) -> bool:
    return "://" in file


def member(url: str, offset: int, size: int, name: str) -> str:
    """How an image within a tar is written in a listing; it ends like the image's own name."""
    return f"{url}#{offset}+{size}/{name}"


def span(file: str) -> Span:
    """Where the bytes of a URL, or of a `member`, are."""
    found = _MEMBER.fullmatch(file)
    if not found:
        return Span(file, None, None)
    url, offset, size = found.groups()
    return Span(url, int(offset), int(offset) + int(size))


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL or a path, and the path in it.

    Raises:
        UnavailableError: an unknown protocol, or its package is missing.
    """
    import fsspec

    if "::" in url:
        raise UnavailableError(f"{url}: chained URLs are not read; unpack the archive")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        protocol = url.partition("://")[0]
        fix = ": pip install 'meal-gpu[s3]'" if protocol in ("s3", "s3a") else ""
        raise UnavailableError(f"{url}: {protocol}:// cannot be opened ({error}){fix}") from error
    return system, str(path)


def contents(files: Sequence[str]) -> list[bytes]:
    """The bytes of URLs and members, all of one file system at once.

    Raises:
        DataError: one is not there, cannot be fetched or is shorter than its listing says; it is named.
        UnavailableError: as `filesystem`.
    """
    found = []
    for content in fetch(files):
        if isinstance(content, DataError):
            raise content
        found.append(content)
    return found


def fetch(files: Sequence[str]) -> list[bytes | DataError]:
    """`contents`, with the error of each in place of what it has not."""
    spans = [span(file) for file in files]
    groups: dict[int, tuple[Any, list[int], list[str]]] = {}
    for place, (url, _, _) in enumerate(spans):
        system, path = filesystem(url)
        _, places, paths = groups.setdefault(id(system), (system, [], []))
        places.append(place)
        paths.append(path)
    found: dict[int, bytes | DataError] = {}
    for system, places, paths in groups.values():
        try:
            # Not `cat`, which takes brackets in a name for a pattern
            read = system.cat_ranges(
                paths, [spans[i].start for i in places], [spans[i].end for i in places], on_error="return"
            )
        except Exception as error:  # each file system has errors of its own
            read = [error] * len(places)
        found |= {i: _whole(files[i], spans[i], content) for i, content in zip(places, read, strict=True)}
    return [found[place] for place in range(len(files))]


def _whole(file: str, where: Span, content: Any) -> bytes | DataError:
    if isinstance(content, FileNotFoundError):
        return DataError(f"{file}: no such file; was it removed?")
    if isinstance(content, BaseException):
        return DataError(f"{file}: cannot be fetched ({type(content).__name__}: {content})")
    if where.start is not None and where.end is not None and len(content) != where.end - where.start:
        return DataError(
            f"{file}: {len(content)} bytes found, {where.end - where.start} expected; the shard is no longer "
            "what it was when it was listed: ask again"
        )
    return bytes(content)
