"""Images and labels for the tests of `meal_gpu.data`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def random_image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def random_labels(size: tuple[int, int], ids: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(ids, dtype=np.uint8), size)


def smooth_image(size: tuple[int, int], seed: int = 0) -> Image.Image:
    small = Image.fromarray(random_image((6, 8), seed))
    return small.resize((size[1], size[0]), Image.Resampling.BICUBIC)


MakeTree = Callable[..., Path]
