"""How much memory is free, and one allocator for all libraries of the GPU."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from meal_gpu import memory
from meal_gpu.errors import UnavailableError

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB available and no cgroups yet."""
    for name, file in (("MEMINFO", "meminfo"), ("OWN_CGROUPS", "cgroup"), ("CGROUPS", "fs")):
        monkeypatch.setattr(memory, name, tmp_path / file)
    figures = {"MemTotal": 16 * GIB, "MemFree": GIB, "MemAvailable": 8 * GIB}
    lines = [f"{key}: {value // 1024} kB" for key, value in figures.items()]
    (tmp_path / "meminfo").write_text("\n".join([*lines, "HugePages_Total:       0"]))
    return tmp_path


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def version_2(limit: int | str, used: int, cache: int = 0) -> dict[str, str]:
    stat = f"anon 7\nfile 9\ninactive_file {cache}"
    return {"memory.max": str(limit), "memory.current": str(used), "memory.stat": stat}


def version_1(limit: int, used: int, cache: int = 0) -> dict[str, str]:
    stat = f"inactive_file 5\ntotal_inactive_file {cache}"
    return {"memory.limit_in_bytes": str(limit), "memory.usage_in_bytes": str(used), "memory.stat": stat}


def test_without_cgroups_it_is_what_the_system_has_available(system: Path) -> None:
    assert memory.free_bytes(CPU) == 8 * GIB


@pytest.mark.parametrize(
    ("own", "groups", "expected"),
    [
        pytest.param("0::/job", {"job": version_2(4 * GIB, GIB)}, 3 * GIB, id="its own limit"),
        pytest.param("0::/job", {"job": version_2(64 * GIB, GIB)}, 8 * GIB, id="the system has less"),
        pytest.param("0::/job", {"job": version_2("max", GIB)}, 8 * GIB, id="no limit"),
        pytest.param("0::/job", {"job": version_2(4 * GIB, 4 * GIB, GIB)}, GIB, id="cache is free"),
        pytest.param("0::/job", {"job": version_2(GIB, 2 * GIB)}, 0, id="beyond its limit"),
        pytest.param(
            "0::/a/b", {"a": version_2(2 * GIB, GIB), "a/b": version_2("max", 0)}, GIB, id="its parent's"
        ),
        pytest.param("0::/host/path", {"": version_2(2 * GIB, GIB)}, GIB, id="a container's root"),
        pytest.param("0::/job", {"job": {"memory.max": str(GIB)}}, 8 * GIB, id="half a group"),
        pytest.param(
            "3:cpu,memory:/job\n0::/",
            {"memory/job": version_1(4 * GIB, 2 * GIB, GIB)},
            3 * GIB,
            id="version 1",
        ),
        pytest.param(
            "3:memory:/job", {"memory/job": version_1(9223372036854771712, GIB)}, 8 * GIB, id="1, no limit"
        ),
        pytest.param("3:memory:/x", {"memory": version_1(GIB, 0)}, GIB, id="1, a container's root"),
        pytest.param("3:cpu:/job", {"memory/job": version_1(GIB, 0)}, 8 * GIB, id="1, another controller"),
    ],
)
def test_a_cgroup_may_allow_less(
    own: str, groups: dict[str, dict[str, str]], expected: int, system: Path
) -> None:
    (system / "cgroup").write_text(own + "\n")
    for folder, files in groups.items():
        group(system / "fs" / folder, files)
    assert memory.free_bytes(CPU) == expected


@pytest.mark.parametrize("content", [None, "MemTotal: 1 kB\n"])
def test_a_system_that_does_not_say_is_named(content: str | None, system: Path) -> None:
    (system / "meminfo").unlink()
    if content:
        (system / "meminfo").write_text(content)
    with pytest.raises(UnavailableError, match="meminfo does not say"):
        memory.free_bytes(CPU)


def test_on_this_machine() -> None:
    first = memory.free_bytes(CPU)
    assert 2**20 < first < 2**50


def test_of_a_gpu_it_is_the_drivers_and_what_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"mem_get_info": (5 * GIB, 9 * GIB), "memory_reserved": 3 * GIB, "memory_allocated": GIB}
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, figure=figure: figure)
    assert memory.free_bytes(torch.device("cuda")) == 7 * GIB


class Vendors:
    """CuPy and RMM as far as they are used, and torch's allocator on a GPU that is not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, installed: tuple[str, ...]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.resource: Any = self.Plain()
        self.allocator: Any = None
        cupy, rmm = ModuleType("cupy"), ModuleType("rmm")
        cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
            set_allocator=lambda malloc: setattr(self, "allocator", malloc),
            PythonFunctionAllocator=lambda malloc, free: SimpleNamespace(malloc=(malloc, free)),
            get_current_stream=lambda: SimpleNamespace(ptr=11),
        )
        rmm.mr = SimpleNamespace(  # type: ignore[attr-defined]
            CudaMemoryResource=self.Plain,
            CallbackMemoryResource=lambda allocate, free: (allocate, free),
            get_current_device_resource=lambda: self.resource,
            set_current_device_resource=self.set_resource,
        )
        for module in (cupy, rmm):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(
            memory, "find_spec", lambda name: ModuleSpec(name, None) if name in installed else None
        )
        monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", self.allocate)
        monkeypatch.setattr(
            torch.cuda, "caching_allocator_delete", lambda ptr: self.calls.append(("free", ptr))
        )
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
        monkeypatch.setattr(torch.cuda, "device", self.on)
        self.device: int | None = None

    class Plain:
        pass

    def set_resource(self, resource: Any) -> None:
        self.calls.append(("resource", self.device))
        self.resource = resource

    def allocate(self, size: int, device: int, stream: int) -> int:
        self.calls.append((size, device, stream))
        return 4096

    def on(self, index: int) -> Any:
        import contextlib

        @contextlib.contextmanager
        def current() -> Any:
            self.device = index
            yield

        return current()


@pytest.fixture(autouse=True)
def forget() -> Any:
    memory._share.cache_clear()
    yield
    memory._share.cache_clear()


def test_torch_serves_cupy_and_rmm(monkeypatch: pytest.MonkeyPatch) -> None:
    vendors = Vendors(monkeypatch, installed=("cupy", "rmm"))
    memory.share_allocator()
    assert vendors.calls == [("resource", 2)]
    malloc, free = vendors.allocator
    assert malloc(100, 1) == 4096  # on CuPy's current stream
    free(4096, 1)
    allocate, deallocate = vendors.resource
    assert allocate(200, SimpleNamespace(__cuda_stream__=lambda: (0, 13))) == 4096  # on the stream it is for
    deallocate(4096, 200, None)
    assert vendors.calls[1:] == [(100, 1, 11), ("free", 4096), (200, 2, 13), ("free", 4096)]
    # once per device
    kept = vendors.resource
    memory.share_allocator(torch.device("cuda"))
    memory.share_allocator(torch.device("cuda", 2))
    assert vendors.resource is kept
    vendors.resource = Vendors.Plain()
    memory.share_allocator(torch.device("cuda", 0))
    assert vendors.calls[-1] == ("resource", 0)


def test_rmm_is_told_in_its_own_words_that_memory_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    vendors = Vendors(monkeypatch, installed=("rmm",))
    memory.share_allocator()
    allocate, _ = vendors.resource

    def full(*_: int) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", full)
    with pytest.raises(MemoryError, match="CUDA out of memory"):
        allocate(200, SimpleNamespace(__cuda_stream__=lambda: (0, 13)))


@pytest.mark.parametrize("installed", [(), ("cupy",), ("rmm",)])
def test_each_library_may_be_absent(installed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    vendors = Vendors(monkeypatch, installed=installed)
    memory.share_allocator()
    assert (vendors.allocator is not None) == ("cupy" in installed)
    assert isinstance(vendors.resource, tuple) == ("rmm" in installed)


def test_a_resource_that_the_program_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    vendors = Vendors(monkeypatch, installed=("cupy", "rmm"))
    vendors.resource = chosen = object()
    memory.share_allocator()
    assert vendors.resource is chosen


# In processes of their own: an allocator is for the rest of a process
CUPY = """
import cupy, torch
from meal_gpu.memory import free_bytes, share_allocator
share_allocator(); share_allocator()
before, free = torch.cuda.memory_allocated(), free_bytes(torch.device("cuda"))
array = cupy.zeros(1 << 20, dtype=cupy.uint8)
assert torch.cuda.memory_allocated() - before == 1 << 20
assert free_bytes(torch.device("cuda")) < free
del array
assert torch.cuda.memory_allocated() == before
"""
RMM = """
import rmm, torch
from meal_gpu.memory import share_allocator
share_allocator(); share_allocator()
before = torch.cuda.memory_allocated()
buffer = rmm.DeviceBuffer(size=1 << 20)
assert torch.cuda.memory_allocated() - before == 1 << 20
del buffer
assert torch.cuda.memory_allocated() == before
"""
BOTH = """
import torch
from meal_gpu.memory import share_allocator
share_allocator()
import cudf, cupy  # importing cuDF gives CuPy another allocator, which ends at torch all the same
before = torch.cuda.memory_allocated()
array = cupy.zeros(1 << 20, dtype=cupy.uint8)
series = cudf.Series(cupy.arange(1 << 17)) + 1
assert torch.cuda.memory_allocated() - before >= 2 << 20
"""


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("packages", "code"),
    [
        pytest.param(("cupy",), CUPY, id="cupy"),
        pytest.param(("rmm",), RMM, id="rmm"),
        pytest.param(("cudf",), BOTH, id="cudf"),
    ],
)
def test_what_they_allocate_is_torchs(packages: tuple[str, ...], code: str) -> None:
    for package in packages:
        pytest.importorskip(package)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
