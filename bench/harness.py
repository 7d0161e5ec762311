"""One setup per case, peers beside ours in the same process, interleaved; every row describes itself."""

import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from meal_gpu.record import environment


@dataclass(frozen=True)
class Row:
    """Seconds of wall time and of process CPU time per call of one contender."""

    case: str
    contender: str
    sizes: dict[str, Any]
    first: float  # the first call, with compilation and warm-up
    median: float
    p20: float
    p80: float
    cpu_median: float
    rounds: int


def measure(
    case: str,
    sizes: dict[str, Any],
    contenders: dict[str, Callable[[], object]],
    device: torch.device,
    rounds: int = 9,
) -> list[Row]:
    """Call each contender once cold, then all of them in turn, `rounds` times."""
    first = {name: _seconds(call, device)[0] for name, call in contenders.items()}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            seconds, burnt = _seconds(call, device)
            wall[name].append(seconds)
            cpu[name].append(burnt)
    rows = []
    for name, times in wall.items():
        fifths = statistics.quantiles(times, n=5)
        median = statistics.median(times)
        rows.append(
            Row(
                case,
                name,
                sizes,
                first[name],
                median,
                fifths[0],
                fifths[3],
                statistics.median(cpu[name]),
                rounds,
            )
        )
    return rows


def _seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    _wait(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write(rows: Iterable[Row], out: Path, device: torch.device) -> None:
    """Append JSON lines; device, versions and commit stand in each."""
    described = environment(device)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(asdict(row) | described) + "\n")
