"""Sliding windows: images that are larger than what a network takes, without logits at full resolution."""

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from meal_gpu.errors import InputError
from meal_gpu.images.headers import Size
from meal_gpu.models import LogitsOnly, Network, Output

OVERLAP = 0.25
_SPAN = 32  # the canvas spans a multiple: known before the first pass, and one of the usual strides


def windowed(network: Network, size: Size, window: Size, overlap: float = OVERLAP) -> Network:
    """The network itself where images of `size` fit into the window, else a `Windowed` around it.

    Raises:
        InputError: a window without pixels, or an overlap outside [0, 1).
    """
    _check(window, overlap)
    if size[0] <= window[0] and size[1] <= window[1]:
        return network
    return Windowed(network, window, overlap)


class Windowed(nn.Module):
    """A `Network` that passes overlapping windows of an image through another and averages the logits.

    Logits and features are put together on canvases of the network's own strides. A canvas is sampled from
    the windows bilinearly, at the centres of its cells; where windows and image are multiples of the strides
    and the network's `align_corners` is False, its cells are the windows'. A cell is the mean, in float32,
    over the windows that its centre lies in. One window at a time is computed, for the whole batch.

    Args:
        network: called with images [B, 3, h, w] of one size: `window`, or the image's side, rounded up to a
            multiple of 32 with zeros behind, where that is less.
        window: (height, width) in pixels; best a multiple of the network's stride.
        overlap: share of a window that at least lies in the next, up to a stride; in [0, 1).

    Raises:
        InputError: a window without pixels, or an overlap outside [0, 1).
    """

    align_corners = False

    def __init__(self, network: Network, window: Size, overlap: float = OVERLAP) -> None:
        _check(window, overlap)
        super().__init__()
        self.network = network
        self.window = window
        self.overlap = overlap
        self.mean = network.mean
        self.std = network.std

    def padded_size(self, size: Size) -> Size:
        """(H, W) that the canvases span: `size` rounded up to a multiple of 32."""
        return _spanned(size[0]), _spanned(size[1])

    def train(self, mode: bool = True) -> "Windowed":
        super().train(mode)
        if not mode and not isinstance(self.network, nn.Module):
            self.network.eval()
        return self

    def forward(self, images: torch.Tensor) -> Output:
        """[B, 3, H, W] -> logits and features of the network's dtype.

        Where the network has no features, whoever reads them gets the network's InputError.
        """
        first: Output = self.network(self._cut(images, 0, 0))
        logits = self._canvas(images, first.logits)
        features, missing = None, None
        try:
            features = self._canvas(images, first.features)
        except InputError as error:
            missing = error
        for top, left in _places([logits] if features is None else [logits, features], self.overlap):
            output = self.network(self._cut(images, top, left)) if top or left else first
            logits.add(output.logits, top, left)
            if features is not None:
                features.add(output.features, top, left)
        if features is not None:
            return Output(logits.mean(), features.mean())
        return LogitsOnly.of(logits.mean(), str(missing))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """[B, D, h', w'] without the logits; the network's own where an image fits into a window."""
        if images.shape[2] <= self.window[0] and images.shape[3] <= self.window[1]:
            return self.network.features(images)
        first = self.network.features(self._cut(images, 0, 0))
        canvas = self._canvas(images, first)
        for top, left in _places([canvas], self.overlap):
            maps = self.network.features(self._cut(images, top, left)) if top or left else first
            canvas.add(maps, top, left)
        return canvas.mean()

    def _size(self, images: torch.Tensor) -> Size:
        height, width = self.padded_size((images.shape[2], images.shape[3]))
        return min(self.window[0], height), min(self.window[1], width)

    def _cut(self, images: torch.Tensor, top: int, left: int) -> torch.Tensor:
        height, width = self._size(images)
        part = images[:, :, top : top + height, left : left + width]
        below, right = height - part.shape[2], width - part.shape[3]
        # Copied, because a network may count on dense memory
        return F.pad(part, (0, right, 0, below)) if below or right else part.clone()

    def _canvas(self, images: torch.Tensor, maps: torch.Tensor) -> "_Canvas":
        """For maps like `maps`, which are those of one window."""
        window = self._size(images)
        spanned = self.network.padded_size(window)
        found = [_Density(maps.shape[2 + i], spanned[i]) for i in (0, 1)]
        rows, columns = (
            _Axis(images.shape[2 + i], window[i], *found[i], self.network.align_corners, density)
            for i, density in enumerate(_common(*found))
        )
        return _Canvas(rows, columns, maps)


class _Density(NamedTuple):
    nodes: int
    spanned: int  # pixels


def _common(rows: _Density, columns: _Density) -> tuple[_Density, _Density]:
    """One density for both axes, where no more than rounding makes a window's two differ.

    A network whose stride divides no side of the window has a node more or less there. Up is the usual, and
    the sparser axis then is the one nearer to the stride.
    """
    for one in sorted((rows, columns), key=lambda axis: axis.nodes / axis.spanned):
        if all(
            abs(axis.spanned * one.nodes - axis.nodes * one.spanned) < one.spanned for axis in (rows, columns)
        ):
            return one, one
    return rows, columns


class _Axis(NamedTuple):
    """One axis of a canvas: an image of `length` pixels in windows of `window` pixels.

    The `nodes` of a window span `spanned` pixels from its first on, as the network and `corners` have it.
    """

    length: int
    window: int
    nodes: int
    spanned: int
    corners: bool
    density: _Density

    @property
    def cells(self) -> int:
        return -(-_spanned(self.length) * self.density.nodes // self.density.spanned)

    @property
    def stride(self) -> int:
        """Pixels of a cell where that is a whole number and the network's own stride, else 1."""
        whole = self.cells * self.spanned == _spanned(self.length) * self.nodes
        stride, rest = divmod(_spanned(self.length), self.cells)
        return stride if whole and not rest else 1

    def cells_before(self, pixel: int) -> int:
        """How many cells have their centres before that pixel's edge; all, where it is the image's end."""
        span = _spanned(self.length)
        return (
            self.cells if pixel >= self.length else max(0, -((span - 2 * pixel * self.cells) // (2 * span)))
        )

    def covered(self, offset: int) -> slice:
        """The cells whose centres lie in the window at that offset."""
        return slice(self.cells_before(offset), self.cells_before(offset + self.window))


class _Samples(NamedTuple):
    """Nodes [cells] int64 around the cells' centres, and the weights [cells] float32 of the upper ones.

    Without `weights` every centre is the lower node's.
    """

    lower: torch.Tensor
    upper: torch.Tensor
    weights: torch.Tensor | None


@cache
def _samples(axis: _Axis, offset: int, device: torch.device) -> _Samples:
    covered = axis.covered(offset)
    cells = torch.arange(covered.start, covered.stop, dtype=torch.float64)
    centre = (cells + 0.5) * (_spanned(axis.length) / axis.cells) - offset
    if axis.corners:
        node = (centre - 0.5) * (axis.nodes - 1) / max(1, axis.spanned - 1)
    else:
        node = centre * axis.nodes / axis.spanned - 0.5
    node = node.clamp(0, axis.nodes - 1)
    lower = node.long()
    weights = (node - lower).float()
    return _Samples(
        lower.to(device, non_blocking=True),
        (lower + 1).clamp(max=axis.nodes - 1).to(device, non_blocking=True),
        weights.to(device, non_blocking=True) if weights.any() else None,
    )


@cache
def _counts(axis: _Axis, offsets: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """[cells] float32: how many windows each cell lies in."""
    counts = torch.zeros(axis.cells)
    for offset in offsets:
        counts[axis.covered(offset)] += 1
    return counts.to(device, non_blocking=True)


class _Canvas:
    """Sums over the windows: [B, C, cells of `rows`, cells of `columns`] float32."""

    def __init__(self, rows: _Axis, columns: _Axis, maps: torch.Tensor) -> None:
        self.rows = rows
        self.columns = columns
        self._dtype = maps.dtype
        self._sums = maps.new_zeros((*maps.shape[:2], rows.cells, columns.cells), dtype=torch.float32)
        self._tops: dict[int, None] = {}
        self._lefts: dict[int, None] = {}

    def add(self, maps: torch.Tensor, top: int, left: int) -> None:
        """The window at those pixels; `maps` [B, C, h, w] are of one size in all calls."""
        self._tops[top] = self._lefts[left] = None
        maps = _sampled(maps.float(), 2, _samples(self.rows, top, maps.device))
        maps = _sampled(maps, 3, _samples(self.columns, left, maps.device))
        self._sums[:, :, self.rows.covered(top), self.columns.covered(left)] += maps

    def mean(self) -> torch.Tensor:
        down = _counts(self.rows, tuple(self._tops), self._sums.device)
        across = _counts(self.columns, tuple(self._lefts), self._sums.device)
        return (self._sums / (down[:, None] * across)).to(self._dtype)


def _sampled(maps: torch.Tensor, dim: int, samples: _Samples) -> torch.Tensor:
    low = maps.index_select(dim, samples.lower)
    if samples.weights is None:
        return low
    weights = samples.weights[:, None] if dim == 2 else samples.weights
    return torch.lerp(low, maps.index_select(dim, samples.upper), weights)


def _places(canvases: list[_Canvas], overlap: float) -> list[tuple[int, int]]:
    """(top, left) of the windows in pixels; the first is (0, 0)."""
    tops = _offsets([canvas.rows for canvas in canvases], overlap)
    lefts = _offsets([canvas.columns for canvas in canvases], overlap)
    return [(top, left) for top in tops for left in lefts]


def _offsets(axes: list[_Axis], overlap: float) -> tuple[int, ...]:
    """Evenly spread windows, at multiples of the strides; the last ends with the image."""
    room = axes[0].length - axes[0].window
    if room <= 0:
        return (0,)
    window = axes[0].window
    step = max(1, int(window * (1 - overlap)))
    strides = (math.lcm(*(axis.stride for axis in axes)), axes[0].stride, 1)
    # Aligned windows rather than the last bit of overlap, but not rather than most of it
    stride = next(stride for stride in strides if stride <= max(step, window // 2, 1))
    gaps = -(-room // max(stride, step // stride * stride))
    # Rounded up, so that no gap is wider than a step
    even = (-(-gap * room // (gaps * stride)) * stride for gap in range(gaps))
    return tuple(dict.fromkeys([*(min(offset, room) for offset in even), room]))


def _spanned(length: int) -> int:
    return -(-length // _SPAN) * _SPAN


def _check(window: Size, overlap: float) -> None:
    if min(window) < 1:
        raise InputError(f"the window is {window[0]}×{window[1]} pixels; both sides must be at least 1")
    if not 0 <= overlap < 1:
        raise InputError(f"the overlap is {overlap}; it is a share of the window, at least 0 and below 1")
