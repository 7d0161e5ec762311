"""Pixels of what annotators draw: Label Studio's brush masks, without its SDK, and polygons.

A brush mask is a run-length code of RGBA pixels. The SDK (label-studio-sdk 2.0) needs opencv-python beside
the headless one that this package uses, so the code is written anew from the format, that of thi.ng/rle-pack:

32 bits      number of values: four of each pixel, row by row
5 bits       bits of a value, less 1
4 × 4 bits   bits that a block's length may take, less 1: four choices
blocks       1 bit: one value repeated, or each given; 2 bits: which choice; length less 1; value or values
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meal_gpu.annotate.rle import runs
from meal_gpu.errors import DataError

_CHANNELS = 4
_VALUE_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)  # those of Label Studio's own encoder
_HEADER = (32, 5, 4, 4, 4, 4)
_FAR = 2**24  # pixels; what lies farther out is no point of an image


def encode(mask: NDArray[np.bool_]) -> list[int]:
    """The bytes of a mask [h, w]: 255 in all four channels where it is true, else 0."""
    lengths = runs(np.ascontiguousarray(mask).reshape(-1)) * _CHANNELS
    values = np.where(np.arange(len(lengths)) % 2, 255, 0)
    longest = 1 << _LENGTH_BITS[-1]
    blocks = -(-lengths // longest)  # 0 for the run of no pixels that a mask may begin with
    last = lengths - (blocks - 1) * longest
    ends = np.cumsum(blocks)
    lengths, values = np.full(blocks.sum(), longest), np.repeat(values, blocks)
    lengths[ends[blocks > 0] - 1] = last[blocks > 0]
    choice = np.searchsorted([1 << bits for bits in _LENGTH_BITS], lengths)
    bits = np.asarray(_LENGTH_BITS)[choice]
    codes = (((4 + choice) << bits | (lengths - 1)) << _VALUE_BITS) | values
    header = (mask.size * _CHANNELS, _VALUE_BITS - 1, *(n - 1 for n in _LENGTH_BITS))
    stream = _bits(
        np.concatenate([np.asarray(header, np.int64), codes]),
        np.concatenate([np.asarray(_HEADER, np.int64), 3 + bits + _VALUE_BITS]),
    )
    packed: list[int] = np.packbits(stream).tolist()
    return packed


def _bits(codes: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The bits of numbers one after another, each of its own width, the highest bit first."""
    ends = np.cumsum(widths)
    shift = np.repeat(ends, widths) - 1 - np.arange(ends[-1])
    return ((np.repeat(codes, widths) >> shift) & 1).astype(np.uint8)


def decode(rle: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask [h, w] of `size` that bytes stand for: true where alpha is above 0.

    Raises:
        DataError: they are no bytes, end too early or stand for another number of pixels.
    """
    if not isinstance(rle, list | tuple):
        raise DataError(f"a brush mask is a list of bytes, {type(rle).__name__} found")
    try:
        data = bytes(rle)
    except (TypeError, ValueError) as error:
        raise DataError(f"a brush mask is a list of numbers from 0 to 255: {error}") from None
    wanted = size[0] * size[1] * _CHANNELS
    end = len(data) * 8
    if end < sum(_HEADER):
        raise DataError(f"brush mask of {len(data)} bytes is truncated: its header has 7")
    found = int.from_bytes(data[:4], "big")
    if found != wanted:
        raise DataError(
            f"brush mask of {found} values, {wanted} expected: 4 of each of {size[0]}×{size[1]} pixels"
        )
    stream = _Stream(data)
    stream.at = 32
    width = stream.take(5) + 1
    lengths = [stream.take(4) + 1 for _ in range(4)]
    out = np.zeros(wanted, np.uint8)
    at = 0
    while at < wanted:
        repeated, choice = divmod(stream.take(3), 4)
        count = stream.take(lengths[choice]) + 1
        if stream.at + width * (1 if repeated else count) > end:
            raise DataError(
                f"brush mask is truncated: its {len(data)} bytes end after {at} of {wanted} values"
            )
        if at + count > wanted:
            raise DataError(f"brush mask has more than the {wanted} values it declares")
        if repeated:
            value = stream.take(width)
            if value > 255:
                raise DataError(f"brush mask has a value of {value}; 0 to 255 are known")
            if value:
                out[at : at + count] = value
        else:
            out[at : at + count] = stream.values(count, width)
        at += count
    return out.reshape(*size, _CHANNELS)[..., -1] > 0


class _Stream:
    """Reads bits, the highest of each byte first; past the end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, width: int) -> int:
        """A number of at most 32 bits."""
        first, skip = divmod(self.at, 8)
        window = int.from_bytes(self.data[first : first + 5].ljust(5, b"\0"), "big")
        self.at += width
        return (window >> (40 - skip - width)) & ((1 << width) - 1)

    def values(self, count: int, width: int) -> NDArray[np.uint8]:
        """`count` numbers of 0 to 255, each of `width` bits, all within the stream."""
        first, skip = divmod(self.at, 8)
        self.at += count * width
        part = np.frombuffer(self.data, np.uint8, -(-self.at // 8) - first, first)
        table = np.unpackbits(part)[skip : skip + count * width].reshape(count, width)
        if width > 8 and table[:, : width - 8].any():
            raise DataError("brush mask has a value above 255; 0 to 255 are known")
        low = table[:, max(0, width - 8) :]
        numbers: NDArray[np.uint8] = np.packbits(low, axis=1)[:, 0] >> (8 - low.shape[1])
        return numbers


def filled(points: NDArray[np.float64], size: Sequence[int]) -> NDArray[np.bool_]:
    """The pixels [h, w] whose centre lies within a polygon of points [n, 2], (x, y) in pixels; even-odd rule.

    A centre on an edge is within if the polygon lies to its right, or below it.
    """
    height, width = size
    if len(points) < 3 or not (np.abs(points) < _FAR).all():
        raise DataError("a polygon has at least three points, all of them numbers of pixels")
    toggles = np.zeros((height, width + 1), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        first, last = (min(max(math.ceil(y - 0.5), 0), height) for y in sorted((y0, y1)))
        if first < last:
            centres = np.arange(first, last) + 0.5
            x = x0 + (centres - y0) * ((x1 - x0) / (y1 - y0))
            toggles[np.arange(first, last), np.clip(np.ceil(x - 0.5), 0, width).astype(int)] ^= True
    return np.logical_xor.accumulate(toggles, axis=1)[:, :width]
