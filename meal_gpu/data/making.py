"""The folder of a dataset is made by one process at a time, and is whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meal_gpu import lock


@contextmanager
def alone(target: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder that is about to be made, by a lock beside it that is gone afterwards.

    Raises:
        RunError: another process holds it, which is named, unless we `wait` for it; or it cannot be written.
    """
    target = target.resolve()
    file = target.parent / f".partial-{target.name}.lock"
    lock.make_parent(target)
    while True:
        with lock.held(file, target, wait=wait) as handle:
            if not _lies_at(file, handle):  # who held it before us has removed it: others may hold a new one
                continue
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return


def _lies_at(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
