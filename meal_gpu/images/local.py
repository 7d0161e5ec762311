"""Image files of this machine: those below a folder, what changes when one does, and which are the same."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from meal_gpu.errors import DataError

_MARK = ".meal-gpu"


def mark(folder: Path) -> None:
    """Have listings leave out a folder that this package wrote, see `is_ours`."""
    (folder / _MARK).write_text("Made by meal-gpu: what lies here is not listed as frames.\n", "utf-8")


def is_ours(folder: str, names: Collection[str]) -> bool:
    """Whether a folder that holds these names has crops, masks or copies of frames that this package wrote:
    a query, labels, or what was exported.
    """
    return (
        _MARK in names
        or ("query.json" in names and "query.parquet" in names)
        or (folder.endswith(".labels") and "labels.json" in names)
    )


def hidden(path: str) -> bool:
    """Whether a relative path has a name that begins with a dot, or `@eaDir`, where a NAS keeps previews."""
    return any(name.startswith(".") or name == "@eaDir" for name in path.split("/"))


def files_below(root: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Every file below a folder, linked folders included, save links that lead back to a folder above.

    Not what is `hidden` below it, nor what is in folders below it that are `is_ours`.

    Raises:
        DataError: a folder that cannot be read, whose files would be missed.
    """
    real = os.path.realpath(root)
    if real in above:
        return
    try:
        entries = list(os.scandir(root))
    except OSError as error:
        raise DataError(f"{root}: {error.strerror}; make the folder readable or move it away") from error
    if above and is_ours(real, {entry.name for entry in entries}):
        return
    for entry in entries:
        if hidden(entry.name):
            continue
        if _is_folder(entry):
            yield from files_below(Path(entry.path), (*above, real))
        else:
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


class State(NamedTuple):
    """Of a file: `stamp` changes when it does; `number` is no other file's, or 0 where that is not known."""

    stamp: str
    number: int

    @classmethod
    def of(cls, file: str) -> "State | None":
        """None where there is no such file."""
        try:
            status = os.stat(file)  # noqa: PTH116 - a Path for each of a million files takes longer than this
        except OSError:
            return None
        number = (status.st_dev << 64 | status.st_ino) if status.st_ino else 0
        return cls(f"{status.st_size}-{status.st_mtime_ns}", number)


def require_different(files: Sequence[str], states: Sequence[State | None]) -> None:
    """Raises DataError naming two paths that links make the same file."""
    numbers = [state.number for state in states if state and state.number]
    if len(set(numbers)) == len(numbers):
        return
    first: dict[State, str] = {}  # with the stamp, for some network file systems shorten their numbers
    twice = [
        (file, first[state])
        for file, state in zip(files, states, strict=True)
        if state and state.number and first.setdefault(state, file) != file
    ]
    if twice:
        more = f", as {len(twice) - 1} more are" if len(twice) > 1 else ""
        raise DataError(f"{twice[0][0]} is {twice[0][1]} (a link{more}): remove one")
