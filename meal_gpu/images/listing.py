"""What a user calls a pool of images, listed: their names, where they are, and what changes when they do."""

import posixpath
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from meal_gpu.cache import expanded
from meal_gpu.errors import DataError, UnavailableError
from meal_gpu.images.content import filesystem, is_url, member
from meal_gpu.images.headers import SUFFIXES
from meal_gpu.images.local import State, files_below, hidden, is_ours, require_different
from meal_gpu.images.tars import members

_COLUMNS = ("path", "file", "image")
_LOCAL = ("file://", "local://")
_HTTP = ("http://", "https://")
_QUESTIONS = 16  # to a server at once
# What the file systems of fsspec say of a file's state; all that are there count
_STAMPS = (
    "ETag", "etag", "md5", "md5Hash", "generation", "version", "mtime", "LastModified", "last_modified",
    "modified", "created", "size",
)  # fmt: skip


class Listing(NamedTuple):
    """Images in order: `names` are unique, also without their suffixes; `files` are local paths or URLs.

    A stamp changes when its file does: "size-mtime_ns" of a local file, what the server says of another.
    """

    names: tuple[str, ...]
    files: tuple[str, ...]
    stamps: tuple[str, ...]

    @property
    def by_name(self) -> dict[str, str]:
        """The file of every name."""
        return dict(zip(self.names, self.files, strict=True))

    def take(self, rows: Iterable[int]) -> "Listing":
        """Those images, in the order of `rows`."""
        chosen = list(rows)
        return Listing(*(tuple(column[row] for row in chosen) for column in self))


def list_images(given: str) -> Listing:
    """List a folder, a .parquet manifest, WebDataset's .tar shards, or what lies below an fsspec URL.

    Folders are listed in all depths, sorted by their files' relative paths, which are the names; what is
    `hidden` is left out, there and in shards, and so are folders that are `is_ours`. A manifest has the files
    in a column `path`, `file` or `image` (relative to its folder, absolute, or URLs) and may have a column
    `name`; without it the names are the files as given. Shards are one .tar or a pattern, such as
    `s3://bucket/train/*.tar`; names are SHARD/MEMBER. Of images no content is read, and of shards none but
    the headers between them, once.

    Raises:
        DataError: no images, a file that is not there, a faulty manifest, names that collide, or two local
            paths that links make the same file.
        UnavailableError: a URL's protocol is unknown, its package missing, or its server does not answer.
    """
    given = _plain(given)
    if given.lower().endswith(".parquet") and (is_url(given) or not expanded(given).is_dir()):
        return _checked(_manifest(given), given)
    if given.lower().endswith(".tar") and (is_url(given) or not expanded(given).is_dir()):
        return _checked(_tars(given), given)
    return _checked(_prefix(given) if is_url(given) else _folder(expanded(given)), given)


def _plain(file: str) -> str:
    """A local path where the URL is that of one."""
    return next((file.removeprefix(prefix) for prefix in _LOCAL if file.startswith(prefix)), file)


def _folder(root: Path) -> Listing:
    if not root.is_dir():
        raise DataError(
            f"{root}: neither a folder of images, a .parquet manifest nor a URL; name the folder above, or "
            "list the files in a .parquet with a column `path` (patterns are for .tar shards)"
        )
    paths = {path.relative_to(root).as_posix(): path for path in files_below(root) if _is_image(path.name)}
    names = sorted(paths)
    files = tuple(str(paths[name]) for name in names)
    states = [State.of(file) for file in files]
    require_different(files, states)
    return Listing(tuple(names), files, tuple(state.stamp if state else "" for state in states))


def _prefix(url: str) -> Listing:
    system, root = filesystem(url)
    try:
        found: dict[str, Mapping[str, Any]] = system.find(root, detail=True)
        if not found:
            system.info(root)  # some find nothing where nobody answers
    except FileNotFoundError:
        found = {}
    except Exception as error:  # each file system has errors of its own
        raise _no_answer(url, error) from error
    base = root.rstrip("/") + "/"
    # The URL of a single image finds itself
    below = {
        path.removeprefix(base) if path.startswith(base) else posixpath.basename(path): path for path in found
    }
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for name in (name for name in below if not _is_image(name)):
        folders[posixpath.dirname(name)].add(posixpath.basename(name))
    ours = tuple(f"{folder}/" for folder, names in folders.items() if folder and is_ours(folder, names))
    paths = {
        name: path
        for name, path in below.items()
        if _is_image(name) and not name.startswith(ours) and not (path.startswith(base) and hidden(name))
    }
    names = sorted(paths)
    if url.startswith(_HTTP):  # whose listings say nothing of their files
        try:
            found = _asked(system, list(paths.values()))
        except Exception as error:  # each file system has errors of its own
            raise _no_answer(url, error) from error
    return Listing(
        tuple(names),
        tuple(str(system.unstrip_protocol(paths[name])) for name in names),
        tuple(_remote_stamp(found.get(paths[name], {})) for name in names),
    )


def _tars(given: str) -> Listing:
    system, path = filesystem(given)
    try:
        # A name that is there is no pattern, whatever brackets it has
        if (info := _info(system, path)) is not None:
            plain, shards = path, {path: info}
        else:
            plain, shards = re.split(r"[*?[]", path)[0], system.glob(path, detail=True)
        shards = {shard: info for shard, info in shards.items() if info["type"] == "file"}
        if not is_url(given):
            require_different(sorted(shards), [State.of(shard) for shard in sorted(shards)])
        with ThreadPoolExecutor(_QUESTIONS) as pool:
            indices = list(pool.map(lambda shard: _index(system, shard, shards[shard]), sorted(shards)))
    except DataError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise _no_answer(given, error) from error
    if not shards:
        raise DataError(f"{given}: no such tar file, nor files of this pattern")
    rows, left_out = (list(chain.from_iterable(part)) for part in zip(*indices, strict=True))
    if left_out:
        told = (
            f"{given}: {len(left_out)} files that end like images are left out, first {left_out[0]}: in a "
            "WebDataset shard the name up to its first dot is the sample's key, and all behind it the "
            "extension; write the shard with names that have one dot"
        )
        if not rows:
            raise DataError(told)
        warnings.warn(told, stacklevel=3)
    above = len(posixpath.dirname(plain).rstrip("/")) + 1
    return Listing(
        tuple(name[above:] for name, _, _ in rows),
        tuple(file for _, file, _ in rows),
        tuple(stamp for _, _, stamp in rows),
    )


def _index(system: Any, shard: str, info: Mapping[str, Any]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Name, file and stamp of every image of a shard, and what is left out of it."""
    url = str(system.unstrip_protocol(shard))
    state = State.of(shard) if url.startswith(_LOCAL) else None
    stamp = state.stamp if state else _remote_stamp(info)
    found = members(system, shard, url, stamp)
    rows = [
        (f"{posixpath.splitext(shard)[0]}/{name}", member(url, offset, size, name), stamp)
        for name, offset, size in found.images
        if not hidden(name)
    ]
    return rows, [f"{shard}/{name}" for name in found.left_out]


def _is_image(path: str) -> bool:
    return path.lower().endswith(SUFFIXES)


def _manifest(given: str) -> Listing:
    files, names = _columns(given)
    folder = posixpath.dirname(given) if is_url(given) else str(expanded(given).parent)
    whole = tuple(
        file if is_url(file) or file.startswith("/") else posixpath.join(folder, file) for file in files
    )
    whole = tuple(_plain(file) for file in whole)
    local = {file: State.of(file) for file in whole if not is_url(file)}
    stamps = {file: state.stamp if state else None for file, state in local.items()}
    stamps |= _remote_stamps(file for file in whole if is_url(file))
    missing = [file for file in whole if stamps[file] is None]
    if missing:
        raise DataError(f"{given}: {len(missing)} of {len(whole)} files are not there, first {missing[0]}")
    require_unique(
        [file if is_url(file) else posixpath.normpath(file) for file in whole], f"{given}: the file"
    )
    require_different(list(local), list(local.values()))
    return Listing(names, whole, tuple(stamps[file] or "" for file in whole))


def _columns(given: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files and the names of a manifest, as given."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _opened(given) as opened, pq.ParquetFile(opened) as manifest:
            schema = manifest.schema_arrow
            column = next((name for name in _COLUMNS if name in schema.names), None)
            if column is None:
                raise DataError(
                    f"{given}: no column {', '.join(_COLUMNS)}; its columns are {', '.join(schema.names)}"
                )
            wanted = list(dict.fromkeys([column, "name"] if "name" in schema.names else [column]))
            table = manifest.read(columns=wanted)
    except FileNotFoundError:
        raise DataError(f"{given}: no such manifest") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{given}: not a readable .parquet file: {error}") from error
    except (DataError, UnavailableError):
        raise
    except Exception as error:  # each file system has errors of its own
        raise _no_answer(given, error) from error
    read = []
    for name in wanted:
        values = table[name].to_pylist()
        for row, value in enumerate(values):
            if not isinstance(value, str) or not value:
                found = "null" if value is None else repr(value)[:60]
                raise DataError(f"{given}: column {name!r} has {found} in row {row}; expected text")
        read.append(tuple(values))
    return read[0], read[-1]


def _opened(given: str) -> Any:
    if not is_url(given):
        return expanded(given).open("rb")
    system, path = filesystem(given)
    return system.open(path, "rb")


def _remote_stamps(urls: Iterable[str]) -> dict[str, str | None]:
    """One listing for each folder; over HTTP, which has none, one question for each file."""
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for url in urls:
        folders[posixpath.dirname(url)].append(url)
    stamps: dict[str, str | None] = {}
    for folder, inside in folders.items():
        system, path = filesystem(folder)
        paths = {url: str(system._strip_protocol(url)) for url in inside}
        try:
            if folder.startswith(_HTTP):
                details = _asked(system, list(paths.values()))
            else:
                details = {str(entry["name"]): entry for entry in system.ls(path, detail=True)}
        except FileNotFoundError:
            details = {}
        except Exception as error:  # each file system has errors of its own
            raise _no_answer(folder, error) from error
        stamps |= {
            url: _remote_stamp(details[path]) if path in details else None for url, path in paths.items()
        }
    return stamps


def _asked(system: Any, paths: list[str]) -> dict[str, Mapping[str, Any]]:
    with ThreadPoolExecutor(_QUESTIONS) as pool:
        answers = pool.map(lambda path: _info(system, path), paths)
        return {path: found for path, found in zip(paths, answers, strict=True) if found}


def _info(system: Any, path: str) -> Mapping[str, Any] | None:
    """What a file system says of a path; None where nothing is there."""
    try:
        found: Mapping[str, Any] = system.info(path)
    except FileNotFoundError:
        return None
    return found


def _remote_stamp(info: Mapping[str, Any]) -> str:
    return "-".join(str(info[key]) for key in _STAMPS if info.get(key) is not None)


def _no_answer(url: str, error: Exception) -> UnavailableError:
    return UnavailableError(f"{url}: cannot be listed ({type(error).__name__}: {error})")


def _checked(listing: Listing, given: str) -> Listing:
    if not listing.names:
        raise DataError(f"{given}: no images ({', '.join(SUFFIXES)}) there")
    for name in listing.names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{given}: the name {name!r} is not valid UTF-8; rename the file") from None
    require_unique(listing.names, f"{given}: the name")
    stems: dict[str, str] = {}
    for name in listing.names:
        stem, suffix = posixpath.splitext(name)
        other = stems.setdefault(stem if suffix.lower() in SUFFIXES else name, name)
        if other != name:
            raise DataError(
                f"{given}: {other!r} and {name!r} differ only by their suffix, so that what is written for "
                "them would collide; rename one"
            )
    return listing


def require_unique(values: Sequence[str], what: str) -> None:
    """Raises DataError naming the rows of a value that is there twice."""
    rows: dict[str, int] = {}
    for row, value in enumerate(values):
        if rows.setdefault(value, row) != row:
            raise DataError(f"{what} {value!r} is there twice, in rows {rows[value]} and {row}")
