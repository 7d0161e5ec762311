"""Classes of patches: cases by hand, then a definition of its own in float64, then what must always hold."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_patch_entropy import SHAPES, random_logits

from meal_gpu.grid import Grid
from meal_gpu.ops import Ops, PatchClasses, reference


def plain(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> PatchClasses:
    """Full-size float64 probabilities, patch by patch."""
    full = F.interpolate(logits.double(), size=padded, mode="bilinear", align_corners=align_corners)
    full = full[..., : grid.height, : grid.width]
    p, winners = (full / temperature).softmax(dim=1), F.one_hot(full.argmax(dim=1), logits.shape[1])
    counting = torch.ones(grid.height, grid.width, dtype=torch.bool) if valid is None else valid != 0
    means, counts = [], []
    for left, top, right, bottom in grid.boxes(range(grid.patches_per_image)):
        seen = counting[top:bottom, left:right]
        means.append(p[:, :, top:bottom, left:right][:, :, seen].sum(dim=2) / max(int(seen.sum()), 1))
        counts.append(winners[:, top:bottom, left:right][:, seen].sum(dim=1))
    return PatchClasses(torch.stack(means, dim=1), torch.stack(counts, dim=1).int())


def apart(
    logits: torch.Tensor, padded: tuple[int, int], align_corners: bool, size: tuple[int, int]
) -> torch.Tensor:
    """[H, W] bool: the two best classes differ by more than float32's rounding, in every image."""
    if logits.shape[1] == 1:
        return torch.ones(size, dtype=torch.bool)
    full = F.interpolate(logits.double(), size=padded, mode="bilinear", align_corners=align_corners)
    first, second = full[..., : size[0], : size[1]].topk(2, dim=1).values.unbind(1)
    return (first - second > 1e-5).all(dim=0)


def test_by_hand(on_cpu: Ops) -> None:
    # Two patches of 2×2 pixels, which are the logits themselves: log 3 against 0 is 3/4 against 1/4
    three = 1.0986123
    first = torch.tensor([[three, 0.0, 0.0, 0.0], [three, three, 0.0, -200.0]])
    logits = torch.stack([first, torch.zeros_like(first)])[None]
    found = on_cpu.patch_classes(logits, Grid(1, 2, 2, 4), (2, 4), True)
    torch.testing.assert_close(
        found.probabilities, torch.tensor([[[2.75 / 4, 1.25 / 4], [1.5 / 4, 2.5 / 4]]]), rtol=0, atol=1e-7
    )
    # of equals the lower
    assert found.counts.tolist() == [[[4, 0], [3, 1]]]
    assert (found.probabilities.dtype, found.counts.dtype) == (torch.float32, torch.int32)


def test_what_is_not_valid_does_not_count(on_cpu: Ops) -> None:
    logits = torch.tensor([[0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).view(1, 2, 1, 4)
    valid = torch.tensor([[1, 0, 0, 0]], dtype=torch.uint8)
    found = on_cpu.patch_classes(logits, Grid(1, 2, 1, 4), (1, 4), True, valid=valid)
    assert found.probabilities.tolist() == [[[0.5, 0.5], [0.0, 0.0]]]
    assert found.counts.tolist() == [[[1, 0], [0, 0]]]
    hidden = logits.clone()
    hidden[..., 2:] = torch.nan  # pixel 0 lies between the first two
    nan = on_cpu.patch_classes(hidden, Grid(1, 2, 1, 4), (1, 4), True, valid=valid != 0)
    assert all(torch.equal(a, b) for a, b in zip(nan, found, strict=True))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_float64_is_met(name: str, align_corners: bool, on_cpu: Ops) -> None:
    low, padded, grid = SHAPES[name]
    logits = random_logits(2, 11, *low)
    valid = apart(logits, padded, align_corners, (grid.height, grid.width))
    found = on_cpu.patch_classes(logits, grid, padded, align_corners, temperature=1.7, valid=valid)
    expected = plain(logits, grid, padded, align_corners, 1.7, valid)
    assert float((found.probabilities - expected.probabilities).abs().max()) <= 2e-6
    assert torch.equal(found.counts, expected.counts)


@settings(deadline=None, max_examples=25)
@given(
    low=st.tuples(st.integers(1, 6), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 70)),
    parts=st.tuples(st.integers(1, 20), st.integers(1, 70)),
    pad=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    classes=st.integers(1, 256),
    align_corners=st.booleans(),
    scale=st.sampled_from([0.1, 3.0, 80.0]),
)
def test_any_shape_agrees_with_float64_and_confusion(
    low: tuple[int, int], size: tuple[int, int], parts: tuple[int, int], pad: tuple[int, int], classes: int,
    align_corners: bool, scale: float, on_cpu: Ops,
) -> None:  # fmt: skip
    rows, columns = (-(-n // -(-n // min(k, n))) for n, k in zip(size, parts, strict=True))
    grid, padded = Grid(rows, columns, *size), (size[0] + pad[0], size[1] + pad[1])
    logits = random_logits(2, classes, *low, scale=scale, seed=classes)
    found = on_cpu.patch_classes(logits, grid, padded, align_corners)
    exact = reference.patch_classes(logits.double(), grid, padded, align_corners)
    assert exact.probabilities.dtype == torch.float64
    assert float((found.probabilities - exact.probabilities).abs().max()) <= 2e-6 + 2e-7 * scale
    torch.testing.assert_close(
        found.probabilities.sum(dim=2), torch.ones(2, grid.patches_per_image), rtol=0, atol=2e-6
    )
    assert bool((found.counts.sum(dim=(1, 2)) == size[0] * size[1]).all())
    # the same pixels go to the same classes
    labels = torch.zeros(2, *size, dtype=torch.uint8)
    matrix = on_cpu.confusion(logits, labels, padded, align_corners, 255)
    assert torch.equal(matrix[0], found.counts.sum(dim=(0, 1)).long())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_no_image_depends_on_another(dtype: torch.dtype, on_cpu: Ops) -> None:
    logits = random_logits(5, 19, 12, 16).to(dtype)
    grid = Grid(3, 4, 45, 61)
    valid = torch.rand(45, 61, generator=torch.Generator().manual_seed(0)) < 0.8
    whole = on_cpu.patch_classes(logits, grid, (48, 64), False, valid=valid)
    for size in (1, 2, 3):
        parts = [
            on_cpu.patch_classes(part, grid, (48, 64), False, valid=valid) for part in logits.split(size)
        ]
        for index in range(2):
            assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])
    last = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(on_cpu.patch_classes(last, grid, (48, 64), False, valid=valid).counts, whole.counts)
    empty = on_cpu.patch_classes(logits[:0], grid, (48, 64), False)
    assert empty.probabilities.shape == empty.counts.shape == (0, 12, 19)
