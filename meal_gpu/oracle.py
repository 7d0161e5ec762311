"""The oracle: the one place that reads labels during acquisition experiments."""

from dataclasses import dataclass

import torch

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.images.headers import Size
from meal_gpu.images.sources import Images, windows
from meal_gpu.memory import beside
from meal_gpu.models import Network
from meal_gpu.ops import Ops
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
        """What the network is shown of patches [M]: float32 [M, 3, *sample_size] as `model` takes them."""
        grid = self.grid if self.context == "patch" else Grid(1, 1, *self.sample_size)
        shown, normalisation = self.shown(patches)[0], (grid, model.mean, model.std, self.void)
        if (pool := self.images.resident) is not None:
            return self.ops.gather_patches(pool, None, shown, *normalisation).pixels
        ascending, order = shown.cpu().sort()
        order = order.to(self.images.device)
        found = torch.empty(
            (len(order), 3, *self.sample_size), device=order.device, memory_format=torch.channels_last
        )
        done = 0
        for window in windows(self.images, ascending, grid, _AT_ONCE):
            part = self.ops.gather_patches(window.pixels, None, window.local, *normalisation).pixels
            found[order[done : done + len(part)]] = part
            done += len(part)
        return found

    def truth(self, patches: torch.Tensor) -> torch.Tensor:
        """[M] ids -> labels uint8 [M, ph, pw] on the images' device; void where an image ends before."""
        here = beside(patches, self.labels.device)
        size = self.grid.patch_height, self.grid.patch_width
        at, inside = pixels_of_patches(here, self.grid, size)
        return self.labels[at].masked_fill(~inside, self.void).to(self.images.device)
