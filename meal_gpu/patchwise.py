"""The logits of patches within their images, without those of the images around them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from meal_gpu.grid import Grid
from meal_gpu.models import Encoded, Segmenter

Decode = Callable[[Encoded, torch.Tensor], torch.Tensor]
"""(encoded [B], patches of their images [B] int64) -> float32 logits [B, C, ph, pw] of every pixel."""


def patch_decoder(model: Segmenter, grid: Grid, context: str, device: torch.device) -> Decode:
    """How the logits of patches come from what is encoded: patches, or images for a `context` of "image"."""
    if context == "image" and grid.patches_per_image > 1:
        return Patchwise(model, grid, device)
    size = grid.patch_height, grid.patch_width

    def alone(encoded: Encoded, _: torch.Tensor) -> torch.Tensor:
        return upsampled(model, model.decode(encoded), size)

    return alone


def upsampled(model: Segmenter, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Logits [B, C, h, w] of images of `size` -> [B, C, *size] float32."""
    padded = model.padded_size(size)
    full = F.interpolate(logits.float(), size=padded, mode="bilinear", align_corners=model.align_corners)
    return full[..., : size[0], : size[1]]


class Patchwise:
    """Decodes one patch of each image as the whole image's decoding would have it.

    ASPP reads the whole image, at the cells that the patch needs; what follows it is computed in a window
    around the patch, as wide as its convolutions reach. In eval mode the logits are those of the image. In
    train mode BatchNorm's statistics are those of the windows: of what is labelled and its margin. For a
    patch of a 4×4 grid that is an eighth or so of the image's work.

    Args:
        model: its parameters are read at every call.
        grid: of images that `model.encode` has seen whole.
    """

    def __init__(self, model: Segmenter, grid: Grid, device: torch.device) -> None:
        self._model = model
        self._columns_of_grid = grid.columns
        height, width = model.padded_size((grid.height, grid.width))
        _, after, _, fuse = model.decoder_parts()
        reach = _reach(after), _reach(fuse)
        self._rows = _axis(grid.rows, grid.patch_height, grid.height, height, reach, device)
        self._columns = _axis(grid.columns, grid.patch_width, grid.width, width, reach, device)

    def __call__(self, encoded: Encoded, patches: torch.Tensor) -> torch.Tensor:
        """Images [B], and of each the patch [B] int64 counted within it -> float32 [B, C, ph, pw].

        Where a patch of the last row or column is smaller, the last pixels are repeated.
        """
        aspp, after, reduce, fuse = self._model.decoder_parts()
        cells = patches.to(encoded.deep.device, non_blocking=True)
        rows = _Axis(*(part[cells // self._columns_of_grid] for part in self._rows))
        columns = _Axis(*(part[cells % self._columns_of_grid] for part in self._columns))
        deep = after(_pyramid(aspp, encoded.deep, rows.deep, columns.deep))
        high = reduce(_cut(encoded.high, rows.high, columns.high))
        deep = _resampled(deep, rows.to_high, columns.to_high).to(high.dtype)
        logits = self._model.classifier(fuse(torch.cat([deep, high], dim=1)))
        return _resampled(logits, rows.to_pixels, columns.to_pixels)


class _Axis(NamedTuple):
    """Of each row (or column) of the grid: its window in both maps, and how the one becomes the other.

    `deep` [cells, d] and `high` [cells, h] int64 are rows of the maps; `to_high` [cells, h, d] and
    `to_pixels` [cells, p, h] float32 interpolate linearly between them.
    """

    deep: torch.Tensor
    high: torch.Tensor
    to_high: torch.Tensor
    to_pixels: torch.Tensor


def _axis(
    cells: int, patch: int, length: int, padded: int, reach: tuple[int, int], device: torch.device
) -> _Axis:
    high, deep = padded // 4, padded // 16  # both upsamplings align the corners
    pixels = torch.arange(cells)[:, None] * patch + torch.arange(patch)
    at = pixels.clamp(max=length - 1).double() * (high - 1) / (padded - 1)
    rows = _window(at, reach[1], high)
    wanted = rows.double() * (deep - 1) / (high - 1)
    below = _window(wanted, reach[0], deep)
    parts = below, rows, _weights(wanted, below), _weights(at, rows)
    return _Axis(*(part.to(device) for part in parts))


def _window(at: torch.Tensor, reach: int, length: int) -> torch.Tensor:
    """[cells, k] rows of a map around the positions [cells, q], of one size and all within the map."""
    first = at.amin(1).floor().long() - reach
    last = at.amax(1).ceil().long() + reach
    size = min(length, int((last - first).max()) + 1)
    return first.clamp(min=0, max=length - size)[:, None] + torch.arange(size)


def _weights(at: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Linear interpolation at positions [cells, q] between rows [cells, k], as float32 [cells, q, k]."""
    return (1 - (at[:, :, None] - rows[:, None, :]).abs()).clamp(min=0).float()


def _reach(part: nn.Module) -> int:
    """How far the convolutions see to each side."""
    sides = [m.dilation[0] * (m.kernel_size[0] // 2) for m in part.modules() if isinstance(m, nn.Conv2d)]
    return sum(sides)


def _cut(maps: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[B, D, H, W] at rows [B, h] and columns [B, w] -> [B, D, h, w] in channels-last memory."""
    image = torch.arange(len(maps), device=maps.device)[:, None, None]
    return maps.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _resampled(maps: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[B, D, h, w] by [B, p, h] and [B, q, w] -> float32 [B, D, p, q] in channels-last memory."""
    with torch.autocast(maps.device.type, enabled=False):  # half precision has no such weights
        lines = maps.permute(0, 2, 3, 1).float()
        lines = torch.matmul(rows, lines.flatten(2)).view(*rows.shape[:2], *lines.shape[2:])
        return torch.matmul(columns[:, None], lines).permute(0, 3, 1, 2)


def _pyramid(aspp: Any, deep: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """smp's `ASPP` of whole maps [B, D, H, W], computed at rows [B, h] and columns [B, w] alone."""
    first, *atrous, pooling = aspp.convs
    found = [first(_cut(deep, rows, columns))]
    ringed = F.pad(deep, (0, 1, 0, 1))  # what lies outside of the map is read there
    found += [_atrous(branch, ringed, rows, columns) for branch in atrous]
    mean = deep
    for layer in pooling:
        mean = layer(mean)
    found.append(mean.expand(-1, -1, rows.shape[1], columns.shape[1]))
    projected: torch.Tensor = aspp.project(torch.cat(found, dim=1))
    return projected


def _atrous(
    branch: nn.Sequential, ringed: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """A dilated 3×3 convolution, or a separable one, and what follows it in the branch.

    The pixels under its taps are laid out side by side, so that it becomes one of stride 3.
    """
    layers = [module for module in branch.modules() if not isinstance(module, nn.Sequential)]
    convolution: Any = layers[0]
    weight, taps = convolution.weight, []
    for axis, places in enumerate((rows, columns)):
        length, rate = ringed.shape[2 + axis] - 1, convolution.dilation[axis]
        if rate < length:
            places = places[:, :, None] + rate * torch.arange(-1, 2, device=places.device)
            places = places.where((places >= 0) & (places < length), length).flatten(1)
        else:  # the outer taps never meet the map
            weight = weight.narrow(2 + axis, 1, 1)
        taps.append(places)
    found = _cut(ringed, *taps)
    if weight.shape[1:] == (1, 1, 1):  # torch would loop over the channels
        found = found * weight[:, 0]
    else:
        found = F.conv2d(found, weight, stride=weight.shape[2:], groups=convolution.groups)
    for layer in layers[1:]:
        found = layer(found)
    return found
