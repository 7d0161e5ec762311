"""The operations as C++ kernels on the CPU's cores: check what is given, allocate with torch, share the work.

Every function does what its twin in `meal_gpu.ops.reference` does; K-Means++ and UMAP are the reference's.
Results do not depend on the batch or on the number of threads, torch's.
"""

import math
from functools import lru_cache, partial

import torch

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ops import MEASURES, Committee, PatchClasses, Patches, native, reference
from meal_gpu.ops.checks import checked_mask, require, require_gatherable, require_logits, require_members
from meal_gpu.ops.reference import kmeans_plusplus
from meal_gpu.ops.umap_learn import umap_fit
from meal_gpu.ops.upsampling import interpolation

__all__ = [
    "confusion", "gather_patches", "kmeans_plusplus", "name", "patch_classes", "patch_committee",
    "patch_entropy", "umap_fit",
]  # fmt: skip

name = "cpu"

FORMATS = (torch.float32, torch.float16, torch.bfloat16)
# Rows that a thread takes at a time; fewer where threads would have nothing to do
BAND_ROWS = (16, 64)
PIECES_PER_THREAD = 4
# Rows that `patch_classes` adds up in float32
CLASS_ROWS = 16
# Logits or bytes at full size below which one more thread costs more than it saves
THREAD_WORK = 1 << 18


def patch_entropy(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    *,
    measure: str = "entropy",
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    _require_cpu(logits)
    if logits.dtype == torch.float64:
        return reference.patch_entropy(
            logits, grid, padded, align_corners, measure=measure, temperature=temperature, valid=valid
        )
    require_logits(logits, FORMATS)
    valid = checked_mask(valid, grid, logits)
    images, classes = logits.shape[:2]
    sums = torch.empty((images, grid.height, grid.columns), dtype=torch.float64)
    threads, band = _share(images, grid.height, classes * grid.width)
    values, geometry = _upsampling(logits, (grid.height, grid.width), padded, align_corners)
    arguments = (
        values, *geometry, images, band,
        grid.patch_width, grid.columns, MEASURES.index(measure), float(temperature), valid, sums, _counter(),
    )  # fmt: skip
    native.call("patch_entropy", [arguments] * threads)
    pixels = reference.patch_pixels(grid, valid, logits.device)
    # Nothing to see is nothing to learn: 0 where a patch has no valid pixel
    return (reference.column_sums(sums, grid) / pixels.clamp(min=1)).float()


def patch_classes(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    *,
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> PatchClasses:
    _require_cpu(logits)
    if logits.dtype == torch.float64:
        return reference.patch_classes(
            logits, grid, padded, align_corners, temperature=temperature, valid=valid
        )
    require_logits(logits, FORMATS)
    valid = checked_mask(valid, grid, logits)
    images, classes = logits.shape[:2]
    shape = (images, grid.rows, grid.columns, classes)
    # Sums of so many rows of pixels, whoever takes them
    bands = math.ceil(grid.patch_height / CLASS_ROWS)
    sums = torch.empty((images, grid.rows, bands, grid.columns, classes), dtype=torch.float64)
    counts = torch.zeros(shape, dtype=torch.int32)
    threads, _ = _share(images, grid.height, classes * grid.width)
    values, geometry = _upsampling(logits, (grid.height, grid.width), padded, align_corners)
    arguments = (
        values, *geometry, images, CLASS_ROWS, grid.patch_height, grid.patch_width, grid.rows, grid.columns,
        float(temperature), valid, sums, counts, _counter(),
    )  # fmt: skip
    native.call("patch_classes", [arguments] * threads)
    pixels = reference.patch_pixels(grid, valid, logits.device).clamp(min=1)
    means = sums.sum(dim=2).flatten(1, 2) / pixels[:, None]
    return PatchClasses(means.float(), counts.flatten(1, 2))


def patch_committee(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    *,
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> Committee:
    _require_cpu(logits)
    require_members(logits)
    if logits.dtype == torch.float64:
        return reference.patch_committee(
            logits, grid, padded, align_corners, temperature=temperature, valid=valid
        )
    require_logits(logits[0], FORMATS)
    valid = checked_mask(valid, grid, logits)
    members, images, classes = logits.shape[:3]
    sums = torch.empty((2, images, grid.height, grid.columns), dtype=torch.float64)
    threads, band = _share(images, grid.height, members * classes * grid.width)
    # The members of an image one below the other, as if they were more classes
    values, geometry = _upsampling(
        logits.transpose(0, 1).flatten(1, 2), (grid.height, grid.width), padded, align_corners
    )
    arguments = (
        values, *geometry, images, band,
        grid.patch_width, grid.columns, members, float(temperature), valid, sums, _counter(),
    )  # fmt: skip
    native.call("patch_committee", [arguments] * threads)
    pixels = reference.patch_pixels(grid, valid, logits.device).clamp(min=1)
    total, expected = ((reference.column_sums(each, grid) / pixels).float() for each in sums)
    return Committee(total, expected)


def confusion(
    logits: torch.Tensor, labels: torch.Tensor, padded: tuple[int, int], align_corners: bool, void: int
) -> torch.Tensor:
    _require_cpu(logits)
    if logits.dtype == torch.float64:
        return reference.confusion(logits, labels, padded, align_corners, void)
    require_logits(logits, FORMATS)
    size = (labels.shape[1], labels.shape[2])
    require("labels", labels, (torch.uint8,), (len(logits), *size), logits)
    images, classes = logits.shape[:2]
    threads, band = _share(images, size[0], classes * size[1])
    values, geometry = _upsampling(logits, size, padded, align_corners)
    labels = labels.contiguous()
    counts = torch.zeros((threads, classes, classes), dtype=torch.int64)
    unknown = torch.full((threads, 1), -1, dtype=torch.int64)
    counter = _counter()
    native.call(
        "confusion",
        [
            (values, *geometry, images, band, labels, void, counts[thread], unknown[thread], counter)
            for thread in range(threads)
        ],
    )
    if (worst := int(unknown.max())) >= 0:
        raise InputError(f"a label is {worst}, neither one of the {classes} classes nor void ({void})")
    return counts.sum(dim=0)


def gather_patches(
    images: torch.Tensor,
    labels: torch.Tensor | None,
    patches: torch.Tensor,
    grid: Grid,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    void: int,
    *,
    padded: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> Patches:
    _require_cpu(images)
    height, width = padded or (grid.patch_height, grid.patch_width)
    require_gatherable(images, labels, patches, grid, dtype, FORMATS, (height, width))
    patches = patches.to(images.device).contiguous()
    known = len(images) * grid.patches_per_image
    if len(patches) and not (int(patches.min()) >= 0 and int(patches.max()) < known):
        raise InputError(
            f"patches must be 0 to {known - 1}, got {int(patches.min())} to {int(patches.max())}"
        )
    if images.stride()[2:] != (3, 1) or (labels is not None and labels.stride(2) != 1):
        return reference.gather_patches(
            images, labels, patches, grid, mean, std, void,
            padded=padded, dtype=dtype, channels_last=channels_last,
        )  # fmt: skip
    pixels = torch.empty(
        (len(patches), 3, height, width),
        dtype=dtype,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    patch_labels = None if labels is None else torch.empty((len(patches), height, width), dtype=torch.uint8)
    threads, band = _share(len(patches), height, 3 * width)
    arguments = (
        images, images.stride(0), images.stride(1),
        labels, 0 if labels is None else labels.stride(0), 0 if labels is None else labels.stride(1),
        patches, len(patches), _table(mean, std, dtype), dtype.itemsize,
        grid.height, grid.width, grid.columns, grid.patches_per_image, grid.patch_height, grid.patch_width,
        height, width, int(channels_last), void, band, pixels, patch_labels, _counter(),
    )  # fmt: skip
    native.call("gather_patches", [arguments] * threads)
    return Patches(pixels, patch_labels)


@lru_cache(maxsize=16)
def _table(
    mean: tuple[float, float, float], std: tuple[float, float, float], dtype: torch.dtype
) -> torch.Tensor:
    """[3, 256]: what the reference makes of every byte of every channel."""
    every = torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1).expand(-1, -1, -1, 3)
    return reference.normalise(every, mean, std)[0, :, :, 0].to(dtype).contiguous()


def _upsampling(
    logits: torch.Tensor, size: tuple[int, int], padded: tuple[int, int], align_corners: bool
) -> tuple[torch.Tensor, tuple[native.Argument, ...]]:
    """Logits as the kernels read them, and the arguments that say how pixels lie between them."""
    _, classes, h, w = logits.shape
    x = _axis(w, padded[1], size[1], align_corners)
    y = _axis(h, padded[0], size[0], align_corners)
    return logits.float().contiguous(), (classes, h, w, *x, *y, *size)


@lru_cache(maxsize=64)
def _axis(low: int, spanned: int, used: int, align_corners: bool) -> tuple[torch.Tensor, ...]:
    lower, upper, weight = interpolation(low, spanned, used, align_corners)
    return lower.int(), upper.int(), weight.float()


def _share(items: int, rows: int, work: int) -> tuple[int, int]:
    """Threads, and rows of a piece, for `items` of `rows` rows of `work` each."""
    threads = min(torch.get_num_threads(), max(1, items * rows * work // THREAD_WORK))
    band = math.ceil(items * rows / (threads * PIECES_PER_THREAD))
    return threads, min(max(band, BAND_ROWS[0]), BAND_ROWS[1])


_counter = partial(torch.zeros, 1, dtype=torch.int64)


def _require_cpu(array: torch.Tensor) -> None:
    if array.device.type != "cpu":
        raise InputError(
            f"the CPU ops need arrays on the CPU, these are on {array.device}: move them, or use ops='auto'"
        )
