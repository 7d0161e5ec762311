"""Statistics against tables by hand, against SciPy, and by their properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from meal_gpu.errors import InputError
from meal_gpu.statistics import (
    Interval,
    area_under_curve,
    at_budget,
    budget_reaching,
    holm,
    mean_interval,
    paired_test,
    penalty_matrix,
)

NAN = math.nan
scores = st.floats(0, 1, width=32)


@st.composite
def curves(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Shares that increase, and a score for each."""
    steps = draw(arrays(np.float64, st.integers(1, 8), elements=st.floats(0.001, 0.1)))
    return np.cumsum(steps), draw(arrays(np.float64, len(steps), elements=scores))


def test_an_interval_by_hand() -> None:
    # s = 1, s/√3 = 0.57735, t of 2 degrees of freedom 4.30265
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert found.scaled(2) == Interval(4.0, 2 * found.low, 2 * found.high, 3)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_an_interval_is_scipys(n: int, level: float) -> None:
    values = np.random.default_rng(n).normal(0.5, 0.02, n)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    found = mean_interval(values, level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_one_seed_has_no_interval_and_nan_is_kept() -> None:
    one = mean_interval([0.25])
    assert (one.mean, one.n) == (0.25, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    lost = mean_interval([0.25, NAN, 0.5])
    assert all(map(math.isnan, (lost.mean, lost.low, lost.high)))
    assert lost.n == 3


@given(arrays(np.float64, st.integers(2, 6), elements=scores), st.floats(0.01, 0.99))
def test_an_interval_holds_its_mean_and_grows_with_the_level(values: np.ndarray, level: float) -> None:
    narrow, wide = mean_interval(values, level), mean_interval(values, (1 + level) / 2)
    assert wide.low <= narrow.low <= narrow.mean <= narrow.high <= wide.high


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_a_paired_test_is_scipys(n: int) -> None:
    random = np.random.default_rng(n)
    a = random.normal(0.5, 0.02, n)
    b = a + random.normal(0.01, 0.01, n)
    expected = stats.ttest_rel(a, b)
    bounds = expected.confidence_interval(0.9)
    found = paired_test(a, b, 0.9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high), rel=1e-9)
    assert found.difference == pytest.approx((a - b).mean())


@given(arrays(np.float64, (2, 4), elements=scores), st.permutations(range(4)))
def test_a_paired_test_ignores_the_seeds_order_and_turns_with_the_strategies(
    values: np.ndarray, order: list[int]
) -> None:
    here, there = paired_test(*values), paired_test(*values[:, order])
    back = paired_test(*values[::-1])
    close = {"rel": 1e-6, "abs": 1e-9, "nan_ok": True}
    assert here.p == pytest.approx(there.p, **close)
    assert here.p == pytest.approx(back.p, **close)
    assert (here.difference, here.low) == pytest.approx((-back.difference, -back.high), **close)


def test_differences_without_any_spread() -> None:
    same = paired_test([0.5, 0.25, 0.125], [0.5, 0.25, 0.125])
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    shifted = paired_test([0.3, 0.4, 0.5], [0.2, 0.3, 0.4])  # equal but for rounding
    assert shifted.difference == pytest.approx(0.1)
    assert all(map(math.isnan, (shifted.low, shifted.high, shifted.p)))
    lost = paired_test([0.3, NAN], [0.2, 0.1])
    assert math.isnan(lost.difference)
    assert math.isnan(lost.p)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, made monotone
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert holm([0.02]) == pytest.approx([0.02])
    assert holm([]).size == 0
    # a test that could not be made counts: .01 times 3, .02 times 2
    assert holm([NAN, 0.01, 0.02]) == pytest.approx([NAN, 0.03, 0.04], nan_ok=True)


@given(arrays(np.float64, st.integers(1, 8), elements=st.floats(0, 1)))
def test_holm_lies_between_the_raw_p_and_bonferronis_and_keeps_the_order(p: np.ndarray) -> None:
    corrected = holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(1, p.size * p)).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()
    # the definition, one hypothesis at a time: the largest of (m - j + 1) p_(j) up to its own place
    for k, value in enumerate(p):
        before = [(p.size - j) * q for j, q in enumerate(np.sort(p)) if q <= value]
        assert corrected[k] <= min(1, max(before)) * (1 + 1e-12)
        assert corrected[k] >= min(1, (p.size - (p < value).sum()) * value) * (1 - 1e-12)


def test_an_area_by_hand() -> None:
    share, score = [0.0, 0.1, 0.3], [0.2, 0.4, 0.5]
    # 0.1 · 0.3 + 0.2 · 0.45 = 0.12, over 0.3
    assert area_under_curve(share, score, 0.0, 0.3) == pytest.approx(0.4)
    # from 0.05 (0.3) to 0.2 (0.45): 0.05 · 0.35 + 0.1 · 0.425 = 0.06, over 0.15
    assert area_under_curve(share, score, 0.05, 0.2) == pytest.approx(0.4)
    assert area_under_curve(share, [score, [1, 1, 1]], 0.0, 0.3) == pytest.approx([0.4, 1])
    assert area_under_curve(share, score, 0.1, 0.1) == pytest.approx(0.4)
    assert area_under_curve([0.1], [0.3], 0.1, 0.1) == pytest.approx(0.3)
    assert math.isnan(area_under_curve(share, [0.2, NAN, 0.5], 0.0, 0.3))
    # what lies outside of the range is not asked for
    assert area_under_curve(share, [0.2, 0.4, NAN], 0.0, 0.1) == pytest.approx(0.3)
    assert area_under_curve(share, [NAN, 0.4, 0.5], 0.1, 0.3) == pytest.approx(0.45)


@given(curves(), st.floats(0, 1), st.floats(0, 1))
def test_an_area_lies_within_the_scores(curve: tuple[np.ndarray, np.ndarray], one: float, two: float) -> None:
    share, score = curve
    low, high = (share[0] + x * (share[-1] - share[0]) for x in sorted((one, two)))
    low, high = min(low, share[-1]), min(high, share[-1])
    area = area_under_curve(share, score, low, high)
    assert score.min() - 1e-6 <= area <= score.max() + 1e-6


@given(curves(), st.floats(0, 1))
def test_areas_of_neighbouring_ranges_add_up(curve: tuple[np.ndarray, np.ndarray], where: float) -> None:
    share, score = curve
    middle = min(share[0] + where * (share[-1] - share[0]), share[-1])
    parts = [(share[0], middle), (middle, share[-1])]
    total = sum(area_under_curve(share, score, a, b) * (b - a) for a, b in parts)
    assert total == pytest.approx(
        area_under_curve(share, score, share[0], share[-1]) * (share[-1] - share[0]), abs=1e-9
    )


def test_a_score_between_steps() -> None:
    assert at_budget([0.1, 0.2], [[0.2, 0.4], [0.0, 1.0]], [0.1, 0.15, 0.2]) == pytest.approx(
        np.array([[0.2, 0.3, 0.4], [0.0, 0.5, 1.0]])
    )
    # a step's own score does not depend on its neighbours
    assert at_budget([0.1, 0.2, 0.3], [NAN, 0.4, NAN], [0.2]) == pytest.approx([0.4])


@pytest.mark.parametrize(
    ("score", "target", "budget"),
    [
        ([0.2, 0.4, 0.3, 0.6], 0.2, 0.1),  # at once
        ([0.2, 0.4, 0.3, 0.6], 0.3, 0.15),
        ([0.2, 0.4, 0.3, 0.6], 0.4, 0.2),  # the first time, although it falls again
        ([0.2, 0.4, 0.3, 0.6], 0.45, 0.35),
        ([0.2, 0.4, 0.3, 0.6], 0.61, None),
        ([0.2, NAN, 0.5, 0.6], 0.45, 0.3),  # nobody knows where before
        ([NAN, NAN, NAN, NAN], 0.1, None),
        ([0.2, 0.4, 0.3, 0.6], NAN, None),
    ],
)
def test_the_budget_at_which_a_score_is_reached(
    score: list[float], target: float, budget: float | None
) -> None:
    found = budget_reaching([0.1, 0.2, 0.3, 0.4], score, target)
    assert found is None if budget is None else found == pytest.approx(budget)


@given(curves(), scores)
def test_the_curve_has_the_target_where_it_is_reached(
    curve: tuple[np.ndarray, np.ndarray], target: float
) -> None:
    share, score = curve
    budget = budget_reaching(share, score, target)
    assert (budget is None) == (score.max() < target)
    if budget is not None:
        assert at_budget(share, score, [min(budget, share[-1])])[0] >= target - 1e-6


def test_a_penalty_matrix_by_hand() -> None:
    # one strategy per row, three seeds, two steps; t must exceed 4.303
    base = np.array([[0.30, 0.40], [0.32, 0.42], [0.35, 0.45]])
    above = base + np.array([[0.100, 0.05], [0.101, -0.05], [0.102, 0.01]])  # step 0: t = 175; 1: t = 0.1
    below = base - np.array([[0.10, 0.10], [0.11, 0.11], [0.12, 0.12]])  # both: t = -19
    # above and below at step 1: .15 .06 .13, t = 4.15
    assert penalty_matrix([above, base, below]).tolist() == [[0, 0.5, 0.5], [0, 0, 1.0], [0, 0, 0]]
    # equal differences show no spread, and decide nothing
    assert penalty_matrix([base + 0.1, base]).tolist() == [[0, 0], [0, 0]]
    lost = base.copy()
    lost[1, 0] = NAN
    assert penalty_matrix([base, below, lost])[:2, :2].tolist() == [[0, 1], [0, 0]]
    assert np.isnan(penalty_matrix([base, below, lost])[2]).all()


@given(arrays(np.float64, (3, 4, 2), elements=scores))
def test_a_penalty_matrix_agrees_with_single_tests(values: np.ndarray) -> None:
    expected = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            for step in range(2):
                test = paired_test(values[i, :, step], values[j, :, step])
                expected[i, j] += (test.p < 0.05 and test.difference > 0) / 2
    assert penalty_matrix(values).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_interval([]), r"shape \(0,\); expected \[n\]"),
        (lambda: mean_interval([[1.0]]), r"shape \(1, 1\)"),
        (lambda: mean_interval([1.0], 1.0), "level is 1.0; it must be between 0 and 1"),
        (lambda: paired_test([1.0], [2.0]), "1 shared seed: a paired test needs at least 2"),
        (lambda: paired_test([1.0, 2.0], [2.0]), "first has 2 values and second 1"),
        (lambda: holm([0.1, 1.5]), r"must lie in \[0, 1\]"),
        (lambda: at_budget([0.1, 0.1], [1, 1], [0.1]), "must increase"),
        (lambda: at_budget([0.1, 0.2], [1, 1], [0.3]), r"budget \[0.3\] lies outside the curve, 0.1 to 0.2"),
        (lambda: at_budget([0.1, 0.2], [1, 1, 1], [0.1]), "expected .* 2"),
        (lambda: area_under_curve([0.1, 0.2], [1, 1], 0.2, 0.1), "empty: 0.2 to 0.1"),
        (lambda: penalty_matrix(np.zeros((2, 1, 3))), "2 seeds or more"),
    ],
)
def test_what_cannot_be_computed_is_refused(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]
