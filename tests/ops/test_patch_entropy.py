"""Patch entropy against values by hand and a plain float64 pipeline: the reference, and its CPU twin."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ops import Ops, public, reference
from meal_gpu.ops.public import patch_entropy

# (logits' h, w), (padded H', W'), grid over the (H, W) that count
SHAPES = {
    "stride 4": ((8, 16), (32, 64), Grid(4, 4, 32, 64)),
    "one patch": ((8, 16), (32, 64), Grid(1, 1, 32, 64)),
    "no upsampling": ((32, 64), (32, 64), Grid(4, 4, 32, 64)),
    "ragged": ((5, 7), (21, 30), Grid(2, 4, 21, 30)),
    "a patch of one pixel": ((3, 3), (5, 5), Grid(3, 5, 5, 5)),
    "padded rows": ((6, 8), (24, 32), Grid(3, 4, 18, 32)),
    "padded both": ((6, 8), (24, 32), Grid(3, 4, 18, 29)),
    "not square": ((4, 10), (9, 50), Grid(3, 5, 9, 50)),
    "one logit": ((1, 1), (6, 6), Grid(2, 2, 6, 6)),
    "one pixel": ((1, 1), (1, 1), Grid(1, 1, 1, 1)),
}


@pytest.fixture(scope="module", autouse=True)
def implementation(on_cpu: Ops) -> Iterator[Ops]:
    """What the public function calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "_ops_for", lambda _: on_cpu)
        yield on_cpu


def random_logits(*shape: int, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(
    logits: torch.Tensor, grid: Grid, padded: tuple[int, int], align_corners: bool, dtype: torch.dtype
) -> torch.Tensor:
    """The definition, step by step at full size: upsample, cut, softmax, entropy, mean of each slice."""
    full = F.interpolate(logits.to(dtype), size=padded, mode="bilinear", align_corners=align_corners)
    log_p = full[..., : grid.height, : grid.width].log_softmax(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    boxes = grid.boxes(range(grid.patches_per_image))
    patches = [entropy[:, top:bottom, left:right].mean(dim=(1, 2)) for left, top, right, bottom in boxes]
    return torch.stack(patches, dim=1)


@pytest.mark.parametrize("classes", [2, 11, 19, 256])
@pytest.mark.parametrize("level", [0.0, 7.5])
def test_uniform_logits_give_log_c(classes: int, level: float) -> None:
    entropy = patch_entropy(torch.full((2, classes, 8, 8), level), size=(32, 32))
    assert entropy.shape == (2, 16)
    torch.testing.assert_close(entropy, torch.full((2, 16), math.log(classes)), rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("classes", [2, 11, 19])
@pytest.mark.parametrize("sure", [200.0, 1e30])
def test_certain_logits_give_0(classes: int, sure: float) -> None:
    logits = torch.zeros(1, classes, 8, 8)
    logits[:, 1] = sure
    assert torch.equal(patch_entropy(logits, size=(32, 32)), torch.zeros(1, 16))


def test_hand_computed_patches() -> None:
    # Left half: fifty-fifty. Right half: 3 to 1. No upsampling, so nothing mixes.
    logits = torch.zeros(1, 2, 2, 4)
    logits[0, 1, :, 2:] = math.log(3)
    three_to_one = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(
        patch_entropy(logits, grid=(1, 4)), torch.tensor([[*2 * [math.log(2)], *2 * [three_to_one]]])
    )
    mean = (math.log(2) + three_to_one) / 2
    torch.testing.assert_close(patch_entropy(logits, grid=(2, 1)), torch.tensor([[mean, mean]]))


@pytest.mark.parametrize(
    ("measure", "temperature", "expected"),
    [
        # p = 0.6, 0.3, 0.1; at temperature 1/2 it is 36/46, 9/46, 1/46
        ("entropy", 1.0, -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))),
        ("margin", 1.0, 0.7),
        ("least-confidence", 1.0, 0.4),
        ("margin", 0.5, 1 - 27 / 46),
        ("least-confidence", 0.5, 10 / 46),
    ],
)
def test_measures_by_hand(measure: str, temperature: float, expected: float) -> None:
    logits = torch.tensor([0.3, 0.6, 0.1]).log().view(1, 3, 1, 1).expand(2, 3, 4, 4)
    scores = patch_entropy(logits, size=(16, 16), measure=measure, temperature=temperature)
    torch.testing.assert_close(scores, torch.full((2, 16), expected))


def test_only_valid_pixels_count() -> None:
    logits = random_logits(2, 5, 4, 6)
    valid = torch.zeros(4, 6, dtype=torch.uint8)
    valid[0, :2], valid[3, 5] = 1, 7
    each = patch_entropy(logits, grid=(4, 6)).view(2, 4, 6)
    expected = torch.stack([each[:, 0, :2].mean(1), *2 * [torch.zeros(2)], each[:, 3, 5]], dim=1)
    scores = patch_entropy(logits, grid=(2, 2), valid=valid)
    torch.testing.assert_close(scores, expected)
    assert torch.equal(patch_entropy(logits, grid=(2, 2), valid=valid.bool()), scores)


def test_patches_are_in_the_order_of_the_grid() -> None:
    logits = torch.zeros(2, 2, 4, 6)
    logits[1, 0, 2:, 2:4] = 50.0  # certain in row 1, column 1 of the second image only
    entropy = patch_entropy(logits, grid=(2, 3))
    certain = int(Grid(2, 3, 4, 6).patch_id(1, 1, 1))
    assert (entropy.flatten() < 1e-6).nonzero().flatten().tolist() == [certain]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("classes", [2, 11, 19])
def test_float32_is_within_1e_6_of_float64(name: str, classes: int, align_corners: bool, on_cpu: Ops) -> None:
    low, padded, grid = SHAPES[name]
    logits = random_logits(2, classes, *low)
    expected = plain(logits, grid, padded, align_corners, torch.float64)
    actual = on_cpu.patch_entropy(logits, grid, padded, align_corners)
    assert (actual.shape, actual.dtype) == ((2, grid.patches_per_image), torch.float32)
    assert float((actual - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_float64_logits_are_computed_in_float64(name: str, align_corners: bool, on_cpu: Ops) -> None:
    low, padded, grid = SHAPES[name]
    logits = random_logits(1, 11, *low).double()
    actual = on_cpu.patch_entropy(logits, grid, padded, align_corners)
    assert actual.dtype == torch.float64
    expected = plain(logits, grid, padded, align_corners, torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_lose_nothing_more(dtype: torch.dtype, on_cpu: Ops) -> None:
    low, padded, grid = SHAPES["padded both"]
    rounded = random_logits(2, 19, *low).to(dtype)
    actual = on_cpu.patch_entropy(rounded, grid, padded, True)
    assert actual.dtype == torch.float32
    assert float((actual - plain(rounded, grid, padded, True, torch.float64)).abs().max()) <= 1e-6


@pytest.mark.parametrize("scale", [10.0, 80.0])
def test_extreme_logits_are_no_worse_than_plain_float32(scale: float, on_cpu: Ops) -> None:
    low, padded, grid = SHAPES["stride 4"]
    logits = random_logits(2, 19, *low).sign() * scale
    expected = plain(logits, grid, padded, True, torch.float64)
    error = (on_cpu.patch_entropy(logits, grid, padded, True) - expected).abs().max()
    tolerated = (plain(logits, grid, padded, True, torch.float32) - expected).abs().max()
    assert float(error) <= max(1e-6, float(tolerated))


def test_coordinates_are_exact_at_full_size(on_cpu: Ops) -> None:
    # In float32 coordinates are off by 1e-4 of a cell at 2048 pixels, and entropy by more than 1e-6
    grid = Grid(1, 8, 4, 2048)
    logits = random_logits(1, 2, 1, 512, scale=20)
    expected = plain(logits, grid, (4, 2048), False, torch.float64)
    actual = on_cpu.patch_entropy(logits, grid, (4, 2048), False)
    assert float((actual - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], dim=-1)[..., 0],
        lambda x: x.flip(0).flip(0),
        lambda x: x[:1].expand(2, -1, -1, -1),
        lambda x: x.clone().requires_grad_(),
    ],
    ids=["channels last", "transposed", "strided", "flipped", "expanded", "with gradient"],
)
def test_memory_layout_does_not_matter(arrange: Callable[[torch.Tensor], torch.Tensor]) -> None:
    logits = random_logits(2, 11, 6, 8)
    arranged = arrange(logits)
    expected = patch_entropy(arranged.detach().contiguous().clone(), grid=(3, 4), size=(18, 29))
    actual = patch_entropy(arranged, grid=(3, 4), size=(18, 29))
    assert torch.equal(actual, expected)
    assert not actual.requires_grad


def test_input_is_left_alone() -> None:
    logits = random_logits(1, 3, 8, 8)
    before = logits.clone()
    patch_entropy(logits, size=(8, 8))
    patch_entropy(logits, size=(32, 32))
    assert torch.equal(logits, before)


def test_whole_numbers_of_any_kind_are_what_they_say() -> None:
    logits = random_logits(1, 5, 8, 8)
    expected = patch_entropy(logits, grid=(2, 2), size=(32, 32), temperature=2.0)
    given = {"grid": (np.int64(2), np.int32(2)), "size": (np.int64(32), torch.tensor(32))}
    assert torch.equal(patch_entropy(logits, **given, temperature=2), expected)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"size is \(height, width\), two whole numbers .*\(32\.0, 32\)"):
        patch_entropy(logits, size=(32.0, 32))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("align_corners", [True, False])
def test_what_is_not_finite_makes_nan_where_it_reaches_and_nowhere_else(
    bad: float, align_corners: bool
) -> None:
    logits = random_logits(2, 3, 16, 16)
    logits[1, 2, 1, 14] = bad  # deep inside the top-right patch of the second image
    entropy = patch_entropy(logits, grid=(2, 2), size=(64, 64), align_corners=align_corners)
    assert entropy.isnan().flatten().nonzero().flatten().tolist() == [5]
    clean = random_logits(2, 3, 16, 16)
    finite = patch_entropy(clean, grid=(2, 2), size=(64, 64), align_corners=align_corners)
    assert torch.equal(entropy[~entropy.isnan()], finite[~entropy.isnan()])


def test_all_infinite_logits_are_nan_rather_than_certain() -> None:
    for bad in (math.inf, -math.inf):
        assert bool(patch_entropy(torch.full((1, 3, 4, 4), bad)).isnan().all())


def test_padding_that_is_cut_away_does_not_count(on_cpu: Ops) -> None:
    logits = random_logits(1, 5, 8, 8)
    grid = Grid(2, 2, 20, 20)
    before = on_cpu.patch_entropy(logits, grid, (32, 32), True)
    logits[:, :, 6:] = math.nan
    logits[:, :, :, 6:] = math.nan
    assert torch.equal(on_cpu.patch_entropy(logits, grid, (32, 32), True), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_result_does_not_depend_on_the_batch_it_is_in(dtype: torch.dtype) -> None:
    logits = random_logits(5, 19, 6, 8).to(dtype)
    whole = patch_entropy(logits, size=(23, 31))
    for size in (1, 2, 3):
        parts = [patch_entropy(part, size=(23, 31)) for part in logits.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    assert patch_entropy(logits[:0], size=(23, 31)).shape == (0, 16)


@pytest.mark.parametrize("budget", [1, 19 * 31 * 4 * 2, 19 * 31 * 4 * 5 + 3, 1 << 40])
def test_the_band_size_does_not_change_results(
    budget: int, on_cpu: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_cpu is not reference:
        pytest.skip("tests/ops/test_cpu.py asks for more: equal bits")
    logits = random_logits(2, 19, 6, 8)
    expected = patch_entropy(logits, size=(23, 31))
    monkeypatch.setattr(reference, "BAND_BYTES", budget)
    # one rounding: torch's vector and tail code may differ by it, depending on where a band ends
    one_ulp = 2 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(patch_entropy(logits, size=(23, 31)), expected, rtol=0, atol=one_ulp)


class Largest(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return result


def test_no_full_size_tensor_of_all_classes_is_made() -> None:
    # Half of Cityscapes' size: the upsampled logits would be 19 · 512 · 1024 · 4 bytes = 38 MiB
    logits = random_logits(1, 19, 128, 256)
    with Largest() as largest:
        patch_entropy(logits, size=(512, 1024))
    # one float64 table of all rows and the source itself are all that scales with the image
    assert 0 < largest.bytes <= reference.BAND_BYTES


@pytest.mark.parametrize(
    ("logits", "arguments", "told"),
    [
        (torch.zeros(2, 4, 4), {}, ("[B, C, h, w]", "[2, 4, 4]")),
        (torch.zeros(1, 0, 4, 4), {}, ("[1, 0, 4, 4]",)),
        (torch.zeros(1, 2, 0, 4), {}, ("[1, 2, 0, 4]",)),
        (torch.zeros(1, 2, 4, 4, dtype=torch.int64), {}, ("floating point", "torch.int64")),
        (torch.zeros(1, 2, 4, 4, dtype=torch.bool), {}, ("floating point", "torch.bool")),
        (torch.zeros(1, 257, 4, 4), {}, ("257 classes", "256")),
        (torch.zeros(1, 1, 4, 4), {}, ("1 class", "always 0", "return two")),
        (torch.zeros(1, 2, 4, 4), {"size": (3, 8)}, ("(3, 8)", "(4, 4)")),
        (torch.zeros(1, 2, 4, 4), {"grid": (5, 4)}, ("5 rows", "4 pixels")),
        (torch.zeros(1, 2, 4, 4), {"grid": (0, 4)}, ("grid is (rows, columns)", "(0, 4)")),
        (torch.zeros(1, 2, 4, 4), {"grid": 4}, ("grid is (rows, columns), two whole numbers", "got 4")),
        (torch.zeros(1, 2, 4, 4), {"grid": (4, 4, 1)}, ("grid is (rows, columns)", "(4, 4, 1)")),
        (torch.zeros(1, 2, 4, 4), {"size": 16}, ("size is (height, width), two whole numbers", "got 16")),
        (torch.zeros(1, 2, 4, 4), {"size": (16,)}, ("size is (height, width)", "(16,)")),
        (np.zeros((1, 2, 4, 4)), {}, ("logits must be a torch.Tensor, got ndarray", "torch.from_numpy")),
        (torch.zeros(1, 2, 4, 4), {"valid": np.ones((4, 4), bool)}, ("valid must be a torch.Tensor",)),
        (torch.zeros(1, 2, 4, 4), {"measure": "bald"}, ("'bald'", "entropy, margin, least-confidence")),
        (torch.zeros(1, 2, 4, 4), {"temperature": 0.0}, ("positive", "0.0")),
        (torch.zeros(1, 2, 4, 4).to_sparse(), {}, ("logits must be dense, got torch.sparse_coo", "to_dense")),
        (torch.zeros(1, 2, 4, 4), {"temperature": "1"}, ("temperature must be a number", "'1'")),
        (torch.zeros(1, 2, 4, 4), {"temperature": math.nan}, ("positive", "nan")),
        (torch.zeros(1, 2, 4, 4), {"valid": torch.ones(4, 5, dtype=torch.uint8)}, ("[4, 4]", "[4, 5]")),
        (torch.zeros(1, 2, 4, 4), {"valid": torch.ones(4, 4)}, ("uint8 or bool", "torch.float32")),
    ],
)
def test_wrong_input_is_named(logits: torch.Tensor, arguments: dict[str, Any], told: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        patch_entropy(logits, **arguments)
    assert all(part in str(error.value) for part in told)


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, Grid, tuple[int, int], bool]:
    """Logits, a grid whose last patches may be ragged, and padding on both sides."""
    h, w = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    height, width = draw(st.integers(1, 25)), draw(st.integers(1, 25))
    rows, columns = draw(st.integers(1, height)), draw(st.integers(1, width))
    fit_rows, fit_columns = (-(-n // -(-n // k)) for n, k in ((height, rows), (width, columns)))
    padded = height + draw(st.integers(0, 15)), width + draw(st.integers(0, 15))
    logits = random_logits(1, draw(st.integers(2, 9)), h, w, seed=draw(st.integers(0, 99)))
    return logits, Grid(fit_rows, fit_columns, height, width), padded, draw(st.booleans())


@settings(deadline=None)
@given(cases())
def test_any_shape_agrees_with_float64(
    on_cpu: Ops, case: tuple[torch.Tensor, Grid, tuple[int, int], bool]
) -> None:
    logits, grid, padded, align_corners = case
    actual = on_cpu.patch_entropy(logits, grid, padded, align_corners)
    expected = plain(logits, grid, padded, align_corners, torch.float64)
    # a patch of one pixel has no mean to average rounding away: three roundings of log 9
    assert float((actual - expected).abs().max()) <= 2e-6
    assert bool(((actual >= 0) & (actual <= math.log(logits.shape[1]) + 1e-6)).all())


@settings(deadline=None)
@given(cases(), st.floats(-50, 50))
def test_softmax_symmetries(
    on_cpu: Ops, case: tuple[torch.Tensor, Grid, tuple[int, int], bool], shift: float
) -> None:
    logits, *rest = case
    entropy = on_cpu.patch_entropy(logits.double(), *rest)
    order = torch.randperm(logits.shape[1], generator=torch.Generator().manual_seed(0))
    for same in (logits.double() + shift, logits.double()[:, order]):
        torch.testing.assert_close(on_cpu.patch_entropy(same, *rest), entropy, rtol=0, atol=1e-10)
