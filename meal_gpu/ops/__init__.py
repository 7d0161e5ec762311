"""The one seam between CPU and CUDA: a Protocol that the modules `reference` and `cuda` satisfy.

It is selected once, at the edge, and passed down as an argument. Only "auto" may fall back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from meal_gpu import memory
from meal_gpu.errors import InputError, UnavailableError
from meal_gpu.grid import Grid

NAMES = ("auto", "reference", "cuda")
MEASURES = ("entropy", "margin", "least-confidence")
# How UMAP finds neighbours: as its library likes, by `ops.neighbors`, by the library's exact search, by its
# approximate one
BUILDS = ("auto", "exact", "brute_force_knn", "nn_descent")


class Patches(NamedTuple):
    """`pixels` [M, 3, ph, pw], normalised; `labels` uint8 [M, ph, pw], or None where none were asked for."""

    pixels: torch.Tensor
    labels: torch.Tensor | None


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
    """The implementation called `name`; "auto" takes CUDA where it works, the reference otherwise.

    With CUDA, CuPy and RMM take their memory from torch from here on (`meal_gpu.memory`).

    Raises:
        InputError: an unknown name.
        UnavailableError: "cuda" was asked for and cannot work here; the message says why and what to install.
    """
    if name not in NAMES:
        raise InputError(f"unknown ops {name!r}; known: {', '.join(NAMES)}")
    from meal_gpu.ops import reference

    # mypy checks that the module satisfies the Protocol here
    fallback: Ops = reference
    if name == "reference":
        return fallback
    missing = why_not_cuda()
    if missing is None:
        from meal_gpu.ops import cuda

        memory.share_allocator()
        device: Ops = cuda
        return device
    if name == "cuda":
        raise UnavailableError(f"ops 'cuda' cannot work here: {missing}. Use --ops reference meanwhile.")
    return fallback


def select_for(device: torch.device, name: str = "auto") -> Ops:
    """As `select`, for arrays on `device`: "auto" is the reference where they are not on a GPU."""
    return select("reference" if name == "auto" and device.type != "cuda" else name)


def why_not_cuda() -> str | None:
    """None where the CUDA ops work, else the reason and the fix in one line."""
    from importlib.util import find_spec

    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU (check nvidia-smi and the driver)"
    if find_spec("cupy") is None:
        return "CuPy is not installed: pip install 'meal-gpu[cuda13]'"
    return None
