"""What K-Means++ seeding had before it at each draw, recomputed from what it chose, in float64."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seeding:
    """n draws over M points (Arthur and Vassilvitskii 2007).

    Attributes:
        potential: [n + 1] float64: the sum over the points of the squared distance to the nearest chosen one,
            after 0, 1, … n draws; infinite before the first.
        chances: [n, M] float64: with which probability each point is taken by each draw, given those before.
    """

    potential: torch.Tensor
    chances: torch.Tensor

    @property
    def removed(self) -> torch.Tensor:
        """[n] float64 the share of the potential that each draw removed; NaN for the first, 0 where none
        was left."""
        before, after = self.potential[:-1], self.potential[1:]
        share = torch.where(before > 0, (before - after) / before, 0.0)
        return torch.where(before.isinf(), torch.nan, share)


def seeding(points: torch.Tensor, chosen: torch.Tensor) -> Seeding:
    """`points` [M, d], and the rows `chosen` [n] in order of choice."""
    values = points.double()
    free = torch.ones(len(values), dtype=torch.float64, device=values.device)
    nearest = torch.full_like(free, torch.inf)
    potential, chances = [nearest.sum()], []
    for row in chosen.tolist():
        weights = nearest.where(free > 0, 0.0)
        # All alike: before there is a centre, and once every free point coincides with one
        equal = not (weights.isfinite().all() and weights.sum() > 0)
        weights = free if equal else weights
        chances.append(weights / weights.sum())
        nearest = torch.minimum(nearest, (values - values[row]).square().sum(dim=1))
        free[row] = 0
        potential.append(nearest.sum())
    return Seeding(torch.stack(potential), torch.stack(chances))
