"""Temperature scaling (Guo et al. 2017), by images that the network was not trained on.

Of these a sample of pixels is looked at, whose logits are interpolated where they lie.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from meal_gpu import rng
from meal_gpu.models import Segmenter
from meal_gpu.passes import ImageSet

PER_IMAGE = 4096  # pixels
BINS = 15
# Where the search ends: a model that is right everywhere asks for 0, one that knows nothing for infinity
LIMITS = (0.05, 20.0)


def sampled(
    logits: torch.Tensor, labels: torch.Tensor, padded: tuple[int, int], align_corners: bool, void: int,
    draws: np.random.Generator, count: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """`count` random pixels of each of [B, C, h, w] logits, void left out: their logits [K, C] float32, train
    ids [K] and images [K] int64.
    """
    images, height, width = labels.shape
    flat = torch.from_numpy(draws.integers(height * width, size=(images, count))).to(logits.device)
    y, x = flat // width, flat % width
    truth = labels.flatten(1).to(logits.device).gather(1, flat).long()
    # The positions of pixels in grid_sample's span of -1 to 1, that of the corners or of the edges
    where = [
        2 * at / max(1, span - 1) - 1 if align_corners else (2 * at + 1) / span - 1
        for at, span in ((x, padded[1]), (y, padded[0]))
    ]
    found = F.grid_sample(
        logits.float(), torch.stack(where, dim=-1).float()[:, None], padding_mode="border",
        align_corners=align_corners,
    )  # fmt: skip
    values = found[:, :, 0].transpose(1, 2)
    known = truth != void
    image = torch.arange(images, device=truth.device)[:, None].expand_as(truth)
    return values[known], truth[known], image[known]


@torch.inference_mode()
def pixels_of(
    images: ImageSet, labels: torch.Tensor, model: Segmenter, void: int, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of pixels of images with `labels` uint8 [N, H, W]: logits [K, C], train ids [K] and images [K]."""
    draws = rng.stream(seed, step, "calibration")
    padded = model.padded_size(images.size)
    parts = []
    for batch, output in images.outputs(model):
        values, truth, image = sampled(
            output.logits, labels[batch], padded, model.align_corners, void, draws, PER_IMAGE
        )
        parts.append((values, truth, image + batch.start))
    values, truth, image = (torch.cat(part) for part in zip(*parts, strict=True))
    return values, truth, image


def fit_temperature(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """The T in LIMITS of the least cross-entropy of softmax(logits / T), [K, C] and [K]; 1 for K = 0."""
    from scipy.optimize import minimize_scalar

    if not len(truth):
        return 1.0

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(logits.double() / math.exp(log_t), truth))

    low, high = map(math.log, LIMITS)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x)


def expected_calibration_error(
    logits: torch.Tensor, truth: torch.Tensor, temperature: float = 1.0, bins: int = BINS
) -> float:
    """ECE in [0, 1] (Naeini et al. 2015; Guo et al. 2017, eq. 3) over bins of equal width; NaN for K = 0."""
    if not len(truth):
        return math.nan
    confidence, predicted = (logits.double() / temperature).softmax(dim=1).max(dim=1)
    # Bins are (low, high], as in the paper
    number = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    gaps.index_add_(0, number, (predicted == truth).double() - confidence)
    return float(gaps.abs().sum() / len(truth))
