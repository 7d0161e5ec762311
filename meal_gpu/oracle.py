"""The oracle: the one place that reads labels during acquisition experiments."""

from dataclasses import dataclass

import torch

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.images.sources import Images, windows
from meal_gpu.models import Network
from meal_gpu.ops import Ops, Patches

_AT_ONCE = 32  # patches


@dataclass(frozen=True)
class Oracle:
    """Reveals the labels of patches that were asked for, with their normalised pixels.

    Attributes:
        images: N images, wherever they live.
        labels: uint8 [N, H, W] train ids; on the images' device where these are resident there.
        grid: the patches of an image.
        void: the id that is no class.
    """

    images: Images
    labels: torch.Tensor
    grid: Grid
    ops: Ops
    void: int

    def __post_init__(self) -> None:
        expected = (len(self.images), *self.images.size)
        if tuple(self.labels.shape) != expected:
            raise InputError(
                f"labels are {list(self.labels.shape)}, images {list(expected)}: they must agree"
            )

    def reveal(self, patches: torch.Tensor, model: Network) -> Patches:
        """[M] ids -> pixels float32 [M, 3, ph, pw] as `model` takes them, labels uint8 [M, ph, pw]."""
        normalisation = (self.grid, model.mean, model.std, self.void)
        if (pool := self.images.resident) is not None:
            return self.ops.gather_patches(pool, self.labels, patches, *normalisation)
        ascending, order = patches.cpu().sort()
        parts: list[Patches] = []
        for window in windows(self.images, ascending, self.grid, _AT_ONCE):
            labels = self.labels[window.images].to(window.pixels.device)
            parts.append(self.ops.gather_patches(window.pixels, labels, window.local, *normalisation))
        place = order.argsort().to(self.images.device)
        pixels, truth = (torch.cat(part)[place] for part in zip(*parts, strict=True))
        return Patches(pixels, truth)
