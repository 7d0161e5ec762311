"""Where the images of a pool live: on the device, in host memory, or in files that each pass decodes anew.

Whatever the place, a pass sees the same pixels in the same batches, so that results are the same bits: the
device that computes decodes, also what is then kept in host memory.
"""

import copy
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from meal_gpu.errors import DataError, InputError
from meal_gpu.grid import Grid
from meal_gpu.images.headers import Size, image_size
from meal_gpu.images.loader import Loader
from meal_gpu.memory import current, number

_AHEAD = 8  # images fetched at a time for patches
_DECODED = 8  # files, at least, that the decoder's threads share


class Images(Protocol):
    """N images of one size that come as uint8 [B, H, W, 3] RGB batches on `device`."""

    @property
    def size(self) -> Size: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def resident(self) -> torch.Tensor | None:
        """All of them, uint8 [N, H, W, 3] on `device`, where they live there."""
        ...

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, of: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        """Yield the images [N], or those numbered `of` [M > 0] int64 on the CPU, in order.

        Raises:
            DataError: a file that cannot be decoded, or has another size; it is named.
        """
        ...


class Resident:
    """Images on the device that computes: every access is a view."""

    def __init__(self, images: torch.Tensor) -> None:
        self.resident: torch.Tensor | None = require_images(images)
        self._images = images
        self.size = (int(images.shape[1]), int(images.shape[2]))
        self.device = images.device

    def __len__(self) -> int:
        return len(self._images)

    def batches(self, batch_size: int, of: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        if of is None:
            yield from torch.split(self._images, batch_size)
            return
        for numbers in torch.split(of, batch_size):
            yield self._images[numbers.to(self.device, non_blocking=True)]


class Hosted:
    """Images in host memory, copied to a GPU while the batch before is computed.

    The copies overlap with kernels where the memory is page-locked, which `locked` asks for; a mapped file
    works too, slower.
    """

    resident: torch.Tensor | None = None

    def __init__(self, images: torch.Tensor, device: torch.device, *, locked: bool = False) -> None:
        self._images = require_images(images)
        if locked:
            pin(images, self, device)
        self.size = (int(images.shape[1]), int(images.shape[2]))
        self.device = device

    def __len__(self) -> int:
        return len(self._images)

    def batches(self, batch_size: int, of: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        parts = (
            torch.split(self._images, batch_size)
            if of is None
            else (self._images[numbers] for numbers in torch.split(of, batch_size))
        )
        yield from copied(iter(parts), self.device)


def pin(images: torch.Tensor, owner: object, device: torch.device) -> None:
    """Page-lock host memory in place for as long as `owner`, which holds it, lives.

    Where the system refuses, copies to `device` are slower. torch's own pinned allocator would round a pool
    up to a power of two.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    place = images.data_ptr()
    with current(device):
        refused = int(runtime.cudaHostRegister(place, images.nbytes, 0))
    if not refused:
        # Not at the interpreter's end, when CUDA may be gone
        weakref.finalize(owner, _unpin, runtime, place, device).atexit = False
        return
    with suppress(RuntimeError):  # the next kernel would be blamed for the refusal: let it be this one
        torch.ones(1, device=device)


def _unpin(runtime: Any, place: int, device: torch.device) -> None:
    with current(device):
        torch.cuda.synchronize(device)  # copies may be under way
        runtime.cudaHostUnregister(place)


def copied(parts: Iterator[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """Move each part to `device`, one ahead of the caller, on a stream of its own."""
    if device.type == "cpu":
        yield from (part.to(device) for part in parts)
        return
    copying = _copying(number(device))
    ahead: tuple[torch.Tensor, torch.cuda.Event] | None = None
    for part in parts:
        with torch.cuda.stream(copying):
            copied = part.to(device, non_blocking=True, memory_format=torch.contiguous_format)
            done = copying.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copied, done
    if ahead is not None:
        yield _arrived(*ahead)


@cache
def _copying(gpu: int) -> torch.cuda.Stream:
    """One for all: torch keeps what was freed for the stream that it was allocated on."""
    return torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]


def _arrived(batch: torch.Tensor, done: torch.cuda.Event) -> torch.Tensor:
    stream = torch.cuda.current_stream(batch.device)
    stream.wait_event(done)
    batch.record_stream(stream)
    return batch


def at_once(batch_size: int) -> int:
    """Files that are decoded together: whole batches, enough for the decoder's threads."""
    return batch_size * -(-_DECODED // batch_size)


class Streamed:
    """Image files, decoded by DALI in every pass: memory does not grow with the pool.

    Args:
        paths: the files, all of one native size.
        size: working (height, width); files of another size are resized. None: that of the first file.
        device: where they are decoded, and batches arrive.
    """

    resident: torch.Tensor | None = None

    def __init__(self, paths: Sequence[Path], size: Size | None, device: torch.device) -> None:
        if not paths:
            raise DataError("no images to load")
        self._paths = tuple(paths)
        self._decoder = device
        self.native = image_size(self._paths[0])
        self.size = size or self.native
        self.device = device

    def __len__(self) -> int:
        return len(self._paths)

    def at(self, device: torch.device) -> "Streamed":
        """The same images, decoded where they were, for another device: a GPU's pixels are its own."""
        other = copy.copy(self)
        other.device = device
        return other

    def batches(self, batch_size: int, of: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        paths = self._paths if of is None else [self._paths[number] for number in of.tolist()]
        together = min(at_once(batch_size), len(paths))
        loader = Loader(paths, self.size, device=self._decoder, batch_size=together, native=self.native)
        return (batch for decoded in loader for batch in torch.split(decoded.to(self.device), batch_size))


class Part:
    """Some of the images of another source, renumbered from 0.

    Args:
        numbers: [K > 0] int64 on the CPU, of the images, in any order. Where these live on the device, those
            that follow each other do so as well, as a view.

    Raises:
        InputError: no numbers, or some that `images` does not have.
    """

    def __init__(self, images: Images, numbers: torch.Tensor) -> None:
        if numbers.ndim != 1 or numbers.dtype != torch.int64 or not len(numbers):
            raise InputError(f"numbers must be int64 [K > 0], got {numbers.dtype} {list(numbers.shape)}")
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= len(images):
            raise InputError(f"numbers are {low} to {high}, of images 0 to {len(images) - 1}")
        self._images = images
        self._numbers: torch.Tensor | None = numbers
        self._length = len(numbers)
        self.size = images.size
        self.device = images.device
        self.resident: torch.Tensor | None = None
        if images.resident is not None and torch.equal(numbers, torch.arange(low, low + len(numbers))):
            self.resident = images.resident[low : high + 1]
            self._images, self._numbers = Resident(self.resident), None

    def __len__(self) -> int:
        return self._length

    def batches(self, batch_size: int, of: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        if self._numbers is not None:
            of = self._numbers if of is None else self._numbers[of]
        return self._images.batches(batch_size, of=of)


class Listed(Protocol):
    """What is asked of a torch `Dataset` of the map style: a length, and items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


class Drawn:
    """A torch `Dataset` whose items are images, or tuples that begin with one; the rest is not looked at.

    An image is uint8: a PIL image, an array or tensor [H, W, 3], or a tensor [3, H, W].
    """

    resident: torch.Tensor | None = None

    def __init__(self, dataset: Listed, device: torch.device) -> None:
        if not len(dataset):
            raise InputError("the dataset is empty")
        self._dataset = dataset
        first = self._item(0)
        self.size = (int(first.shape[0]), int(first.shape[1]))
        self.device = device

    def __len__(self) -> int:
        return len(self._dataset)

    def batches(self, batch_size: int, of: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        numbers = torch.arange(len(self)) if of is None else of
        parts = (
            torch.stack([self._item(i) for i in part.tolist()]) for part in torch.split(numbers, batch_size)
        )
        return copied(parts, self.device)

    def _item(self, index: int) -> torch.Tensor:
        item = self._dataset[index]
        item = item[0] if isinstance(item, tuple | list) and item else item
        if not isinstance(item, torch.Tensor):
            import numpy as np

            try:
                item = torch.from_numpy(np.array(item))
            except (TypeError, ValueError) as error:  # of text, and what NumPy only wraps
                raise InputError(
                    f"item {index} of the dataset is of type {type(item).__name__}; it must be an image, or "
                    "a tuple that begins with one; of paths give a list"
                ) from error
        if item.ndim == 3 and item.shape[0] == 3 and item.shape[2] != 3:
            item = item.permute(1, 2, 0)
        if item.ndim != 3 or item.shape[2] != 3 or item.dtype != torch.uint8:
            raise InputError(
                f"item {index} of the dataset is {item.dtype} {list(item.shape)}; images must be uint8 RGB, "
                "[H, W, 3] or [3, H, W]: leave ToTensor and Normalize out of its transforms"
            )
        if index and tuple(item.shape[:2]) != self.size:
            raise InputError(
                f"item {index} of the dataset is {item.shape[0]}×{item.shape[1]} pixels, "
                f"item 0 is {self.size[0]}×{self.size[1]}: resize them to one size"
            )
        return item


def require_images(images: torch.Tensor) -> torch.Tensor:
    """Raises InputError unless `images` are uint8 [N, H, W, 3], N > 0."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != torch.uint8 or not len(images):
        raise InputError(f"images must be uint8 [N, H, W, 3], N > 0, got {images.dtype} {list(images.shape)}")
    return images


class Window(NamedTuple):
    """Images that hold some of the patches asked for.

    Attributes:
        pixels: uint8 [U, H, W, 3], the images.
        images: [U] int64, their numbers in the pool.
        local: the patches' ids as though these images were the whole pool.
    """

    pixels: torch.Tensor
    images: torch.Tensor
    local: torch.Tensor


def windows(images: Images, patches: torch.Tensor, grid: Grid, count: int) -> Iterator[Window]:
    """Yield the patches [M], ascending, `count` at a time, with images that hold them.

    Images that live elsewhere than on the device are fetched once each, a few at a time; where they live on
    it the window is the whole pool, and the host does not wait.
    """
    if images.resident is not None:
        everything = torch.arange(len(images))
        for part in torch.split(patches, count):
            yield Window(images.resident, everything, part)
        return
    patches = patches.cpu()
    numbers, place = torch.unique(patches // grid.patches_per_image, return_inverse=True)
    stream = images.batches(_AHEAD, of=numbers)
    held = torch.empty((0, *images.size, 3), dtype=torch.uint8, device=images.device)
    first = 0
    for part, at in zip(torch.split(patches, count), torch.split(place, count), strict=True):
        held, first = held[int(at[0]) - first :], int(at[0])
        while first + len(held) <= int(at[-1]):
            held = torch.cat([held, next(stream)])
        local = (at - first) * grid.patches_per_image + part % grid.patches_per_image
        yield Window(held, numbers[first : first + len(held)], local)
