"""Compiles, caches and calls the CPU kernels of `kernels/*.cpp`: a shared library through ctypes.

A library lies in the cache folder under a name that says what it was made of: source, flags, the compiler and
what `-march=native` means to it on this machine. It is written aside and renamed, so that processes that
start together do not disturb each other.
"""

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from operator import index
from pathlib import Path

import torch

from meal_gpu.cache import cache_root
from meal_gpu.errors import UnavailableError
from meal_gpu.ops import compile

# NaN must stay NaN: nothing of -ffast-math beyond these
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno",
         "-fno-trapping-math", "-fPIC", "-shared")  # fmt: skip
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_SECONDS = 120
_FIX = "Repair it (apt install g++), or set CXX to another"
_ROOM = "Make room, or set MEAL_GPU_CACHE to another folder"

Argument = torch.Tensor | int | float | None


@cache
def why_not() -> str | None:
    """None where the kernels compile and load, else the reason and the fix in one line. Tried once."""
    try:
        library()
    except UnavailableError as error:
        return str(error)
    return None


@cache
def library() -> ctypes.CDLL:
    """The compiled kernels, from the cache where they are in it.

    Raises:
        UnavailableError: no compiler, one that fails, or a cache folder that cannot be used.
    """
    sources = sorted(compile.folder().glob("*.cpp"))
    command = compiler()
    key = _key(command, [*sources, *sorted(compile.folder().glob("*.hpp"))])
    try:
        target = cache_root() / "kernels" / f"cpu-{key}.so"
        fresh = not target.is_file()
    except OSError as error:  # a folder that may not be looked into
        raise UnavailableError(f"there is no cache folder: {error}. Set MEAL_GPU_CACHE to one") from error
    if fresh:
        _build(command, sources, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        if not fresh:
            # A file that was damaged since: once more
            _build(command, sources, target)
        try:
            return ctypes.CDLL(str(target))
        except OSError:
            raise UnavailableError(
                f"{target} was compiled but cannot be loaded ({error}): "
                "set MEAL_GPU_CACHE to a folder that programs may run from"
            ) from error


def compiler() -> list[str]:
    """The command of a C++ compiler: $CXX, else the first of COMPILERS there is.

    Raises:
        UnavailableError: there is none.
    """
    try:
        own = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise UnavailableError(f"CXX={os.environ['CXX']} is no command: {error}") from error
    for candidate in [own] if own else [[name] for name in COMPILERS]:
        if found := shutil.which(candidate[0]):
            return [found, *candidate[1:]]
    wanted = f"CXX={shlex.join(own)} is not there" if own else f"no C++ compiler ({', '.join(COMPILERS)})"
    raise UnavailableError(f"{wanted}: apt install g++, or set CXX to the path of one")


def compiler_version() -> str | None:
    """Such as "12.2.0", "?" where the compiler does not say; None where there is none."""
    try:
        command = compiler()
    except UnavailableError:
        return None
    try:
        found = re.search(r"\d+(\.\d+)+", _run([*command, "--version"]).stdout)
    except UnavailableError:
        found = None
    return found[0] if found else "?"


def _key(command: list[str], sources: list[Path]) -> str:
    """Of all that decides what the library is; asks the compiler what it is and what `native` is here."""
    asked = _run([*command, *FLAGS, "-###", "-E", "-x", "c++", os.devnull])
    said = "\0".join([*command, *FLAGS, asked.stderr]).encode()
    return hashlib.sha256(b"\0".join([said, *(source.read_bytes() for source in sources)])).hexdigest()[:20]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"the C++ compiler {command[0]} does not run: {error}. {_FIX}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        told = next((line for line in lines if "error" in line.lower()), lines[0])
        fix = _ROOM if "No space left" in done.stderr else _FIX
        raise UnavailableError(f"the C++ compiler {command[0]} fails: {told.strip()[:200]}. {fix}")
    return done


def _build(command: list[str], sources: list[Path], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix=".so", dir=target.parent)
    except OSError as error:
        raise _unwritable(target.parent, error) from error
    os.close(handle)
    aside = Path(name)
    try:
        _run([*command, *FLAGS, "-o", name, *map(str, sources)])
        aside.chmod(0o755)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(target)
    except OSError as error:
        raise _unwritable(target.parent, error) from error
    finally:
        aside.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> UnavailableError:
    return UnavailableError(f"{folder} cannot be written: {error.strerror or error}. {_ROOM}")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="meal-gpu")


# A forked process has the pool without its threads
os.register_at_fork(after_in_child=_pool.cache_clear)


def call(entry: str, calls: Sequence[tuple[Argument, ...]]) -> None:
    """Call `entry` with each of `calls` at the same time, and wait. Without the interpreter's lock.

    Tensors on the CPU are passed as pointers to their first element, None as a null pointer, an int as
    int64_t and a float as float.

    Raises:
        MemoryError: the kernel got no memory to work in.
    """
    function = getattr(library(), entry)

    # Holds the tensors for as long as the kernel runs, also where Ctrl-C ends the waiting
    def one(arguments: tuple[Argument, ...]) -> int:
        return int(function(*map(_convert, arguments)))

    others = [_pool(len(calls) - 1).submit(one, arguments) for arguments in calls[1:]]
    codes = [one(calls[0]), *(other.result() for other in others)]
    if any(codes):
        raise MemoryError(f"the CPU kernel {entry} got no memory to work in")


def _convert(argument: Argument) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if argument is None:
        return ctypes.c_void_p()
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int64(index(argument))
