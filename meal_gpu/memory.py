"""Memory of the GPU and of the host: one allocator for all libraries, and how much is free."""

from collections.abc import Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from meal_gpu.errors import UnavailableError

MEMINFO = Path("/proc/meminfo")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def share_allocator(device: torch.device | None = None) -> None:
    """Let torch's caching allocator serve CuPy, and RMM (cuDF, cuML) on `device` (default: the current one).

    Memory that one library has freed is then there for the others. torch serves, rather than RMM, because
    its own allocator is the one that CUDA graphs work with. Each of CuPy and RMM may be absent; an RMM
    resource that the program has set itself stays. Calling it again changes nothing.
    """
    index = None if device is None else device.index
    _share(torch.cuda.current_device() if index is None else index)


@cache
def _share(index: int) -> None:
    if find_spec("cupy") is not None:
        import cupy

        cupy.cuda.set_allocator(cupy.cuda.PythonFunctionAllocator(_cupy_allocate, _cupy_free).malloc)
    if find_spec("rmm") is not None:
        import rmm

        # Importing cuDF or cuML hands CuPy over to RMM: it then comes here by that way
        with torch.cuda.device(index):
            if type(rmm.mr.get_current_device_resource()) is rmm.mr.CudaMemoryResource:
                allocate = partial(_rmm_allocate, index)
                rmm.mr.set_current_device_resource(rmm.mr.CallbackMemoryResource(allocate, _rmm_free))


def _cupy_allocate(size: int, device: int) -> int:
    import cupy

    # CuPy's stream is the one that will use the memory; the kernels' launcher makes it torch's
    return _allocate(size, device, cupy.cuda.get_current_stream().ptr)


def _cupy_free(pointer: int, device: int) -> None:
    _free(pointer)


def _rmm_allocate(device: int, size: int, stream: Any) -> int:
    return _allocate(size, device, stream.__cuda_stream__()[1])


def _rmm_free(pointer: int, size: int, stream: Any) -> None:
    _free(pointer)


def _allocate(size: int, device: int, stream: int) -> int:
    pointer: int = torch.cuda.caching_allocator_alloc(size, device, stream)
    return pointer


def _free(pointer: int) -> None:
    torch.cuda.caching_allocator_delete(pointer)  # type: ignore[no-untyped-call]


def free_bytes(device: torch.device) -> int:
    """How many bytes can still be allocated on `device`, roughly.

    On a GPU, what the driver has and what torch's allocator keeps unused. On the CPU, what the system can
    give without swapping, or less where a cgroup (a container) is allowed less. A cgroup's page cache that
    was not used lately counts as free.

    Raises:
        UnavailableError: the system does not say (it is not Linux).
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        kibibytes = _figure(MEMINFO, "MemAvailable:")
    except (OSError, KeyError) as error:
        raise UnavailableError(f"{MEMINFO} does not say how much memory is free: {error!r}") from error
    return min([1024 * kibibytes, *_cgroup_rooms()])


def _figure(file: Path, key: str) -> int:
    for line in file.read_text().splitlines():
        name, figure, *_ = line.split()
        if name == key:
            return int(figure)
    raise KeyError(key)


def _cgroup_rooms() -> Iterator[int]:
    """What each cgroup around this process still allows; both versions of cgroups are looked at."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, used, cache_key = CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root = CGROUPS / "memory"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache_key = "total_inactive_file"
        else:
            continue
        own = root / path.lstrip("/")
        # In a container the path may be the host's: what is mounted at the root is then the container's own
        for group in (own, *own.parents):
            try:
                allowed, taken = (int((group / file).read_text()) for file in (limit, used))
                yield max(0, allowed - taken + _figure(group / "memory.stat", cache_key))
            except (OSError, ValueError, KeyError):
                pass  # no such folder, or the limit is "max"
            if group == root:
                break
