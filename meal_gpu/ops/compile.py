"""Finds, compiles and launches the kernels of `kernels/*.cu`, through CuPy, on torch's current stream.

CuPy keeps what NVRTC compiled in ~/.cupy/kernel_cache (CUPY_CACHE_DIR), by source, options and architecture;
`common.cuh` is put before a kernel's source, since that cache does not look into included files.
"""

from functools import cache
from operator import index
from pathlib import Path
from typing import Any

import torch

from meal_gpu.errors import InputError, UnavailableError

OPTIONS = ("-std=c++17",)
# More dynamic shared memory than this has to be asked for
DEFAULT_SHARED_BYTES = 48 << 10


class Int64(int):
    """An argument of type `long long`; a plain int is an `int` to a kernel, a float a `float`."""


Argument = torch.Tensor | int | float | None


def folder() -> Path:
    """Where the kernels lie: inside an installed package, or beside it in a checkout.

    Raises:
        UnavailableError: in neither.
    """
    package = Path(__file__).parents[1]
    for candidate in (package / "kernels", package.parent / "kernels"):
        if (candidate / "common.cuh").is_file():
            return candidate
    raise UnavailableError(f"the kernels are missing: no kernels/common.cuh in {package} or beside it")


@cache
def source(file: str) -> str:
    """What is compiled for kernels/`file`."""
    path = folder()
    return (path / "common.cuh").read_text(encoding="utf-8") + (path / file).read_text(encoding="utf-8")


@cache
def _kernel(file: str, entry: str, defines: tuple[tuple[str, int], ...], device: int) -> Any:
    import cupy

    options = (*OPTIONS, *(f"-D{name}={value}" for name, value in defines))
    return cupy.RawModule(code=source(file), options=options).get_function(entry)


def launch(
    file: str,
    entry: str,
    arguments: tuple[Argument, ...],
    *,
    defines: dict[str, int],
    grid: int,
    block: int,
    shared: int = 0,
) -> None:
    """Start `entry` of kernels/`file` on `grid` blocks of `block` threads, without waiting for it.

    Tensors, all on one GPU, are passed as pointers to their first element; None is a null pointer. `shared`:
    bytes of dynamic shared memory per block.

    Raises:
        InputError: the tensors are not on a GPU.
    """
    if grid == 0:
        return
    device = next(argument.device for argument in arguments if isinstance(argument, torch.Tensor))
    if device.type != "cuda":
        raise InputError(
            f"the CUDA ops need arrays on a GPU, these are on {device}: move them, or use ops='auto'"
        )
    import cupy
    import numpy as np

    values: list[Any] = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            values.append(np.uintp(argument.data_ptr()))
        elif argument is None:
            values.append(np.uintp(0))
        elif isinstance(argument, Int64):
            values.append(np.int64(argument))
        elif isinstance(argument, float):
            values.append(np.float32(argument))
        else:
            values.append(np.int32(index(argument)))
    stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(device))
    with cupy.cuda.Device(device.index), stream:
        kernel = _kernel(file, entry, tuple(sorted(defines.items())), device.index)
        if shared > DEFAULT_SHARED_BYTES:
            kernel.max_dynamic_shared_size_bytes = shared
        kernel((grid,), (block,), tuple(values), shared_mem=shared)
