"""Measures cases: contenders in one process, one setup, interleaved, after a first call of their own."""

import ctypes
import gc
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bench.ceiling import Limits, Work
from meal_gpu.errors import MealGpuError
from meal_gpu.record import environment

# Peers, beyond what a run folder records
PACKAGES = ("opencv-python-headless", "torchvision", "scikit-learn", "scipy", "numba", "baal", "triton")
FLUSH_BYTES = 256 << 20  # more than any GPU's L2


@dataclass(frozen=True)
class Case:
    """One thing at one size, done by several contenders; ours come first.

    Attributes:
        sizes: numbers and dtypes that tell this case from others of its name.
        contenders: what is timed, by name.
        work: what each call has to move and to compute at least.
        over: the key in `sizes` along which the cost of cases of this name is fitted.
        quality: what a contender's first result was worth, for its row.
        extra: what is known of a contender after all rounds, for its row; the stages of a pipeline, say.
        warm_ups: what to call first, in place of the contender itself, where a whole call takes too long.
        memory: whether to call each once more for the memory it takes.
        seconds: per contender; within it there are at most `most` rounds, and beyond it at least `least`.
    """

    name: str
    sizes: dict[str, Any]
    contenders: Mapping[str, Callable[[], object]]
    work: Work | None = None
    over: str | None = None
    quality: Callable[[str, Any], dict[str, Any]] = lambda name, result: {}
    extra: Callable[[str], dict[str, Any]] = lambda name: {}
    warm_ups: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    memory: bool = True
    seconds: float = 2.0
    least: int = 5
    most: int = 40


@dataclass(frozen=True)
class Row:
    """What is known of one contender. Times are seconds, per call.

    `cpu` counts the time of all cores, of child processes too. `peak_bytes` is what one call had allocated at
    most, beyond what was there before: on the device, on a CPU of the whole process. `share` is the part of
    the binding limit that the median reaches.
    """

    case: str
    contender: str
    sizes: dict[str, Any]
    first: float
    median: float
    p20: float
    p80: float
    cpu: float
    rounds: int
    peak_bytes: int | None
    over: str | None
    work: dict[str, Any] | None
    floor: float | None
    limit: str | None
    share: float | None
    quality: dict[str, Any]
    extra: dict[str, Any]


def narrowed(case: Case, names: Sequence[str]) -> Case:
    """The case with these contenders only, of those it has."""
    return replace(
        case, contenders={name: case.contenders[name] for name in names if name in case.contenders}
    )


class Stopwatch(Protocol):
    """Times a call: its seconds, and those of all cores."""

    def __call__(self, call: Callable[[], object]) -> tuple[float, float]: ...


class HostStopwatch:
    def __call__(self, call: Callable[[], object]) -> tuple[float, float]:
        cpu, start = _cpu_seconds(), time.perf_counter()
        call()
        return time.perf_counter() - start, _cpu_seconds() - cpu


class DeviceStopwatch:
    """CUDA events around the call, whose inputs are no longer in the L2 cache.

    The device is busy with that while the host launches, as it would be in a pipeline: else Python would be
    timed, where a kernel takes microseconds. Work of the host alone gains that time, less than 0.2 ms.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flushed = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], object]) -> tuple[float, float]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        cpu = _cpu_seconds()
        with torch.cuda.device(self._device):  # events are of its stream
            self._flushed.zero_()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize(self._device)
        return begin.elapsed_time(end) / 1000, _cpu_seconds() - cpu


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions in float32 proper, which cuDNN takes for TF32 unless told."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def stopwatch(device: torch.device) -> Stopwatch:
    return DeviceStopwatch(device) if device.type == "cuda" else HostStopwatch()


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(
    case: Case,
    device: torch.device,
    limits: Limits,
    *,
    clock: Stopwatch | None = None,
    deadline: float = math.inf,
) -> list[Row]:
    """Call each contender once, then all of them in turn until each has had its time.

    Who was not timed before `deadline`, by `time.monotonic`, has no row, nor has whose package is missing.
    """
    clock = clock or stopwatch(device)
    first: dict[str, float] = {}
    quality: dict[str, dict[str, Any]] = {}
    for name, call in case.contenders.items():
        if time.monotonic() > deadline:
            break
        kept = _Kept(case.warm_ups.get(name, call))
        try:
            seconds, _ = clock(kept)
        except ModuleNotFoundError:  # a peer that is not installed
            continue
        first[name] = seconds
        quality[name] = case.quality(name, kept.result)
    wall: dict[str, list[float]] = {name: [] for name in first}
    cpu: dict[str, list[float]] = {name: [] for name in first}
    waiting = list(first)
    while waiting and time.monotonic() <= deadline:
        for name in waiting:
            if time.monotonic() > deadline and not wall[name]:
                continue
            seconds, burnt = clock(case.contenders[name])
            wall[name].append(seconds)
            cpu[name].append(burnt)
        waiting = [
            name
            for name in waiting
            if len(wall[name]) < case.least
            or (sum(wall[name]) < case.seconds and len(wall[name]) < case.most)
        ]
    floor, limit = limits.floor(case.work) if case.work else (None, None)
    rows = []
    for name in filter(wall.get, wall):
        call = case.contenders[name]
        median = statistics.median(wall[name])
        p20, p80 = np.quantile(wall[name], (0.2, 0.8)).tolist()
        rows.append(
            Row(
                case=case.name,
                contender=name,
                sizes=case.sizes,
                first=first[name],
                median=median,
                p20=p20,
                p80=p80,
                cpu=statistics.median(cpu[name]),
                rounds=len(wall[name]),
                peak_bytes=peak_bytes(call, device) if case.memory else None,
                over=case.over,
                work=asdict(case.work) if case.work else None,
                floor=floor,
                limit=limit,
                share=floor / median if floor is not None else None,
                quality=quality[name],
                extra=case.extra(name),
            )
        )
    return rows


class _Kept:
    """Calls, and keeps what came of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.result: object = None

    def __call__(self) -> None:
        self.result = self._call()


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """What one more call, untimed, has allocated at most."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError, AttributeError):  # glibc keeps what was freed, which would hide the next use of it
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    """A figure of this process in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{key}:"))


def described(device: torch.device, limits: Limits) -> dict[str, Any]:
    """What every row says of where, when and with what it was made."""
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    known = environment(device)
    return known | {
        "command": ["python", "-m", "bench", *sys.argv[1:]],
        "packages": known["packages"] | versions,
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "clocks": clocks(device),
        "limits": asdict(limits),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def clocks(device: torch.device) -> dict[str, str]:
    """The driver's version and the clocks as they are; of a CPU, what the system says."""
    if device.type == "cuda":
        keys = (
            "driver_version",
            "clocks.sm",
            "clocks.mem",
            "clocks.max.sm",
            "power.limit",
            "persistence_mode",
        )
        query = [
            "nvidia-smi",
            f"--query-gpu={','.join(keys)}",
            "--format=csv,noheader",
            f"--id={device.index or 0}",
        ]
        try:
            told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            return {"unknown": str(error)}
        return dict(zip(keys, (value.strip() for value in told.split(",")), strict=False))
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    megahertz = [line.partition(":")[2].strip() for line in lines if line.startswith("cpu MHz")]
    return {"cpu MHz": megahertz[0]} if megahertz else {}


@contextmanager
def recording(out: Path | None) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Takes rows as they come; written aside, they become `out` once all are there, if there are any."""
    if out is None:
        yield lambda rows: None
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f"{out.name}.partial")
    with aside.open("w", encoding="utf-8") as file:

        def write(rows: list[dict[str, Any]]) -> None:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()

        yield write
    if aside.stat().st_size:
        aside.rename(out)
    else:
        aside.unlink()


def told(work: Callable[[], object]) -> None:
    """Do it; an error of meal-gpu's is one line and exit code 1."""
    try:
        work()
    except MealGpuError as error:
        print(f"bench: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
