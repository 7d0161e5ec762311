"""Statistics of runs that were repeated over seeds: intervals, paired tests, areas under learning curves.

The seed is the unit of replication. The steps of one run are not independent, since each starts from the
labels of the one before: a run gives a test one number, such as the area under its curve. All is NumPy in
float64, and nothing is left out: a NaN among the values makes NaN of what is computed from them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meal_gpu.errors import InputError

Array = NDArray[np.float64]
# Differences that vary less than rounding does, relative to the values, have no spread to estimate
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds and its confidence bounds, which are NaN for n = 1; all NaN where a value is."""

    mean: float
    low: float
    high: float
    n: int

    def scaled(self, factor: float) -> "Interval":
        """In another unit; `factor` is above 0."""
        return Interval(self.mean * factor, self.low * factor, self.high * factor, self.n)


@dataclass(frozen=True)
class Paired:
    """Mean difference first − second over `n` shared seeds, its confidence bounds, and the two-sided p."""

    difference: float
    low: float
    high: float
    p: float
    n: int


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of values [n] over seeds with Student's t interval, mean ± t(n-1) s/√n, at confidence `level`.

    Assumes that seeds are independent and roughly normal.

    Raises:
        InputError: no values, more than one dimension, or a level outside (0, 1).
    """
    from scipy.special import stdtrit

    x = _vector("values", values)
    require_level(level)
    n, mean = x.size, float(x.mean())
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = float(stdtrit(n - 1, (1 + level) / 2) * x.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def require_level(level: float) -> None:
    """Raises InputError unless `level` is a confidence."""
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it must be between 0 and 1, such as 0.95")


def paired_test(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Paired:
    """Paired t-test of first [n] against second [n], where entry s of both comes of seed s.

    Assumes that seeds are independent and that the differences are roughly normal; the two strategies may
    depend on the seed in any common way (initial images, decoder), which the pairing removes. With so few
    seeds no test without the assumption can serve: the smallest two-sided p of Wilcoxon's signed ranks or of
    sign flips is 2/2ⁿ, 0.0625 with five. With three seeds (2 degrees of freedom) only large effects show.

    Where all differences are equal but not 0, which independent seeds do not give, no spread is known:
    p and bounds are NaN. Where all are 0, p is 1.

    Raises:
        InputError: fewer than two seeds, unequal lengths, or a level outside (0, 1).
    """
    a, b = _vector("first", first), _vector("second", second)
    if a.size != b.size:
        raise InputError(f"first has {a.size} values and second {b.size}: a paired test needs equal numbers")
    if a.size < 2:
        raise InputError("1 shared seed: a paired test needs at least 2, and 3 to 5 to find anything")
    found = mean_interval(a - b, level)
    t = float(_t_scores(a[None], b[None])[0])
    if np.isinf(t):
        return Paired(found.mean, float("nan"), float("nan"), float("nan"), found.n)
    from scipy.special import stdtr

    return Paired(found.mean, found.low, found.high, float(2 * stdtr(found.n - 1, -abs(t))), found.n)


def _t_scores(first: Array, second: Array) -> Array:
    """[..., n] twice -> [...]: t of the differences; 0 where all are 0, ±inf where all are equal."""
    differences = first - second
    n, mean = differences.shape[-1], differences.mean(axis=-1)
    size = np.maximum(np.abs(first).max(axis=-1), np.abs(second).max(axis=-1))
    same = np.ptp(differences, axis=-1) <= _ROUNDING * size
    spread = np.where(same, 1.0, differences.std(axis=-1, ddof=1))
    constant = np.where(np.abs(mean) <= _ROUNDING * size, 0.0, np.copysign(np.inf, mean))
    scores: Array = np.where(same, constant, mean / (spread / np.sqrt(n)))
    return scores


def holm(p: ArrayLike) -> Array:
    """p-values [m] of one family -> corrected ones [m], which bound the chance of any false discovery.

    Step-down: the k-th smallest times m - k + 1, made monotone, at most 1 (Holm 1979). It holds however the
    tests depend on each other. A NaN stays NaN and counts as a member of the family.

    Raises:
        InputError: more than one dimension, or a number outside [0, 1].
    """
    raw = np.asarray(p, dtype=np.float64)
    if raw.ndim != 1 or ((raw < 0) | (raw > 1)).any():
        raise InputError(f"p-values have shape {raw.shape} and must lie in [0, 1]")
    order = np.argsort(raw)  # NaN last
    steps = raw[order] * np.arange(raw.size, 0, -1)
    corrected = np.empty_like(raw)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def at_budget(share: ArrayLike, score: ArrayLike, budget: ArrayLike) -> Array:
    """Curves score [..., k] at the shares labelled [k] -> at `budget` [b], linear between steps: [..., b].

    Raises:
        InputError: shares that do not increase, or a budget outside of them.
    """
    x, y, wanted = _vector("share", share), np.asarray(score, np.float64), np.asarray(budget, np.float64)
    if y.shape[-1:] != x.shape:
        raise InputError(f"score has shape {y.shape}; expected [..., {x.size}] for {x.size} shares")
    if not (np.diff(x) > 0).all():
        raise InputError("shares labelled must increase from step to step")
    if not ((wanted >= x[0]) & (wanted <= x[-1])).all():
        raise InputError(f"budget {wanted.tolist()} lies outside the curve, {x[0]:.4g} to {x[-1]:.4g}")
    values: Array = np.apply_along_axis(lambda curve: np.interp(wanted, x, curve), -1, y)
    return values


def area_under_curve(share: ArrayLike, score: ArrayLike, low: float, high: float) -> Array:
    """Mean score over the budgets from `low` to `high`: the trapezoids' area over the range's width.

    share [k] increases, score [..., k] -> [...]. It has the score's unit and lies between its least and its
    largest value; where the range is one point, it is the score there.

    Raises:
        InputError: shares that do not increase, or a range that is empty or outside of them.
    """
    if not low <= high:
        raise InputError(f"the range of budgets is empty: {low:.4g} to {high:.4g}")
    x = _vector("share", share)
    knots = np.concatenate([[low], x[(x > low) & (x < high)], [high]])
    y = at_budget(x, score, knots)
    if low == high:
        only: Array = y[..., 0]
        return only
    area: Array = np.trapezoid(y, knots, axis=-1) / (high - low)
    return area


def budget_reaching(share: ArrayLike, score: ArrayLike, target: float) -> float | None:
    """The least share labelled at which score [k] reaches `target`, linear between steps; None: never.

    After a step whose score is NaN it is the step that reaches it.
    """
    x, y = _vector("share", share), _vector("score", score)
    reached = np.flatnonzero(y >= target)
    if not reached.size:
        return None
    k = int(reached[0])
    if k == 0 or np.isnan(y[k - 1]):
        return float(x[k])
    return float(x[k - 1] + (target - y[k - 1]) / (y[k] - y[k - 1]) * (x[k] - x[k - 1]))


def penalty_matrix(scores: ArrayLike, alpha: float = 0.05) -> Array:
    """Scores [S, n, L] of S strategies, n shared seeds, L steps -> [S, S]: share of steps at which i beats j.

    Strategy i beats j at a step where a two-sided paired t-test over the seeds has p < `alpha` in its favour;
    each such step adds 1/L to [i, j] (Ash et al. 2020, BADGE, section 4: pairwise comparisons). The mean of
    column j, how often j is beaten, ranks the strategies: lower is better. The tests are not corrected for
    their number, and steps are dependent: a ranking, no evidence. A NaN score makes NaN of its pairs.

    Raises:
        InputError: other dimensions, fewer than two seeds, no step, or an alpha outside (0, 1).
    """
    from scipy.special import stdtrit

    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 3 or x.shape[1] < 2 or x.shape[2] < 1:
        raise InputError(f"scores have shape {x.shape}; expected [strategies, 2 seeds or more, steps]")
    require_level(alpha)
    by_step = x.transpose(0, 2, 1)
    t = _t_scores(by_step[:, None], by_step[None])  # [S, S, L]
    beats = np.isfinite(t) & (t > stdtrit(x.shape[1] - 1, 1 - alpha / 2))
    penalties: Array = np.where(np.isnan(t).any(axis=-1), np.nan, beats.mean(axis=-1))
    return penalties


def _vector(name: str, values: Any) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise InputError(f"{name} has shape {x.shape}; expected [n] with n of at least 1")
    return x
