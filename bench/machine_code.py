"""What NVRTC makes of CUDA source, read back: resources, instructions, loops."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from meal_gpu.errors import UnavailableError
from meal_gpu.ops.compile import OPTIONS

PIPES = {
    "FADD": "fp32", "FMUL": "fp32", "FFMA": "fp32", "FADD2": "fp32", "FMUL2": "fp32", "FFMA2": "fp32",
    "DADD": "fp64", "DMUL": "fp64", "DFMA": "fp64", "MUFU": "mufu", "LDS": "lds", "STS": "sts",
    "LDG": "ldg", "STG": "stg", "LDL": "local", "STL": "local",
}  # fmt: skip
GLOBAL = {"LDG", "STG", "RED", "REDG", "ATOM", "ATOMG"}
WIDTHS = {"8", "16", "64", "128", "256"}

Defines = tuple[tuple[str, int], ...]


class Instruction(NamedTuple):
    address: int
    opcode: str
    operands: str


Code = tuple[Instruction, ...]


@dataclass(frozen=True)
class Resources:
    """Per thread: registers, and bytes of local memory. Per block: bytes of static shared memory."""

    registers: int
    static_shared: int
    stack: int
    spilled: int
    reloaded: int


def compiler_version() -> str:
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}, nvidia-cuda-nvrtc {metadata.version('nvidia-cuda-nvrtc')}"


@cache
def compiled(source: str, defines: Defines, arch: str) -> tuple[bytes, str]:
    """The cubin of `source`, compiled as `meal_gpu.ops.compile` has it compiled, and what ptxas says of it.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's.
    """
    from cuda.bindings import nvrtc

    options = [*OPTIONS, f"-arch={arch}", "--ptxas-options=-v", *(f"-D{name}={n}" for name, n in defines)]
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    log = _filled(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode()
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"{' '.join(options)}: {status.name}\n{log}")
    cubin = _filled(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    nvrtc.nvrtcDestroyProgram(program)
    return cubin, log


def _filled(program: Any, size: Callable[[Any], tuple[Any, int]], fill: Callable[[Any, bytes], Any]) -> bytes:
    content = bytes(size(program)[1])
    fill(program, content)
    return content


def resources(log: str, entry: str) -> Resources:
    """What ptxas says of `entry`."""
    said = re.search(
        rf"Function properties for {entry}\n.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\n.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?",
        log,
    )
    if said is None:
        raise RuntimeError(f"ptxas says nothing of {entry}:\n{log}")
    stack, spilled, reloaded, registers, shared = (int(number or 0) for number in said.groups())
    return Resources(registers, shared, stack, spilled, reloaded)


@cache
def cuobjdump() -> Path:
    """NVIDIA's disassembler, which comes with triton, which comes with torch.

    Raises:
        UnavailableError: it does not.
    """
    package = find_spec("triton")
    if package is not None and package.origin is not None:
        tool = Path(package.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if tool.is_file():
            return tool
    raise UnavailableError("cuobjdump is missing: it lies in the package triton, of torch's CUDA builds")


@cache
def disassembled(cubin: bytes) -> dict[str, Code]:
    """The machine code of every function."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump()), "-sass", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);"
    functions = re.split(r"Function : (\w+)", listing)[1:]
    return {
        name: tuple(Instruction(int(at, 16), op, rest.strip()) for at, op, rest in re.findall(pattern, body))
        for name, body in zip(functions[::2], functions[1::2], strict=True)
    }


def innermost_loops(code: Code) -> list[Code]:
    """What lies between a branch backwards and its target, where no other such stretch lies inside."""
    spans = set()
    for instruction in code:
        target = re.search(r"0x([0-9a-f]+)$", instruction.operands)
        if instruction.opcode.startswith("BRA") and target and int(target[1], 16) < instruction.address:
            spans.add((int(target[1], 16), instruction.address))
    return [
        tuple(instruction for instruction in code if first <= instruction.address <= last)
        for first, last in sorted(spans)
        if not any(first <= head and tail <= last and (head, tail) != (first, last) for head, tail in spans)
    ]


def hot_loop(code: Code) -> Code:
    """The innermost loop with the most exponentials; then the most arithmetic; then the longest."""

    def heat(loop: Code) -> tuple[int, int, int]:
        exponentials = sum(instruction.opcode == "MUFU.EX2" for instruction in loop)
        pipes = by_pipe(loop)
        return exponentials, pipes["fp32"] + pipes["fp64"], len(loop)

    return max(innermost_loops(code), key=heat, default=())


def by_pipe(code: Code) -> Counter[str]:
    return Counter(PIPES.get(opcode.partition(".")[0], "other") for _, opcode, _ in code)


def global_accesses(code: Code) -> dict[str, int]:
    """How many loads, stores and atomics of global memory there are, by width: {"LDG.128": 3, ...}."""
    found: Counter[str] = Counter()
    for _, opcode, _ in code:
        name, *modifiers = opcode.split(".")
        if name in GLOBAL:
            width = next((m.lstrip("US") for m in modifiers if m.lstrip("US") in WIDTHS), "32")
            found[f"{name}.{width}"] += 1
    return dict(sorted(found.items()))
