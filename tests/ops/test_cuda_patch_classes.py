"""The kernel of the classes of patches against float64: on a GPU, or its source executed on the CPU."""

import pytest
import torch
from cuda_on_cpu import harness
from hypothesis import given, settings
from test_cuda_patch_entropy import DTYPES, cases
from test_patch_classes import apart
from test_patch_entropy import SHAPES, random_logits

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ops import PatchClasses, cuda, reference


def tolerance(logits: torch.Tensor) -> float:
    """float32 resolves logits of 80 to 8e-6 only, and a patch may be one pixel."""
    return 1e-6 + (1e-7 * float(logits.abs().max()) if logits.numel() else 0)


def check(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    device: torch.device,
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> PatchClasses:
    """The kernel's result, after it was found to be that of float64 where float32 can tell."""
    told = apart(logits, padded, align_corners, (grid.height, grid.width)) if len(logits) else valid
    valid = told if valid is None or told is None else told & (valid != 0)
    actual = cuda.patch_classes(
        logits.to(device), grid, padded, align_corners, temperature=temperature,
        valid=None if valid is None else valid.to(device),
    )  # fmt: skip
    actual = PatchClasses(*(each.cpu() for each in actual))
    expected = reference.patch_classes(
        logits.double(), grid, padded, align_corners, temperature=temperature, valid=valid
    )
    assert (actual.probabilities.dtype, actual.counts.dtype) == (torch.float32, torch.int32)
    assert float((actual.probabilities - expected.probabilities).abs().max()) <= tolerance(logits)
    assert torch.equal(actual.counts, expected.counts)
    return actual


@pytest.mark.parametrize("columns", [[1, 2], [2, 1]])
def test_a_class_masked_by_the_least_number_at_opposite_corners_of_a_cell(
    columns: list[int], kernels: torch.device
) -> None:
    """Its slopes there are no further apart than float32 reaches: the difference of differences is."""
    logits = random_logits(1, 5, 6, 6)
    logits[0, 2, [1, 2], columns] = torch.finfo(torch.float32).min
    grid = Grid(1, 1, 21, 21)
    actual = cuda.patch_classes(logits.to(kernels), grid, (21, 21), True)
    expected = reference.patch_classes(logits, grid, (21, 21), True)
    torch.testing.assert_close(actual.probabilities.cpu(), expected.probabilities, rtol=0, atol=1e-6)
    assert torch.equal(actual.counts.cpu(), expected.counts)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in SHAPES] + [("padded both", dtype) for dtype in DTYPES[1:]],
)
def test_float64_is_met(name: str, dtype: torch.dtype, align_corners: bool, kernels: torch.device) -> None:
    low, padded, grid = SHAPES[name]
    check(random_logits(2, 11, *low).to(dtype), grid, padded, align_corners, kernels)


@pytest.mark.parametrize("temperature", [0.25, 7.0])
def test_temperature(temperature: float, kernels: torch.device) -> None:
    low, padded, grid = SHAPES["ragged"]
    check(random_logits(2, 11, *low), grid, padded, True, kernels, temperature)


@pytest.mark.parametrize("classes", [1, 33, 256])
def test_any_number_of_classes_and_patches_of_many_blocks(classes: int, kernels: torch.device) -> None:
    # the left patch has more cells than a block has threads, the right one fewer blocks than the left
    check(random_logits(1, classes, 32, 40), Grid(1, 2, 96, 119), (96, 119), True, kernels)


def test_the_lowest_of_equal_classes_wins(kernels: torch.device) -> None:
    logits = random_logits(1, 1, 6, 8).expand(1, 5, 6, 8).clone()
    logits[:, 0] -= 1
    found = cuda.patch_classes(logits.to(kernels), Grid(1, 1, 24, 32), (24, 32), True)
    assert found.counts.tolist() == [[[0, 24 * 32, 0, 0, 0]]]


def test_pixels_go_where_confusion_has_them(kernels: torch.device) -> None:
    logits = random_logits(2, 19, 8, 12).bfloat16().to(kernels)
    labels = torch.zeros(2, 32, 48, dtype=torch.uint8, device=kernels)
    counts = cuda.patch_classes(logits, Grid(1, 1, 32, 48), (32, 48), True, temperature=3.0).counts
    assert torch.equal(counts.sum(dim=(0, 1)), cuda.confusion(logits, labels, (32, 48), True, 255)[0])


@pytest.mark.parametrize("scale", [20.0, 80.0])
@pytest.mark.parametrize("kind", ["normal", "signs"])
def test_extreme_logits(scale: float, kind: str, kernels: torch.device) -> None:
    logits = random_logits(2, 11, 8, 8, scale=1)
    logits = (scale * (logits.sign() if kind == "signs" else logits)).clamp(-80, 80)
    for patches in (2, 16):
        check(logits, Grid(patches, patches, 32, 32), (32, 32), False, kernels)


def test_nan_reaches_its_patch_and_not_what_is_not_valid(kernels: torch.device) -> None:
    grid, clean = Grid(2, 2, 64, 64), random_logits(2, 3, 16, 16)
    logits = clean.clone()
    logits[1, 2, 1, 14] = torch.nan  # deep inside the top-right patch of the second image
    seen, finite = (
        cuda.patch_classes(x.to(kernels), grid, (64, 64), False).probabilities.cpu() for x in (logits, clean)
    )
    assert seen.isnan().flatten(0, 1).all(dim=1).nonzero().flatten().tolist() == [5]
    assert torch.equal(seen[~seen.isnan()], finite[~seen.isnan()])
    valid = torch.ones(64, 64, dtype=torch.uint8)
    valid[:32, 32:] = 0
    masked = cuda.patch_classes(logits.to(kernels), grid, (64, 64), False, valid=valid.to(kernels))
    assert not bool(masked.probabilities[:, 1].any()) and not bool(masked.counts[:, 1].any())
    assert bool(masked.probabilities.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_the_same_bits_again_in_any_batch_and_layout(
    dtype: torch.dtype, kernels: torch.device
) -> None:
    logits = random_logits(5, 19, 12, 16).to(dtype).to(kernels)
    grid = Grid(3, 4, 45, 61)
    whole = cuda.patch_classes(logits, grid, (48, 64), True)
    last = logits.to(memory_format=torch.channels_last)
    for found in (
        cuda.patch_classes(last, grid, (48, 64), True),
        *(
            [torch.cat(both) for both in zip(*parts, strict=True)]
            for size in (1, 2)
            for parts in [
                [cuda.patch_classes(part, grid, (48, 64), True) for part in logits.split(size)],
            ]
        ),
    ):
        assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))
    assert cuda.patch_classes(logits[:0], grid, (48, 64), True).counts.shape == (0, 12, 19)


def test_the_order_of_the_threads_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, kernels: torch.device
) -> None:
    if kernels.type != "cpu":
        pytest.skip("only the CPU's threads can be reversed")
    logits, grid = random_logits(1, 40, 12, 16), Grid(1, 2, 48, 64)
    expected = cuda.patch_classes(logits, grid, (48, 64), True)
    monkeypatch.setattr(harness, "reversed_order", True)
    found = cuda.patch_classes(logits, grid, (48, 64), True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_float64_logits_are_left_to_the_reference(kernels: torch.device) -> None:
    logits, grid = random_logits(1, 5, 6, 8).double(), Grid(2, 2, 24, 32)
    actual = cuda.patch_classes(logits.to(kernels), grid, (24, 32), True)
    expected = reference.patch_classes(logits, grid, (24, 32), True)
    torch.testing.assert_close(actual.probabilities.cpu(), expected.probabilities, rtol=0, atol=1e-14)
    assert torch.equal(actual.counts.cpu(), expected.counts)


@pytest.mark.parametrize(
    ("logits", "valid", "told"),
    [
        (torch.zeros(3, 4, 4), None, "logits must be .B, C, h, w. .* got .3, 4, 4. torch.float32"),
        (torch.zeros(1, 257, 4, 4), None, "257 classes, 1 to 256"),
        (torch.zeros(1, 3, 4, 4), torch.ones(8, 4, dtype=torch.uint8), r"valid must be .* got \[8, 4\]"),
        (torch.zeros(1, 3, 4, 4), torch.ones(8, 8), "got .* torch.float32"),
    ],
)
def test_wrong_input_is_named(
    logits: torch.Tensor, valid: torch.Tensor | None, told: str, kernels: torch.device
) -> None:
    valid = None if valid is None else valid.to(kernels)
    with pytest.raises(InputError, match=told):
        cuda.patch_classes(logits.to(kernels), Grid(2, 2, 8, 8), (8, 8), True, valid=valid)


@settings(deadline=None, max_examples=15)
@given(case=cases())
def test_any_shape_agrees_with_float64(
    case: tuple[torch.Tensor, Grid, tuple[int, int], bool], kernels: torch.device
) -> None:
    found = check(*case, kernels)
    assert bool((found.probabilities >= 0).all())
