"""Validation: one confusion matrix over a whole split."""

from dataclasses import dataclass

import torch

from meal_gpu.metrics import class_iou, mean_iou
from meal_gpu.models import Network
from meal_gpu.scoring import Advance, ImageSet


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
    advance: Advance = lambda _: None,
) -> Evaluation:
    """Compare the model's classes with `labels` uint8 [N, H, W] at full resolution; `void` counts nowhere.

    The labels may lie in host memory.
    """
    total: torch.Tensor | None = None
    padded = model.padded_size(images.size)
    for batch, output in images.outputs(model):
        truth = labels[batch].to(images.device, non_blocking=True)
        counts = images.ops.confusion(output.logits, truth, padded, model.align_corners, void)
        total = counts if total is None else total + counts
        advance(len(truth))
    assert total is not None, "an empty split is refused when the data is opened"
    return Evaluation(total.cpu())
