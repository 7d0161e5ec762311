"""Patch entropy as a heuristic of baal (Atighehchian et al. 2020)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from meal_gpu.errors import InputError, UnavailableError
from meal_gpu.ops.public import patch_entropy

try:
    from baal.active.heuristics.heuristics import AbstractHeuristic, require_single_item, requireprobs
except ImportError as error:
    raise UnavailableError(
        f"baal cannot be imported ({error}); python -m pip install 'meal-gpu[baal]'"
    ) from error


class PatchEntropy(AbstractHeuristic):  # type: ignore[misc]
    """Ranks patches, or images by their patches, by mean predictive entropy in nats (MEAL, eq. 1).

    Predictions are [B, C, h, w] or, as baal's `ModelWrapper` gives them, [B, C, h, w, iterations]: logits or
    probabilities, told apart as baal does. The entropy is that of the mean over the iterations.

    Args:
        grid: rows and columns of patches.
        size: (H, W) at which entropy is measured; (h, w) where None.
        align_corners: of the upsampling to `size`.
        reduction: "none" ranks patches, image * rows * columns + patch, with scores [B * rows * columns];
            "mean", "max" or another of baal's ranks images, with scores [B], as `ActiveLearningLoop` needs.

    Raises:
        InputError: predictions of another rank, or what `meal_gpu.patch_entropy` rejects.
    """

    def __init__(
        self,
        grid: tuple[int, int] = (4, 4),
        *,
        size: tuple[int, int] | None = None,
        align_corners: bool = True,
        reduction: Any = "none",
    ) -> None:
        super().__init__(reverse=True, reduction=reduction)
        self.grid = grid
        self.size = size
        self.align_corners = align_corners

    @require_single_item  # type: ignore[untyped-decorator]
    @requireprobs  # type: ignore[untyped-decorator]
    def compute_score(self, predictions: np.ndarray, target_predictions: Any = None) -> np.ndarray:
        """[B, rows * columns] float32, the mean entropy of every patch."""
        if predictions.ndim not in (4, 5):
            raise InputError(
                f"predictions must be [B, C, h, w] or [B, C, h, w, iterations], got {list(predictions.shape)}"
            )
        p = torch.from_numpy(predictions).float()
        if p.ndim == 5:
            p = p.mean(dim=-1)
        # The logarithm of probabilities is as good as logits, also for what upsampling makes of it
        log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
        scores = patch_entropy(log_p, grid=self.grid, size=self.size, align_corners=self.align_corners)
        return scores.numpy()

    def get_uncertainties(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """[B * rows * columns] float32, or [B] after a reduction."""
        if isinstance(predictions, torch.Tensor):
            predictions = predictions.detach().float().cpu()
        scores = super().get_uncertainties(predictions, target_predictions=target_predictions)
        return np.ravel(scores)

    def reorder_indices(self, scores: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Indices from the highest score to the lowest; ties go to the lower index."""
        scores = np.concatenate(scores) if isinstance(scores, Sequence) else scores
        if scores.ndim != 1:
            raise InputError(f"scores must be [N], got {list(scores.shape)}")
        return np.argsort(-scores, kind="stable")
