"""The control arm: what a few patches that no strategy chose say of all that are unlabelled."""

import numpy as np
import torch

from meal_gpu.models import Network
from meal_gpu.oracle import Oracle
from meal_gpu.passes import ImageSet
from meal_gpu.prediction import patch_predictions
from meal_gpu.statistics import Interval, mean_interval


def accuracy(patches: torch.Tensor, model: Network, oracle: Oracle, precision: str) -> Interval:
    """The mean over the unlabelled patches of the share of right pixels, in [0, 1], estimated without bias.

    Void is left out; a patch that is void everywhere says nothing, and the estimate is that of the others.
    Every patch counts alike, however much of it is void. Student's interval, cut to [0, 1]: such shares are
    skewed, so that of few patches it holds the truth less often than it says, and misses by being too high.

    Args:
        patches: [m] drawn uniformly from the unlabelled ones, which `model` was not trained on.
        precision: of the forward passes.
    """
    grid = oracle.grid
    image, _, _ = grid.locate(patches)
    truth = oracle.truth(patches)
    masks = patch_predictions(
        oracle.images, lambda part: ImageSet(part, oracle.ops, precision=precision), model, image,
        grid.boxes(patches).tolist(), (grid.height, grid.width),
    )  # fmt: skip
    right = np.full(len(patches), np.nan)
    for row, (mask, revealed) in enumerate(zip(masks, truth.cpu().numpy(), strict=True)):
        labels = revealed[: mask.shape[0], : mask.shape[1]]
        known = labels != oracle.void
        if known.any():
            right[row] = float((mask == labels)[known].mean())
    seen = right[~np.isnan(right)]
    if not len(seen):
        return Interval(np.nan, np.nan, np.nan, 0)
    found = mean_interval(seen)
    low, high = np.clip((found.low, found.high), 0, 1).tolist()
    return Interval(found.mean, low, high, found.n)
