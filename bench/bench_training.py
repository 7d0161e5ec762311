"""A step of training, encoder frozen: patches alone, within their images, the images decoded whole."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.harness import Case
from meal_gpu.grid import Grid
from meal_gpu.inference import autocast, default_precision
from meal_gpu.models import ARCHITECTURES, Builder, Encoded
from meal_gpu.ops.reference import patch_of_pixels
from meal_gpu.patchwise import Patchwise, patch_decoder, upsampled
from meal_gpu.train import cross_entropy

BATCH, CLASSES, VOID = 8, 11, 255
GRID = Grid(4, 4, 360, 480)  # CamVid's
OURS, WHOLE, ALONE = "ours, patches within their images", "images decoded whole", "patches alone"


def cases(device: torch.device) -> Iterator[Case]:
    for architecture in ARCHITECTURES:
        yield case(device, architecture)


def case(device: torch.device, architecture: str) -> Case:
    precision = default_precision(device)
    model = Builder(architecture, CLASSES, "none")(0).to(device)
    model.freeze_encoder()
    draws = torch.Generator().manual_seed(0)
    patches = torch.randint(GRID.patches_per_image, (BATCH,), generator=draws)
    labels = torch.randint(CLASSES, (BATCH, GRID.height, GRID.width), generator=draws).to(device)
    inside = patch_of_pixels(GRID, device) == patches.to(device)[:, None, None]
    only = labels.where(inside, VOID)
    truth = labels[inside].view(BATCH, GRID.patch_height, GRID.patch_width)
    encoded, alone = (
        encode(model, torch.randn(BATCH, 3, *size, generator=draws).to(device), precision)
        for size in ((GRID.height, GRID.width), (GRID.patch_height, GRID.patch_width))
    )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trainable, lr=0.0)  # all rounds are of one network
    within, by_itself = Patchwise(model, GRID, device), patch_decoder(model, GRID, "patch", device)

    def whole(maps: Encoded) -> torch.Tensor:
        return upsampled(model, model.decode(maps), (GRID.height, GRID.width))

    decoded: dict[str, Callable[[], torch.Tensor]] = {
        OURS: lambda: within(encoded, patches),
        WHOLE: lambda: whole(encoded),
        ALONE: lambda: by_itself(alone, patches),
    }

    def step(name: str) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            model.train()
            with autocast(device, precision):
                logits = decoded[name]()
            optimiser.zero_grad(set_to_none=True)
            loss = cross_entropy(logits, only if name == WHOLE else truth, VOID)
            loss.backward()
            optimiser.step()
            return loss.detach()

        return call

    def quality(name: str, _: Any) -> dict[str, Any]:
        """How far the logits of the patches are from those of the images, in eval mode and float32."""
        if name != OURS:
            return {}
        model.eval()
        maps = Encoded(*(part.float() for part in encoded))
        with torch.no_grad():
            exact = whole(maps).movedim(1, -1)[inside]
            found = within(maps, patches).movedim(1, -1).flatten(0, 2)
        return {"relative error": float(f"{float((found - exact).norm() / exact.norm()):.2g}")}

    return Case(
        "training",
        {
            "architecture": architecture, "batch": BATCH, "height": GRID.height, "width": GRID.width,
            "grid": f"{GRID.rows}×{GRID.columns}", "classes": CLASSES, "precision": precision,
        },
        {name: step(name) for name in decoded},
        quality=quality,
        seconds=6.0,
        least=3,
    )  # fmt: skip


@torch.no_grad()
def encode(model: Any, images: torch.Tensor, precision: str) -> Encoded:
    model.eval()
    with autocast(images.device, precision):
        return model.encode(images)
