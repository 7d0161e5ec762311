"""What the compiler makes of the kernels, found without a device: `python -m bench.static [--out FILE]`.

The calls below are made with a launch that only takes notes, so that each kernel is compiled exactly as
`meal_gpu.ops.cuda` would have it; NVRTC compiles, ptxas and cuobjdump report. The floors are the time that an
H200 needs to issue the instructions of the innermost loop alone: no kernel can take less, and nothing here
says how much more it takes.
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from bench import machine_code
from bench.machine_code import Code, Resources
from meal_gpu.grid import Grid
from meal_gpu.ops import compile as compiler
from meal_gpu.ops import cuda
from meal_gpu.record import commit

OUT = Path(__file__).parent / "results" / "static.jsonl"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")

# An H200 (SXM). Per SM and clock: "CUDA C++ Programming Guide", throughput of native arithmetic instructions,
# compute capability 9.0. Clock: the 66.9 TFLOPS of fp32 of the data sheet are 132 * 128 * 2 * 1.98 GHz.
H200 = "sm_90"
SMS, SCHEDULERS, FP32_LANES, MUFU_LANES, CLOCK = 132, 4, 128, 16, 1.98e9

# Kernels whose hot loop makes one round per class
CLASS_LOOPS = {"cell_sums", "confusion"}


def _logits(classes: int, dtype: torch.dtype, channels_last: bool) -> tuple[torch.Tensor, Grid]:
    """Of one image: Cityscapes at half size, or CamVid with its 11 classes."""
    height, width = (360, 480) if classes == 11 else (512, 1024)
    logits = torch.zeros(1, classes, -(-height // 16) * 4, width // 4, dtype=dtype)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    return logits, Grid(4, 4, height, width)


def _padded(logits: torch.Tensor) -> tuple[int, int]:
    return 4 * logits.shape[2], 4 * logits.shape[3]


def _entropy(
    classes: int, dtype: torch.dtype, channels_last: bool, measure: str = "entropy", masked: bool = False
) -> None:
    logits, grid = _logits(classes, dtype, channels_last)
    valid = torch.ones(grid.height, grid.width, dtype=torch.bool) if masked else None
    cuda.patch_entropy(logits, grid, _padded(logits), True, measure=measure, valid=valid)


def _confusion(classes: int, dtype: torch.dtype, channels_last: bool) -> None:
    logits, grid = _logits(classes, dtype, channels_last)
    labels = torch.zeros(1, grid.height, grid.width, dtype=torch.uint8)
    cuda.confusion(logits, labels, _padded(logits), True, 255)


def _patch_classes(classes: int, dtype: torch.dtype, masked: bool = False) -> None:
    logits, grid = _logits(classes, dtype, False)
    valid = torch.ones(grid.height, grid.width, dtype=torch.bool) if masked else None
    cuda.patch_classes(logits, grid, _padded(logits), True, valid=valid)


def _committee(members: int, classes: int, dtype: torch.dtype, masked: bool = False) -> None:
    logits, grid = _logits(classes, dtype, False)
    valid = torch.ones(grid.height, grid.width, dtype=torch.bool) if masked else None
    cuda.patch_committee(logits.expand(members, *logits.shape), grid, _padded(logits), True, valid=valid)


def _kmeans_plusplus(rows: int, columns: int, dtype: torch.dtype) -> None:
    cuda.kmeans_plusplus(
        torch.zeros(rows, columns, dtype=dtype), torch.zeros(2, 1, dtype=torch.float64), None
    )


def _gather(dtype: torch.dtype, channels_last: bool, labelled: bool) -> None:
    grid = Grid(4, 4, 512, 1024)
    images = torch.zeros(1, grid.height, grid.width, 3, dtype=torch.uint8)
    cuda.gather_patches(
        images,
        images[..., 0].contiguous() if labelled else None,
        torch.zeros(8, dtype=torch.int64),
        grid,
        (0.5, 0.5, 0.5),
        (0.2, 0.2, 0.2),
        255,
        dtype=dtype,
        channels_last=channels_last,
    )


# What is compiled. A new kernel, or variant of one, is a new call.
CALLS: dict[str, Callable[[], object]] = {
    "entropy, 19 classes, fp16, channels-last": partial(_entropy, 19, torch.float16, True),
    "entropy, 19 classes, fp16": partial(_entropy, 19, torch.float16, False),
    "entropy, 19 classes, bf16, channels-last": partial(_entropy, 19, torch.bfloat16, True),
    "entropy, 19 classes, fp32, channels-last": partial(_entropy, 19, torch.float32, True),
    "entropy, 19 classes, fp32": partial(_entropy, 19, torch.float32, False),
    "entropy, 11 classes, fp16, channels-last": partial(_entropy, 11, torch.float16, True),
    "entropy, 11 classes, fp16": partial(_entropy, 11, torch.float16, False),
    "entropy, 256 classes, fp16, channels-last": partial(_entropy, 256, torch.float16, True),
    "entropy, 19 classes, fp16, channels-last, masked":
        partial(_entropy, 19, torch.float16, True, masked=True),
    "margin, 19 classes, fp16, channels-last": partial(_entropy, 19, torch.float16, True, "margin"),
    "least-confidence, 19 classes, fp16, channels-last":
        partial(_entropy, 19, torch.float16, True, "least-confidence"),
    "confusion, 19 classes, fp16, channels-last": partial(_confusion, 19, torch.float16, True),
    "confusion, 19 classes, fp16": partial(_confusion, 19, torch.float16, False),
    "classes, 19 classes, fp16": partial(_patch_classes, 19, torch.float16),
    "classes, 19 classes, fp32, masked": partial(_patch_classes, 19, torch.float32, masked=True),
    "classes, 256 classes, fp16": partial(_patch_classes, 256, torch.float16),
    "committee, 10 members, 19 classes, fp16": partial(_committee, 10, 19, torch.float16),
    "committee, 10 members, 19 classes, fp32, masked":
        partial(_committee, 10, 19, torch.float32, masked=True),
    "committee, 100 members, 19 classes, fp16": partial(_committee, 100, 19, torch.float16),
    "gather, fp16, channels-last": partial(_gather, torch.float16, True, False),
    "gather, fp16, channels-last, labels": partial(_gather, torch.float16, True, True),
    "gather, fp32, labels": partial(_gather, torch.float32, False, True),
    "k-means++, 200 × 2, fp32": partial(_kmeans_plusplus, 200, 2, torch.float32),
    "k-means++, 200 × 2, fp64": partial(_kmeans_plusplus, 200, 2, torch.float64),
    "k-means++, 100,000 × 2, fp32": partial(_kmeans_plusplus, 100_000, 2, torch.float32),
    "k-means++, 10,000 × 320, fp32": partial(_kmeans_plusplus, 10_000, 320, torch.float32),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A launch that one of the calls makes. `shared`: bytes of dynamic shared memory."""

    call: str
    file: str
    entry: str
    defines: tuple[tuple[str, int], ...]
    grid: int
    block: int
    shared: int


@cache
def cases() -> tuple[Case, ...]:
    found: dict[Case, None] = {}
    for call, make in CALLS.items():

        def note(
            file: str,
            entry: str,
            arguments: object,
            *,
            defines: dict[str, int],
            grid: int,
            block: int,
            shared: int = 0,
            call: str = call,
        ) -> None:
            found[Case(call, file, entry, tuple(sorted(defines.items())), grid, block, shared)] = None

        with patch.object(compiler, "launch", note):
            make()
    return tuple(found)


def resources(case: Case, arch: str) -> Resources:
    _, log = machine_code.compiled(compiler.source(case.file), case.defines, arch)
    return machine_code.resources(log, case.entry)


def code(case: Case, arch: str) -> Code:
    cubin, _ = machine_code.compiled(compiler.source(case.file), case.defines, arch)
    return machine_code.disassembled(cubin)[case.entry]


def floors(case: Case, loop: Counter[str]) -> dict[str, float]:
    """Microseconds that an H200 needs at least for the rounds of a loop over the classes, per limit."""
    rounds = case.grid * case.block // 32 * dict(case.defines)["CLASSES"]
    cycles = {
        "issue_us": loop.total() / SCHEDULERS,
        "fp32_us": loop["fp32"] * 32 / FP32_LANES,
        "mufu_us": loop["mufu"] * 32 / MUFU_LANES,
    }
    return {limit: round(1e6 * rounds * each / SMS / CLOCK, 3) for limit, each in cycles.items()}


def describe(case: Case, arch: str) -> dict[str, Any]:
    instructions = code(case, arch)
    loop = machine_code.by_pipe(machine_code.hot_loop(instructions))
    row = asdict(case) | {"defines": dict(case.defines), "arch": arch} | asdict(resources(case, arch))
    row |= {
        "instructions": len(instructions),
        "local": machine_code.by_pipe(instructions)["local"],
        "global": machine_code.global_accesses(instructions),
        "loop": {"instructions": loop.total(), **dict(sorted(loop.items()))},
    }
    if arch == H200 and case.entry in CLASS_LOOPS:
        row["floor"] = {"device": "H200, 132 SMs, 1.98 GHz", **floors(case, loop)}
    return row


def rows() -> list[dict[str, Any]]:
    """Every case for every architecture, save those that give the same machine code as one before."""
    seen: set[Code] = set()
    found = []
    for case in cases():
        for arch in ARCHITECTURES:
            if code(case, arch) not in seen:
                seen.add(code(case, arch))
                found.append(describe(case, arch))
    return found


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("call", "entry", "arch", title="static: not measured on a device")
    pipes = ("fp32", "fp64", "mufu", "lds", "local")
    for head in ("registers", "spilled", "stack", "loop", *pipes, "issue µs", "mufu µs"):
        shown.add_column(head, justify="right")
    shown.add_column("global memory")
    for row in rows:
        loop, floor = row["loop"], row.get("floor", {})
        numbers = [row["registers"], row["spilled"], row["stack"], loop["instructions"]]
        numbers += [loop.get(pipe, 0) for pipe in pipes]
        numbers += [floor.get("issue_us", ""), floor.get("mufu_us", "")]
        accesses = " ".join(f"{count}×{name}" for name, count in row["global"].items())
        shown.add_row(row["call"], row["entry"], row["arch"], *map(str, numbers), accesses)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.static", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="JSON lines, written anew")
    arguments = parser.parse_args()
    described = {
        "evidence": "static: not measured on a device",
        "nvrtc": machine_code.compiler_version(),
        "commit": commit(),
        "command": shlex.join(["python", "-m", "bench.static", *sys.argv[1:]]),
    }
    found = rows()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row | described) + "\n" for row in found]
    arguments.out.write_text("".join(lines), encoding="utf-8")
    Console().print(table(found))


if __name__ == "__main__":
    main()
