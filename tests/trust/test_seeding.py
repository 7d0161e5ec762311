"""Potentials and chances of K-Means++ seeding, by hand and beside the seeding itself."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meal_gpu.ops import reference
from meal_gpu.trust.seeding import seeding

LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]])


def test_by_hand() -> None:
    # From 0: 0 + 1 + 9 + 49 = 59. Then 7: nearest squares 0, 1, 9, 0 = 10. Then 3: 0, 1, 0, 0 = 1.
    found = seeding(LINE, torch.tensor([0, 3, 2]))
    assert found.potential.tolist() == [math.inf, 59.0, 10.0, 1.0]
    assert torch.equal(found.chances[0], torch.full((4,), 0.25, dtype=torch.float64))
    assert found.chances[1].tolist() == pytest.approx([0, 1 / 59, 9 / 59, 49 / 59], rel=1e-15)
    assert found.chances[2].tolist() == pytest.approx([0, 0.1, 0.9, 0], rel=1e-15)
    assert found.removed[1:].tolist() == pytest.approx([49 / 59, 0.9], rel=1e-15)
    assert found.removed[0].isnan()


def test_points_that_coincide_are_drawn_alike() -> None:
    found = seeding(torch.zeros(4, 2), torch.tensor([1, 3]))
    assert found.potential.tolist() == [math.inf, 0.0, 0.0]
    assert found.chances[1].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    assert found.removed[1].item() == 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 4))
def test_what_the_seeding_takes_had_a_chance_and_chances_are_the_draws(seed: int, m: int, d: int) -> None:
    draws = np.random.default_rng(seed)
    points = torch.from_numpy(draws.integers(-3, 4, (m, d)).astype(np.float32))
    uniforms = torch.from_numpy(draws.random((m, 1)))
    rows = reference.kmeans_plusplus(points, uniforms, None)
    found = seeding(points, rows)
    assert torch.allclose(found.chances.sum(dim=1), torch.ones(m, dtype=torch.float64))
    assert bool((found.potential[1:] >= 0).all()) and bool((found.potential.diff()[1:] <= 0).all())
    assert found.potential[-1] == 0  # every point is chosen
    for number, row in enumerate(rows.tolist()):
        below = found.chances[number, :row].sum()
        # The draw fell into the interval of this row: a cumulative sum of the chances, inverted
        assert below - 1e-12 <= uniforms[number, 0] <= below + found.chances[number, row] + 1e-12
