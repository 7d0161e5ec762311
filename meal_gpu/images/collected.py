"""Images that are decoded, or fetched, when they are first asked for, and kept in memory from then on."""

from collections.abc import Iterator

import torch

from meal_gpu.images.sources import Images, copied, pin
from meal_gpu.memory import same_device


class Collected:
    """Images of another source, each asked for once, in memory that is filled bit by bit.

    A pass decodes what no pass before it has seen: a query that scores few images takes few.

    Args:
        images: where they come from; their device is the one whose memory they are kept in, the host's or
            that of `device`.
        device: where batches arrive.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        self._images = images
        self._pixels = torch.empty((len(images), *images.size, 3), dtype=torch.uint8, device=images.device)
        self._has = torch.zeros(len(images), dtype=torch.bool)
        self._missing = len(images)
        self._here = same_device(images.device, device)
        self.size = images.size
        self.device = device

    @property
    def resident(self) -> torch.Tensor | None:
        return self._pixels if self._here and not self._missing else None

    def __len__(self) -> int:
        return len(self._has)

    def batches(self, batch_size: int, of: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        parts = self._parts(batch_size, torch.arange(len(self)) if of is None else of)
        return parts if self._here else copied(parts, self.device)

    def _parts(self, batch_size: int, numbers: torch.Tensor) -> Iterator[torch.Tensor]:
        missing = numbers[~self._has[numbers]]
        fetched: Iterator[tuple[torch.Tensor, torch.Tensor]] = iter(())
        if len(missing):
            coming = self._images.batches(batch_size, of=missing)
            fetched = zip(torch.split(missing, batch_size), coming, strict=True)
        for part in torch.split(numbers, batch_size):
            while not bool(self._has[part].all()):
                self._keep(*next(fetched))
            yield self._pixels[self._rows(part)]

    def _keep(self, numbers: torch.Tensor, images: torch.Tensor) -> None:
        self._pixels[self._rows(numbers)] = images
        numbers = torch.unique(numbers)
        self._missing -= int((~self._has[numbers]).sum())
        self._has[numbers] = True
        if not self._missing and not self._here:  # not before: locked memory is taken at once
            pin(self._pixels, self, self.device)

    def _rows(self, numbers: torch.Tensor) -> slice | torch.Tensor:
        """Numbers that follow each other are a view, whose memory is page-locked where that of all is."""
        low = int(numbers[0])
        if torch.equal(numbers, torch.arange(low, low + len(numbers))):
            return slice(low, low + len(numbers))
        return numbers.to(self._pixels.device, non_blocking=True)
