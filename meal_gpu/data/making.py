"""The folder of a dataset is made by one process at a time, and is whole or not there."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meal_gpu import atomic, lock
from meal_gpu.errors import RunError


@contextmanager
def alone(target: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder that is about to be made, by a lock beside it that is gone afterwards.

    Raises:
        RunError: another process holds it, which is named, unless we `wait` for it; or it cannot be written.
    """
    target = target.resolve()
    file = target.parent / f".partial-{target.name}.lock"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{target.parent}: cannot be made: {error.strerror}") from error
    while True:
        with _waited(file) if wait else lock.held(file, target) as handle:
            if not _lies_at(file, handle):  # who held it before us has removed it: others may hold a new one
                continue
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return


@contextmanager
def filled(target: Path) -> Iterator[Path]:
    """As `atomic.folder`, for who is `alone`. Raises RunError where it cannot be written."""
    try:
        with atomic.folder(target) as aside:
            yield aside
    except OSError as error:
        why = error.strerror or error
        raise RunError(f"{target}: could not be written: {why}; free some room") from error


@contextmanager
def _waited(file: Path) -> Iterator[int]:
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"{file}: the lock cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _lies_at(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
