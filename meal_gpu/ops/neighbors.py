"""Exact nearest neighbours: a cheap matrix product proposes, exact distances decide, an error bound proves.

Features are centred and scaled to [-1, 1] (distances scale along), then rounded to the product's dtype: row i
becomes c_i with n_i = |c_i|², and moves by r_i, which is measured. The product gives every pair the key

    key_ij ≈ n_j (1 - g) - r_j²/ε - 2 c_i·c_j,      g (n_i + n_j) being more than its own rounding errors.

So |c_i - c_j|² - r_j²/ε is at least key_ij + n_i (1 - g); and (a - r)² ≥ (1 - ε)(a² - r²/ε) for 0 < ε < 1: a
row j whose key is T or more is at least √((1 - ε)(T + n_i (1 - g))) - r_i away. The rows of the smallest
keys, some more than are wanted, are measured exactly. Where the k-th of their distances stays below that
bound, no other row comes before it; where it does not, all rows are measured.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from meal_gpu.errors import InputError

# Rows measured beyond those wanted, so that the bound clears the k-th distance
SLACK = 16
# What a chunk of rows may take: the whole product never exists
CHUNK_BYTES = 64 << 20


def nearest_neighbors(
    features: torch.Tensor,
    k: int,
    *,
    queries: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k rows of `features` [M, D] nearest to every row of `queries` [Q, D], by Euclidean distance.

    The order is that of distances in float64, of equal ones the lower index first. It does not depend on
    `dtype`, that of the product's inputs (default: float16 on a GPU, for its tensor cores, else float32).
    Without `queries`, those are the features: each row is the first of its own neighbours, at distance 0.

    Returns:
        indices [Q, k] int64 and distances [Q, k] float32, ascending, on the features' device. The host waits
        for the device once.

    Raises:
        InputError: no [M, D] floating point features, queries of another width, or k outside 1 to M.
    """
    itself = queries is None
    rows = features if queries is None else queries
    for what, given in (("features", features), ("queries", rows)):
        if given.ndim != 2 or not given.is_floating_point() or given.shape[1] != features.shape[-1]:
            raise InputError(f"{what} must be [M, D] floating point, got {list(given.shape)} {given.dtype}")
    if not 1 <= k <= len(features):
        raise InputError(f"k must be between 1 and the number of rows, {len(features)}; got {k}")
    indices = torch.empty((len(rows), k), dtype=torch.int64, device=rows.device)
    distances = torch.empty((len(rows), k), device=rows.device)
    if itself:
        # First also where more rows coincide with it than are measured: it is no candidate
        indices[:, 0], distances[:, 0] = torch.arange(len(rows), device=rows.device), 0
    found = (indices[:, 1:], distances[:, 1:]) if itself else (indices, distances)
    if found[0].numel():
        proven = _propose(features, rows, itself, dtype, *found)
        _measure_all(features, rows, itself, (~proven).nonzero().flatten(), *found)
    return indices, distances


def _propose(
    features: torch.Tensor,
    rows: torch.Tensor,
    itself: bool,
    dtype: torch.dtype | None,
    indices: torch.Tensor,
    distances: torch.Tensor,
) -> torch.Tensor:
    """Fill `indices` and `distances` [Q, k]; -> [Q] bool, where they are proven right."""
    if dtype is None:
        dtype = torch.float16 if features.is_cuda else torch.float32
    if dtype == torch.float32 and not _full_float32():
        dtype = torch.bfloat16
    if dtype == torch.float16 and torch.backends.cuda.matmul.allow_fp16_accumulation:
        dtype = torch.bfloat16  # which is summed in float32 all the same
    # At 0 the scale of features that all coincide is any
    centre = features.mean(dim=0, dtype=torch.float64)
    scale = 1 / torch.stack([_span(features, centre), _span(rows, centre)]).amax()
    scale = scale.where(scale.isfinite(), 1.0)
    columns = _rounded(features, centre, scale, dtype)
    lines = columns if itself else _rounded(rows, centre, scale, dtype)
    # Sums of D products, on tensor cores too, where an addition truncates; and a few roundings more
    g = (2 * features.shape[1] + 16) * 2.0**-23
    epsilon = 2 * torch.finfo(dtype).eps
    floor = features.shape[1] * 2.0**-124  # where products underflow
    offsets = (columns.norms * (1 - g) - 1.0001 / epsilon * columns.moved.square()).float()

    k, others = indices.shape[1], len(features) - itself
    measured = min(k + SLACK, others)
    proven = torch.empty(len(rows), dtype=torch.bool, device=rows.device)
    for part in _parts(len(rows), 4 * len(features) + 12 * measured * features.shape[1]):
        keys = _product(-2 * lines.points[part], columns.points).add_(offsets)
        if itself:
            keys.diagonal(part.start).fill_(torch.inf)
        best = keys.topk(measured, largest=False)
        # By index, so that a stable sort leaves equal distances in that order
        candidates = best.indices.sort(dim=1).values
        order = _distances(rows[part, None], features[candidates])[:, 0].sort(dim=1, stable=True)
        indices[part] = candidates.gather(1, order.indices[:, :k])
        distances[part] = order.values[:, :k].float()
        last = best.values.amax(dim=1).double()
        squared = (1 - epsilon) * (last + lines.norms[part] * (1 - g) - floor)
        bound = squared.clamp(min=0).sqrt() - lines.moved[part]
        proven[part] = (measured == others) | (order.values[:, k - 1] * scale * (1 + 2.0**-30) < bound)
    return proven


def _measure_all(
    features: torch.Tensor,
    rows: torch.Tensor,
    itself: bool,
    failed: torch.Tensor,
    indices: torch.Tensor,
    distances: torch.Tensor,
) -> None:
    """Fill the rows `failed` of `indices` and `distances` from their distances to all features."""
    for part in _parts(len(failed), 32 * len(features)):
        which = failed[part]
        exact = _distances(rows[which], features)
        if itself:
            exact.scatter_(1, which[:, None], torch.inf)
        order = exact.sort(dim=1, stable=True)
        indices[which] = order.indices[:, : indices.shape[1]]
        distances[which] = order.values[:, : indices.shape[1]].float()


class _Rounded(NamedTuple):
    """Rows [N, D] in the product's dtype; their squared norms and how far each was moved, [N] float64."""

    points: torch.Tensor
    norms: torch.Tensor
    moved: torch.Tensor


def _rounded(rows: torch.Tensor, centre: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> _Rounded:
    # A CPU multiplies half precision slowly: what was rounded is float32 again
    points = torch.empty(rows.shape, dtype=dtype if rows.is_cuda else torch.float32, device=rows.device)
    norms, moved = (torch.empty(len(rows), dtype=torch.float64, device=rows.device) for _ in range(2))
    for part in _parts(len(rows), 32 * rows.shape[1]):
        exact = (rows[part].double() - centre) * scale
        points[part] = exact.to(dtype)
        kept = points[part].double()
        norms[part] = kept.square().sum(dim=1)
        moved[part] = (exact - kept).norm(dim=1) + 2.0**-50 * exact.norm(dim=1)
    return _Rounded(points, norms, moved)


def _span(rows: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """The largest |x - centre| of any element, and 0 of none."""
    if not rows.numel():
        return centre.new_zeros(())
    low, high = torch.aminmax(rows, dim=0)
    return torch.maximum(high.double() - centre, centre - low.double()).amax()


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[n, D], [M, D] -> [n, M] float32, summed in float32."""
    if a.dtype == torch.float32:
        return a @ b.T
    return torch.mm(a, b.T, out_dtype=torch.float32)


def _full_float32() -> bool:
    """Whether torch multiplies float32 as such, and not as the shorter formats it may be told to use."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by backend, in ways that this cannot spell
        return False


def _distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[..., n, D], [..., m, D] -> [..., n, m] float64, from differences."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _parts(rows: int, row_bytes: int) -> Iterator[slice]:
    step = max(1, CHUNK_BYTES // row_bytes)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
