"""The operations as CUDA kernels: check what is given, allocate with torch, launch without waiting.

Every function does what its twin in `meal_gpu.ops.reference` does. UMAP is cuML's.
"""

import math
from functools import partial

import torch

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ops import MEASURES, Patches, compile, reference
from meal_gpu.ops.checks import require, require_gatherable, require_logits
from meal_gpu.ops.cuml_umap import umap_fit
from meal_gpu.ops.upsampling import SHARED_BYTES, Tiling, tiling

__all__ = ["confusion", "gather_patches", "kmeans_plusplus", "name", "patch_entropy", "umap_fit"]

name = "cuda"

FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
VECTOR_BYTES = 16
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
    if logits.dtype == torch.float64:
        return reference.patch_entropy(
            logits, grid, padded, align_corners, measure=measure, temperature=temperature, valid=valid
        )
    logits, defines, plan = _prepare(logits, grid, padded, align_corners)
    images, _, height, width = logits.shape
    if valid is not None:
        require("valid", valid, (torch.uint8, torch.bool), (grid.height, grid.width), logits)
        valid = valid.contiguous()
    defines |= {"MEASURE": MEASURES.index(measure), "VALID": int(valid is not None)}
    spans_x, spans_y = len(plan.x.spans), len(plan.y.spans)
    sums = logits.new_empty((images, spans_y, spans_x), dtype=torch.float32)
    compile.launch(
        "patch_entropy.cu",
        "cell_sums",
        (
            logits, plan.x.spans, plan.x.places, plan.y.spans, plan.y.places, valid, sums,
            images, height, width, spans_x, spans_y, plan.tile_x, plan.tile_y, grid.width,
            math.log2(math.e) / temperature,
        ),
        defines=defines,
        grid=images * plan.tiles,
        block=plan.threads,
        shared=plan.shared_bytes,
    )  # fmt: skip
    means = sums.new_empty((images, grid.patches_per_image))
    pixels = reference.patch_pixels(grid, valid, logits.device)
    compile.launch(
        "patch_entropy.cu",
        "patch_means",
        (
            sums, plan.x.starts, plan.y.starts, pixels, means,
            spans_x, spans_y, grid.columns, grid.patches_per_image,
        ),
        defines=defines,
        grid=means.numel(),
        block=128 if spans_x * spans_y > 256 * grid.patches_per_image else 32,
    )  # fmt: skip
    return means


def confusion(
    logits: torch.Tensor, labels: torch.Tensor, padded: tuple[int, int], align_corners: bool, void: int
) -> torch.Tensor:
    if logits.dtype == torch.float64:
        return reference.confusion(logits, labels, padded, align_corners, void)
    size = (labels.shape[1], labels.shape[2])
    require("labels", labels, (torch.uint8,), (len(logits), *size), logits)
    # Cells and tiles of the whole image: one patch
    grid = Grid(1, 1, *size)
    logits, defines, plan = _prepare(logits, grid, padded, align_corners)
    images, classes, height, width = logits.shape
    counts = torch.zeros((classes, classes), dtype=torch.int64, device=logits.device)
    # The block's counts take the place of its logits; those of very many classes are too large for that
    count_bytes = 4 * classes * classes
    fits = count_bytes <= SHARED_BYTES
    compile.launch(
        "confusion.cu",
        "confusion",
        (
            logits, plan.x.spans, plan.x.places, plan.y.spans, plan.y.places, labels.contiguous(), counts,
            images, height, width, len(plan.x.spans), len(plan.y.spans), plan.tile_x, plan.tile_y,
            size[0], size[1], void,
        ),
        defines=defines | {"SHARED_COUNTS": int(fits)},
        grid=images * plan.tiles,
        block=plan.threads,
        shared=max(plan.shared_bytes, count_bytes if fits else 0),
    )  # fmt: skip
    return counts


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


def _prepare(
    logits: torch.Tensor, grid: Grid, padded: tuple[int, int], align_corners: bool
) -> tuple[torch.Tensor, dict[str, int], Tiling]:
    """Logits in one of the two layouts, the macros that describe them, and how they are cut."""
    require_logits(logits, tuple(FORMATS))
    _, classes, height, width = logits.shape
    channels_last = not logits.is_contiguous() and logits.is_contiguous(memory_format=torch.channels_last)
    if not channels_last:
        logits = logits.contiguous()
    vector = VECTOR_BYTES // logits.element_size()
    if logits.data_ptr() % VECTOR_BYTES or (not channels_last and width % vector):
        vector = 1
    plan = tiling(
        grid, (height, width), padded, align_corners, classes, 1 if channels_last else vector, logits.device
    )
    defines = {
        "LOGITS": FORMATS[logits.dtype],
        "CLASSES": classes,
        "VECTOR": vector,
        "CHANNELS_LAST": int(channels_last),
        "SPAN_X": plan.x.longest,
        "SPAN_Y": plan.y.longest,
    }
    return logits, defines, plan
