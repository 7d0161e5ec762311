"""Random patches, as many of every predicted class: a better baseline where classes are rare."""

import torch

from meal_gpu.strategies.base import Pool, Selection, Strategy


def round_robin(groups: torch.Tensor, within: torch.Tensor, between: torch.Tensor) -> torch.Tensor:
    """Rows by turns of their groups.

    Args:
        groups: [U] int64, the group of each row.
        within: [U], the order inside a group, highest first; ties go to the earlier row.
        between: [G], which group's turn comes first, highest first.

    Returns:
        [U] int64: all the rows, the first of every group before the second of any.
    """
    order = within.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]  # by group, then by `within`
    rows = torch.arange(len(groups), device=groups.device)
    sizes = torch.zeros(len(between), dtype=torch.int64, device=groups.device)
    sizes.index_add_(0, groups, torch.ones_like(groups))
    sorted_groups = groups[order]
    turn = rows - (sizes.cumsum(0) - sizes)[sorted_groups]
    place = between.argsort(descending=True, stable=True).argsort()
    return order[(turn * len(between) + place[sorted_groups]).argsort()]


def by_class(pool: Pool, within: torch.Tensor) -> torch.Tensor:
    """[n] unlabelled patches, by turns from every dominant predicted class, each by falling `within` [U]."""
    counts = pool.classes().counts
    turns = pool.uniforms("turns of the classes", counts.shape[1]).to(counts.device, non_blocking=True)
    order = round_robin(counts.argmax(dim=1)[pool.unlabelled], within, turns)
    return pool.unlabelled[order[: pool.n]]


def select(pool: Pool) -> Selection:
    draws = pool.uniforms("random", len(pool.unlabelled)).to(pool.unlabelled.device, non_blocking=True)
    return Selection(by_class(pool, draws))


STRATEGY = Strategy(
    name="class-random",
    summary="patches drawn uniformly, by turns from every dominant predicted class",
    source="after the foreground-aware random of Lüth et al. 2025 (nnActive)",
    choice=select,
    needs=("classes",),
)
