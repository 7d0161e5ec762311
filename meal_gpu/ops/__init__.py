"""The one seam between CPU and CUDA: a Protocol that the modules `reference`, `cpu` and `cuda` satisfy.

It is selected once, at the edge, and passed down as an argument. Only "auto" may fall back.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import torch

from meal_gpu import memory
from meal_gpu.errors import InputError, UnavailableError
from meal_gpu.grid import Grid

NAMES = ("auto", "reference", "cpu", "cuda")
MEASURES = ("entropy", "margin", "least-confidence")
# How UMAP finds neighbours: as its library likes, by `ops.neighbors`, by the library's exact search, by its
# approximate one
BUILDS = ("auto", "exact", "brute_force_knn", "nn_descent")


class Patches(NamedTuple):
    """`pixels` [M, 3, ph, pw], normalised; `labels` uint8 [M, ph, pw], or None where none were asked for."""

    pixels: torch.Tensor
    labels: torch.Tensor | None


class PatchClasses(NamedTuple):
    """What a patch is predicted to show.

    `probabilities` [B, P, C] float32 (float64 for float64 logits): the mean of softmax over the pixels that
    count. `counts` [B, P, C] int32: of how many of them a class is the most likely, the lowest of equal ones.
    Both are 0 where no pixel of a patch counts.
    """

    probabilities: torch.Tensor
    counts: torch.Tensor


class Committee(NamedTuple):
    """What several predictions of a patch say together: means over the pixels that count, in nats.

    `total` [B, P] float32 (float64 for float64 logits): the entropy of the members' mean probabilities.
    `expected` [B, P]: the mean of the members' entropies. `total` - `expected` is the mutual information of
    label and member (BALD, Houlsby et al. 2011, eq. 2), the members' Jensen-Shannon divergence: between 0 and
    log T, save rounding.
    """

    total: torch.Tensor
    expected: torch.Tensor

    @property
    def information(self) -> torch.Tensor:
        """`total` - `expected`."""
        return self.total - self.expected


@dataclass(frozen=True)
class FittedUmap:
    """`embedding` [M, d] float32 of the fitted rows, and the map of new rows [K, D] -> [K, d] float32.

    `library` is the name and version of what computed them.
    """

    embedding: torch.Tensor
    transform: Callable[[torch.Tensor], torch.Tensor]
    library: str


class Ops(Protocol):
    """What the engine computes on arrays. Implementations trust their callers: inputs are checked above.

    `logits` are [B, C, h, w] and span `padded` pixels (H', W'), of which the top-left (H, W) of the grid
    count; bilinear upsampling between the two follows torch's `align_corners`.
    """

    @property
    def name(self) -> str: ...

    def patch_entropy(
        self,
        logits: torch.Tensor,
        grid: Grid,
        padded: tuple[int, int],
        align_corners: bool,
        *,
        measure: str = "entropy",
        temperature: float = 1.0,
        valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """-> [B, P] float32 (float64 for float64 logits): a patch's mean uncertainty, 0 where p is certain.

        `measure` is the entropy of p = softmax(logits / temperature) in nats, the "margin" 1 - (p1 - p2) of
        the two most likely classes, or the "least-confidence" 1 - p1. Only pixels where `valid` [H, W] uint8
        is not 0 count; a patch that has none gets 0.
        """
        ...

    def patch_classes(
        self,
        logits: torch.Tensor,
        grid: Grid,
        padded: tuple[int, int],
        align_corners: bool,
        *,
        temperature: float = 1.0,
        valid: torch.Tensor | None = None,
    ) -> PatchClasses:
        """Mean softmax(logits / temperature) of each patch, and how many of its pixels go to each class.

        Pixels are those of `patch_entropy`, and count where `valid` [H, W] uint8 is not 0; they go to classes
        as those of `confusion` do. Finite logits: what NaN counts as is undefined.
        """
        ...

    def patch_committee(
        self,
        logits: torch.Tensor,
        grid: Grid,
        padded: tuple[int, int],
        align_corners: bool,
        *,
        temperature: float = 1.0,
        valid: torch.Tensor | None = None,
    ) -> Committee:
        """What T members say together: passes with dropout, an ensemble, or an image and its mirror image.

        `logits` [T, B, C, h, w], T from 1 on. Pixels are those of `patch_entropy`, and of one member both
        entropies are what it gives: to 1e-6 nats, and to 1e-5 where a patch has few pixels.
        """
        ...

    def gather_patches(
        self,
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
        """uint8 `images` [N, H, W, 3], `labels` [N, H, W], `patches` [M] int64 -> (x/255 - mean)/std.

        Pixels are `dtype` (float32, float16 or bfloat16, rounded once), `padded` (at least the patch's) in
        size, in channels-last or contiguous memory. What a ragged last patch lacks, and what padding adds
        below and to the right, is 0 after normalisation and `void` in the labels.
        """
        ...

    def kmeans_plusplus(
        self, points: torch.Tensor, uniforms: torch.Tensor, chosen: torch.Tensor | None
    ) -> torch.Tensor:
        """`points` [M, d], `uniforms` [n, trials] float64, `chosen` [L, d] -> [n] int64 distinct rows."""
        ...

    def confusion(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        padded: tuple[int, int],
        align_corners: bool,
        void: int,
    ) -> torch.Tensor:
        """`labels` uint8 [B, H, W] -> [C, C] int64, rows the ground truth; `void` counts nowhere."""
        ...

    def umap_fit(
        self,
        features: torch.Tensor,
        *,
        neighbors: int,
        min_dist: float,
        dimension: int,
        seed: int,
        build: str,
        deterministic: bool,
        embedding: torch.Tensor | None,
    ) -> FittedUmap:
        """Fit UMAP on `features` [M, D]; with `embedding` [M, d], rebuild a fitted map instead of fitting.

        `build` is one of BUILDS. With `deterministic` one `seed` gives one result; without, there is no seed,
        and the optimisation runs in parallel.
        """
        ...


def select(name: str = "auto") -> Ops:
    """The implementation called `name`; "auto" is CUDA where it works, else "cpu", else the reference.

    With CUDA, CuPy and RMM take their memory from torch from here on (`meal_gpu.memory`). The CPU's kernels
    are compiled where they have not been before; where "auto" has to do without them, a warning says why.

    Raises:
        InputError: an unknown name.
        UnavailableError: what was asked for cannot work here; the message says why and what to install.
    """
    if name not in NAMES:
        raise InputError(f"unknown ops {name!r}; known: {', '.join(NAMES)}")
    if name == "auto":
        name = "cuda" if why_not_cuda() is None else _for_cpu()
    # mypy checks here that the modules satisfy the Protocol
    chosen: Ops
    if name == "reference":
        from meal_gpu.ops import reference as chosen
    elif name == "cpu":
        if missing := why_not_cpu():
            raise UnavailableError(f"ops 'cpu' cannot work here: {missing}. Use --ops reference meanwhile.")
        from meal_gpu.ops import cpu as chosen
    else:
        if missing := why_not_cuda():
            raise UnavailableError(f"ops 'cuda' cannot work here: {missing}. Use --ops reference meanwhile.")
        from meal_gpu.ops import cuda as chosen

        memory.share_allocator()
    return chosen


def select_for(device: torch.device, name: str = "auto") -> Ops:
    """As `select`, for arrays on `device`: "auto" is the fastest that can read them."""
    if name == "auto":
        if device.type == "cuda":
            name = "cuda" if why_not_cuda() is None else "reference"
        else:
            name = _for_cpu() if device.type == "cpu" else "reference"
    return select(name)


def _for_cpu() -> str:
    missing = why_not_cpu()
    if missing is None:
        return "cpu"
    _warn_once(missing)
    return "reference"


@cache
def _warn_once(missing: str) -> None:
    warnings.warn(f"the slower reference ops are used: {missing}", stacklevel=4)


def why_not_cuda() -> str | None:
    """None where the CUDA ops work, else the reason and the fix in one line."""
    from importlib.util import find_spec

    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU (check nvidia-smi and the driver)"
    if find_spec("cupy") is None:
        return "CuPy is not installed: pip install 'meal-gpu[cuda13]'"
    return None


def why_not_cpu() -> str | None:
    """None where the CPU ops work, else the reason and the fix in one line; the first call may compile."""
    from meal_gpu.ops import native

    return native.why_not()
