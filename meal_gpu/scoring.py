"""Images through the model: pool scores, patch features and the logits that evaluation reads."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch

from meal_gpu.errors import MealGpuError
from meal_gpu.grid import Grid
from meal_gpu.images.sources import Images, Resident, windows
from meal_gpu.inference import Graphed, autocast, for_inference
from meal_gpu.models import Encoded, Network, Output, Segmenter
from meal_gpu.ops import Ops, PatchClasses

Advance = Callable[[int], None]

_GPU_BATCH = 8
_MOST_PATCHES = 32
# Of the patches that pass through the encoder together on the CPU, measured with 128×256 and 90×120: more
# leave the caches, fewer do not pay the cost of a layer
_CPU_PIXELS = 2**18
# A capture costs some passes of its own
_GRAPH_FROM = 8


class Scored(NamedTuple):
    """What a pass says of the pool's patches, by patch id; None where it was not asked for.

    `scores` [P] float32, the mean of a measure, in nats for the entropy; `features` [P, D] float32; `classes`
    [P, C], see `ops.PatchClasses`; `boundary` [P] float32, the length of the predicted boundaries in pixels.
    """

    scores: torch.Tensor
    features: torch.Tensor | None = None
    classes: PatchClasses | None = None
    boundary: torch.Tensor | None = None


def default_batch(device: torch.device) -> int:
    """Images in a forward pass: 8 on a GPU, 1 on the CPU, whose caches then hold the activations."""
    return _GPU_BATCH if device.type == "cuda" else 1


def patches_at_once(grid: Grid, device: torch.device) -> int:
    """Patches in a forward pass: 32 on a GPU; on the CPU no more than 2^18 pixels, but one."""
    if device.type == "cuda":
        return _MOST_PATCHES
    return min(_MOST_PATCHES, max(1, _CPU_PIXELS // (grid.patch_height * grid.patch_width)))


class ImageSet:
    """Images of a pool that pass through a network in fixed batches.

    With a frozen encoder its outputs are kept, up to `cache_bytes`, because they never change: only the
    decoder runs from the second pass on. What does not fit is computed again each time, with equal bits.
    All frozen networks of one set must share their encoder's weights.

    Args:
        images: a source, or a uint8 tensor [N, H, W, 3] on the device that computes.
        batch_size: images in a forward pass; None: `default_batch` of the device.
    """

    def __init__(
        self, images: Images | torch.Tensor, ops: Ops, *, precision: str = "float32",
        batch_size: int | None = None, cache_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.images: Images = Resident(images) if isinstance(images, torch.Tensor) else images
        self.size = self.images.size
        self.device = self.images.device
        self.ops = ops
        self._whole = Grid(1, 1, *self.size)
        self.precision = precision
        self._batch_size = default_batch(self.device) if batch_size is None else batch_size
        self._free_bytes = cache_bytes
        self._encoded: list[Encoded] = []  # of the first batches

    def __len__(self) -> int:
        return len(self.images)

    @torch.inference_mode()
    def outputs(self, model: Network) -> Iterator[tuple[slice, Output]]:
        """Yield (images, logits and features) batch by batch, in order."""
        ready = for_inference(model, self.precision, self.device)
        if isinstance(ready, Segmenter) and ready.frozen:
            for batch, encoded in self.encodings(ready):
                with autocast(self.device, self.precision):
                    logits = ready.decode(encoded)
                yield batch, Output(logits, encoded.deep)
            return
        graphed: Graphed | None = None
        for batch, pixels in self.normalised(ready):
            if graphed is None and self._worth_a_graph(ready):
                graphed = Graphed(ready, pixels, self.precision)
            if graphed is not None:
                yield batch, graphed(pixels)
                continue
            with autocast(self.device, self.precision):
                output = ready(pixels)
            yield batch, output

    def _worth_a_graph(self, model: Network) -> bool:
        # A user's own network may wait for the device, which a capture cannot hold
        many = len(self) >= _GRAPH_FROM * self._batch_size
        return many and self.device.type == "cuda" and isinstance(model, Segmenter)

    @torch.inference_mode()
    def feature_maps(self, model: Network) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (images, [B, D, h', w']) batch by batch, without the decoder."""
        ready = for_inference(model, self.precision, self.device)
        if isinstance(ready, Segmenter) and ready.frozen:
            for batch, encoded in self.encodings(ready):
                yield batch, encoded.deep
            return
        for batch, pixels in self.normalised(ready):
            with autocast(self.device, self.precision):
                features = ready.features(pixels)
            yield batch, features

    def normalised(self, model: Network, first: int = 0) -> Iterator[tuple[slice, torch.Tensor]]:
        """Batches as the network takes them, from image `first` on."""
        ids = torch.arange(self._batch_size, device=self.device)
        rest = torch.arange(first, len(self)) if first else None
        for images in self.images.batches(self._batch_size, of=rest):
            pixels = self.ops.gather_patches(
                images, None, ids[: len(images)], self._whole, model.mean, model.std, 0
            ).pixels
            yield slice(first, first + len(images)), pixels
            first += len(images)

    def encodings(self, model: Segmenter) -> Iterator[tuple[slice, Encoded]]:
        """As `normalised`, what the frozen encoder makes of the batches; one such iteration at a time."""
        done = 0
        for encoded in list(self._encoded):
            yield slice(done, done + len(encoded.deep)), encoded
            done += len(encoded.deep)
        if done == len(self):
            return
        keeps = True
        for batch, pixels in self.normalised(model, done):
            with autocast(self.device, self.precision):
                encoded = model.encode(pixels)
            size = sum(part.nbytes for part in encoded)
            if keeps := keeps and size <= self._free_bytes:
                self._free_bytes -= size
                self._encoded.append(encoded)
            yield batch, encoded


def score_pool(
    pool: ImageSet, model: Network, grid: Grid, *, measure: str = "entropy", temperature: float = 1.0,
    features: bool = False, classes: bool = False, boundary: bool = False,
    valid: torch.Tensor | None = None, advance: Advance = lambda _: None,
) -> Scored:  # fmt: skip
    """The mean entropy, or another of `ops.MEASURES`, of every patch (MEAL, step 1), and more, in one pass.

    Whole images pass through the model, so that a patch is scored, and described, with its surroundings.
    Logits are divided by `temperature`. With `valid` [H, W] bool only the pixels where it is true count; a
    patch that has none is scored 0.
    """
    padded = model.padded_size(pool.size)
    counting = valid if valid is None else valid.to(pool.device, torch.uint8)
    scores, described, found, lengths = [], [], [], []
    for batch, output in pool.outputs(model):
        geometry = (output.logits, grid, padded, model.align_corners)
        scores.append(
            pool.ops.patch_entropy(*geometry, measure=measure, temperature=temperature, valid=counting)
        )
        if features:
            described.append(pool_patches(output.features, grid, padded))
        if classes:
            found.append(pool.ops.patch_classes(*geometry, temperature=temperature, valid=counting))
        if boundary:
            lengths.append(boundary_lengths(output.logits, grid, padded))
        advance(batch.stop - batch.start)
    return Scored(
        torch.cat(scores).flatten(),
        torch.cat(described).flatten(0, 1) if features else None,
        PatchClasses(*(torch.cat(part).flatten(0, 1) for part in zip(*found, strict=True)))
        if classes
        else None,
        torch.cat(lengths).flatten() if boundary else None,
    )


def boundary_lengths(logits: torch.Tensor, grid: Grid, padded: tuple[int, int]) -> torch.Tensor:
    """[B, C, h, w] -> [B, P] float32: pixels of boundary between predicted classes, as seen at h × w.

    An estimate: what is thinner than a cell of the logits is not seen, and a slanted line is as long as its
    steps.
    """
    labels = logits.argmax(dim=1)
    height, width = labels.shape[1:]
    edges = logits.new_zeros((len(labels), 1, height, width), dtype=torch.float32)
    # An edge across the columns is as long as a cell is high
    edges[:, 0, :, 1:] += (labels[:, :, 1:] != labels[:, :, :-1]) * (padded[0] / height)
    edges[:, 0, 1:] += (labels[:, 1:] != labels[:, :-1]) * (padded[1] / width)
    cell = padded[0] / height * padded[1] / width
    lengths: torch.Tensor = pool_patches(edges, grid, padded)[..., 0] * _areas(grid, logits.device) / cell
    return lengths


@cache
def _areas(grid: Grid, device: torch.device) -> torch.Tensor:
    """[P] float32 pixels of the patches of an image."""
    boxes = torch.from_numpy(grid.boxes(range(grid.patches_per_image)))
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).to(device, torch.float32, non_blocking=True)


def shared_features(
    pool: ImageSet, model: Network, grid: Grid, advance: Advance = lambda _: None
) -> torch.Tensor:
    """[P, D] float32: every patch's part of the encoder's last stage on the whole image, averaged."""
    padded = model.padded_size(pool.size)
    parts = []
    for batch, maps in pool.feature_maps(model):
        parts.append(pool_patches(maps, grid, padded))
        advance(grid.patches_per_image * (batch.stop - batch.start))
    return torch.cat(parts).flatten(0, 1)


@torch.inference_mode()
def patch_features(
    pool: ImageSet, patches: torch.Tensor, model: Network, grid: Grid, advance: Advance = lambda _: None
) -> torch.Tensor:
    """[M] patch ids -> [M, D] float32: each patch's own pixels through the encoder, globally averaged."""
    ready = for_inference(model, pool.precision, pool.device)
    # In ascending order, for images that come from elsewhere one after the other
    ascending, order = patches.to(pool.device).sort(stable=True)
    parts = []
    for window in windows(pool.images, ascending, grid, patches_at_once(grid, pool.device)):
        pixels = pool.ops.gather_patches(
            window.pixels, None, window.local, grid, ready.mean, ready.std, 0
        ).pixels
        with autocast(pool.device, pool.precision):
            parts.append(pool_features(ready.features(pixels)))
        advance(len(window.local))
    features = torch.cat(parts)
    return torch.empty_like(features).index_copy_(0, order, features)


def pool_features(maps: torch.Tensor) -> torch.Tensor:
    """[B, D, h, w] of any float dtype -> [B, D] float32, the global average."""
    return maps.mean(dim=(2, 3), dtype=torch.float32)


def pool_patches(maps: torch.Tensor, grid: Grid, padded: tuple[int, int]) -> torch.Tensor:
    """[B, D, h, w], spanning `padded` pixels -> [B, patches, D] float32: the average over each patch's area.

    A cell counts with the share of it that lies in the patch, so that any grid goes with any stride.
    """
    rows = _overlaps(grid.rows, grid.patch_height, grid.height, maps.shape[2], padded[0], maps.device)
    columns = _overlaps(grid.columns, grid.patch_width, grid.width, maps.shape[3], padded[1], maps.device)
    return torch.einsum("ry,bdyx,cx->brcd", rows, maps.float(), columns).flatten(1, 2)


@cache
def _overlaps(
    parts: int, part: int, length: int, cells: int, padded: int, device: torch.device
) -> torch.Tensor:
    """[parts, cells] float32: which share of a part of the axis lies in each cell."""
    low = torch.arange(parts, dtype=torch.float64)[:, None] * part
    high = (low + part).clamp(max=length)
    edges = torch.arange(cells + 1, dtype=torch.float64) * padded / cells
    overlap = torch.minimum(high, edges[1:]) - torch.maximum(low, edges[:-1])
    return (overlap.clamp(min=0) / (high - low)).to(device, torch.float32, non_blocking=True)


def require_finite(
    values: torch.Tensor, grid: Grid, names: tuple[str, ...], patches: torch.Tensor | None = None
) -> None:
    """Values [M] of `patches` [M], or [P] of all, that must be finite.

    Raises:
        MealGpuError: naming the first image with one that is not.
    """
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).nonzero()[0])
        patch = row if patches is None else int(patches[row])
        image = names[patch // grid.patches_per_image]
        raise MealGpuError(
            f"{image}: the model's output is NaN or infinite (patch {patch}); check its weights"
        )
