"""Confusion matrix of a batch from stride-4 logits: ours against full-size argmax and a peer's matrix."""

from collections.abc import Iterator
from typing import Any

import torch

from bench.bench_patch_entropy import full_size
from bench.ceiling import Work
from bench.harness import Case
from meal_gpu.grid import Grid
from meal_gpu.ops import reference, select_for

VOID = 255


def cases(device: torch.device) -> Iterator[Case]:
    ours = select_for(device)
    images, height, width, classes = (32 if device.type == "cuda" else 4), 512, 1024, 19
    whole = Grid(1, 1, height, width)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, classes, height // 4, width // 4, generator=generator)
    logits = logits.to(device, memory_format=torch.channels_last)
    labels = torch.randint(classes, (images, height, width), generator=generator, dtype=torch.uint8)
    labels[:, :20] = VOID
    labels = labels.to(device)

    def eager() -> torch.Tensor:
        predicted, truth = full_size(logits, whole).argmax(dim=1), labels.long()
        known = truth != VOID
        pairs = (truth * classes + predicted)[known]
        return torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def torchmetrics() -> torch.Tensor:
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        return multiclass_confusion_matrix(
            full_size(logits, whole).argmax(dim=1), labels.long(), classes, ignore_index=VOID
        )

    contenders = {
        f"ours, {ours.name} ops": lambda: ours.confusion(logits, labels, (height, width), True, VOID)
    }
    if ours is not reference:
        contenders["ours, reference ops"] = lambda: reference.confusion(
            logits, labels, (height, width), True, VOID
        )
    expected = eager()

    def quality(name: str, result: Any) -> dict[str, Any]:
        # Pixels whose two best classes are closer than a rounding may go to either
        return {"pixels counted elsewhere": int((result - expected).abs().sum()) // 2}

    pixels = images * height * width
    yield Case(
        "confusion",
        {"images": images, "height": height, "width": width, "classes": classes, "dtype": "float32"},
        contenders | {"eager, argmax and bincount": eager, "torchmetrics": torchmetrics},
        # Upsampling and one comparison for a pixel and class
        Work(logits.nbytes + labels.nbytes + 8 * classes**2, vector_flops=4 * pixels * classes),
        quality=quality,
    )
