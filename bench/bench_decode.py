"""Image files to uint8 batches on the device: DALI as we use it, Pillow, OpenCV and torchvision."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench import frames
from bench.ceiling import Work
from bench.harness import Case
from meal_gpu.images.loader import Loader, decoding_threads

SIZE = (512, 1024)


def pillow(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def opencv(path: Path) -> torch.Tensor:
    import cv2

    return torch.from_numpy(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB))


def torchvision(path: Path) -> torch.Tensor:
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(str(path), mode=ImageReadMode.RGB).permute(1, 2, 0)


def torchvision_on_gpu(paths: Sequence[Path], device: torch.device, take: Callable[[Any], None]) -> None:
    """JPEG files, decoded in batches by the device."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    for start in range(0, len(paths), 8):
        files = [read_file(str(path)) for path in paths[start : start + 8]]
        take(torch.stack(decode_jpeg(files, mode=ImageReadMode.RGB, device=device)).permute(0, 2, 3, 1))


def by_threads(
    decode: Callable[[Path], torch.Tensor], size: int, paths: Sequence[Path], device: torch.device
) -> Iterator[torch.Tensor]:
    """With a pool of as many threads as DALI has, then stacked and copied, `size` at a time."""
    with ThreadPoolExecutor(decoding_threads(device)) as workers:
        decoded = workers.map(decode, paths)
        while batch := list(islice(decoded, size)):
            yield torch.stack(batch).to(device, non_blocking=True)


def each(
    decode: Callable[[Path], torch.Tensor], paths: Sequence[Path], device: torch.device,
    take: Callable[[torch.Tensor], None],
) -> None:  # fmt: skip
    for batch in by_threads(decode, 8, paths, device):
        take(batch)


def dali(paths: Sequence[Path], device: torch.device, take: Callable[[torch.Tensor], None]) -> None:
    for batch in Loader(paths, SIZE, device=device):
        take(batch)


def cases(device: torch.device) -> Iterator[Case]:
    count = 256 if device.type == "cuda" else 32
    pixels = frames.frames(count, SIZE, torch.device("cpu"))
    for suffix in ("jpg", "png"):
        with tempfile.TemporaryDirectory() as folder:
            paths = frames.write(Path(folder), pixels, suffix)
            ways: dict[str, Callable[..., None]] = {
                "ours, DALI": dali, "Pillow": partial(each, pillow), "OpenCV": partial(each, opencv),
                "torchvision": partial(each, torchvision),
            }  # fmt: skip
            if device.type == "cuda" and suffix == "jpg":
                ways["torchvision on the GPU"] = torchvision_on_gpu

            def decode(way: Callable[..., None], paths: Sequence[Path] = paths) -> torch.Tensor:
                """-> the first batch; the others are let go."""
                kept: list[torch.Tensor] = []
                way(paths, device, lambda batch: kept.append(batch.clone()) if not kept else None)
                return kept[0]

            expected = torch.stack([pillow(path) for path in paths[:8]]).int()

            def quality(name: str, result: Any, expected: torch.Tensor = expected) -> dict[str, Any]:
                return {"largest difference from Pillow": int((result.cpu().int() - expected).abs().max())}

            yield Case(
                "decode",
                {"images": count, "height": SIZE[0], "width": SIZE[1], "format": suffix},
                {name: partial(decode, way) for name, way in ways.items()},
                # Only what has to be written: decoding has no simple count of operations
                Work(sum(path.stat().st_size for path in paths) + pixels.nbytes),
                quality=quality,
                seconds=3.0,
                memory=device.type == "cpu",  # DALI has an allocator of its own, which torch does not see
            )
