"""What light, surfaces and a sensor add to flat colours."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meal_gpu.data.cityscapes import LABEL_IDS

# Grain by class: (fine, coarse) amplitude in levels of 255.
_GRAIN = {
    "road": (4.0, 4.0),
    "sidewalk": (5.0, 5.0),
    "building": (4.0, 6.0),
    "wall": (8.0, 8.0),
    "vegetation": (14.0, 12.0),
    "terrain": (12.0, 11.0),
    "sky": (0.5, 2.0),
}
_OTHER = (3.0, 3.0)


def expose(
    pixels: NDArray[np.float32], labels: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Flat colours [H, W, 3] with their label ids [H, W] -> a photograph-like image, uint8."""
    height, width = labels.shape
    fine, coarse = np.full(256, _OTHER[0], np.float32), np.full(256, _OTHER[1], np.float32)
    for name, (small, large) in _GRAIN.items():
        fine[LABEL_IDS[name]], coarse[LABEL_IDS[name]] = small, large
    # Grain shrinks with the size of the frame: the same surface, seen by more pixels.
    cell = max(1, round(height / 192))
    grain = (
        _noise(rng, height, width, cell) * fine[labels]
        + _noise(rng, height, width, 9 * cell) * coarse[labels]
    )
    lit = pixels + grain[..., None]

    across, down = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    vignette = 1 - 0.12 * (across[None, :] ** 2 + down[:, None] ** 2)
    sun = 1 + float(rng.uniform(-0.12, 0.12)) * across[None, :]
    patches = 1 + 0.05 * _noise(rng, height, width, max(2, height // 5))
    warmth = float(rng.uniform(-0.06, 0.06))
    tint = np.array([1 + warmth, 1.0, 1 - warmth], dtype=np.float32)
    lit = lit * (vignette * sun * patches)[..., None] * tint * float(rng.uniform(0.86, 1.28))
    contrast = float(rng.uniform(0.85, 1.15))
    lit = (lit - 118) * contrast + 118
    sensor = rng.standard_normal(lit.shape, dtype=np.float32) * float(rng.uniform(1.5, 4.0))
    return np.asarray(np.clip(np.rint(lit + sensor), 0, 255), dtype=np.uint8)


def _noise(rng: np.random.Generator, height: int, width: int, cell: int) -> NDArray[np.float32]:
    """Smooth noise [H, W] of standard deviation about 1 whose blobs are `cell` pixels wide."""
    if cell <= 1:
        return rng.standard_normal((height, width), dtype=np.float32)
    small = rng.standard_normal((-(-height // cell) + 3, -(-width // cell) + 3), dtype=np.float32)
    large = Image.fromarray(small).resize(
        (small.shape[1] * cell, small.shape[0] * cell), Image.Resampling.BICUBIC
    )
    field = np.asarray(large, dtype=np.float32)[cell : cell + height, cell : cell + width]
    return np.asarray(field * 1.25, dtype=np.float32)
