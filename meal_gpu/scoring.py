"""Images through the model: pool scores, patch features and the logits that evaluation reads."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from meal_gpu.errors import MealGpuError
from meal_gpu.grid import Grid
from meal_gpu.models import Encoded, Network, Segmenter, pool_features
from meal_gpu.ops import Ops

Advance = Callable[[int], None]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The mixed precision of the forward passes: "float32" leaves them alone."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


class ImageSet:
    """Resident uint8 images [N, H, W, 3] that pass through a network in fixed batches.

    With a frozen encoder its outputs are kept, up to `cache_bytes`, because they never change: only the
    decoder runs from the second pass on. What does not fit is computed again each time, with equal bits.
    All frozen networks of one set must share their encoder's weights.
    """

    def __init__(
        self, images: torch.Tensor, ops: Ops, *, precision: str = "float32", batch_size: int = 8,
        cache_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.images = images
        self.size = (int(images.shape[1]), int(images.shape[2]))
        self._ops = ops
        self._whole = Grid(1, 1, *self.size)
        self._precision = precision
        self._batch_size = batch_size
        self._free_bytes = cache_bytes
        self._encoded: dict[int, Encoded] = {}

    def __len__(self) -> int:
        return len(self.images)

    @torch.inference_mode()
    def logits(self, model: Network) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (images, [B, C, h, w]) batch by batch, in order; the model is put in eval mode."""
        model.eval()
        for start in range(0, len(self), self._batch_size):
            batch = slice(start, min(start + self._batch_size, len(self)))
            with autocast(self.images.device, self._precision):
                if isinstance(model, Segmenter) and model.frozen:
                    logits = model.decode(self._encode(model, batch))
                else:
                    logits = model(self._normalised(model, batch)).logits
            yield batch, logits

    def _normalised(self, model: Network, batch: slice) -> torch.Tensor:
        ids = torch.arange(batch.start, batch.stop)
        return self._ops.gather_patches(self.images, None, ids, self._whole, model.mean, model.std, 0).pixels

    def _encode(self, model: Segmenter, batch: slice) -> Encoded:
        if (kept := self._encoded.get(batch.start)) is not None:
            return kept
        encoded = model.encode(self._normalised(model, batch))
        size = sum(part.nbytes for part in encoded)
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._encoded[batch.start] = encoded
        return encoded


def score_pool(
    pool: ImageSet, model: Network, grid: Grid, ops: Ops, advance: Advance = lambda _: None
) -> torch.Tensor:
    """[N * patches per image] float32: the mean entropy of every patch, in nats (MEAL, step 1).

    Whole images pass through the model, so that a patch is scored with its surroundings.
    """
    scores = torch.empty((len(pool), grid.patches_per_image), device=pool.images.device)
    for batch, logits in pool.logits(model):
        scores[batch] = ops.patch_entropy(logits, grid, model.padded_size(pool.size), model.align_corners)
        advance(len(logits))
    return scores.flatten()


@torch.inference_mode()
def patch_features(
    images: torch.Tensor,
    patches: torch.Tensor,
    model: Network,
    grid: Grid,
    ops: Ops,
    *,
    precision: str = "float32",
    batch_size: int = 32,
    advance: Advance = lambda _: None,
) -> torch.Tensor:
    """[M] patch ids -> [M, D] float32: each patch's own pixels through the encoder, globally averaged."""
    model.eval()
    parts = []
    for ids in torch.split(patches, batch_size):
        pixels = ops.gather_patches(images, None, ids, grid, model.mean, model.std, 0).pixels
        with autocast(images.device, precision):
            parts.append(encode_features(model, pixels))
        advance(len(ids))
    return torch.cat(parts)


def encode_features(model: Network, pixels: torch.Tensor) -> torch.Tensor:
    """[B, 3, h, w] -> [B, D] float32, without the decoder where the model lets itself be split."""
    if isinstance(model, Segmenter):
        return pool_features(model.encode(pixels).deep)
    return model(pixels).features.float()


def require_finite(scores: torch.Tensor, grid: Grid, names: tuple[str, ...]) -> None:
    """[P] per patch of the pool. Raises MealGpuError naming the first image with one that is not finite."""
    if not bool(scores.isfinite().all()):
        patch = int((~scores.isfinite()).nonzero()[0])
        image = names[patch // grid.patches_per_image]
        raise MealGpuError(
            f"{image}: the model's output is NaN or infinite (patch {patch}); check its weights"
        )
