"""Factories for `acquire --cluster`: networks that die or fail while they score."""

import os
import signal
import time
from pathlib import Path

import torch
from small_networks import Small
from torch import nn

from meal_gpu.models import Output


class Troubled(Small):
    """Small, and failing with dark images, as it is told, or slow or killed once by a variable, since another
    argument would be another network.

    $TROUBLED_ONCE is a file: whoever finds it is killed by SIGKILL, after removing it. $TROUBLED_SECONDS are
    what every pass takes more.

    Args:
        dark: the mean of normalised pixels below which a pass fails, or with `nan` gives NaN.
    """

    def __init__(self, dark: float, nan: bool) -> None:
        super().__init__(classes=5, seed=3)
        self.dark, self.nan = dark, nan

    def forward(self, images: torch.Tensor) -> Output:
        once = os.environ.get("TROUBLED_ONCE")
        if once and Path(once).exists():
            Path(once).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("TROUBLED_SECONDS", "0")))
        if images.mean() >= self.dark:
            return super().forward(images)
        if self.nan:
            return super().forward(images * torch.nan)
        raise ValueError("too dark")


def troubled(dark: float = -10, nan: bool = False) -> Troubled:
    return Troubled(dark, nan)


class Scaled(Small):
    """Another network for another `scale`, of the same weights."""

    def __init__(self, classes: int, scale: float) -> None:
        super().__init__(classes, seed=0)
        self.scale = scale

    def forward(self, images: torch.Tensor) -> Output:
        output = super().forward(images)
        return Output(self.scale * output.logits, output.features)


def foreign(classes: int) -> nn.Module:
    """A module of somebody who knows nothing of this package."""
    network = nn.Conv2d(3, classes, kernel_size=1)
    with torch.no_grad():
        network.weight.copy_(torch.linspace(-1, 1, 3 * classes).view(classes, 3, 1, 1))
        network.bias.zero_()
    return network


def other_everywhere() -> Small:
    """Of other weights in every process."""
    return Small(classes=5, seed=os.getpid())
