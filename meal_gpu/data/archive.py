"""Unpack one folder of a zip file that a stranger may have made, and name its content as git does."""

import errno
import hashlib
import lzma
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from meal_gpu.errors import DataError

_DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
    ValueError,  # a name that is no UTF-8
)  # fmt: skip


def extract(archive: Path, folder: str, target: Path, *, limit: int) -> int:
    """Unpack what lies under `*/folder/` (or `folder/`) of a zip file into `target`.

    Args:
        archive: the zip file.
        folder: the folder to take; the rest is left.
        target: an empty folder.
        limit: the most bytes that may come out.

    Returns:
        The number of files.

    Raises:
        DataError: the file is no zip file or damaged, a member is encrypted, leads out of `target`, is a link
            or no plain file, more than `limit` bytes come out, or the folder is not in it.
    """
    count, room = 0, limit
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member in zipped.infolist():
                inside = _inside(archive, member, folder)
                if inside is None:
                    continue
                if member.flag_bits & 1:
                    raise DataError(f"{archive}: member {member.filename!r} is encrypted; unpack it by hand")
                path = target / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(member) as source, path.open("xb") as file:
                    while block := source.read(1 << 20):
                        room -= len(block)
                        if room < 0:
                            raise DataError(f"{archive}: more than {limit} bytes come out of it; not trusted")
                        file.write(block)
                count += 1
    except FileExistsError as error:
        raise DataError(f"{archive}: holds {error.filename} twice; not trusted") from error
    except DataError:
        raise
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk
            raise
        raise DataError(f"{archive}: damaged or no zip file ({error}); download it again") from error
    if not count:
        raise DataError(f"{archive}: holds no folder {folder}/")
    return count


def _inside(archive: Path, member: zipfile.ZipInfo, folder: str) -> PurePosixPath | None:
    """The member's path below `folder`, or None when it is not to be taken."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.filename or "\0" in member.filename:
        raise DataError(f"{archive}: member {member.filename!r} leads out of the folder; not trusted")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"{archive}: member {member.filename!r} is a link or a device; not trusted")
    if member.is_dir() or folder not in path.parts[:2]:
        return None
    below = path.parts[path.parts.index(folder) + 1 :]
    return PurePosixPath(*below) if below else None


def git_tree(folder: Path) -> str:
    """The id git gives to a folder of plain files, 40 hexadecimal digits: a checksum of all its content."""
    entries: list[tuple[bytes, bytes]] = []
    for path in folder.iterdir():
        if path.is_dir():
            # Git sorts a folder as though its name ended in a slash.
            entry = b"40000 " + path.name.encode() + b"\0" + bytes.fromhex(git_tree(path))
            entries.append((path.name.encode() + b"/", entry))
        else:
            blob = _git_id(b"blob", path.read_bytes())
            entries.append((path.name.encode(), b"100644 " + path.name.encode() + b"\0" + blob))
    return _git_id(b"tree", b"".join(entry for _, entry in sorted(entries))).hex()


def _git_id(kind: bytes, content: bytes) -> bytes:
    header = kind + b" " + str(len(content)).encode() + b"\0"
    return hashlib.sha1(header + content, usedforsecurity=False).digest()
