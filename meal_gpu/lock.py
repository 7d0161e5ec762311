"""One process at a time: a lock that the kernel takes back when its process ends, however it ends."""

import ctypes
import fcntl
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from meal_gpu.errors import RunError

FILE = ".lock"  # in a folder
_END_WITH = "MEAL_GPU_END_WITH"  # the process id of a parent
_PR_SET_PDEATHSIG = 1


@contextmanager
def held(file: Path, what: Path, *, wait: bool = False) -> Iterator[int]:
    """Hold the lock `file` of `what`; yields the descriptor that does, also in a process that inherits it.

    The file says who holds it, and is empty when nobody does.

    Raises:
        RunError: another process holds it: which, where and since when, unless we `wait` for it; or it cannot
            be written.
    """
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(
            f"{file}: the lock cannot be written: {error.strerror}; make its folder writable, or take another"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{what} is in use by {_holder(file)}: wait for it, or end it") from None
        except OSError as error:
            raise RunError(f"{file}: this file system has no locks: {error.strerror}") from error
        with suppress(OSError):  # a full disk: the lock holds without a name, too
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(_self()).encode(), 0)
        try:
            yield handle
        finally:
            with suppress(OSError):
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def of_ledger(ledger: Path) -> AbstractContextManager[int]:
    """Hold a ledger, by `pool.lock` beside `pool.parquet`, whose folder is made. Raises RunError."""
    make_parent(ledger)
    return held(ledger.with_suffix(".lock"), ledger)


def of_folder(folder: Path) -> AbstractContextManager[int]:
    """Hold a folder, which is made, by `.lock` in it. Raises RunError."""
    make_parent(folder / FILE)
    return held(folder / FILE, folder)


@contextmanager
def alone(target: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder that is about to be made, whole or not at all, by a lock beside it that then goes.

    Raises:
        RunError: another process holds it, which is named, unless we `wait` for it; or it cannot be written.
    """
    target = target.resolve()
    file = target.parent / f".partial-{target.name}.lock"
    make_parent(target)
    while True:
        with held(file, target, wait=wait) as handle:
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


def make_parent(path: Path) -> None:
    """Make the folder that `path` and its lock lie in. Raises RunError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path.parent}: cannot be made: {error.strerror}") from error


def _self() -> dict[str, object]:
    return {
        "pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join(["meal-gpu", *sys.argv[1:]]),
    }  # fmt: skip


def _holder(file: Path) -> str:
    try:
        who = json.loads(file.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} since {who['since']} ({who['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def parent() -> dict[str, str]:
    """What to put into the environment of a child that calls `end_with_parent`."""
    return {_END_WITH: str(os.getpid())}


def end_with_parent() -> None:
    """Get SIGINT when the process that set `parent` for this one ends: it is not left behind (Linux)."""
    pid = os.environ.pop(_END_WITH, None)
    if pid is None:
        return
    # Below nohup, or behind "&" of a script, it is ignored, and that is inherited
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != int(pid):  # it ended before
        os.kill(os.getpid(), signal.SIGINT)
