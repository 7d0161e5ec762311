"""Validation: one confusion matrix over a whole split."""

from dataclasses import dataclass

import torch

from meal_gpu.errors import MealGpuError
from meal_gpu.metrics import class_iou, mean_iou
from meal_gpu.models import Network, Output
from meal_gpu.passes import ImageSet


@dataclass(frozen=True)
class Evaluation:
    """`confusion` [C, C] int64, rows the ground truth, and what follows from it."""

    confusion: torch.Tensor

    @property
    def mean_iou(self) -> float:
        return mean_iou(self.confusion)

    @property
    def class_iou(self) -> list[float]:
        """Per class; NaN where a class occurs neither in the labels nor in the predictions."""
        iou: list[float] = class_iou(self.confusion).tolist()
        return iou


def evaluate(
    images: ImageSet,
    labels: torch.Tensor,
    model: Network,
    void: int,
) -> Evaluation:
    """Compare the model's classes with `labels` uint8 [N, H, W] at full resolution; `void` counts nowhere.

    The labels may lie in host memory.

    Raises:
        MealGpuError: the model's output is NaN or infinite; the image is named.
    """
    padded = model.padded_size(images.size)
    done = 0

    def use(output: Output) -> tuple[torch.Tensor, torch.Tensor]:
        truth = labels[done : done + len(output.logits)].to(images.device, non_blocking=True)
        # Also of one class alone: between -inf and -inf upsampling finds NaN, which would be the highest
        finite = output.logits.isfinite().flatten(1).all(dim=1)
        counts = images.ops.confusion(output.logits, truth, padded, model.align_corners, void)
        return counts, finite

    counts, finite = [], []
    for batch, found in images.passed(model, use):
        counts.append(found[0])
        finite.append(found[1])
        done = batch.stop
    whole = torch.cat(finite).cpu()
    if not bool(whole.all()):
        image = images.name(int((~whole).nonzero()[0]))
        raise MealGpuError(
            f"{image}: the model's output is NaN or infinite, and no class follows from it: its weights are "
            "damaged, training diverged (lower learning_rate), precision float16 overflows (take float32 or "
            "bfloat16), or a class is left out by -inf (take a low number)"
        )
    return Evaluation(torch.stack(counts).sum(dim=0).cpu())
