"""A query depends on what the patches are, not on how they are numbered."""

import pytest
import torch
from known import chosen, generic, permuted, values

from meal_gpu.strategies import MEASURES, STRATEGIES


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("labelled", [0, 6])
def test_renumbered_patches_are_chosen_alike(name: str, labelled: int) -> None:
    """Draws that belong to patches move with them; those that are used in order of choice stay."""
    for seed in range(4):
        pool = generic(60, n=9, labelled=labelled, limit=24, seed=seed)
        if name in ("kmeans", "typiclust"):
            # As many groups as clusters, of four or more: two patches alone are equally near to their centre,
            # and the lower id is taken
            assert pool.points is not None
            groups = 9 + labelled
            pool.points += 50 * (torch.arange(60) % groups)[:, None]
        to = torch.randperm(60, generator=torch.Generator().manual_seed(100 + seed))
        assert chosen(name, permuted(pool, to)) == to[chosen(name, pool)].tolist()


@pytest.mark.parametrize("name", MEASURES)
def test_renumbered_patches_have_the_same_values(name: str) -> None:
    pool = generic(40, n=9, labelled=6)
    to = torch.randperm(40, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(values(name, permuted(pool, to))[to], values(name, pool), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_labelled_patches_count_only_where_the_strategy_covers_them(name: str) -> None:
    """What is known of labelled patches changes no choice, but in the space that they cover already."""
    pool = generic(40, n=9, labelled=12, limit=24)
    other = generic(40, n=9, labelled=12, limit=24)
    rows = pool.labelled
    for tensor in (other.points, other.probabilities, other.counts, other.lengths):
        assert tensor is not None
        tensor[rows] = tensor[rows].flip(0)
    other.entropies = [99.0 if p in other.taken else value for p, value in enumerate(other.entropies)]
    assert chosen(name, other) == chosen(name, pool)
    if name in ("core-set", "typiclust"):
        assert other.points is not None
        other.points[rows] = other.points[other.unlabelled[:12]]
        assert chosen(name, other) != chosen(name, pool)
