"""What the compiled operations, CUDA's and the CPU's, check of their arrays before they trust addresses."""

import torch

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid


def require(
    what: str,
    array: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...],
    like: torch.Tensor,
) -> None:
    """Raises InputError where `array` has another dtype or shape, or lies elsewhere than `like`."""
    if array.dtype not in dtypes or tuple(array.shape) != shape or array.device != like.device:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise InputError(
            f"{what} must be {list(shape)} {wanted} on {like.device}, "
            f"got {list(array.shape)} {array.dtype} on {array.device}"
        )


def require_logits(logits: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raises InputError where `logits` are not [B, C, h, w] of one of `dtypes` with 1 to 256 classes."""
    if logits.ndim != 4 or logits.dtype not in dtypes:
        raise InputError(
            f"logits must be [B, C, h, w] float16, bfloat16 or float32, "
            f"got {list(logits.shape)} {logits.dtype}"
        )
    if not 1 <= logits.shape[1] <= 256:
        raise InputError(f"logits have {logits.shape[1]} classes, 1 to 256 are supported")


def require_members(logits: torch.Tensor) -> None:
    """Raises InputError where `logits` are not [T, B, C, h, w] with at least one member."""
    if logits.ndim != 5 or not len(logits):
        raise InputError(f"logits must be [T, B, C, h, w] with T from 1 on, got {list(logits.shape)}")


def checked_mask(valid: torch.Tensor | None, grid: Grid, logits: torch.Tensor) -> torch.Tensor | None:
    """`valid` in contiguous memory. Raises InputError where it is not [H, W] uint8 or bool beside them."""
    if valid is None:
        return None
    require("valid", valid, (torch.uint8, torch.bool), (grid.height, grid.width), logits)
    return valid.contiguous()


def require_gatherable(
    images: torch.Tensor,
    labels: torch.Tensor | None,
    patches: torch.Tensor,
    grid: Grid,
    dtype: torch.dtype,
    dtypes: tuple[torch.dtype, ...],
    size: tuple[int, int],
) -> None:
    """Raises InputError where `gather_patches` cannot work: `size` is the padded patches'."""
    pool = (*images.shape[:1], grid.height, grid.width)
    require("images", images, (torch.uint8,), (*pool, 3), images)
    if labels is not None:
        require("labels", labels, (torch.uint8,), pool, images)
    if patches.ndim != 1 or patches.dtype != torch.int64:
        raise InputError(f"patches must be [M] torch.int64, got {list(patches.shape)} {patches.dtype}")
    if dtype not in dtypes:
        raise InputError(f"pixels can be float16, bfloat16 or float32, not {dtype}")
    height, width = size
    if height < grid.patch_height or width < grid.patch_width:
        raise InputError(
            f"patches of {grid.patch_height}×{grid.patch_width} pixels do not fit into {height}×{width}"
        )
