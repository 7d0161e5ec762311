"""Confusion matrix → intersection over union."""

import torch

from meal_gpu.errors import InputError


def class_iou(confusion: torch.Tensor) -> torch.Tensor:
    """[C, C] counts, rows the ground truth -> [C] float64 IoU; NaN where a class has an empty union."""
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise InputError(f"a confusion matrix is square, got {list(confusion.shape)}")
    counts = confusion.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def mean_iou(confusion: torch.Tensor) -> float:
    """Mean IoU over the classes whose union is not empty; NaN where there is none.

    One matrix over a whole split, as in the Cityscapes benchmark, never a mean of per-image scores.
    """
    return float(class_iou(confusion).nanmean())
