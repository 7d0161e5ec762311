"""The array functions of the public interface: they check their arguments, then call the ops."""

from math import isfinite, isnan
from operator import index
from typing import Any

import torch

from meal_gpu import rng
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ops import MEASURES, Ops, select_for

MAX_CLASSES = 256
ONE_CLASS = (
    "the entropy of a softmax over one class is always 0; for a binary model return two: "
    "torch.cat([torch.zeros_like(z), z], dim=1)"
)


def whole(what: str, given: Any, least: int) -> int:
    """Raises InputError where `given` is no whole number from `least` on."""
    try:
        number = least - 1 if isinstance(given, bool) else index(given)
    except TypeError:
        number = least - 1
    if number < least:
        raise InputError(f"{what} must be at least {least}, and whole; got {given!r}")
    return number


def pair(what: str, given: Any, axes: str) -> tuple[int, int]:
    """Raises InputError where `given` are no two whole numbers above 0, of the `axes`."""
    try:
        first, second = (whole(what, number, 1) for number in given)
    except (TypeError, ValueError):
        raise InputError(f"{what} is ({axes}), two whole numbers above 0; got {given!r}") from None
    return first, second


def real(what: str, given: Any) -> float:
    """Raises InputError where `given` is no number."""
    try:
        isnan(given)
    except (TypeError, ValueError, RuntimeError):  # the last of a tensor of several
        raise InputError(f"{what} must be a number; got {given!r}") from None
    number: float = given
    return number


def require_tensor(what: str, given: object) -> None:
    if not isinstance(given, torch.Tensor):
        raise InputError(
            f"{what} must be a torch.Tensor, got {type(given).__name__}; of a NumPy array torch.from_numpy "
            "makes one"
        )
    if given.layout is not torch.strided:
        raise InputError(f"{what} must be dense, got {given.layout}; pass {what}.to_dense()")


def _ops_for(tensor: torch.Tensor) -> Ops:
    return select_for(tensor.device)


def patch_entropy(
    logits: torch.Tensor,
    *,
    grid: tuple[int, int] = (4, 4),
    size: tuple[int, int] | None = None,
    align_corners: bool = True,
    measure: str = "entropy",
    temperature: float = 1.0,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean softmax entropy of each patch, from logits at any lower resolution (MEAL, eq. 1).

    H(u,v) = -Σ_c P_c log P_c of the bilinearly upsampled logits at `size`, averaged over each patch.
    No full-size C-channel tensor is made.

    Args:
        logits: [B, C, h, w] float16, bfloat16, float32 or float64, on any device. Finite: a NaN or
            infinite logit makes every patch that it is interpolated into NaN. C is 2 to 256.
        grid: rows and columns of patches.
        size: (H, W) at which entropy is measured; (h, w) where None.
        align_corners: as in `torch.nn.functional.interpolate`; segmentation_models_pytorch uses True,
            torchvision and Hugging Face use False.
        measure: "entropy"; "margin", 1 - (p1 - p2) of the two most likely classes; or "least-confidence",
            1 - p1. All are 0 where the model is certain.
        temperature: the softmax is taken of logits / temperature.
        valid: [H, W] uint8 or bool; pixels where it is 0 (the ego vehicle's bonnet, say) do not count.

    Returns:
        [B, rows*columns] float32 (float64 for float64 logits), row by row. Entropy is in nats, between 0 and
        log C. A patch without a valid pixel has 0.

    Raises:
        InputError: no dense tensor; wrong rank, dtype or number of classes; a grid or size that is no pair of
            whole numbers; a size below the logits'; an empty patch; an unknown measure; a temperature that is
            not positive; a mask of another size.
    """
    require_tensor("logits", logits)
    if logits.ndim != 4 or 0 in logits.shape[1:]:
        raise InputError(f"logits must be [B, C, h, w] with nothing empty but B, got {list(logits.shape)}")
    if not logits.is_floating_point():
        raise InputError(f"logits must be floating point, got {logits.dtype}; pass scores before softmax")
    if logits.shape[1] < 2:
        raise InputError(f"logits have 1 class, and {ONE_CLASS}")
    if logits.shape[1] > MAX_CLASSES:
        raise InputError(f"logits have {logits.shape[1]} classes, at most {MAX_CLASSES} are supported")
    rows, columns = pair("grid", grid, "rows, columns")
    height, width = pair("size", logits.shape[2:] if size is None else size, "height, width")
    if height < logits.shape[2] or width < logits.shape[3]:
        raise InputError(f"size {(height, width)} is below the logits' {tuple(logits.shape[2:])}")
    if measure not in MEASURES:
        raise InputError(f"unknown measure {measure!r}; known: {', '.join(MEASURES)}")
    if not (real("temperature", temperature) > 0 and isfinite(temperature)):
        raise InputError(f"temperature must be positive and finite, got {temperature}")
    if valid is not None:
        require_tensor("valid", valid)
    if valid is not None and (valid.shape != (height, width) or valid.dtype not in (torch.uint8, torch.bool)):
        raise InputError(
            f"valid must be [{height}, {width}] uint8 or bool, got {list(valid.shape)} {valid.dtype}"
        )
    return _ops_for(logits).patch_entropy(
        logits.detach(),
        Grid(rows, columns, height, width),
        (height, width),
        align_corners,
        measure=measure,
        temperature=temperature,
        valid=None if valid is None else valid.to(logits.device),
    )


def kmeans_plusplus(
    points: torch.Tensor,
    n: int,
    *,
    seed: int = 0,
    chosen: torch.Tensor | None = None,
    trials: int = 1,
) -> torch.Tensor:
    """K-Means++ seeding: n distinct rows drawn by D² sampling (Arthur & Vassilvitskii, 2007).

    The order is prefix-nested: `kmeans_plusplus(p, 16)` begins `kmeans_plusplus(p, 64)` for one seed.

    Args:
        points: [M, d] floating point, finite, on any device.
        n: how many, 1 <= n <= M.
        seed: of the stream that the draws come from.
        chosen: [L, d] points that already count as centres, or None.
        trials: candidates per draw, of which the one with the lowest potential is kept (greedy variant;
            scikit-learn uses 2 + log n). 1 is the plain algorithm, as in the paper.

    Returns:
        [n] int64 row indices in order of choice, distinct also where points coincide.

    Raises:
        InputError: no dense tensor; wrong rank, dtype or width; n outside 1..M; a value that is not finite; a
            number that is not whole.
    """
    for label, array in (("points", points), ("chosen", chosen)):
        if array is None:
            continue
        require_tensor(label, array)
        if array.ndim != 2 or not array.is_floating_point():
            raise InputError(f"{label} must be [M, d] floating point, got {list(array.shape)} {array.dtype}")
        if not bool(array.isfinite().all()):
            bad = int((~array.isfinite()).any(dim=1).nonzero()[0])
            raise InputError(f"{label} must be finite; row {bad} is not")
    if whole("n", n, 1) > len(points):
        raise InputError(f"n must be between 1 and the number of points, {len(points)}; got {n}")
    whole("trials", trials, 1)
    whole("seed", seed, 0)
    if chosen is not None and chosen.shape[1] != points.shape[1]:
        raise InputError(f"points have {points.shape[1]} columns and chosen {chosen.shape[1]}")
    draws = rng.uniforms(seed, 0, "kmeans_plusplus", n * trials).view(n, trials)
    return _ops_for(points).kmeans_plusplus(
        points.detach(), draws, chosen if chosen is None or len(chosen) else None
    )
