"""Factories for `acquire --cluster`: networks that die or fail while they score."""

import os
import signal
import time
from pathlib import Path

import torch
from small_networks import Small

from meal_gpu.models import Output


class Troubled(Small):
    """Small, and slow, killed once, or failing with dark images, as it is told.

    Args:
        once: a file; whoever finds it is killed by SIGKILL, after removing it.
        seconds: that every pass takes more.
        dark: the mean of normalised pixels below which a pass fails, or with `nan` gives NaN.
    """

    def __init__(self, once: str, seconds: float, dark: float, nan: bool) -> None:
        super().__init__(classes=5, seed=3)
        self.once, self.seconds, self.dark, self.nan = once, seconds, dark, nan

    def forward(self, images: torch.Tensor) -> Output:
        if self.once and Path(self.once).exists():
            Path(self.once).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        if images.mean() >= self.dark:
            return super().forward(images)
        if self.nan:
            return super().forward(images * torch.nan)
        raise ValueError("too dark")


def troubled(once: str = "", seconds: float = 0, dark: float = -10, nan: bool = False) -> Troubled:
    return Troubled(once, seconds, dark, nan)


def other_everywhere() -> Small:
    """Of other weights in every process."""
    return Small(classes=5, seed=os.getpid())
