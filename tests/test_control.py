"""The control arm: drawn uniformly, kept from the strategy, and right about the pool in the mean."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from small_networks import Painted, paint

from meal_gpu import control
from meal_gpu.acquisition import draw_control, query
from meal_gpu.grid import Grid
from meal_gpu.images.sources import Resident
from meal_gpu.ledger import Ledger
from meal_gpu.ops import reference
from meal_gpu.oracle import Oracle
from meal_gpu.passes import ImageSet
from meal_gpu.pool import ScoredPool, Settings

VOID = 255
GRID = Grid(2, 3, 8, 14)  # patches of 4 × 5, the last of a row 4 × 4
NAMES = ("a", "b", "c", "d")


def ledger(labelled: list[int]) -> Ledger:
    made = Ledger.create(GRID, NAMES)
    made.label(torch.tensor(labelled, dtype=torch.int64), step=0)
    return made


def test_control_patches_are_distinct_unlabelled_and_decided_by_seed_and_step() -> None:
    open_patches = [p for p in range(24) if p not in (0, 5, 7)]
    drawn = draw_control(ledger([0, 5, 7]), 6, seed=3, step=2)
    assert drawn.dtype == torch.int64
    assert len(set(drawn.tolist())) == 6
    assert set(drawn.tolist()) <= set(open_patches)
    assert torch.equal(draw_control(ledger([0, 5, 7]), 6, seed=3, step=2), drawn)
    assert torch.equal(draw_control(ledger([0, 5, 7]), 4, seed=3, step=2), drawn[:4])
    assert not torch.equal(draw_control(ledger([0, 5, 7]), 6, seed=4, step=2), drawn)
    assert not torch.equal(draw_control(ledger([0, 5, 7]), 6, seed=3, step=3), drawn)
    assert sorted(draw_control(ledger([0, 5, 7]), 99, seed=3, step=2).tolist()) == open_patches
    assert draw_control(ledger([0, 5, 7]), 0, seed=3, step=2).tolist() == []
    assert draw_control(ledger(list(range(24))), 3, seed=3, step=2).tolist() == []


def test_control_patches_are_uniform() -> None:
    """Every patch as often as every other, and every pair as often as every other pair."""
    made, rounds = ledger(list(range(5, 24))), 3000
    drawn = torch.stack([draw_control(made, 2, seed, step=1) for seed in range(rounds)])
    assert stats.chisquare(torch.bincount(drawn.flatten())).pvalue > 0.001
    pairs = torch.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25).view(5, 5)
    assert pairs.diagonal().tolist() == [0] * 5
    assert stats.chisquare(pairs[~torch.eye(5, dtype=torch.bool)]).pvalue > 0.001


def test_the_strategy_named_random_draws_others() -> None:
    """Otherwise the patches it would choose were always those that are kept from it."""
    images = ImageSet(paint(torch.zeros(4, 8, 14)), reference)
    pool = ScoredPool(images, Painted(), ledger([]), 6, Settings(seed=3, step=2))
    assert set(query(pool, "random", ledger([])).patch_ids.tolist()) != set(
        draw_control(ledger([]), 6, seed=3, step=2).tolist()
    )


TRUTH = torch.randint(6, (4, 8, 14), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def judge(labels: torch.Tensor, patches: list[int]) -> tuple[float, float, float, int]:
    """What the network, which predicts TRUTH, is worth by `labels`."""
    asked = Oracle(Resident(paint(TRUTH)), labels, GRID, reference, VOID)
    found = control.accuracy(torch.tensor(patches), Painted(), asked, "float32")
    return found.mean, found.low, found.high, found.n


def test_accuracy_by_hand() -> None:
    labels = TRUTH.clone()
    labels[1, 0, :5] = (labels[1, 0, :5] + 1) % 6  # patch 6: 5 of 20 wrong
    labels[1, 4:, 10:] = (labels[1, 4:, 10:] + 1) % 6  # patch 11, of 4 × 4: all wrong
    labels[3, 0, 5] = (labels[3, 0, 5] + 1) % 6  # patch 19: 1 of 20 wrong
    assert judge(labels, [6, 0])[0] == pytest.approx((15 / 20 + 1) / 2)
    # each patch counts the same, whatever its size; not in the order of the images
    mean, low, high, n = judge(labels, [19, 11, 6, 2])
    shares = np.array([0.95, 0.0, 0.75, 1.0])
    assert (mean, n) == (pytest.approx(shares.mean()), 4)
    half = stats.t.ppf(0.975, 3) * shares.std(ddof=1) / 2
    assert mean - half < 0 and mean + half > 1 and (low, high) == (0, 1)  # a share is none of these
    mean, low, high, _ = judge(labels, [19, 6, 2])
    half = stats.t.ppf(0.975, 2) * shares[[0, 2, 3]].std(ddof=1) / np.sqrt(3)
    assert (low, high) == (pytest.approx(mean - half), 1)
    assert judge(labels, [11])[0] == 0
    assert math.isnan(judge(labels, [11])[1])  # of one patch there is no interval


def test_void_is_left_out() -> None:
    labels = TRUTH.clone()
    labels[0, :4, 1:5] = VOID  # patch 0: the first column is left, of 4
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 6
    labels[0, 4:, 5:10] = VOID  # patch 4: all
    assert judge(labels, [0])[0] == pytest.approx(3 / 4)
    mean, _, _, n = judge(labels, [4, 0, 1])
    assert (mean, n) == (pytest.approx((3 / 4 + 1) / 2), 2)
    nothing = judge(labels, [4])
    assert nothing[3] == 0
    assert all(math.isnan(figure) for figure in nothing[:3])


def test_the_estimate_is_right_in_the_mean() -> None:
    """Over draws it is the mean over all unlabelled patches, whatever the strategy has labelled before."""
    generator = torch.Generator().manual_seed(5)
    wrong = (
        torch.rand(4, 8, 14, generator=generator) < torch.rand(4, 8, 14, generator=generator)[:, :1, :1] ** 2
    )
    labels = torch.where(wrong, (TRUTH + 1) % 6, TRUTH)
    labels[2, :4, :5] = VOID
    made = ledger([1, 4, 8, 9, 17])
    each = {patch: judge(labels, [patch])[0] for patch in made.unlabelled().tolist()}
    assert [patch for patch, share in each.items() if math.isnan(share)] == [12]
    population = np.array([share for share in each.values() if not math.isnan(share)])
    estimates = []
    for seed in range(2000):
        drawn = draw_control(made, 5, seed, step=1).tolist()
        estimates.append(np.nanmean([each[patch] for patch in drawn]))
        if seed < 20:
            assert judge(labels, drawn)[0] == pytest.approx(estimates[-1])
    standard_error = np.std(estimates) / len(estimates) ** 0.5
    assert population.std() > 0.1
    assert abs(np.mean(estimates) - population.mean()) < 4 * standard_error


@pytest.mark.parametrize(
    "strategy", ["random", "entropy", "power", "core-set", "kmeans", "meal-pca", "badge"]
)
def test_control_patches_are_kept_from_the_strategy(strategy: str) -> None:
    images = ImageSet(paint(TRUTH), reference)
    made = ledger([2, 3])
    free = query(ScoredPool(images, Painted(), made, 5, Settings()), strategy, made)
    assert free.control == 0
    assert "arm" not in free.to_frame()
    drawn = free.patch_ids[[0, 2]]  # just what it would have chosen

    pool = ScoredPool(images, Painted(), made, 5, Settings(candidates=9), excluded=drawn)
    assert not torch.isin(drawn, pool.unlabelled).any()
    assert len(pool.unlabelled) == 20
    asked = query(pool, strategy, made, drawn)
    ids = asked.patch_ids.tolist()
    assert ids[5:] == drawn.tolist()
    assert len(set(ids)) == 7
    assert not {2, 3} & set(ids)
    assert asked.control == 2
    frame = asked.to_frame()
    assert frame["arm"].tolist() == ["strategy"] * 5 + ["control"] * 2
    assert frame["patch"].tolist() == ids
    pd.testing.assert_frame_equal(frame[["left", "top", "right", "bottom"]], pd.DataFrame(
        GRID.boxes(ids), columns=["left", "top", "right", "bottom"]
    ))  # fmt: skip
    if asked.pool_scores is not None:  # drawn patches have scores, but no embedding
        assert torch.equal(asked.scores, asked.pool_scores[asked.patch_ids])
    if asked.embedding is not None:
        assert asked.embedding.isnan().any(dim=1).tolist() == [False] * 5 + [True] * 2


def test_all_of_a_query_may_be_drawn() -> None:
    made = ledger([2, 3])
    drawn = draw_control(made, 4, seed=0, step=1)
    pool = ScoredPool(ImageSet(paint(TRUTH), reference), Painted(), made, 0, Settings(), excluded=drawn)
    for strategy in ("entropy", "meal", "typiclust"):
        asked = query(pool, strategy, made, drawn)
        assert asked.patch_ids.tolist() == drawn.tolist()
        assert asked.to_frame()["arm"].tolist() == ["control"] * 4


def test_no_patch_drawn_is_no_arm() -> None:
    made = ledger([])
    pool = ScoredPool(ImageSet(paint(TRUTH), reference), Painted(), made, 3, Settings())
    asked = query(pool, "entropy", made, draw_control(made, 0, seed=0, step=1))
    assert (len(asked), asked.control) == (3, 0)
    assert "arm" not in asked.to_frame()
