"""How pixels are cut into spans and tiles: every pixel once, between the right nodes, in the right patch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meal_gpu.grid import Grid
from meal_gpu.ops.upsampling import (
    MAX_SPAN,
    SHARED_BYTES,
    THREADS,
    Axis,
    cut,
    interpolation,
    tiling,
)

CPU = torch.device("cpu")


def spread(axis: Axis, used: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """How often each pixel occurs, its lower node, its upper node and its place between them."""
    times, lower, upper = (torch.zeros(used, dtype=torch.int64) for _ in range(3))
    place = torch.zeros(used, dtype=torch.float64)
    for (first, length, low, high), (at, step) in zip(
        axis.spans.tolist(), axis.places.double().tolist(), strict=True
    ):
        pixels = torch.arange(first, first + length)
        times[pixels] += 1
        lower[pixels], upper[pixels] = low, high
        place[pixels] = at + step * torch.arange(length, dtype=torch.float64)
    return times, lower, upper, place


@pytest.mark.parametrize(
    ("low", "spanned", "align_corners", "spans"),
    [
        # 4 pixels to a cell; the first two and the last two lie outside the outermost nodes
        (3, 12, False, [(0, 2), (2, 4), (6, 4), (10, 2)]),
        # nodes at 0, 5.5 and 11: cells of six pixels come in two spans
        (3, 12, True, [(0, 4), (4, 2), (6, 4), (10, 2)]),
        # no upsampling: the last pixel ends the last cell
        (4, 4, True, [(0, 1), (1, 1), (2, 2)]),
        (1, 5, True, [(0, 4), (4, 1)]),
        (1, 5, False, [(0, 4), (4, 1)]),
    ],
)
def test_spans_by_hand(low: int, spanned: int, align_corners: bool, spans: list[tuple[int, int]]) -> None:
    axis = cut(low, spanned, spanned, 1, align_corners, MAX_SPAN)
    assert [tuple(span) for span in axis.spans[:, :2].tolist()] == spans


def test_a_span_ends_where_a_patch_ends() -> None:
    axis = cut(4, 16, 16, 3, False, MAX_SPAN)  # patches of 6, 6 and 4 pixels
    assert [tuple(span) for span in axis.spans[:, :2].tolist()] == [
        (0, 2), (2, 4), (6, 4), (10, 2), (12, 2), (14, 2),
    ]  # fmt: skip
    assert axis.starts.tolist() == [0, 2, 4, 6]


def test_cityscapes_is_cut_into_few_full_spans_and_tiles_without_waste() -> None:
    plan = tiling(Grid(4, 4, 512, 1024), (128, 256), (512, 1024), True, 19, 8, CPU)
    assert (plan.x.longest, plan.y.longest) == (4, 4)
    cells = len(plan.x.spans) * len(plan.y.spans)
    assert cells <= 1.08 * (512 * 1024 / 16)
    assert cells >= 0.9 * plan.tiles * plan.threads


@settings(deadline=None)
@given(
    low=st.integers(1, 40),
    spanned=st.integers(1, 120),
    cropped=st.integers(0, 30),
    parts=st.integers(1, 9),
    align_corners=st.booleans(),
    longest=st.sampled_from([None, 1, 2, 3, 4]),
)
def test_every_pixel_lies_once_where_interpolation_puts_it(
    low: int, spanned: int, cropped: int, parts: int, align_corners: bool, longest: int | None
) -> None:
    used = max(1, spanned - cropped)
    parts = -(-used // -(-used // min(parts, used)))
    axis = cut(low, spanned, used, parts, align_corners, longest)
    times, lower, upper, place = spread(axis, used)
    assert times.tolist() == [1] * used
    assert int(axis.spans[:, 1].min()) >= 1 and int(axis.spans[:, 1].max()) <= axis.longest <= MAX_SPAN
    assert bool(((lower >= 0) & (upper <= low - 1) & (upper - lower <= 1)).all())
    assert bool(((place >= 0) & (place <= 1 + 1e-6)).all())
    # the same blend of nodes as the specification's: compared on nodes with values of their own
    nodes = torch.randn(low, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted_lower, wanted_upper, weight = interpolation(low, spanned, used, align_corners)
    wanted = torch.lerp(nodes[wanted_lower], nodes[wanted_upper], weight)
    torch.testing.assert_close(torch.lerp(nodes[lower], nodes[upper], place), wanted, rtol=0, atol=2e-6)
    # patches begin at spans
    assert axis.starts[0] == 0 and axis.starts[-1] == len(axis.spans)
    firsts = [int(axis.spans[start, 0]) for start in axis.starts[:-1].tolist()]
    assert firsts == [part * -(-used // parts) for part in range(parts)]


@settings(deadline=None, max_examples=40)
@given(
    low=st.tuples(st.integers(1, 70), st.integers(1, 140)),
    scale=st.sampled_from([1, 2, 4, 8]),
    classes=st.integers(1, 256),
    vector=st.sampled_from([1, 4, 8]),
    align_corners=st.booleans(),
)
def test_every_tile_fits(
    low: tuple[int, int], scale: int, classes: int, vector: int, align_corners: bool
) -> None:
    low = low[0], -(-low[1] // vector) * vector
    size = low[0] * scale, low[1] * scale
    plan = tiling(Grid(1, 1, *size), low, size, align_corners, classes, vector, CPU)
    assert plan.shared_bytes <= SHARED_BYTES
    assert plan.tile_x * plan.tile_y <= plan.threads <= THREADS
    assert plan.threads % 32 == 0
    x, y = plan.x.spans, plan.y.spans
    assert plan.tiles == -(-len(x) // plan.tile_x) * -(-len(y) // plan.tile_y)
    for i in range(0, len(x), plan.tile_x):
        columns = x[i : i + plan.tile_x]
        left, right = int(columns[0, 2]) // vector * vector, (int(columns[-1, 3]) // vector + 1) * vector
        for j in range(0, len(y), plan.tile_y):
            rows = y[j : j + plan.tile_y]
            nodes = (right - left) * (int(rows[-1, 3]) + 1 - int(rows[0, 2]))
            # all classes and the minima, each padded to 4 or to an odd number
            assert (classes + 1) * max(-(-nodes // 4) * 4, nodes | 1) * 4 <= plan.shared_bytes
