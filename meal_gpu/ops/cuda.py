"""The operations as CUDA kernels: check what is given, allocate with torch, launch without waiting.

Every function does what its twin in `meal_gpu.ops.reference` does. UMAP is still the twin itself.
"""

import math

import torch

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ops import MEASURES, compile, reference
from meal_gpu.ops.reference import umap_fit
from meal_gpu.ops.upsampling import Tiling, tiling

__all__ = ["confusion", "name", "patch_entropy", "umap_fit"]

name = "cuda"

LOGITS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
VECTOR_BYTES = 16


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
        _require("valid", valid, (torch.uint8, torch.bool), (grid.height, grid.width), logits)
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
        block=128,
    )  # fmt: skip
    return means


def confusion(
    logits: torch.Tensor, labels: torch.Tensor, padded: tuple[int, int], align_corners: bool, void: int
) -> torch.Tensor:
    if logits.dtype == torch.float64:
        return reference.confusion(logits, labels, padded, align_corners, void)
    size = (labels.shape[1], labels.shape[2])
    _require("labels", labels, (torch.uint8,), (len(logits), *size), logits)
    # Cells and tiles of the whole image: one patch
    grid = Grid(1, 1, *size)
    logits, defines, plan = _prepare(logits, grid, padded, align_corners)
    images, classes, height, width = logits.shape
    counts = torch.zeros((classes, classes), dtype=torch.int64, device=logits.device)
    compile.launch(
        "confusion.cu",
        "confusion",
        (
            logits, plan.x.spans, plan.x.places, plan.y.spans, plan.y.places, labels.contiguous(), counts,
            images, height, width, len(plan.x.spans), len(plan.y.spans), plan.tile_x, plan.tile_y,
            size[0], size[1], void,
        ),
        defines=defines,
        grid=images * plan.tiles,
        block=plan.threads,
        shared=plan.shared_bytes,
    )  # fmt: skip
    return counts


def _prepare(
    logits: torch.Tensor, grid: Grid, padded: tuple[int, int], align_corners: bool
) -> tuple[torch.Tensor, dict[str, int], Tiling]:
    """Logits in one of the two layouts, the macros that describe them, and how they are cut."""
    if logits.ndim != 4 or logits.dtype not in LOGITS:
        raise InputError(
            f"logits must be [B, C, h, w] float16, bfloat16 or float32, "
            f"got {list(logits.shape)} {logits.dtype}"
        )
    _, classes, height, width = logits.shape
    if not 1 <= classes <= 256:
        raise InputError(f"logits have {classes} classes, 1 to 256 are supported")
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
        "LOGITS": LOGITS[logits.dtype],
        "CLASSES": classes,
        "CHUNK": plan.chunk,
        "VECTOR": vector,
        "CHANNELS_LAST": int(channels_last),
        "SPAN_X": plan.x.longest,
        "SPAN_Y": plan.y.longest,
    }
    return logits, defines, plan


def _require(
    what: str,
    array: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...],
    like: torch.Tensor,
) -> None:
    if array.dtype not in dtypes or tuple(array.shape) != shape or array.device != like.device:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise InputError(
            f"{what} must be {list(shape)} {wanted} on {like.device}, "
            f"got {list(array.shape)} {array.dtype} on {array.device}"
        )
