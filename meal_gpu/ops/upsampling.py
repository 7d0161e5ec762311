"""How the CUDA kernels cut full-resolution pixels into cells and tiles: geometry, computed once per size.

A *node* is a low-resolution logit. A *span* is up to 4 neighbouring pixels of one axis between the same two
nodes and in the same patch; a *cell* is a span of columns by a span of rows, the work of one thread; a *tile*
is a rectangle of cells, the work of one block.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from meal_gpu.grid import Grid

MAX_SPAN = 4
# Instructions that a cell needs beyond its pixels, in pixels; and a staged node, in pixels of a cell
SPAN_OVERHEAD = 1.5
NODE_COST = 1.5
THREADS = 256
SHARED_BYTES = 48 << 10


@dataclass(frozen=True)
class Axis:
    """One axis, cut into R spans of at most `longest` pixels.

    `spans` [R, 4] int32: first pixel, length, lower node, upper node. `places` [R, 2] float32: where between
    the nodes the first pixel lies, and the step from pixel to pixel. `starts` [parts + 1] int32: each patch's
    first span.
    """

    spans: torch.Tensor
    places: torch.Tensor
    starts: torch.Tensor
    longest: int
    most: int
    """Spans of a patch, at most."""


@dataclass(frozen=True)
class Tiling:
    x: Axis
    y: Axis
    tile_x: int
    tile_y: int
    shared_bytes: int
    threads: int
    tiles: int
    """Tiles of one image."""


def interpolation(
    low: int, spanned: int, used: int, align_corners: bool, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lower node, upper node [used] int64 and weight of the upper [used] float64 of an axis' first pixels.

    `low` nodes span `spanned` pixels. Coordinates are float64 whatever the logits are: in float32 they are
    off by 1e-4 of a cell at 2048 pixels.
    """
    pixel = torch.arange(used, dtype=torch.float64, device=device)
    if align_corners:
        at = pixel * ((low - 1) / (spanned - 1) if spanned > 1 else 0.0)
    else:
        at = ((pixel + 0.5) * (low / spanned) - 0.5).clamp_(min=0.0)
    lower = at.floor().long().clamp_(max=low - 1)
    return lower, (lower + 1).clamp_(max=low - 1), at - lower


def cut(
    low: int, spanned: int, used: int, parts: int, align_corners: bool, longest: int | None = None
) -> Axis:
    """The spans of one axis of `parts` patches; `longest` 1..4 pixels each, by default as suits the sizes."""
    if longest is None:
        axes = [cut(low, spanned, used, parts, align_corners, length) for length in range(MAX_SPAN, 0, -1)]
        return min(axes, key=lambda axis: len(axis.spans) * (axis.longest + SPAN_OVERHEAD))
    lower, upper, weight = interpolation(low, spanned, used, align_corners)
    if align_corners and low > 1:
        # The pixel on the last node ends the last cell rather than beginning one of its own
        last = lower == low - 1
        lower, upper, weight = lower - last.long(), upper, weight + last
    pixel = torch.arange(used)
    patch = pixel // -(-used // parts)
    step = torch.full((used,), (low - 1) / max(spanned - 1, 1) if align_corners else low / spanned)
    if not align_corners:
        # Before the first and after the last node the value does not change
        step[((pixel + 0.5) * (low / spanned) < 0.5) | (lower == upper)] = 0.0
    keys = torch.stack([lower, patch, (step > 0).long()])
    fresh = torch.ones(used, dtype=torch.bool)
    fresh[1:] = (keys[:, 1:] != keys[:, :-1]).any(dim=0)
    position = pixel - pixel.where(fresh, 0).cummax(0).values
    first = ((position % longest) == 0).nonzero().flatten()
    length = torch.diff(first, append=torch.tensor([used]))
    starts = torch.searchsorted(patch[first], torch.arange(parts + 1))
    return Axis(
        torch.stack([first, length, lower[first], upper[first]], dim=1).int(),
        torch.stack([weight[first], step[first]], dim=1).float(),
        starts.int(),
        longest,
        int(starts.diff().max()),
    )


@lru_cache(maxsize=64)
def tiling(
    grid: Grid,
    low: tuple[int, int],
    padded: tuple[int, int],
    align_corners: bool,
    classes: int,
    vector: int,
    device: torch.device,
) -> Tiling:
    """How logits [B, classes, *low], staged `vector` columns at a time, are cut for `grid` on `device`."""
    x = cut(low[1], padded[1], grid.width, grid.columns, align_corners)
    y = cut(low[0], padded[0], grid.height, grid.rows, align_corners)
    best: tuple[float, int, int, int, int] | None = None
    for tile_x in range(1, min(THREADS, len(x.spans)) + 1):
        columns, across = _extent(x, tile_x, vector)
        for tile_y in range(1, min(THREADS // tile_x, len(y.spans)) + 1):
            rows, down = _extent(y, tile_y, 1)
            nodes = -(-(columns * rows + 1) // 4) * 4
            # One more array of the size of a class holds the nodes' minima
            shared = 4 * nodes * (classes + 1)
            if shared > SHARED_BYTES:
                continue
            threads = -(-tile_x * tile_y // 32) * 32
            cost = across * down * (threads * (x.longest + SPAN_OVERHEAD) * y.longest + nodes * NODE_COST)
            if best is None or cost < best[0]:
                best = (cost, tile_x, tile_y, shared, threads)
    assert best is not None, "a tile of one cell fits: 256 classes of two rows of two vectors of nodes"
    _, tile_x, tile_y, shared, threads = best
    tiles = -(-len(x.spans) // tile_x) * -(-len(y.spans) // tile_y)
    return Tiling(_on(x, device), _on(y, device), tile_x, tile_y, shared, threads, tiles)


@lru_cache(maxsize=64)
def axes(
    grid: Grid,
    low: tuple[int, int],
    padded: tuple[int, int],
    align_corners: bool,
    longest: tuple[int | None, int | None],
    device: torch.device,
) -> tuple[Axis, Axis]:
    """Both axes of logits [.., *low], x before y, cut into spans of `longest` (y, x) pixels on `device`."""
    y = cut(low[0], padded[0], grid.height, grid.rows, align_corners, longest[0])
    x = cut(low[1], padded[1], grid.width, grid.columns, align_corners, longest[1])
    return _on(x, device), _on(y, device)


def _extent(axis: Axis, spans: int, vector: int) -> tuple[int, int]:
    """Most nodes, in whole vectors, of any tile of so many spans along this axis; how many tiles it has."""
    firsts = axis.spans[::spans, 2] // vector * vector
    lasts = axis.spans[:, 3][
        torch.arange(spans - 1, len(axis.spans) + spans - 1, spans).clamp(max=len(axis.spans) - 1)
    ]
    return int(((lasts // vector + 1) * vector - firsts).max()), len(firsts)


def _on(axis: Axis, device: torch.device) -> Axis:
    spans, places, starts = (table.to(device) for table in (axis.spans, axis.places, axis.starts))
    return replace(axis, spans=spans, places=places, starts=starts)
