"""A pool of any size in seconds: drawn street scenes, each shifted sideways again and again."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from meal_gpu import rng
from meal_gpu.data.street.scene import draw

SCENES = 24


def frames(count: int, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """uint8 [count, H, W, 3] on `device`; no two are alike."""
    drawn = [draw(size, rng.stream(0, i, "bench/frames"), rare=None)[0] for i in range(min(SCENES, count))]
    scenes = torch.from_numpy(np.stack(drawn)).to(device)
    out = torch.empty((count, *size, 3), dtype=torch.uint8, device=device)
    for i in range(count):
        turn, scene = divmod(i, len(scenes))
        out[i] = scenes[scene].roll(turn * 7, dims=1)
    return out


def write(folder: Path, images: torch.Tensor, suffix: str = "jpg") -> list[Path]:
    """Save each frame, as JPEG of quality 95, like camera recordings, or as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:06d}.{suffix}" for i in range(len(images))]

    def save(i: int) -> None:
        Image.fromarray(images[i].cpu().numpy()).save(paths[i], quality=95)

    with ThreadPoolExecutor() as workers:
        list(workers.map(save, range(len(images))))
    return paths
