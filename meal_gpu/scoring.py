"""What a pass of the model over the pool says of its patches: scores, features, classes, boundaries."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F

from meal_gpu.errors import MealGpuError
from meal_gpu.grid import Grid
from meal_gpu.images.sources import Window, windows
from meal_gpu.inference import for_inference
from meal_gpu.memory import Halving
from meal_gpu.models import Network, Output
from meal_gpu.ops import PatchClasses
from meal_gpu.passes import LOWER, ImageSet

Advance = Callable[[int], None]
# Most patches, and pixels of them, that pass through the encoder together. On the CPU as measured with
# 128×256 and 90×120: more leave the caches, fewer do not pay the cost of a layer. On a GPU as many pixels as
# 8 images of 512×1024 have, a guess: launches take their time too
_AT_ONCE = {"cpu": (32, 2**18), "cuda": (128, 2**22)}


class Scored(NamedTuple):
    """What a pass says of the pool's patches, by patch id; None where it was not asked for.

    `scores` [P] float32, the mean of a measure, in nats for the entropy; `features` [P, D] float32; `classes`
    [P, C], see `ops.PatchClasses`; `boundary` [P] float32, the length of the predicted boundaries in pixels;
    `others`: the means of other measures, by name.
    """

    scores: torch.Tensor
    features: torch.Tensor | None = None
    classes: PatchClasses | None = None
    boundary: torch.Tensor | None = None
    others: Mapping[str, torch.Tensor] = MappingProxyType({})


def patches_at_once(grid: Grid, device: torch.device) -> int:
    """Patches in a forward pass: on a GPU 128 of 2^22 pixels at most, on the CPU 32 of 2^18; but one."""
    most, pixels = _AT_ONCE[device.type]
    return min(most, max(1, pixels // (grid.patch_height * grid.patch_width)))


def score_pool(
    pool: ImageSet, model: Network, grid: Grid, *, measure: str = "entropy", others: Sequence[str] = (),
    temperature: float = 1.0, features: bool = False, classes: bool = False, boundary: bool = False,
    valid: torch.Tensor | None = None, advance: Advance = lambda _: None,
) -> Scored:  # fmt: skip
    """The mean entropy, or another of `ops.MEASURES`, of every patch (MEAL, step 1), and more, in one pass.

    Whole images pass through the model, so that a patch is scored, and described, with its surroundings.
    Logits are divided by `temperature`. With `valid` [H, W] bool only the pixels where it is true count; a
    patch that has none is scored 0.
    """
    padded = model.padded_size(pool.size)
    counting = valid if valid is None else valid.to(pool.device, torch.uint8, non_blocking=True)

    def use(output: Output) -> Scored:
        geometry = (output.logits, grid, padded, model.align_corners)

        def mean(of: str) -> torch.Tensor:
            return pool.ops.patch_entropy(*geometry, measure=of, temperature=temperature, valid=counting)

        return Scored(
            mean(measure),
            pool_patches(output.features, grid, padded) if features else None,
            pool.ops.patch_classes(*geometry, temperature=temperature, valid=counting) if classes else None,
            boundary_lengths(output.logits, grid, padded, valid) if boundary else None,
            {name: mean(name) for name in others},
        )

    parts: list[Scored] = []
    for batch, found in pool.passed(model, use):
        parts.append(found)
        advance(batch.stop - batch.start)
    scores, described, counted, lengths, further = zip(*parts, strict=True)
    return Scored(
        torch.cat(scores).flatten(),
        torch.cat(described).flatten(0, 1) if features else None,
        PatchClasses(*(torch.cat(part).flatten(0, 1) for part in zip(*counted, strict=True)))
        if classes
        else None,
        torch.cat(lengths).flatten() if boundary else None,
        {name: torch.cat([part[name] for part in further]).flatten() for name in others},
    )


def boundary_lengths(
    logits: torch.Tensor, grid: Grid, padded: tuple[int, int], valid: torch.Tensor | None = None
) -> torch.Tensor:
    """[B, C, h, w] -> [B, P] float32: pixels of boundary between predicted classes, as seen at h × w.

    An estimate: what is thinner than a cell of the logits is not seen, and a slanted line is as long as its
    steps. With `valid` [H, W] bool a boundary counts by the share of pixels where it is true, in the one of
    its two cells that has fewer.
    """
    labels = logits.argmax(dim=1)
    height, width = labels.shape[1:]
    edges = logits.new_zeros((len(labels), 1, height, width), dtype=torch.float32)
    # An edge across the columns is as long as a cell is high
    across = (labels[:, :, 1:] != labels[:, :, :-1]) * (padded[0] / height)
    down = (labels[:, 1:] != labels[:, :-1]) * (padded[1] / width)
    if valid is not None:
        shares = _shares(valid.to(logits.device, non_blocking=True), grid, (height, width), padded)
        across = across * torch.minimum(shares[:, 1:], shares[:, :-1])
        down = down * torch.minimum(shares[1:], shares[:-1])
    edges[:, 0, :, 1:] += across
    edges[:, 0, 1:] += down
    cell = padded[0] / height * padded[1] / width
    lengths: torch.Tensor = pool_patches(edges, grid, padded)[..., 0] * _areas(grid, logits.device) / cell
    return lengths


def _shares(valid: torch.Tensor, grid: Grid, cells: tuple[int, int], padded: tuple[int, int]) -> torch.Tensor:
    """[H, W] -> [h, w] float32: the share of true pixels among those of the image in each cell."""
    shares = []
    for image in (valid.float(), torch.ones_like(valid, dtype=torch.float32)):
        filled = F.pad(image, (0, padded[1] - grid.width, 0, padded[0] - grid.height))
        # a cell as a patch: `pool_patches` measures which part of every pixel lies in it
        rows, columns = (
            _overlaps(cells[i], padded[i] / cells[i], padded[i], padded[i], padded[i], valid.device)
            for i in (0, 1)
        )
        shares.append(rows @ filled @ columns.T)
    return shares[0] / shares[1].clamp(min=torch.finfo(torch.float32).tiny)


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
    size = patches_at_once(grid, pool.device)
    what = f"a forward pass of patches of {grid.patch_height}×{grid.patch_width} pixels in {pool.precision}"
    halving = Halving(size, pool.device, what, LOWER)
    parts = []
    for window in windows(pool.images, ascending, grid, size):
        part = partial(
            pool.named, partial(_features_of, pool, ready, grid, window), partial(_image_of, window, grid)
        )
        for rows, features in halving.over(len(window.local), part):
            parts.append(features)
            advance(rows.stop - rows.start)
    features = torch.cat(parts)
    parts.clear()  # of a large pool they are gigabytes
    return torch.empty_like(features).index_copy_(0, order, features)


def _features_of(pool: ImageSet, ready: Network, grid: Grid, window: Window, rows: slice) -> torch.Tensor:
    """[M, D] float32 of some of the window's patches."""
    pixels = pool.ops.gather_patches(
        window.pixels, None, window.local[rows], grid, ready.mean, ready.std, 0
    ).pixels
    return pool_features(pool.features(ready, pixels))


def _image_of(window: Window, grid: Grid, row: int) -> int:
    return int(window.images[int(window.local[row]) // grid.patches_per_image])


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
    parts: int, part: float, length: int, cells: int, padded: int, device: torch.device
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
            f"{image}: the model's output is NaN or infinite (patch {patch}): its weights are damaged, "
            "float16 or bfloat16 overflows (take precision float32), or a class is left out by -inf or the "
            "lowest number there is (take a low one, such as -10000)"
        )
