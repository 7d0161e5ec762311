"""The bytes behind the files of a listing: local paths, fsspec URLs, and images within tar shards."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from meal_gpu.errors import DataError, UnavailableError

_GAP = 1 << 16  # bytes read in vain rather than asked around
_MOST = 1 << 25  # bytes of one request
_AT_ONCE = 32  # files that are held at once
_MEMBER = re.compile(r"(.+?)#([0-9]+)\+([0-9]+)/.+", re.DOTALL)


class Span(NamedTuple):
    """Bytes `start` to `end` (exclusive) of what lies behind a URL; None, None: all of them."""

    url: str
    start: int | None
    end: int | None


def is_url(file: str) -> bool:
    return "://" in file


def anywhere(file: str) -> str:
    """A URL, or a path that holds in every working directory."""
    return file if is_url(file) else str(Path(file).absolute())


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


def aside(folder: Path, place: int, file: str) -> Path:
    """Where a URL's bytes lie for a while: names are of one length, so that none begins another."""
    return folder / f"{place:06d}{PurePosixPath(file).suffix.lower()}"


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
    groups: dict[int, tuple[Any, list[_Request]]] = {}
    for request in _requests(spans):
        system, path = filesystem(request.url)
        groups.setdefault(id(system), (system, []))[1].append(request._replace(path=path))
    found: dict[int, bytes | DataError] = {}
    for system, requests in groups.values():
        try:
            # Not `cat`, which takes brackets in a name for a pattern
            read = system.cat_ranges(
                [r.path for r in requests], [r.start for r in requests], [r.end for r in requests],
                on_error="return",
            )  # fmt: skip
        except Exception as error:  # each file system has errors of its own
            read = [error] * len(requests)
        for request, content in zip(requests, read, strict=True):
            found |= {place: _part(files[place], spans[place], request, content) for place in request.places}
    return [found[place] for place in range(len(files))]


def fetch_into(files: Sequence[str], paths: Sequence[Path]) -> None:
    """Write the bytes of URLs and members to local paths, some at a time. Raises as `contents`."""
    for start in range(0, len(files), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        for path, content in zip(paths[part], contents(files[part]), strict=True):
            path.write_bytes(content)


def digests(files: Sequence[str]) -> list[str]:
    """SHA-256 of the bytes of local files, URLs and members, in hex.

    Raises:
        DataError: one cannot be read; it is named.
        UnavailableError: as `filesystem`.
    """
    found: dict[str, str] = {}
    once = list(dict.fromkeys(files))
    remote = [file for file in once if is_url(file)]
    for start in range(0, len(remote), _AT_ONCE):
        part = remote[start : start + _AT_ONCE]
        found |= {f: hashlib.sha256(c).hexdigest() for f, c in zip(part, contents(part), strict=True)}
    for file in once:
        if not is_url(file):
            found[file] = _local_digest(file)
    return [found[file] for file in files]


def _local_digest(file: str) -> str:
    try:
        with Path(file).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(file, error) from error


def local(path: Path) -> bytes:
    """What is in a local file. Raises DataError, which names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(str(path), error) from error


def _unreadable(file: str, error: OSError) -> DataError:
    return DataError(f"{file}: cannot be read ({error.strerror}); bring it back")


class _Request(NamedTuple):
    """Bytes to be read in one go, in which the files of `places` lie."""

    url: str
    start: int | None
    end: int | None
    places: list[int]
    path: str = ""


def _requests(spans: Sequence[Span]) -> list[_Request]:
    """One for each file; members of a shard that lie near each other share theirs."""
    made: list[_Request] = []
    for place in sorted(range(len(spans)), key=lambda place: (spans[place].url, spans[place].start or 0)):
        url, start, end = spans[place]
        last = made[-1] if made else None
        if (
            last and last.url == url and start is not None and end is not None and last.end is not None
            and last.start is not None and start - last.end <= _GAP and end - last.start <= _MOST
        ):  # fmt: skip
            made[-1] = last._replace(end=max(last.end, end), places=[*last.places, place])
        else:
            made.append(_Request(url, start, end, [place]))
    return made


def _part(file: str, where: Span, request: _Request, content: Any) -> bytes | DataError:
    if isinstance(content, FileNotFoundError):
        return DataError(f"{file}: no such file; was it removed?")
    if isinstance(content, BaseException):
        return DataError(f"{file}: cannot be fetched ({type(content).__name__}: {content})")
    if where.start is None or where.end is None or request.start is None:
        return bytes(content)
    part = bytes(content[where.start - request.start : where.end - request.start])
    if len(part) != where.end - where.start:
        return DataError(
            f"{file}: {len(part)} bytes found, {where.end - where.start} expected; the shard is no longer "
            "what it was when it was listed: ask again"
        )
    return part
