"""The operations as CUDA kernels: check what is given, allocate with torch, launch without waiting.

Every function does what its twin in `meal_gpu.ops.reference` does. UMAP is cuML's.
"""

import math
from functools import partial

import torch

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ops import Patches, compile
from meal_gpu.ops.checks import require, require_gatherable
from meal_gpu.ops.cuda_logits import (
    FORMATS,
    VECTOR_BYTES,
    confusion,
    patch_classes,
    patch_committee,
    patch_entropy,
)
from meal_gpu.ops.cuml_umap import umap_fit

__all__ = [
    "confusion", "gather_patches", "kmeans_plusplus", "name", "patch_classes", "patch_committee",
    "patch_entropy", "umap_fit",
]  # fmt: skip

name = "cuda"

# What a block makes of a gathered patch, at most: a multiple of all vectors; and its threads: a multiple of 3
PART_PIXELS = 4096
GATHER_THREADS = 192
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# K-Means++: up to this size, about a multiprocessor's cache, one block does it all; 16,384 rows of 2 float32
ONE_BLOCK_BYTES = 256 << 10
# and most warps of the block that draws
DRAWING_WARPS = 32
WARP = 32
# Rows are counted in 32 bits
MAX_ROWS = 1 << 30


def kmeans_plusplus(
    points: torch.Tensor, uniforms: torch.Tensor, chosen: torch.Tensor | None
) -> torch.Tensor:
    if points.ndim != 2 or points.dtype not in FLOATS:
        raise InputError(f"points must be [M, d] floating point, got {list(points.shape)} {points.dtype}")
    if uniforms.ndim != 2 or uniforms.dtype != torch.float64 or not uniforms.shape[1]:
        raise InputError(
            f"uniforms must be [n, trials] torch.float64, got {list(uniforms.shape)} {uniforms.dtype}"
        )
    (rows, columns), (draws, trials) = points.shape, uniforms.shape
    if not 1 <= draws <= rows:
        raise InputError(f"n must be between 1 and the number of points, {rows}; got {draws}")
    if rows > MAX_ROWS:
        raise InputError(f"at most {MAX_ROWS} points are supported, got {rows}")
    dtype = torch.promote_types(points.dtype, torch.float32)
    if chosen is not None:
        require("chosen", chosen, FLOATS, (len(chosen), columns), points)
        dtype = torch.promote_types(dtype, chosen.dtype)
        chosen = chosen.to(dtype).contiguous()
    points = points.to(dtype).contiguous()
    # A copy that the host does not wait for
    uniforms = uniforms.to(points.device, non_blocking=True).contiguous()
    # As many tiles to a segment as stretches of a warp to a tile
    length = WARP * math.ceil(math.sqrt(rows / DRAWING_WARPS) / WARP)
    tiles = math.ceil(rows / length)
    nearest = points.new_full((rows,), math.inf, dtype=torch.float64)
    sums = points.new_empty((trials + 1, tiles), dtype=torch.float64)
    tried = points.new_empty(trials, dtype=torch.int32)
    picks = points.new_empty(draws, dtype=torch.int64)
    arguments = (
        points, chosen, uniforms, nearest, sums, tried, picks,
        rows, 0 if chosen is None else len(chosen), trials, draws, length, tiles,
    )  # fmt: skip
    defines = {"DOUBLE": int(dtype == torch.float64), "COLUMNS": columns}
    launch = partial(compile.launch, "kmeans_plusplus.cu", defines=defines)
    block = WARP * min(tiles, DRAWING_WARPS)
    if points.nbytes + nearest.nbytes <= ONE_BLOCK_BYTES:
        launch("seed", arguments, grid=1, block=block)
    else:
        for draw in range(draws + 1):
            launch("cover", (*arguments, draw), grid=math.ceil(tiles / 2), block=2 * WARP)
            launch("draw", (*arguments, draw), grid=1, block=block)
    return picks


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
    height, width = padded or (grid.patch_height, grid.patch_width)
    require_gatherable(images, labels, patches, grid, dtype, tuple(FORMATS), (height, width))
    for what, array in (("images", images), ("labels", labels)):
        # A pool is too large to be copied in silence
        if array is not None and not array.is_contiguous():
            raise InputError(f"{what} must be contiguous, got strides {array.stride()}")
    # A copy that the host does not wait for
    patches = patches.to(images.device, non_blocking=True).contiguous()
    pixels = torch.empty(
        (len(patches), 3, height, width),
        dtype=dtype,
        device=images.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    patch_labels = None if labels is None else labels.new_empty((len(patches), height, width))
    load = math.gcd(VECTOR_BYTES, grid.width, grid.patch_width, images.data_ptr())
    if labels is not None:
        load = math.gcd(load, labels.data_ptr())
    across = min(width, PART_PIXELS)
    parts_y = math.ceil(height / (PART_PIXELS // across))
    down = math.ceil(height / parts_y)
    compile.launch(
        "gather_patches.cu",
        "gather_patches",
        (
            images, labels, patches, pixels, patch_labels,
            grid.height, grid.width, grid.columns, grid.patches_per_image,
            grid.patch_height, grid.patch_width, height, width, down, across, void,
            *_normalisation(mean, std),
        ),
        defines={
            "ELEMENT": FORMATS[dtype],
            "LOAD": load,
            "STORE": math.gcd(VECTOR_BYTES, width * pixels.element_size()),
            "LABELS": 0 if labels is None else math.gcd(load, width),
            "CHANNELS_LAST": int(channels_last),
        },
        grid=len(patches) * parts_y * math.ceil(width / across),
        block=GATHER_THREADS,
        shared=3 * down * across,
    )  # fmt: skip
    return Patches(pixels, patch_labels)


def _normalisation(mean: tuple[float, float, float], std: tuple[float, float, float]) -> list[float]:
    """Three biases, three scales and three shifts, as gather_patches.cu explains them."""
    centres = [round(255 * m) for m in mean]
    biases = [2.0**23 + centre for centre in centres]
    scales = [1 / (255 * s) for s in std]
    shifts = [(centre - 255 * m) * scale for centre, m, scale in zip(centres, mean, scales, strict=True)]
    return biases + scales + shifts
