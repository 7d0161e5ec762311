"""A file or folder is whole or not there: written aside, synced, then renamed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meal_gpu.errors import RunError


@contextmanager
def writing(path: Path, by: str = "") -> Iterator[Path]:
    """Yields a path to fill that then takes the place of `path`; on an error `path` is as it was.

    `by` tells apart processes that may write the same file at once. A link stays one: its file is written.
    """
    path = path.resolve()
    aside = path.parent / f".partial-{by}{path.name}"
    try:
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file or none of it; text as UTF-8."""
    with writing(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Yields a folder to fill that then becomes `path`, which is absent or empty; on an error it is gone.

    One process at a time: its lock is held by the caller.
    """
    path = path.resolve()
    aside = path.parent / f".partial-{path.name}"
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process
    try:
        aside.mkdir(parents=True)
        yield aside
        for part in aside.rglob("*"):
            sync(part)
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextmanager
def filled(path: Path) -> Iterator[Path]:
    """As `folder`. Raises RunError where it cannot be written."""
    try:
        with folder(path) as aside:
            yield aside
    except OSError as error:
        raise RunError(f"{path}: could not be written: {reason(error)}") from error


def reason(error: OSError) -> str:
    """Why something could not be written, and what to do where there is no room."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{error.strerror or error}{'; free some room' * full}"


def require_new(path: Path) -> None:
    """Raises RunError unless `folder` may make `path`."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} is not empty; name another --out")
    if path.resolve() == Path.cwd() or path.is_mount():
        raise RunError(
            f"{path} is the working directory or a mount point, which nothing can take the place of; name a "
            "folder below it as --out"
        )


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
