"""Memory of the GPU and of the host: one allocator for all libraries, what is free, what if nothing is."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch

from meal_gpu.errors import MealGpuError, UnavailableError

MEMINFO = Path("/proc/meminfo")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
# Of torch's own errors and of the libraries under it; cuDNN tries its ways on, and forgets why each failed
_EXHAUSTED = (
    "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "can't allocate memory",
    "unable to find an engine to execute", "CUDA allocation failed", "Can't allocate ",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # of a handle: nearly always
)  # fmt: skip
_Result = TypeVar("_Result")


def share_allocator(device: torch.device | None = None) -> None:
    """Let torch's caching allocator serve CuPy, and RMM (cuDF, cuML) on `device` (default: the current one).

    Memory that one library has freed is then there for the others. torch serves, rather than RMM, because
    its own allocator is the one that CUDA graphs work with. Each of CuPy and RMM may be absent; an RMM
    resource that the program has set itself stays. Calling it again changes nothing.
    """
    _share(number(torch.device("cuda") if device is None else device))


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
    try:
        return _allocate(size, device, stream.__cuda_stream__()[1])
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error  # the one error that RMM knows the meaning of


def _rmm_free(pointer: int, size: int, stream: Any) -> None:
    _free(pointer)


def _allocate(size: int, device: int, stream: int) -> int:
    pointer: int = torch.cuda.caching_allocator_alloc(size, device, stream)
    return pointer


def _free(pointer: int) -> None:
    torch.cuda.caching_allocator_delete(pointer)  # type: ignore[no-untyped-call]


def number(device: torch.device) -> int:
    """Of a GPU; "cuda" without one is the current GPU."""
    return torch.cuda.current_device() if device.index is None else device.index


@contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Within, `device` is the current one if it is a GPU: cuML and cuDF work there, wherever data lie."""
    named = device.type == "cuda" and device.index is not None
    with torch.cuda.device(device) if named else nullcontext():
        yield


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether both name the same; "cuda" without a number is the current GPU."""
    if one.type != "cuda" or other.type != "cuda":
        return one.type == other.type
    return number(one) == number(other)


def beside(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`. A GPU is not waited for; a copy to the host is, or it would be read too early."""
    return tensor.to(device, non_blocking=device.type == "cuda")


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


def release(device: torch.device) -> None:
    """Let what torch and DALI keep unused of a GPU's memory be had by either."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if dali := sys.modules.get("nvidia.dali"):
            dali.backend.ReleaseUnusedMemory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, or the one it was raised from or during, says that memory is used up."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, MealGpuError):  # which would have been explained already
        if isinstance(at, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(at, RuntimeError) and any(words in str(at) for words in _EXHAUSTED):
            return True
        at = at.__cause__ or at.__context__
    return False


@contextmanager
def explained(device: torch.device, what: str, remedy: str) -> Iterator[None]:
    """Raises MealGpuError for out of memory inside: `what` was done, and the `remedy`."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _exhausted(device, what, remedy, error) from error


def _exhausted(device: torch.device, what: str, remedy: str, error: BaseException) -> MealGpuError:
    free = free_bytes(device) / 2**20
    reason = ". ".join(" ".join(str(error).split()).split(". ")[:2]).rstrip(".")
    return MealGpuError(f"{device}: out of memory in {what}, with {free:.0f} MiB free ({reason}). {remedy}")


class Halving:
    """Runs a function on a batch: on all of it, or, once memory was used up, on half as many for good.

    What was computed before is kept. Where the function's result for a row does not depend on how many rows
    come with it, results are the same bits; libraries may round a network's last digit otherwise for another
    number of images, and then results are those of that smaller batch size.

    Args:
        size: rows at once.
        device: whose memory it is about.
        what: one row, and `remedy`, what a user can lower, where one row is too many.
    """

    def __init__(self, size: int, device: torch.device, what: str, remedy: str) -> None:
        self.size = size
        self._device = device
        self._what = what
        self._remedy = remedy

    def over(
        self, count: int, run: Callable[[slice], _Result], forget: Callable[[], None] = lambda: None,
        spare: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[slice, _Result]]:  # fmt: skip
        """Yield (rows, `run(rows)`) for parts of the rows 0 … count - 1, in order.

        `forget` is called before a part is tried again: to let go of what was made for the larger one.
        `spare` gives back memory that is only there for speed, and says whether there was any.

        Raises:
            MealGpuError: memory is used up by a single row.
        """
        done = 0
        while done < count:
            rows = slice(done, min(done + self.size, count))
            tried = rows.stop - rows.start
            try:
                result = run(rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                spared = spare()
                if tried == 1 and not spared:
                    raise _exhausted(self._device, self._what, self._remedy, error) from error
            else:
                yield rows, result
                del result  # or it would be held while the next part is computed
                done = rows.stop
                continue
            # Out of the handler, so that the error and the tensors of the failed attempt are gone
            forget()
            if not spared:
                self.size = tried // 2
            release(self._device)
            how = "without what was kept for speed" if spared else f"with {self.size} at once, not {tried}"
            warnings.warn(f"{self._device}: out of memory in {self._what}; it goes on {how}", stacklevel=2)
