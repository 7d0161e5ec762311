"""The CPU that executes kernels: it means what CUDA means, and no fault that it is there for passes."""

import math
from typing import Any

import pytest
import torch
from cuda_on_cpu import faults, harness
from cuda_on_cpu.harness import KernelError, launch_source
from cuda_on_cpu.semantics import SOURCE

from meal_gpu.ops.compile import Int64


@pytest.fixture(params=["in order", "reversed"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(harness, "reversed_order", request.param == "reversed")
    name: str = request.param
    return name


def mapped(function: str, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = torch.empty(len(x), dtype=dtype)
    launch_source(SOURCE, f"map_{function}", (x, y, len(x)), grid=-(-len(x) // 256), block=256)
    return y


def random_floats(n: int, seed: int = 0) -> torch.Tensor:
    """Random bits: every magnitude, subnormals, infinities and NaN."""
    bits = torch.randint(-(2**31), 2**31, (n,), generator=torch.Generator().manual_seed(seed))
    return bits.int().view(torch.float32)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("name", faults.FAULTS)
def test_a_fault_is_found(name: str) -> None:
    body, message = faults.FAULTS[name]
    blocks = 2 if "blockIdx" in body else 1

    def run(wrong: int) -> None:
        x, y = torch.arange(64.0), torch.zeros(64 * blocks)
        launch_source(
            faults.SOURCE, faults.NAMES[name], (x, y),
            defines={"WRONG": wrong}, grid=blocks, block=64, shared=256,
        )  # fmt: skip

    run(0)
    with pytest.raises(KernelError, match=message):
        run(1)
    run(0)  # a fault leaves nothing behind


def test_a_vector_that_straddles_the_end_is_out_of_bounds() -> None:
    x, y = torch.zeros(32 * 4), torch.empty(32)
    launch_source(SOURCE, "load_firsts", (x, y))
    with pytest.raises(KernelError, match="reads 16 bytes, 4 bytes past the end of tensor 0"):
        launch_source(SOURCE, "load_firsts", (x[:-1], y))


def test_a_tensor_may_itself_be_misaligned() -> None:
    x, y = torch.zeros(32 * 4 + 1), torch.empty(32)
    launch_source(SOURCE, "load_firsts", (x[:-1], y))
    with pytest.raises(KernelError, match="misaligned: reads 16 bytes at offset 0 of tensor 0"):
        launch_source(SOURCE, "load_firsts", (x[1:], y))


def test_a_view_ends_where_its_last_element_does() -> None:
    x, y = torch.zeros(64), torch.empty(32)
    launch_source(SOURCE, "copy", (x[32:], y))
    launch_source(SOURCE, "copy", (x[::2], y))  # spans 63 elements, whatever the kernel makes of them
    with pytest.raises(KernelError, match="reads 4 bytes, 4 bytes past the end of tensor 0"):
        launch_source(SOURCE, "copy", (x[:31], y))


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(1), 1, Int64(1), 1.0),
        (torch.zeros(1), 1, Int64(1), 1.0, None, None),
        (torch.zeros(1), 1.0, Int64(1), 1.0, None),
        (torch.zeros(1), 1, 1, 1.0, None),
        (torch.zeros(1), Int64(1), Int64(1), 1.0, None),
        (torch.zeros(1), 1, Int64(1), 1, None),
        (1, 1, Int64(1), 1.0, None),
        (torch.zeros(1), torch.zeros(1), Int64(1), 1.0, None),
        (torch.zeros(1), True, Int64(1), 1.0, None),
    ],
)
def test_arguments_are_those_of_the_signature(arguments: tuple[Any, ...]) -> None:
    launch_source(SOURCE, "takes", (torch.zeros(1), 1, Int64(1), 1.0, None))
    with pytest.raises(KernelError, match="takes takes pilfp, was given"):
        launch_source(SOURCE, "takes", arguments)


@pytest.mark.parametrize(
    ("block", "message"), [(48, "multiple of 32"), (0, "from 32 to 1024"), (1056, "for 1024 threads")]
)
def test_a_block_has_whole_warps(block: int, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        launch_source(SOURCE, "copy", (torch.zeros(2048), torch.zeros(2048)), block=block)


def test_a_block_keeps_to_its_launch_bounds() -> None:
    launch_source(SOURCE, "bounded", (torch.zeros(96),), block=64)
    with pytest.raises(KernelError, match="bounded is compiled for 64 threads, was launched with 96"):
        launch_source(SOURCE, "bounded", (torch.zeros(96),), block=96)


def test_shared_memory_is_finite() -> None:
    x, y = torch.zeros(32), torch.zeros(32)
    static = 16  # of `sums`, in the same source
    launch_source(SOURCE, "copy", (x, y), shared=(227 << 10) - static)
    with pytest.raises(KernelError, match="232449 bytes of shared memory, 227 KiB are there"):
        launch_source(SOURCE, "copy", (x, y), shared=(227 << 10) - static + 1)


def test_traffic_counts_bytes_of_tensors() -> None:
    launch_source(SOURCE, "load_vectors", (torch.zeros(32 * 4), torch.empty(32)))
    assert harness.traffic["load_vectors"] == [(32 * 4, 0), (0, 32 * 4)]


@pytest.mark.usefixtures("order")
def test_indices() -> None:
    y = torch.empty((3, 64, 4), dtype=torch.int32)
    launch_source(SOURCE, "indices", (y,), grid=3, block=64)
    expected = [[[block, thread, 64, 3] for thread in range(64)] for block in range(3)]
    assert y.tolist() == expected


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(
    ("entry", "dtype"),
    [
        ("shuffle_ints", torch.int32),
        ("shuffle_floats", torch.float32),
        ("shuffle_doubles", torch.float64),
        ("shuffle_longs", torch.int64),
    ],
)
def test_shuffles(entry: str, dtype: torch.dtype) -> None:
    x = (torch.arange(64, dtype=torch.float64) * math.pi).to(dtype)
    y = torch.empty((7, 2, 32), dtype=dtype)
    launch_source(SOURCE, entry, (x, y), block=64)
    sources = [
        [lane - 3 if lane >= 3 else lane for lane in range(32)],
        [lane + 5 if lane + 5 < 32 else lane for lane in range(32)],
        [lane ^ 9 for lane in range(32)],
        [7] * 32,
        [lane * 5 % 32 for lane in range(32)],
        [31] * 32,
        list(range(32)),  # out of the warp
    ]
    warps = x.view(2, 32)
    torch.testing.assert_close(y, torch.stack([warps[:, s] for s in sources]), rtol=0, atol=0)


@pytest.mark.usefixtures("order")
def test_votes_and_bits() -> None:
    x = torch.randint(0, 8, (64,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    y = torch.empty((8, 64), dtype=torch.int32)
    launch_source(SOURCE, "votes", (x, y), block=64)
    values = x.tolist()

    def votes(t: int) -> list[int]:
        warp = values[t // 32 * 32 : t // 32 * 32 + 32]

        def bits(flags: list[bool]) -> int:
            return sum(flag << lane for lane, flag in enumerate(flags))

        v = values[t]
        return [
            bits([w % 2 == 1 for w in warp]),
            3 in warp,
            max(warp) < 7,
            bits([w == v for w in warp]),
            sum(w % 2 for w in values),
            sum(w > 5 for w in values),
            0,
            v.bit_count() + 100 * ((v & -v).bit_length()) + 10000 * (32 - v.bit_length()),
        ]

    expected = torch.tensor([votes(t) for t in range(64)]).T
    assert torch.equal(y.long() & 0xFFFFFFFF, expected)


@pytest.mark.usefixtures("order")
def test_a_correct_kernel_does_not_depend_on_the_order() -> None:
    x = torch.randn((5, 64), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, count = torch.empty(5, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    launch_source(SOURCE, "sums", (x, y, count), grid=5, block=64, shared=64 * 8)
    tree = x.flip(1).view(5, 2, 32)
    while tree.shape[2] > 1:
        tree = tree[:, :, : tree.shape[2] // 2] + tree[:, :, tree.shape[2] // 2 :]
    assert torch.equal(y, tree.sum(dim=(1, 2)))
    assert count.item() == 5 * 64


def test_reversed_threads_run_in_reversed_order(order: str) -> None:
    count, y = torch.zeros(1, dtype=torch.int32), torch.empty(64, dtype=torch.int32)
    launch_source(SOURCE, "arrivals", (count, y), block=64)
    assert y.tolist() == (list(range(64)) if order == "in order" else list(range(63, -1, -1)))


def ulps(got: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Distance from float64 `exact` in units of the last place of its float32 neighbour."""
    size = torch.frexp(exact).exponent.clamp(min=-125)
    return (got.double() - exact).abs() / torch.ldexp(torch.ones_like(exact), size - 24)


def test_exp2_errs_by_2_ulp_and_flushes() -> None:
    x = torch.empty(50_000).uniform_(-126, 127, generator=torch.Generator().manual_seed(0))
    error = ulps(mapped("exp2_approx", x, torch.float32), x.double().exp2())
    assert 1.5 < error.max() <= 2.5  # of the rounded result
    assert (error > 0.5).float().mean() > 0.3
    special = torch.tensor([0.0, -0.0, -127, -140, -math.inf, math.inf, 128, 1e-40])
    expected = [1, 1, 0, 0, 0, math.inf, math.inf]
    got = mapped("exp2_approx", special, torch.float32).tolist()
    assert got[:-1] == expected
    assert got[-1] == pytest.approx(1, rel=3e-7)
    assert mapped("exp2_approx", torch.tensor([math.nan]), torch.float32).isnan().all()


def test_log2_errs_by_2_to_the_minus_22() -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.empty(50_000).uniform_(0.5, 2, generator=generator)
    x = torch.cat([near, torch.empty(50_000).uniform_(-126, 127, generator=generator).exp2()])
    exact = x.double().log2()
    error = (mapped("log2_approx", x, torch.float32) - exact).abs() / exact.abs().clamp(min=1) * 2**22
    # Absolute in (0.5, 2), relative elsewhere; and a rounding
    assert 0.9 < error[: len(near)].max() <= 1.126
    assert 0.9 < error[len(near) :].max() <= 1.251
    assert (error > 0.25).float().mean() > 0.3
    special = torch.tensor([1.0, 0.0, -0.0, 1e-40, math.inf])
    expected = [0, -math.inf, -math.inf, -math.inf, math.inf]
    assert mapped("log2_approx", special, torch.float32).tolist() == expected
    assert mapped("log2_approx", torch.tensor([-1.0, math.nan]), torch.float32).isnan().all()


def test_reciprocal_errs_by_1_ulp_and_flushes() -> None:
    x = torch.empty(50_000).uniform_(-125, 125, generator=torch.Generator().manual_seed(0)).exp2()
    error = ulps(mapped("reciprocal_approx", x, torch.float32), 1 / x.double())
    assert 1 < error.max() <= 1.5
    assert (error > 0.5).float().mean() > 0.3
    special = torch.tensor([0.0, -0.0, 1e-40, 3e38, math.inf, -math.inf])
    expected = [math.inf, -math.inf, math.inf, 0, 0, -0.0]
    assert mapped("reciprocal_approx", special, torch.float32).tolist() == expected


def test_fdividef_errs_by_2_ulp_and_takes_huge_divisors_for_infinite() -> None:
    x = torch.randn((50_000, 2), generator=torch.Generator().manual_seed(0))
    error = ulps(mapped("quotient", x, torch.float32), x[:, 0].double() / x[:, 1].double())
    assert 1.5 < error.max() <= 2.5
    assert (error > 0.5).float().mean() > 0.3
    special = torch.tensor([[1e38, 1e38], [-1, math.inf], [math.inf, 1], [1, 0], [1, 2.0**126]])
    got = mapped("quotient", special, torch.float32).tolist()
    assert got[:4] == [0, 0, math.inf, math.inf]
    assert got[4] == pytest.approx(2.0**-126, rel=3e-7)
    undefined = torch.tensor([[0, 0], [math.inf, 1e38], [math.nan, 1], [1, math.nan], [math.nan, 1e38]])
    assert mapped("quotient", undefined, torch.float32).isnan().all()


def all_bits() -> torch.Tensor:
    return torch.arange(65536, dtype=torch.int32).to(torch.uint16)


@pytest.mark.parametrize(
    ("entry", "dtype"), [("from_half", torch.float16), ("from_bfloat16", torch.bfloat16)]
)
def test_every_16_bit_number_is_read_as_torch_reads_it(entry: str, dtype: torch.dtype) -> None:
    expected = all_bits().view(dtype).float()
    got = mapped(entry, all_bits(), torch.float32)
    assert torch.equal(got.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(got[number].view(torch.int32), expected[number].view(torch.int32))


@pytest.mark.parametrize(("entry", "dtype"), [("to_half", torch.float16), ("to_bfloat16", torch.bfloat16)])
def test_floats_are_rounded_to_16_bits_as_torch_rounds_them(entry: str, dtype: torch.dtype) -> None:
    # The ties between all neighbours, and the floats on both sides of each; every number itself
    exact = all_bits().view(dtype).float().sort().values
    ties = (exact[:-1].double() + exact[1:].double()).div(2).float()
    infinity = torch.tensor(math.inf)
    beside = [torch.nextafter(ties, infinity), torch.nextafter(ties, -infinity)]
    moderate = 100 * torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    x = torch.cat([exact, ties, *beside, random_floats(50_000), moderate])
    expected = x.to(dtype)
    got = mapped(entry, x, torch.uint16).view(dtype)
    assert expected.isnan().any()
    assert expected.isinf().any()
    assert ((expected != 0) & (expected.abs() < torch.finfo(dtype).tiny)).any()
    assert torch.equal(got.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(got[number].view(torch.int16), expected[number].view(torch.int16))
