"""What an annotator gives back, in memory: a folder, a .zip or one file. Nothing is unpacked to the disk."""

import contextlib
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from meal_gpu.errors import DataError

MEMBERS = 100_000
"""The most files that are read."""

_BLOCK = 1 << 20
_IN_UTF8 = 0x800
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, OSError,
    ValueError,
)  # fmt: skip


def files(path: Path, *, limit: int) -> dict[str, bytes]:
    """Posix names, relative to the folder or archive, and what is in them; in order of their names.

    What macOS adds (`__MACOSX`, `._x`) is left out. An archive in an archive is a file like others.

    Args:
        path: a folder, a .zip or any single file.
        limit: the most bytes of all files together, counted as they come out.

    Raises:
        DataError: it is missing or damaged; more than `limit` bytes or `MEMBERS` files; a name or link
            leads out of it; a name comes twice; a file is encrypted, a link of an archive or a device.
    """
    found: dict[str, bytes] = {}
    room = limit
    try:
        for name, content in _opened(path):
            blocks = []
            while block := content.read(min(_BLOCK, room + 1)):
                room -= len(block)
                if room < 0:
                    raise DataError(f"{path}: more than {limit} bytes come out of it; not trusted")
                blocks.append(block)
            if name in found:
                raise DataError(f"{path}: holds {name!r} twice; not trusted")
            found[name] = b"".join(blocks)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or path}: no such file or folder") from None
    except _DAMAGED as error:
        if isinstance(error, DataError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: truncated, damaged or not readable ({reason}); export it again") from error
    return {
        name: found[name]
        for name in sorted(found)
        if "__MACOSX" not in PurePosixPath(name).parts and not PurePosixPath(name).name.startswith("._")
    }


def _opened(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Every file by its name, open while it is the current one."""
    if path.is_dir():
        yield from _of_folder(path)
    elif path.suffix.lower() == ".zip" or _begins_as_zip(path):
        yield from _of_zip(path)
    else:
        with path.open("rb") as file:
            yield path.name, file


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4"


def _of_folder(root: Path) -> Iterator[tuple[str, BinaryIO]]:
    real = root.resolve()
    count = 0
    for folder, folders, names in os.walk(root, onerror=_raise):
        for name in [*folders, *names]:
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(real):
                raise DataError(f"{path}: a link that leads out of the folder; not trusted")
        for name in names:
            path = Path(folder, name)
            kind = path.stat().st_mode
            if not stat.S_ISREG(kind):  # before opening: a pipe would wait for ever
                raise DataError(f"{path}: no plain file; not trusted")
            count = _counted(root, count)
            with path.open("rb") as file:
                yield path.relative_to(root).as_posix(), file


def _raise(error: OSError) -> None:
    raise DataError(f"{error.filename}: {error.strerror}; make the folder readable") from error


def _of_zip(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    with zipfile.ZipFile(path) as zipped:
        _counted(path, len(zipped.infolist()) - 1)
        for member in zipped.infolist():
            name = _inside(path, member)
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                raise DataError(f"{path}: member {name!r} is encrypted; export it without a password")
            # Others may give gigabytes for one block
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{path}: member {name!r} is neither stored nor deflated; zip it as usual")
            with zipped.open(member) as file:
                yield name, file  # type: ignore[misc]


def _counted(path: Path, count: int) -> int:
    if count >= MEMBERS:
        raise DataError(f"{path}: more than {MEMBERS} files; not trusted")
    return count + 1


def _inside(archive: Path, member: zipfile.ZipInfo) -> str:
    """The member's name with slashes only. Raises DataError for one that is not below the archive's root."""
    name = member.orig_filename  # `filename` ends before a NUL
    if not member.flag_bits & _IN_UTF8:
        with contextlib.suppress(UnicodeError):  # which most programs write, not all of which say so
            name = name.encode("cp437").decode("utf-8")
    path = PurePosixPath(name.replace("\\", "/"))
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\0" in name
        or re.match("[A-Za-z]:", name)
        or not path.parts
    ):
        raise DataError(f"{archive}: member {name!r} leads out of the folder; not trusted")
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"{archive}: member {name!r} is a link or a device; not trusted")
    return path.as_posix()
