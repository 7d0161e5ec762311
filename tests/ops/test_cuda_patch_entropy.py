"""The entropy kernel against float64: on a GPU, or its source executed on the CPU."""

import math

import pytest
import torch
from cuda_on_cpu import harness
from hypothesis import given, settings
from hypothesis import strategies as st
from test_patch_entropy import SHAPES, plain, random_logits

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ops import MEASURES, cuda, reference

# Absolute, per patch, in nats. A mean over few pixels, or over pixels of few cells, averages little rounding
# away, and float32 resolves logits of 80 to 8e-6 only.
TOLERANCE = 1e-6
FEW_PIXELS = 16


def tolerance_of_few(logits: torch.Tensor) -> float:
    return 2e-6 + 4e-8 * float(logits.nan_to_num(0, 0, 0).abs().max()) if logits.numel() else 2e-6


DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    device: torch.device,
    **options: object,
) -> torch.Tensor:
    """The kernel's result, after it was found within tolerance of float64 arithmetic on the same logits."""
    on_device = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in options.items()
    }
    actual = cuda.patch_entropy(logits.to(device), grid, padded, align_corners, **on_device).cpu()  # type: ignore[arg-type]
    expected = reference.patch_entropy(logits.double(), grid, padded, align_corners, **options)  # type: ignore[arg-type]
    assert (actual.shape, actual.dtype) == ((len(logits), grid.patches_per_image), torch.float32)
    few = reference.patch_pixels(grid, None, logits.device) < FEW_PIXELS
    few |= logits[0, 0].numel() < FEW_PIXELS * grid.patches_per_image if len(logits) else False
    limit = torch.where(few, tolerance_of_few(logits), TOLERANCE)
    excess = ((actual - expected).abs() / limit).max()
    assert float(excess) <= 1, f"{float(excess):.2f} times the tolerance"
    return actual


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in SHAPES]
    + [(name, dtype) for name in ("stride 4", "padded both") for dtype in DTYPES[1:]],
)
def test_float64_is_met(
    name: str, dtype: torch.dtype, align_corners: bool, channels_last: bool, kernels: torch.device
) -> None:
    low, padded, grid = SHAPES[name]
    logits = random_logits(2, 11, *low).to(dtype)
    if channels_last:
        logits = logits.to(memory_format=torch.channels_last)
    check(logits, grid, padded, align_corners, kernels)


def test_the_reference_is_met_against_a_definition_of_its_own(kernels: torch.device) -> None:
    low, padded, grid = SHAPES["padded both"]
    logits = random_logits(2, 19, *low)
    actual = cuda.patch_entropy(logits.to(kernels), grid, padded, True).cpu()
    assert float((actual - plain(logits, grid, padded, True, torch.float64)).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("temperature", [1.0, 0.25, 7.0])
def test_measures_and_temperature(measure: str, temperature: float, kernels: torch.device) -> None:
    low, padded, grid = SHAPES["padded both"]
    logits = random_logits(2, 11, *low)
    check(logits, grid, padded, True, kernels, measure=measure, temperature=temperature)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("classes", [1, 2])
def test_one_class_is_certain_and_two_that_agree_are_not(
    measure: str, classes: int, kernels: torch.device
) -> None:
    scores = cuda.patch_entropy(
        torch.zeros(1, classes, 4, 8, device=kernels), Grid(2, 2, 16, 32), (16, 32), True, measure=measure
    )
    worst = {"entropy": math.log(2), "margin": 1.0, "least-confidence": 0.5}[measure] if classes == 2 else 0.0
    torch.testing.assert_close(scores.cpu(), torch.full((1, 4), worst), rtol=3e-7, atol=0)


def test_rounding_does_not_make_certainty_negative(kernels: torch.device) -> None:
    # steep slopes: pixels that are sure of a class which is not the winner at either node
    logits = random_logits(2, 2, 8, 8, scale=20)
    scores = check(logits, Grid(32, 32, 32, 32), (32, 32), True, kernels)
    assert float(scores.min()) >= 0


def test_only_valid_pixels_count(kernels: torch.device) -> None:
    grid = Grid(2, 3, 30, 45)
    logits = random_logits(2, 11, 8, 12)
    valid = (torch.rand(30, 45, generator=torch.Generator().manual_seed(1)) < 0.6).to(torch.uint8)
    valid[15:, :15] = 0
    logits[:, :, 6:, :2] = math.nan  # seen by pixels of that patch only
    scores = check(logits, grid, (32, 48), True, kernels, valid=valid)
    assert scores[:, 3].tolist() == [0, 0]
    assert bool((scores[:, [0, 1, 2, 4, 5]] > 0).all())


@pytest.mark.parametrize("classes", [64, 256])
def test_many_classes(classes: int, kernels: torch.device) -> None:
    for channels_last in (False, True):
        logits = random_logits(1, classes, 12, 40)
        if channels_last:
            logits = logits.to(memory_format=torch.channels_last)
        check(logits, Grid(2, 3, 30, 100), (30, 100), True, kernels)


@pytest.mark.parametrize("scale", [10.0, 20.0, 40.0, 58.0, 80.0])
@pytest.mark.parametrize("kind", ["normal", "signs", "one-hot"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_extreme_logits(scale: float, kind: str, align_corners: bool, kernels: torch.device) -> None:
    # Neighbouring nodes have different winners everywhere: without the guards this is NaN, or loses classes
    logits = random_logits(2, 11, 8, 8, scale=1)
    if kind == "signs":
        logits = logits.sign()
    elif kind == "one-hot":
        logits = (logits == logits.amax(dim=1, keepdim=True)).float()
    for grid in (Grid(2, 2, 32, 32), Grid(8, 8, 32, 32), Grid(32, 32, 32, 32)):
        check((logits * scale).clamp(-80, 80), grid, (32, 32), align_corners, kernels)


def test_a_class_that_rises_from_below_the_float_range_is_not_lost(kernels: torch.device) -> None:
    # From left to right class 1 climbs by 167 bits and overtakes class 0, which stays in float's range
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1, :, 0], logits[0, 0, :, 1], logits[0, 2] = -116.0, -20.0, -30.0
    check(logits, Grid(1, 1, 8, 8), (8, 8), False, kernels)
    check(logits.flip(3), Grid(1, 1, 8, 8), (8, 8), False, kernels)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_not_finite_makes_nan_where_it_reaches_and_nowhere_else(
    bad: float, align_corners: bool, measure: str, kernels: torch.device
) -> None:
    clean = random_logits(2, 3, 16, 16)
    logits = clean.clone()
    logits[1, 2, 1, 14] = bad  # deep inside the top-right patch of the second image
    grid = Grid(2, 2, 64, 64)
    scores, finite = (
        cuda.patch_entropy(x.to(kernels), grid, (64, 64), align_corners, measure=measure).cpu()
        for x in (logits, clean)
    )
    assert scores.isnan().flatten().nonzero().flatten().tolist() == [5]
    assert torch.equal(scores[~scores.isnan()], finite[~scores.isnan()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_a_class_masked_by_the_least_number_counts_as_none(
    dtype: torch.dtype, channels_last: bool, measure: str, temperature: float, kernels: torch.device
) -> None:
    grid, others = Grid(2, 2, 30, 40), random_logits(2, 4, 8, 10, scale=1).to(dtype)
    masked = torch.cat([others, torch.full_like(others[:, :1], torch.finfo(dtype).min)], dim=1)
    if channels_last:
        masked = masked.contiguous(memory_format=torch.channels_last)
    options = {"measure": measure, "temperature": temperature}
    actual = cuda.patch_entropy(masked.to(kernels), grid, (30, 40), True, **options).cpu()  # type: ignore[arg-type]
    expected = reference.patch_entropy(others.double(), grid, (30, 40), True, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(actual, expected.float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_the_same_bits_again_in_any_batch_and_in_either_layout(
    dtype: torch.dtype, kernels: torch.device
) -> None:
    logits = random_logits(5, 19, 12, 16).to(dtype).to(kernels)
    grid = Grid(3, 4, 45, 61)
    whole = cuda.patch_entropy(logits, grid, (48, 64), True)
    assert torch.equal(cuda.patch_entropy(logits, grid, (48, 64), True), whole)
    for size in (1, 2, 3):
        parts = [cuda.patch_entropy(part, grid, (48, 64), True) for part in logits.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    other = logits.to(memory_format=torch.channels_last)
    assert torch.equal(cuda.patch_entropy(other, grid, (48, 64), True), whole)
    assert cuda.patch_entropy(logits[:0], grid, (48, 64), True).shape == (0, 12)


@pytest.mark.parametrize("view", ["offset", "strided", "transposed", "flipped"])
def test_any_strides_will_do(view: str, kernels: torch.device) -> None:
    big = random_logits(3, 12, 12, 20).half()
    logits = {
        "offset": big.flatten()[1 : 1 + 2 * 11 * 8 * 16].view(2, 11, 8, 16),  # not aligned to 16 bytes
        "strided": big[::2, 1:, ::2, 1:17],
        "transposed": big.transpose(2, 3)[:2],
        "flipped": big.flip(3),
    }[view].to(kernels)
    if view == "offset" and kernels.type == "cuda":  # .to() made it aligned
        logits = torch.cat([logits.new_zeros(1), logits.flatten()])[1:].view(logits.shape)
    height, width = 4 * logits.shape[2], 4 * logits.shape[3]
    expected = cuda.patch_entropy(
        logits.clone().contiguous(), Grid(2, 2, height, width), (height, width), True
    )
    actual = cuda.patch_entropy(logits, Grid(2, 2, height, width), (height, width), True)
    # another tiling may round differently
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


def test_logits_are_read_about_once(kernels: torch.device) -> None:
    if kernels.type != "cpu":
        pytest.skip("traffic is counted where the CPU executes the kernel")
    logits = random_logits(1, 19, 64, 128).half()
    scores = cuda.patch_entropy(logits, Grid(4, 4, 256, 512), (256, 512), True)
    (read, _), *tables, (_, written) = harness.traffic["cell_sums"]
    # tiles share the nodes at their borders
    assert logits.nbytes <= read <= 1.5 * logits.nbytes
    assert len(tables) == 4
    # a cell is 16 pixels or, where a patch or a cell of the grid ends, fewer
    assert 256 * 512 / 16 * 4 <= written <= 1.15 * 256 * 512 / 16 * 4
    assert sum(w for _, w in harness.traffic["patch_means"]) == scores.nbytes


def test_the_order_of_the_threads_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, kernels: torch.device
) -> None:
    if kernels.type != "cpu":
        pytest.skip("only the CPU's threads can be reversed")
    logits, grid = random_logits(1, 40, 12, 16), Grid(2, 2, 48, 64)
    expected = cuda.patch_entropy(logits, grid, (48, 64), True)
    monkeypatch.setattr(harness, "reversed_order", True)
    assert torch.equal(cuda.patch_entropy(logits, grid, (48, 64), True), expected)


def test_float64_logits_are_left_to_the_reference(kernels: torch.device) -> None:
    logits = random_logits(1, 5, 6, 8).double()
    actual = cuda.patch_entropy(logits.to(kernels), Grid(2, 2, 24, 32), (24, 32), True)
    assert actual.dtype == torch.float64
    expected = reference.patch_entropy(logits, Grid(2, 2, 24, 32), (24, 32), True)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("logits", "valid", "told"),
    [
        (torch.zeros(3, 4, 4), None, "logits must be .B, C, h, w. .* got .3, 4, 4. torch.float32"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int32), None, "torch.int32"),
        (torch.zeros(1, 257, 4, 4), None, "257 classes, 1 to 256"),
        (
            torch.zeros(1, 3, 4, 4),
            torch.ones(8, 4, dtype=torch.uint8),
            r"valid must be \[8, 8\] .* got \[8, 4\]",
        ),
        (torch.zeros(1, 3, 4, 4), torch.ones(8, 8), "got .* torch.float32"),
    ],
)
def test_wrong_input_is_named_before_anything_is_launched(
    logits: torch.Tensor, valid: torch.Tensor | None, told: str, kernels: torch.device
) -> None:
    valid = None if valid is None else valid.to(kernels)
    with pytest.raises(InputError, match=told):
        cuda.patch_entropy(logits.to(kernels), Grid(2, 2, 8, 8), (8, 8), True, valid=valid)


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, Grid, tuple[int, int], bool]:
    """Logits of any layout and size, ordinary or extreme, and a grid that may be ragged and padded."""
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 80))
    rows, columns = draw(st.integers(1, height)), draw(st.integers(1, width))
    fit_rows, fit_columns = (-(-n // -(-n // k)) for n, k in ((height, rows), (width, columns)))
    padded = height + draw(st.integers(0, 15)), width + draw(st.integers(0, 15))
    # every class count is a compilation of its own
    classes = draw(st.sampled_from([1, 2, 7, 19, 64]))
    logits = random_logits(draw(st.integers(1, 3)), classes, h, w, scale=1, seed=draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["normal", "signs", "one-hot", "equal"]))
    if kind == "signs":
        logits = logits.sign()
    elif kind == "one-hot":
        logits = (logits == logits.amax(dim=1, keepdim=True)).float()
    elif kind == "equal":
        logits = torch.ones_like(logits)
    logits = (logits * draw(st.sampled_from([0.1, 3.0, 20.0, 80.0]))).to(draw(st.sampled_from(DTYPES)))
    if draw(st.booleans()):
        logits = logits.to(memory_format=torch.channels_last)
    return logits, Grid(fit_rows, fit_columns, height, width), padded, draw(st.booleans())


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_any_shape_agrees_with_float64(
    case: tuple[torch.Tensor, Grid, tuple[int, int], bool], kernels: torch.device
) -> None:
    logits = case[0]
    scores = check(*case, kernels)
    assert bool(((scores >= 0) & (scores <= math.log(logits.shape[1]) + tolerance_of_few(logits))).all())
