"""A file or folder is whole or not there: written aside, synced, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(path: Path, by: str = "") -> Iterator[Path]:
    """Yields a path to fill that then takes the place of `path`; on an error `path` is as it was.

    `by` tells apart processes that may write the same file at once.
    """
    aside = path.parent / f".partial-{by}{path.name}"
    try:
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Yields a folder to fill that then becomes `path`, which is absent or empty; on an error it is gone."""
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


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
