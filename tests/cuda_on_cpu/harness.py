"""kernels/*.cu executed on the CPU: compiled by g++, run thread by thread, every access checked.

`launch` has the signature of `meal_gpu.ops.compile.launch`, so that `meal_gpu.ops.cuda` runs unchanged on CPU
tensors; machine.cpp says what is checked.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from meal_gpu.ops import compile as compiler

HERE = Path(__file__).parent
BUILD = tempfile.TemporaryDirectory(prefix="meal-gpu-kernels-")
# Without -fno-tree-sra, g++ takes vectors apart: no load of 16 bytes would be seen, aligned or not
FLAGS = ("-std=c++20", "-O1", "-fno-tree-sra", "-mfma", "-mf16c", "-fPIC", "-w")
LETTERS = {int: "i", float: "f", torch.Tensor: "p", type(None): "p", compiler.Int64: "l"}

# Name and bound on the threads of each entry point
ENTRY = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\((\d+)[^)]*\)\s+)?(\w+)\(')

# Tests may change the source before it is compiled (mutations), and the order in which threads run
edit: Callable[[str], str] | None = None
reversed_order = False
# Bytes read from and written to each tensor by the last launch of an entry point
traffic: dict[str, list[tuple[int, int]]] = {}


class KernelError(AssertionError):
    """A kernel did what no GPU forgives."""


@cache
def _machine() -> Path:
    target = Path(BUILD.name) / "machine.o"
    _gpp("-c", *FLAGS, str(HERE / "machine.cpp"), "-o", str(target))
    return target


def _gpp(*arguments: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to execute the kernels on the CPU: apt install g++")
    done = subprocess.run(["g++", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"g++ {' '.join(arguments)}:\n{done.stderr[:4000]}")


@cache
def _library(source: str, defines: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    entries = [entry for _, entry in ENTRY.findall(source)]
    calls = "".join(f"ENTRY({entry})\n" for entry in entries)
    stem = Path(BUILD.name) / f"{abs(hash((source, defines))):x}"
    code = stem.with_suffix(".cpp")
    code.write_text(f'#include "cuda_on_cpu.hpp"\n{source}\n{calls}')
    macros = [f"-D{name}={value}" for name, value in defines]
    # Linked without the sanitizer, whose hooks are the machine's
    _gpp("-c", *FLAGS, "-fsanitize=thread", f"-I{HERE}", *macros, str(code), "-o", f"{stem}.o")
    _gpp("-shared", f"{stem}.o", str(_machine()), "-o", f"{stem}.so")
    library = ctypes.CDLL(f"{stem}.so")
    library.launch.restype = ctypes.c_char_p
    for entry in entries:
        getattr(library, f"signature_{entry}").restype = ctypes.c_char_p
    return library


def launch(
    file: str,
    entry: str,
    arguments: tuple[compiler.Argument, ...],
    *,
    defines: dict[str, int],
    grid: int,
    block: int,
    shared: int = 0,
) -> None:
    source = compiler.source(file)
    if edit:
        source = edit(source)
    launch_source(source, entry, arguments, defines=defines, grid=grid, block=block, shared=shared)


def launch_source(
    source: str,
    entry: str,
    arguments: tuple[compiler.Argument, ...],
    *,
    defines: dict[str, int] | None = None,
    grid: int = 1,
    block: int = 32,
    shared: int = 0,
) -> None:
    """`launch` of CUDA source that is no file of kernels/."""
    library = _library(source, tuple(sorted((defines or {}).items())))
    bound = {name: int(bound or 1024) for bound, name in ENTRY.findall(source)}[entry]
    if block > bound:
        raise KernelError(f"{entry} is compiled for {bound} threads, was launched with {block}")
    expected = getattr(library, f"signature_{entry}")().decode()
    given = "".join(LETTERS.get(type(argument), "?") for argument in arguments)
    if given != expected:
        raise KernelError(f"{entry} takes {expected}, was given {given}")
    values: list[ctypes._SimpleCData] = []  # type: ignore[type-arg]
    buffers: list[tuple[int, int]] = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            if argument.device.type != "cpu":
                raise KernelError(f"{entry} was given a tensor on {argument.device}")
            reach = sum((n - 1) * step for n, step in zip(argument.shape, argument.stride(), strict=True))
            buffers.append(
                (argument.data_ptr(), (reach + 1) * argument.element_size() if argument.numel() else 0)
            )
            values.append(ctypes.c_void_p(argument.data_ptr()))
        elif argument is None:
            values.append(ctypes.c_void_p(None))
        elif isinstance(argument, compiler.Int64):
            values.append(ctypes.c_longlong(argument))
        elif isinstance(argument, int):
            values.append(ctypes.c_int(argument))
        else:
            values.append(ctypes.c_float(argument))
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    begins = (ctypes.c_void_p * len(buffers))(*(begin for begin, _ in buffers))
    sizes = (ctypes.c_size_t * len(buffers))(*(size for _, size in buffers))
    moved = (ctypes.c_uint64 * (2 * len(buffers)))()
    fault = library.launch(
        ctypes.cast(getattr(library, f"call_{entry}"), ctypes.c_void_p),
        pointers,
        (ctypes.c_uint * 3)(grid, 1, 1),
        (ctypes.c_uint * 3)(block, 1, 1),
        ctypes.c_size_t(shared),
        len(buffers),
        begins,
        sizes,
        int(reversed_order),
        moved,
    )
    if fault is not None:
        raise KernelError(f"{entry}: {fault.decode()}")
    traffic[entry] = list(zip(moved[::2], moved[1::2], strict=True))
