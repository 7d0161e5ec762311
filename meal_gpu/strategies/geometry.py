"""Greedy covers, seeding and clustering of features, in memory for a few copies of them at most."""

from collections.abc import Callable, Iterator

import torch

from meal_gpu.ops.reference import prefix_sums

# Elements of a temporary at a time: 64 MiB of float32 on a GPU, and what the caches of a CPU hold
CHUNK = {"cuda": 1 << 24, "cpu": 1 << 20}


def squared_distances(points: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """[M, D], [1, D] -> [M] float32, by differences: 0 where a point is the centre."""
    if points.is_cuda:
        return torch.cdist(points, centre, compute_mode="donot_use_mm_for_euclid_dist")[:, 0].square()
    distances = points.new_empty(len(points))
    for rows, part in _moved(points, centre, 1):  # on a CPU cdist takes some three times as long
        torch.sum(part.square_(), dim=1, out=distances[rows])
    return distances


def nearest_centre(points: torch.Tensor, centres: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, D], [K, D] -> squared distance [M] float32 and number [M] int64 of the nearest centre."""
    distances = points.new_empty(len(points))
    numbers = torch.empty(len(points), dtype=torch.int64, device=points.device)
    # Around the centres' mean squares are small, and little of them cancels
    middle = centres.mean(dim=0)
    centres = centres - middle
    norms = centres.square().sum(dim=1)
    for rows, part in _moved(points, middle, len(centres)):
        # The row's own norm changes no minimum
        least, numbers[rows] = torch.addmm(norms, part, centres.T, alpha=-2).min(dim=1)
        distances[rows] = (least + part.square().sum(dim=1)).clamp(min=0)
    return distances, numbers


def by_content(features: torch.Tensor) -> torch.Tensor:
    """[M, D] -> [M] int64, an order that depends on what the rows are, not on where they stand."""
    return features.sum(dim=1).argsort(stable=True)


def medoid(features: torch.Tensor) -> torch.Tensor:
    """[M, D] -> [1] int64, the row nearest to the mean."""
    return squared_distances(features, features.mean(dim=0, keepdim=True)).argmin(dim=0, keepdim=True)


# Rows are chosen by tensors [1], not by numbers or tensors of no dimension: torch would wait for the device
def greedy_k_center(points: torch.Tensor, covered: torch.Tensor, n: int) -> torch.Tensor:
    """n <= M rows of [M, D], each the farthest from all before it and from `covered` [L, D].

    Without anything covered the first is the medoid. Equal distances: the lower row first.
    """
    nearest = (
        nearest_centre(points, covered)[0] if len(covered) else points.new_full((len(points),), torch.inf)
    )
    picks = []
    for number in range(n):
        row = medoid(points) if not number and not len(covered) else nearest.argmax(dim=0, keepdim=True)
        nearest = torch.minimum(nearest, squared_distances(points, points[row]))
        nearest.index_fill_(0, row, -1)  # never twice, also where all coincide
        picks.append(row)
    return torch.cat(picks)


def d2_sampling(
    distances: Callable[[torch.Tensor], torch.Tensor], first: torch.Tensor, uniforms: torch.Tensor
) -> torch.Tensor:
    """K-Means++ seeding (Arthur and Vassilvitskii 2007) in any space whose squared distances are known.

    Args:
        distances: row number [1] int64 -> [M] squared distances of all rows to it.
        first: [M] weights >= 0 of the first draw.
        uniforms: [n] float64, n <= M, the draws.

    Returns:
        [n] int64 distinct rows, in order of choice.
    """
    weights = first.double()
    free = torch.ones(len(first), dtype=torch.float64, device=first.device)
    nearest = torch.full_like(free, torch.inf)
    picks = []
    for draw in uniforms.to(first.device, non_blocking=True):
        weights = weights * free
        # Where all free rows coincide with a chosen one, any of them
        cumulative = prefix_sums(torch.where(weights.sum() > 0, weights, free))
        row = torch.searchsorted(cumulative, (draw * cumulative[-1])[None], right=True)
        # Squares that overflowed make the total infinite: stay on the first of them
        row = torch.minimum(row, torch.searchsorted(cumulative, cumulative[-1:]))
        nearest = torch.minimum(nearest, distances(row).double())
        free.index_fill_(0, row, 0)
        weights = nearest
        picks.append(row)
    return torch.cat(picks)


def k_means(points: torch.Tensor, k: int, uniforms: torch.Tensor, rounds: int = 20) -> torch.Tensor:
    """[k, D] centres by Lloyd's algorithm from K-Means++ seeds; those of `points` [M, D], M >= k.

    `uniforms` [k] are the seeding's. A fixed number of rounds, so that nothing waits for the device; a centre
    that nothing is nearest to stays where it is.
    """
    order = by_content(points)
    middle = points.mean(dim=0)
    points = points - middle  # around 0 squares are small, and little of them cancels

    def distances(row: torch.Tensor) -> torch.Tensor:
        return squared_distances(points, points[order[row]])[order]

    seeds = d2_sampling(distances, torch.ones(len(points), device=points.device), uniforms)
    centres = points[order[seeds]]
    each = torch.arange(k, device=points.device)[:, None]
    for _ in range(rounds):
        norms = centres.square().sum(dim=1)
        sums, counts = points.new_zeros(k, points.shape[1]), points.new_zeros(k, 1)
        for part in torch.split(points, _rows(points, k)):
            # A row's own norm changes no minimum
            of = (each == torch.addmm(norms, part, centres.T, alpha=-2).argmin(dim=1)).to(part)
            sums.addmm_(of, part)  # on a GPU `index_add_` adds in another order each time
            counts += of.sum(dim=1, keepdim=True)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres + middle


def _moved(points: torch.Tensor, by: torch.Tensor, k: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """[M, D] less [D] or [1, D], `_rows` at a time, each in the place of the one before: no new memory."""
    count = _rows(points, k)
    place = points.new_empty(min(count, len(points)), points.shape[1])
    for start in range(0, len(points), count):
        part = points[start : start + count]
        yield slice(start, start + len(part)), torch.sub(part, by, out=place[: len(part)])


def _rows(points: torch.Tensor, k: int) -> int:
    """How many rows of `points` [M, D] at a time; temporaries have D or `k` elements a row."""
    return max(1, CHUNK[points.device.type] // max(k, points.shape[1]))
