"""The CUDA operations on logits, which upsample them in registers: `meal_gpu.ops.cuda` has them all."""

import math

import torch

from meal_gpu.grid import Grid
from meal_gpu.ops import MEASURES, Committee, PatchClasses, compile, reference
from meal_gpu.ops.checks import checked_mask, require, require_logits, require_members
from meal_gpu.ops.upsampling import SHARED_BYTES, THREADS, Axis, Tiling, axes, tiling

FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
VECTOR_BYTES = 16
# patch_committee.cu: most threads of a block, and what a thread keeps of each member and pixel
COMMITTEE_THREADS = 128
KEPT_BYTES = 8
WARP = 32


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
    valid = checked_mask(valid, grid, logits)
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
    return _patch_means(sums, plan.x, plan.y, grid, valid)


def patch_classes(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    *,
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> PatchClasses:
    if logits.dtype == torch.float64:
        return reference.patch_classes(
            logits, grid, padded, align_corners, temperature=temperature, valid=valid
        )
    require_logits(logits, tuple(FORMATS))
    valid = checked_mask(valid, grid, logits)
    images, classes, height, width = logits.shape
    x, y = axes(grid, (height, width), padded, align_corners, (None, None), logits.device)
    cells = x.most * y.most
    threads = min(THREADS, WARP * math.ceil(cells / WARP))
    parts = math.ceil(cells / threads)
    defines = _planar(logits, x, y) | {"VALID": int(valid is not None)}
    sums = logits.new_empty((images, grid.patches_per_image, parts, classes), dtype=torch.float32)
    counts = torch.empty_like(sums, dtype=torch.int32)
    compile.launch(
        "patch_classes.cu",
        "part_sums",
        (
            logits.contiguous(), x.spans, x.places, x.starts, y.spans, y.places, y.starts, valid,
            sums, counts, height, width, grid.columns, grid.patches_per_image, parts, grid.width,
            math.log2(math.e) / temperature,
        ),
        defines=defines,
        grid=images * grid.patches_per_image * parts,
        block=threads,
        shared=4 * classes * (threads // WARP + 1),
    )  # fmt: skip
    found = PatchClasses(
        sums.new_empty((images, grid.patches_per_image, classes)),
        counts.new_empty((images, grid.patches_per_image, classes)),
    )
    compile.launch(
        "patch_classes.cu",
        "class_means",
        (
            sums, counts, reference.patch_pixels(grid, valid, logits.device), *found,
            grid.patches_per_image, parts,
        ),
        defines=defines,
        grid=images * grid.patches_per_image,
        block=WARP * math.ceil(classes / WARP),
    )  # fmt: skip
    return found


def patch_committee(
    logits: torch.Tensor,
    grid: Grid,
    padded: tuple[int, int],
    align_corners: bool,
    *,
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> Committee:
    require_members(logits)
    members, images, _, height, width = logits.shape
    # Where many members leave no room for a span's pixels, one at a time
    for longest in (None, 1):
        x, y = axes(grid, (height, width), padded, align_corners, (1, longest), logits.device)
        kept = KEPT_BYTES * members * x.longest
        if kept * WARP <= SHARED_BYTES:
            break
    if logits.dtype == torch.float64 or kept * WARP > SHARED_BYTES:
        return reference.patch_committee(
            logits, grid, padded, align_corners, temperature=temperature, valid=valid
        )
    require_logits(logits[0], tuple(FORMATS))
    valid = checked_mask(valid, grid, logits)
    spans = (len(y.spans), len(x.spans))
    threads = min(COMMITTEE_THREADS, SHARED_BYTES // kept // WARP * WARP)
    sums = logits.new_empty((2 * images, *spans), dtype=torch.float32)
    compile.launch(
        "patch_committee.cu",
        "span_sums",
        (
            logits.contiguous(), x.spans, x.places, y.spans, y.places, valid, sums,
            members, images, height, width, spans[1], spans[0], grid.width, math.log2(math.e) / temperature,
        ),
        defines=_planar(logits[0], x, y) | {"VALID": int(valid is not None)},
        grid=images * math.ceil(spans[0] * spans[1] / threads),
        block=threads,
        shared=kept * threads,
    )  # fmt: skip
    means = _patch_means(sums, x, y, grid, valid)
    return Committee(means[:images], means[images:])


def _patch_means(
    sums: torch.Tensor, x: Axis, y: Axis, grid: Grid, valid: torch.Tensor | None
) -> torch.Tensor:
    """Sums over the pixels of cells, [B, spans of y, spans of x] -> [B, P]."""
    count_y, count_x = sums.shape[1:]
    means = sums.new_empty((len(sums), grid.patches_per_image))
    compile.launch(
        "patch_means.cu",
        "patch_means",
        (
            sums, x.starts, y.starts, reference.patch_pixels(grid, valid, sums.device), means,
            count_x, count_y, grid.columns, grid.patches_per_image,
        ),
        defines={},
        grid=means.numel(),
        block=128 if count_x * count_y > 256 * grid.patches_per_image else 32,
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


def _planar(logits: torch.Tensor, x: Axis, y: Axis) -> dict[str, int]:
    """The macros for kernels that read one class after the other, and single logits."""
    return {
        "LOGITS": FORMATS[logits.dtype],
        "CLASSES": logits.shape[1],
        "VECTOR": 1,
        "CHANNELS_LAST": 0,
        "SPAN_X": x.longest,
        "SPAN_Y": y.longest,
    }
