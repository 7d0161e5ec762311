"""Patches out of a resident uint8 pool, normalised for the network: ours against indexing and stacking."""

from collections.abc import Iterator
from typing import Any

import torch

from bench.ceiling import Work
from bench.harness import Case
from meal_gpu.grid import Grid
from meal_gpu.models import IMAGENET_MEAN, IMAGENET_STD
from meal_gpu.ops import reference, select_for


def cases(device: torch.device) -> Iterator[Case]:
    from torchvision.transforms.v2 import functional as transforms

    ours = select_for(device)
    on_gpu = device.type == "cuda"
    images, height, width = (256 if on_gpu else 32), 512, 1024
    generator = torch.Generator().manual_seed(0)
    pool = torch.randint(256, (images, height, width, 3), generator=generator, dtype=torch.uint8).to(device)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    whole, patches = Grid(1, 1, height, width), Grid(4, 4, height, width)
    for what, grid, count in (("patches", patches, 200), ("images", whole, 8)):
        ids = torch.randperm(images * grid.patches_per_image, generator=generator)[:count].sort().values
        ids = ids.to(device)
        boxes = [(int(left), int(top)) for left, top, _, _ in grid.boxes(ids.cpu())]
        numbers = (ids // grid.patches_per_image).tolist()

        def kernel(grid: Grid = grid, ids: torch.Tensor = ids) -> object:
            return ours.gather_patches(
                pool, None, ids, grid, IMAGENET_MEAN, IMAGENET_STD, 0, dtype=dtype
            ).pixels

        def plain(grid: Grid = grid, ids: torch.Tensor = ids) -> object:
            return reference.gather_patches(
                pool, None, ids, grid, IMAGENET_MEAN, IMAGENET_STD, 0, dtype=dtype
            ).pixels

        def stacked(grid: Grid = grid, boxes: Any = boxes, numbers: Any = numbers) -> object:
            """A slice of each, stacked, then torchvision's conversion and normalisation."""
            cut = torch.stack(
                [
                    pool[number, top : top + grid.patch_height, left : left + grid.patch_width]
                    for number, (left, top) in zip(numbers, boxes, strict=True)
                ]
            )
            scaled = transforms.to_dtype(cut.permute(0, 3, 1, 2), torch.float32, scale=True)
            return transforms.normalize(scaled, list(IMAGENET_MEAN), list(IMAGENET_STD)).to(dtype)

        expected = plain()
        contenders = {f"ours, {ours.name} ops": kernel}
        if ours is not reference:
            contenders["ours, reference ops"] = plain

        def quality(name: str, result: Any, expected: Any = expected) -> dict[str, Any]:
            return {"largest difference": float((result.float() - expected.float()).abs().max())}

        moved = count * grid.patch_height * grid.patch_width * 3 * (1 + dtype.itemsize)
        yield Case(
            "gather",
            {
                what: count, "height": grid.patch_height, "width": grid.patch_width,
                "dtype": str(dtype).removeprefix("torch."),
            },
            contenders | {"slices, torchvision": stacked},
            Work(moved),
            quality=quality,
        )  # fmt: skip
