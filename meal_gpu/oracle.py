"""The oracle: the one place that reads labels during acquisition experiments."""

from dataclasses import dataclass, replace

import torch

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.images.headers import Size
from meal_gpu.images.sources import Images, windows
from meal_gpu.models import Network
from meal_gpu.ops import Ops, Patches
from meal_gpu.ops.reference import pixels_of_patches

_AT_ONCE = 32  # patches


@dataclass(frozen=True)
class Oracle:
    """Reveals the labels of patches that were asked for, with their normalised pixels.

    Attributes:
        images: N images, wherever they live.
        labels: uint8 [N, H, W] train ids; on the images' device where these are resident there.
        grid: the patches of an image.
        void: the id that is no class.
        context: what training sees around a patch: "patch", nothing, or "image", its whole image.
    """

    images: Images
    labels: torch.Tensor
    grid: Grid
    ops: Ops
    void: int
    context: str = "patch"

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

    @property
    def sample_size(self) -> Size:
        """(height, width) of what the network is shown of a patch."""
        grid = self.grid
        patch = grid.patch_height, grid.patch_width
        return patch if self.context == "patch" else (grid.height, grid.width)

    def shown(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches [M] -> ids [M] of what the network is shown, and the patch counted within it [M]."""
        if self.context == "patch":
            return patches, torch.zeros_like(patches)
        return patches // self.grid.patches_per_image, patches % self.grid.patches_per_image

    def pixels(self, patches: torch.Tensor, model: Network) -> torch.Tensor:
        """What the network is shown of patches [M]: normalised float32 [M, 3, *sample_size]."""
        if self.context == "patch":
            return self.reveal(patches, model).pixels
        whole = replace(self, grid=Grid(1, 1, *self.sample_size), context="patch")
        return whole.reveal(self.shown(patches)[0], model).pixels

    def truth(self, patches: torch.Tensor) -> torch.Tensor:
        """[M] ids -> labels uint8 [M, ph, pw] on the images' device; void where an image ends before."""
        here = patches.to(self.labels.device, non_blocking=True)
        size = self.grid.patch_height, self.grid.patch_width
        at, inside = pixels_of_patches(here, self.grid, size)
        return self.labels[at].masked_fill(~inside, self.void).to(self.images.device)
