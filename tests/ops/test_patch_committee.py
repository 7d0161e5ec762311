"""Committees: cases by hand, then a definition of its own in float64, then what must always hold."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_patch_entropy import SHAPES, random_logits

from meal_gpu.grid import Grid
from meal_gpu.ops import Committee, Ops, reference


def plain(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> Committee:
    """Full-size float64 probabilities, patch by patch."""
    full = torch.stack([
        F.interpolate(member.double(), size=padded, mode="bilinear", align_corners=align_corners)
        for member in logits
    ])  # fmt: skip
    p = (full[..., : grid.height, : grid.width] / temperature).softmax(dim=2)
    total = torch.special.entr(p.mean(dim=0)).sum(dim=1)
    expected = torch.special.entr(p).sum(dim=2).mean(dim=0)
    counting = torch.ones(grid.height, grid.width, dtype=torch.bool) if valid is None else valid != 0
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for left, top, right, bottom in grid.boxes(range(grid.patches_per_image)):
        seen = counting[top:bottom, left:right]
        for means, pixels in zip(found, (total, expected), strict=True):
            means.append(pixels[:, top:bottom, left:right][:, seen].sum(dim=1) / max(int(seen.sum()), 1))
    return Committee(torch.stack(found[0], dim=1), torch.stack(found[1], dim=1))


def test_by_hand(on_cpu: Ops) -> None:
    # Patches of one pixel. Two members are sure of different classes; agree that they do not know; are sure
    # of one class; and of one the first is sure, while the second does not know
    logits = torch.zeros(2, 1, 2, 1, 4)
    logits[0, 0, 0] = torch.tensor([50.0, 0.0, 50.0, 50.0])
    logits[1, 0, 0] = torch.tensor([-50.0, 0.0, 50.0, 0.0])
    found = on_cpu.patch_committee(logits, Grid(1, 4, 1, 4), (1, 4), True)
    quarter = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    one = math.log(2)
    torch.testing.assert_close(found.total, torch.tensor([[one, one, 0, quarter]]), rtol=0, atol=3e-7)
    torch.testing.assert_close(found.expected, torch.tensor([[0, one, 0, one / 2]]), rtol=0, atol=3e-7)


def test_what_is_not_valid_does_not_count(on_cpu: Ops) -> None:
    logits = random_logits(3, 2, 5, 2, 6)
    grid, valid = Grid(1, 2, 2, 6), torch.zeros(2, 6, dtype=torch.uint8)
    valid[0, :2] = 1
    found = on_cpu.patch_committee(logits, grid, (2, 6), True, valid=valid)
    for actual, expected in zip(found, plain(logits, grid, (2, 6), True, valid=valid), strict=True):
        torch.testing.assert_close(actual, expected.float(), rtol=0, atol=2e-6)
        assert actual[:, 1].tolist() == [0, 0]
    logits[..., 3:] = torch.nan  # pixel 1 lies between the second and the third
    hidden = on_cpu.patch_committee(logits, grid, (2, 6), True, valid=valid != 0)
    assert all(torch.equal(a, b) for a, b in zip(hidden, found, strict=True))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_float64_is_met(name: str, align_corners: bool, on_cpu: Ops) -> None:
    low, padded, grid = SHAPES[name]
    logits = random_logits(4, 2, 11, *low)
    found = on_cpu.patch_committee(logits, grid, padded, align_corners, temperature=1.7)
    exact = plain(logits, grid, padded, align_corners, 1.7)
    for actual, expected in zip(found, exact, strict=True):
        assert actual.dtype == torch.float32
        assert float((actual - expected).abs().max()) <= 2e-6


@settings(deadline=None, max_examples=25)
@given(
    low=st.tuples(st.integers(1, 6), st.integers(1, 30)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 50)),
    parts=st.tuples(st.integers(1, 20), st.integers(1, 50)),
    pad=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    members=st.integers(1, 12),
    classes=st.integers(1, 40),
    align_corners=st.booleans(),
    scale=st.sampled_from([0.1, 3.0, 80.0]),
)
def test_any_shape_agrees_with_float64(
    low: tuple[int, int], size: tuple[int, int], parts: tuple[int, int], pad: tuple[int, int], members: int,
    classes: int, align_corners: bool, scale: float, on_cpu: Ops,
) -> None:  # fmt: skip
    rows, columns = (-(-n // -(-n // min(k, n))) for n, k in zip(size, parts, strict=True))
    grid, padded = Grid(rows, columns, *size), (size[0] + pad[0], size[1] + pad[1])
    logits = random_logits(members, 2, classes, *low, scale=scale, seed=classes)
    found = on_cpu.patch_committee(logits, grid, padded, align_corners)
    exact = reference.patch_committee(logits.double(), grid, padded, align_corners)
    rounding = 2e-6 + 4e-7 * scale
    for actual, expected in zip(found, exact, strict=True):
        assert expected.dtype == torch.float64
        assert float((actual - expected).abs().max()) <= rounding
    # 0 <= expected <= total <= log C, and what the members tell apart is at most which of them it was
    assert float(found.expected.min()) >= 0
    information = exact.total - exact.expected
    assert float(information.min()) >= -1e-12
    assert float(information.max()) <= math.log(members) + 1e-12
    assert float(found.total.max()) <= math.log(classes) + rounding


def test_one_member_has_the_entropy_of_patch_entropy(on_cpu: Ops) -> None:
    logits, grid = random_logits(2, 11, 12, 16), Grid(3, 4, 45, 61)
    entropy = on_cpu.patch_entropy(logits, grid, (48, 64), True, temperature=0.7)
    for found in on_cpu.patch_committee(logits[None], grid, (48, 64), True, temperature=0.7):
        assert float((found - entropy).abs().max()) <= 1e-6


def test_members_that_agree_tell_nothing_and_their_order_nothing_either(on_cpu: Ops) -> None:
    logits, grid = random_logits(4, 1, 7, 8, 8), Grid(2, 2, 32, 32)
    same = on_cpu.patch_committee(logits[:1].expand(4, -1, -1, -1, -1), grid, (32, 32), True)
    torch.testing.assert_close(same.total, same.expected, rtol=0, atol=1e-6)
    for a, b in zip(
        on_cpu.patch_committee(logits, grid, (32, 32), True),
        on_cpu.patch_committee(logits.flip(0), grid, (32, 32), True),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_no_image_depends_on_another(dtype: torch.dtype, on_cpu: Ops) -> None:
    logits = random_logits(3, 5, 19, 12, 16).to(dtype)
    grid = Grid(3, 4, 45, 61)
    whole = on_cpu.patch_committee(logits, grid, (48, 64), False)
    for size in (1, 2, 3):
        parts = [on_cpu.patch_committee(part, grid, (48, 64), False) for part in logits.split(size, dim=1)]
        for index in range(2):
            assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])
    empty = on_cpu.patch_committee(logits[:, :0], grid, (48, 64), False)
    assert empty.total.shape == empty.expected.shape == (0, 12)
