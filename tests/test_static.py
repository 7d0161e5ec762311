"""What is known of the kernels without a GPU: they compile, and nothing spills."""

import sys
from pathlib import Path

import pytest
from cuda_on_cpu import faults, semantics

pytest.importorskip("cuda.bindings.nvrtc", reason="NVRTC is not installed: it comes with torch on Linux")
sys.path.insert(0, str(Path(__file__).parent.parent))  # bench is not installed

from bench import machine_code, static
from bench.machine_code import Code, Instruction
from meal_gpu.errors import UnavailableError
from meal_gpu.ops import compile as compiler

CASES = static.cases()
# Disassembling takes long: one variant per way to load and to compute
DISASSEMBLED = [
    case
    for case in CASES
    if case.call
    in {
        "entropy, 19 classes, fp16, channels-last",
        "entropy, 19 classes, fp16",
        "entropy, 19 classes, fp32, channels-last",
        "margin, 19 classes, fp16, channels-last",
        "confusion, 19 classes, fp16",
        "classes, 19 classes, fp16",
        "committee, 10 members, 19 classes, fp16",
    }
]
architectures = pytest.mark.parametrize("arch", static.ARCHITECTURES)


def name(case: static.Case) -> str:
    return f"{case.entry}: {case.call}"


def loop(case: static.Case, arch: str) -> Code:
    try:
        return machine_code.hot_loop(static.code(case, arch))
    except UnavailableError as error:
        pytest.skip(str(error))


def test_every_kernel_is_among_the_cases() -> None:
    assert {case.file for case in CASES} == {path.name for path in compiler.folder().glob("*.cu")}


def test_the_kernels_on_which_the_cpu_is_tested_are_cuda() -> None:
    for source, defines in (
        (semantics.SOURCE, ()),
        (faults.SOURCE, (("WRONG", 0),)),
        (faults.SOURCE, (("WRONG", 1),)),
    ):
        machine_code.compiled(source, defines, "sm_90")


@architectures
@pytest.mark.parametrize("case", CASES, ids=name)
def test_it_compiles_and_does_not_spill(case: static.Case, arch: str) -> None:
    resources = static.resources(case, arch)
    assert (resources.spilled, resources.reloaded, resources.stack) == (0, 0, 0)
    # A block fits: registers are given out in lots of 8; what `launch` asks for counts the dynamic part only
    assert case.block * -(-resources.registers // 8) * 8 <= 64 << 10
    limit = compiler.DEFAULT_SHARED_BYTES
    assert case.shared > limit or case.shared + resources.static_shared <= limit


@architectures
@pytest.mark.parametrize("case", DISASSEMBLED, ids=name)
def test_the_hot_loop_stays_in_registers(case: static.Case, arch: str) -> None:
    pipes = machine_code.by_pipe(loop(case, arch))
    assert pipes.total() > 0
    assert pipes["local"] == 0


@architectures
@pytest.mark.parametrize("case", [c for c in DISASSEMBLED if c.entry == "cell_sums"], ids=name)
def test_two_exponentials_serve_a_row_of_a_cell(case: static.Case, arch: str) -> None:
    opcodes = [instruction.opcode for instruction in loop(case, arch)]
    assert opcodes.count("MUFU.EX2") == 2 * dict(case.defines)["SPAN_Y"]
    assert machine_code.by_pipe(loop(case, arch))["lds"] == 4  # a node each
    assert not any(opcode.startswith(("LDG", "STG", "BAR")) for opcode in opcodes)


@architectures
@pytest.mark.parametrize("case", [c for c in DISASSEMBLED if c.entry in static.CLASS_LOOPS], ids=name)
def test_logits_are_loaded_16_bytes_at_a_time(case: static.Case, arch: str) -> None:
    defines = dict(case.defines)
    assert defines["VECTOR"] * (4 if defines["LOGITS"] == 0 else 2) == 16
    loop(case, arch)
    staging = [
        body
        for body in machine_code.innermost_loops(static.code(case, arch))
        if machine_code.by_pipe(body)["sts"] and machine_code.by_pipe(body)["ldg"]
    ]
    assert any("LDG.128" in machine_code.global_accesses(body) for body in staging)


def listing(*lines: str) -> Code:
    """Instructions 16 bytes apart, "OPCODE operands" each."""
    split = [line.partition(" ") for line in lines]
    return tuple(Instruction(16 * i, op, operands) for i, (op, _, operands) in enumerate(split))


def test_loops_are_found() -> None:
    code = listing(
        "MOV R0, R1", "FFMA R0, R0", "MUFU.EX2 R0, R0", "BRA 0x10", "LDG.E R0", "BRA P0, 0x0",
        "FFMA R0, R0", "FFMA R0, R0", "BRA.U UP0, 0x60", "BRA 0x90", "CALL.REL.NOINC 0x0",
    )  # fmt: skip
    loops = machine_code.innermost_loops(code)
    assert [(body[0].address, body[-1].address) for body in loops] == [(0x10, 0x30), (0x60, 0x80)]
    assert machine_code.hot_loop(code) == loops[0]
    assert machine_code.hot_loop(code[4:]) == loops[1]
    assert machine_code.hot_loop(code[:2]) == ()


def test_global_accesses_are_told_apart_by_width() -> None:
    code = listing(
        "LDG.E.128.CONSTANT R0", "LDG.E.128 R4", "LDG.E.U16 R0", "LDG.E.S8 R0", "LDG.E R0", "LDS.128 R0",
        "STG.E.64 R0", "REDG.E.ADD.STRONG.GPU R0",
    )  # fmt: skip
    assert machine_code.global_accesses(code) == {
        "LDG.128": 2, "LDG.16": 1, "LDG.32": 1, "LDG.8": 1, "REDG.32": 1, "STG.64": 1,
    }  # fmt: skip


def test_floors_of_an_h200() -> None:
    case = static.Case("", "", "cell_sums", (("CLASSES", 19),), grid=132, block=32 * 4, shared=0)
    loop = machine_code.by_pipe(listing(*["FFMA"] * 60, *["MUFU.EX2"] * 8, *["IADD3"] * 32))
    # One warp per scheduler: 19 rounds of 100 instructions, 60 on fp32 lanes for a warp, 8 on 4 lanes
    cycles = {"issue_us": 19 * 100, "fp32_us": 19 * 60, "mufu_us": 19 * 8 * 8}
    expected = {limit: pytest.approx(count / 1980, abs=1e-3) for limit, count in cycles.items()}
    assert static.floors(case, loop) == expected


def test_a_missing_disassembler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "find_spec", lambda name: None)
    machine_code.cuobjdump.cache_clear()
    with pytest.raises(UnavailableError, match="cuobjdump is missing: it lies in the package triton"):
        machine_code.cuobjdump()
