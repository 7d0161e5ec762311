"""The oracle: the one place that reads labels during acquisition experiments."""

from dataclasses import dataclass

import torch

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.models import Network
from meal_gpu.ops import Ops, Patches


@dataclass(frozen=True)
class Oracle:
    """Reveals the labels of patches that were asked for, with their normalised pixels.

    Attributes:
        images: uint8 [N, H, W, 3].
        labels: uint8 [N, H, W] train ids.
        grid: the patches of an image.
        void: the id that is no class.
    """

    images: torch.Tensor
    labels: torch.Tensor
    grid: Grid
    ops: Ops
    void: int

    def __post_init__(self) -> None:
        if self.labels.shape != self.images.shape[:3]:
            raise InputError(
                f"labels are {list(self.labels.shape)}, images {list(self.images.shape)}: they must agree"
            )

    def reveal(self, patches: torch.Tensor, model: Network) -> Patches:
        """[M] ids -> pixels float32 [M, 3, ph, pw] as `model` takes them, labels uint8 [M, ph, pw]."""
        return self.ops.gather_patches(
            self.images, self.labels, patches, self.grid, model.mean, model.std, self.void
        )
