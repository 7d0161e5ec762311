"""The committee's kernel against float64: on a GPU, or its source executed on the CPU."""

import math

import pytest
import torch
from cuda_on_cpu import harness
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_patch_entropy import DTYPES, cases
from test_patch_entropy import SHAPES, random_logits

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ops import Committee, cuda, reference


def tolerance(logits: torch.Tensor) -> float:
    """float32 resolves logits of 80 to 8e-6 only, and a patch may be one pixel."""
    return 2e-6 + (2e-7 * float(logits.abs().max()) if logits.numel() else 0)


def check(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    device: torch.device,
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> Committee:
    """The kernel's result, after it was found within tolerance of float64 arithmetic on the same logits."""
    actual = cuda.patch_committee(
        logits.to(device), grid, padded, align_corners, temperature=temperature,
        valid=None if valid is None else valid.to(device),
    )  # fmt: skip
    actual = Committee(*(each.cpu() for each in actual))
    exact = reference.patch_committee(
        logits.double(), grid, padded, align_corners, temperature=temperature, valid=valid
    )
    for found, expected in zip(actual, exact, strict=True):
        assert (found.shape, found.dtype) == ((logits.shape[1], grid.patches_per_image), torch.float32)
        assert float((found - expected).abs().max()) <= tolerance(logits)
        assert bool((found >= 0).all())
    return actual


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in SHAPES] + [("padded both", dtype) for dtype in DTYPES[1:]],
)
def test_float64_is_met(name: str, dtype: torch.dtype, align_corners: bool, kernels: torch.device) -> None:
    low, padded, grid = SHAPES[name]
    check(random_logits(3, 2, 11, *low).to(dtype), grid, padded, align_corners, kernels)


@pytest.mark.parametrize("temperature", [0.25, 7.0])
def test_temperature(temperature: float, kernels: torch.device) -> None:
    low, padded, grid = SHAPES["ragged"]
    check(random_logits(3, 2, 11, *low), grid, padded, True, kernels, temperature)


# a block of 128 threads of 4 pixels, of 32 threads, the last that fits so; one pixel each; the reference's
@pytest.mark.parametrize("members", [1, 12, 13, 48, 49, 192, 193])
def test_any_number_of_members(members: int, kernels: torch.device) -> None:
    check(random_logits(members, 1, 3, 4, 6), Grid(2, 2, 15, 23), (16, 24), True, kernels)


@pytest.mark.parametrize("classes", [1, 256])
def test_any_number_of_classes(classes: int, kernels: torch.device) -> None:
    check(random_logits(5, 1, classes, 4, 6), Grid(2, 2, 15, 23), (16, 24), False, kernels)


def test_one_member_is_patch_entropy(kernels: torch.device) -> None:
    logits, grid = random_logits(2, 11, 12, 16).to(kernels), Grid(3, 4, 45, 61)
    entropy = cuda.patch_entropy(logits, grid, (48, 64), True)
    for found in cuda.patch_committee(logits[None], grid, (48, 64), True):
        assert float((found - entropy).abs().max()) <= 1e-6


def test_sure_members_that_differ_tell_log_t(kernels: torch.device) -> None:
    logits = 60 * torch.eye(5).view(5, 1, 5, 1, 1).expand(-1, -1, -1, 2, 3)
    found = cuda.patch_committee(logits.to(kernels), Grid(1, 2, 6, 9), (6, 9), True)
    torch.testing.assert_close(found.total.cpu(), torch.full((1, 2), math.log(5)), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.expected.cpu(), torch.zeros(1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [20.0, 80.0])
@pytest.mark.parametrize("kind", ["normal", "signs"])
def test_extreme_logits(scale: float, kind: str, kernels: torch.device) -> None:
    logits = random_logits(3, 1, 11, 8, 8, scale=1)
    logits = (scale * (logits.sign() if kind == "signs" else logits)).clamp(-80, 80)
    for patches in (2, 16):
        check(logits, Grid(patches, patches, 32, 32), (32, 32), False, kernels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_a_class_masked_by_the_least_number_counts_as_none(
    dtype: torch.dtype, temperature: float, kernels: torch.device
) -> None:
    grid, others = Grid(2, 2, 30, 40), random_logits(3, 2, 4, 8, 10, scale=1).to(dtype)
    masked = torch.cat([others, torch.full_like(others[:, :, :1], torch.finfo(dtype).min)], dim=2)
    actual = cuda.patch_committee(masked.to(kernels), grid, (30, 40), True, temperature=temperature)
    expected = reference.patch_committee(others.double(), grid, (30, 40), True, temperature=temperature)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other.float(), rtol=0, atol=4e-6)


def test_nan_reaches_its_patch_and_not_what_is_not_valid(kernels: torch.device) -> None:
    grid, clean = Grid(2, 2, 64, 64), random_logits(2, 2, 3, 16, 16)
    logits = clean.clone()
    logits[0, 1, 2, 1, 14] = torch.nan  # deep inside the top-right patch of the second image
    valid = torch.ones(64, 64, dtype=torch.uint8)
    valid[:32, 32:] = 0
    seen, finite, masked = (
        torch.stack(
            cuda.patch_committee(
                x.to(kernels), grid, (64, 64), False, valid=None if v is None else v.to(kernels)
            )
        ).cpu()
        for x, v in ((logits, None), (clean, None), (logits, valid))
    )
    for one, other in zip(seen, finite, strict=True):
        assert one.isnan().flatten().nonzero().flatten().tolist() == [5]
        assert torch.equal(one[~one.isnan()], other[~one.isnan()])
    assert masked[..., 1].tolist() == [[0, 0], [0, 0]]
    assert torch.equal(masked[..., [0, 2, 3]], finite[..., [0, 2, 3]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_the_same_bits_again_in_any_batch_and_layout(
    dtype: torch.dtype, kernels: torch.device
) -> None:
    logits = random_logits(2, 5, 19, 12, 16).to(dtype).to(kernels)
    grid = Grid(3, 4, 45, 61)
    whole = torch.stack(cuda.patch_committee(logits, grid, (48, 64), True))
    last = logits.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert torch.equal(torch.stack(cuda.patch_committee(last, grid, (48, 64), True)), whole)
    for size in (1, 2):
        parts = [
            torch.stack(cuda.patch_committee(part, grid, (48, 64), True)) for part in logits.split(size, 1)
        ]
        assert torch.equal(torch.cat(parts, dim=1), whole)
    assert cuda.patch_committee(logits[:, :0], grid, (48, 64), True).total.shape == (0, 12)


def test_the_order_of_the_threads_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, kernels: torch.device
) -> None:
    if kernels.type != "cpu":
        pytest.skip("only the CPU's threads can be reversed")
    logits, grid = random_logits(3, 1, 7, 12, 16), Grid(2, 2, 48, 64)
    expected = torch.stack(cuda.patch_committee(logits, grid, (48, 64), True))
    monkeypatch.setattr(harness, "reversed_order", True)
    assert torch.equal(torch.stack(cuda.patch_committee(logits, grid, (48, 64), True)), expected)


def test_float64_logits_are_left_to_the_reference(kernels: torch.device) -> None:
    logits, grid = random_logits(2, 1, 5, 6, 8).double(), Grid(2, 2, 24, 32)
    actual = torch.stack(cuda.patch_committee(logits.to(kernels), grid, (24, 32), True))
    expected = torch.stack(reference.patch_committee(logits, grid, (24, 32), True))
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("logits", "valid", "told"),
    [
        (torch.zeros(1, 3, 4, 4), None, r"must be \[T, B, C, h, w\] with T from 1 on, got \[1, 3, 4, 4\]"),
        (torch.zeros(0, 1, 3, 4, 4), None, r"T from 1 on, got \[0, 1, 3, 4, 4\]"),
        (torch.zeros(2, 1, 257, 4, 4), None, "257 classes, 1 to 256"),
        (torch.zeros(2, 1, 3, 4, 4), torch.ones(8, 4, dtype=torch.uint8), r"valid must be .* got \[8, 4\]"),
    ],
)
def test_wrong_input_is_named(
    logits: torch.Tensor, valid: torch.Tensor | None, told: str, kernels: torch.device
) -> None:
    valid = None if valid is None else valid.to(kernels)
    with pytest.raises(InputError, match=told):
        cuda.patch_committee(logits.to(kernels), Grid(2, 2, 8, 8), (8, 8), True, valid=valid)


@settings(deadline=None, max_examples=15)
@given(case=cases(), members=st.integers(1, 5), seed=st.integers(0, 99))
def test_any_shape_agrees_with_float64(
    case: tuple[torch.Tensor, Grid, tuple[int, int], bool], members: int, seed: int, kernels: torch.device
) -> None:
    logits, *geometry = case
    noise = random_logits(members, *logits.shape, scale=1, seed=seed).to(logits.dtype)
    check((logits + noise).clamp(-80, 80), *geometry, kernels)
