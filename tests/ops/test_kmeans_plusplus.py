"""K-Means++ seeding against draws by hand and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import kmeans_plusplus as sklearn_kmeans_plusplus

from meal_gpu.errors import InputError
from meal_gpu.ops import reference
from meal_gpu.ops.public import kmeans_plusplus

LINE = torch.tensor([[0.0], [1.0], [3.0]])
NEARLY_1 = math.nextafter(1.0, 0.0)
# points, uniforms, and the rows that they pick
DRAWS = [
    # the first draw is uniform: thirds of [0, 1)
    (LINE, [0.0], [0]),
    (LINE, [0.33], [0]),
    (LINE, [0.34], [1]),
    (LINE, [0.67], [2]),
    (LINE, [NEARLY_1], [2]),
    # after row 0 the squared distances are 0, 1, 9: row 1 has the first tenth
    (LINE, [0.0, 0.0], [0, 1]),
    (LINE, [0.0, 0.099], [0, 1]),
    (LINE, [0.0, 0.101], [0, 2]),
    (LINE, [0.0, NEARLY_1], [0, 2]),
    # after row 1: 1, 0, 4
    (LINE, [0.5, 0.19], [1, 0]),
    (LINE, [0.5, 0.21], [1, 2]),
    # after row 2: 9, 4, 0; then after row 0 as well: 0, 1, 0
    (LINE, [0.9, 0.6], [2, 0]),
    (LINE, [0.9, 0.7], [2, 1]),
    (LINE, [0.9, 0.6, 0.0], [2, 0, 1]),
    (LINE, [0.9, 0.6, NEARLY_1], [2, 0, 1]),
    # points that coincide with a centre weigh nothing until all others are taken
    (torch.tensor([[5.0], [5.0], [5.0], [9.0]]), [0.0, 0.0, 0.0, 0.0], [0, 3, 1, 2]),
    (torch.tensor([[5.0], [5.0], [5.0], [9.0]]), [0.3, 0.5, 0.99, 0.5], [1, 3, 2, 0]),
    # all coincide: uniform over the free ones, halves after the first of three
    (torch.ones(3, 4), [0.5, 0.4, 0.0], [1, 0, 2]),
    (torch.ones(3, 4), [0.5, 0.6, NEARLY_1], [1, 2, 0]),
    (torch.ones(1, 4), [NEARLY_1], [0]),
    # points without coordinates coincide too
    (torch.ones(3, 0), [0.0, 0.0, 0.0], [0, 1, 2]),
    # squares that overflow float64 leave the free points equally likely
    (torch.tensor([[0.0], [1e200], [-1e200]], dtype=torch.float64), [0.0, 0.6, 0.0], [0, 2, 1]),
]
# centres that there are already, uniforms, and the rows of LINE that they pick
CONDITIONED_DRAWS = [
    # a labelled point at 0 makes the first draw a D² draw: weights 0, 1, 9
    ([[0.0]], [0.0], [1]),
    ([[0.0]], [0.5], [2]),
    ([[3.0], [0.0]], [0.0], [1]),
    ([[3.0], [0.0]], [NEARLY_1], [1]),
    ([[1.0], [3.0], [0.0]], [0.5], [1]),  # nothing is left to cover: uniform
    ([[2.0]], [0.0, 0.0], [0, 1]),  # weights 4, 1, 1, then 0, 1, 1
]


def draw(points: torch.Tensor, uniforms: list[float], chosen: torch.Tensor | None = None) -> list[int]:
    """The rows that the given numbers in [0, 1) pick."""
    return reference.kmeans_plusplus(
        points, torch.tensor(uniforms, dtype=torch.float64)[:, None], chosen
    ).tolist()


def blobs(rows: int, width: int = 2, seed: int = 0) -> torch.Tensor:
    """Eight clusters, so that good seeding and bad seeding differ."""
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.randn(8, width, generator=generator)
    which = torch.randint(8, (rows,), generator=generator)
    return centres[which] + torch.randn(rows, width, generator=generator)


def potential(points: np.ndarray, rows: np.ndarray) -> float:
    return float(((points[:, None] - points[rows]) ** 2).sum(-1).min(1).sum())


@pytest.mark.parametrize(("points", "uniforms", "expected"), DRAWS)
def test_draws_by_hand(points: torch.Tensor, uniforms: list[float], expected: list[int]) -> None:
    assert draw(points, uniforms) == expected


@pytest.mark.parametrize(("chosen", "uniforms", "expected"), CONDITIONED_DRAWS)
def test_labelled_points_count_as_centres(
    chosen: list[list[float]], uniforms: list[float], expected: list[int]
) -> None:
    assert draw(LINE, uniforms, torch.tensor(chosen)) == expected


def test_greedy_trials_keep_the_lowest_potential() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0]])
    # first pick among rows 0, 1, 2: potentials 10, 5, 13
    uniforms = torch.tensor([[0.0, 0.5, 0.9]], dtype=torch.float64)
    assert reference.kmeans_plusplus(points, uniforms, None).tolist() == [1]
    # equal potentials: the earlier trial stays
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    uniforms = torch.tensor([[0.6, 0.1, 0.9]], dtype=torch.float64)
    assert reference.kmeans_plusplus(square, uniforms, None).tolist() == [2]


@pytest.mark.parametrize("trials", [1, 4])
@pytest.mark.parametrize("points", [torch.ones(9, 2), torch.zeros(9, 2), blobs(9), blobs(9).repeat(3, 1)[:9]])
def test_all_rows_are_a_permutation(points: torch.Tensor, trials: int) -> None:
    for seed in range(20):
        assert sorted(kmeans_plusplus(points, 9, seed=seed, trials=trials).tolist()) == list(range(9))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=30),
    st.data(),
)
def test_rows_are_distinct_also_where_points_coincide(
    rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    points = torch.tensor(rows, dtype=torch.float32)
    n = data.draw(st.integers(1, len(rows)))
    edges = st.sampled_from([0.0, 0.5, NEARLY_1]) | st.floats(0, 1, exclude_max=True)
    picks = draw(points, data.draw(st.lists(edges, min_size=n, max_size=n)))
    assert len(set(picks)) == n
    assert min(picks) >= 0
    assert max(picks) < len(rows)
    # a point that coincides with an earlier pick may only come once every place is taken
    places = [rows[pick] for pick in picks]
    first = next((i for i, place in enumerate(places) if place in places[:i]), n)
    assert first >= min(n, len(set(rows)))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000), st.sampled_from([1, 3]))
def test_the_order_is_prefix_nested(k: int, n: int, seed: int, trials: int) -> None:
    k, n = sorted((k, n))
    points = blobs(40, seed=seed)
    longer = kmeans_plusplus(points, n, seed=seed, trials=trials)
    assert torch.equal(kmeans_plusplus(points, k, seed=seed, trials=trials), longer[:k])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([2.0**-20, 0.5, 2.0, 2.0**20]))
def test_scale_does_not_matter(seed: int, scale: float) -> None:
    points = blobs(30, seed=seed)
    assert torch.equal(kmeans_plusplus(points, 12, seed=seed), kmeans_plusplus(scale * points, 12, seed=seed))


def test_translation_does_not_matter() -> None:
    grid_points = blobs(30).round()  # integers: distances stay exact
    assert torch.equal(kmeans_plusplus(grid_points, 12), kmeans_plusplus(grid_points + 1024, 12))


def test_orthogonal_axes_and_their_order_do_not_matter() -> None:
    points = blobs(30, width=3).round()
    turned = torch.stack([-points[:, 2], points[:, 0], points[:, 1]], dim=1)
    assert torch.equal(kmeans_plusplus(points, 12), kmeans_plusplus(turned, 12))


def test_a_permutation_changes_the_rows_but_not_the_distribution() -> None:
    points, order = blobs(60), torch.randperm(60, generator=torch.Generator().manual_seed(1))
    seeds = range(300)
    one = [potential(points.numpy(), kmeans_plusplus(points, 6, seed=s).numpy()) for s in seeds]
    shuffled = points[order]
    other = [potential(shuffled.numpy(), kmeans_plusplus(shuffled, 6, seed=s).numpy()) for s in seeds]
    assert one != other
    error = math.sqrt((np.var(one) + np.var(other)) / len(seeds))
    assert abs(np.mean(one) - np.mean(other)) < 4 * error


def test_frequencies_of_the_second_draw_are_proportional_to_squared_distance() -> None:
    picks = [draw(LINE, [0.0, u])[1] for u in ((np.arange(1000) + 0.5) / 1000)]
    assert (picks.count(0), picks.count(1), picks.count(2)) == (0, 100, 900)


@pytest.mark.parametrize("trials", [1, 4])
def test_mean_potential_agrees_with_scikit_learn(trials: int) -> None:
    # 1,000 seeds each; the means may differ by four standard errors of their difference
    points = blobs(200).double()
    array, n, seeds = points.numpy(), 8, range(1000)
    ours = [potential(array, kmeans_plusplus(points, n, seed=s, trials=trials).numpy()) for s in seeds]
    theirs = [
        potential(array, sklearn_kmeans_plusplus(array, n, random_state=s, n_local_trials=trials)[1])
        for s in seeds
    ]
    error = math.sqrt((np.var(ours) + np.var(theirs)) / len(seeds))
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error
    # the error is small enough to tell this from uniform seeding
    uniform = [potential(array, np.random.default_rng(s).choice(200, n, replace=False)) for s in seeds]
    assert np.mean(uniform) - np.mean(ours) > 20 * error


def test_greedy_trials_lower_the_potential() -> None:
    points = blobs(200)
    means = [
        np.mean([potential(points.numpy(), kmeans_plusplus(points, 8, seed=s, trials=t).numpy())
                 for s in range(100)])
        for t in (1, 4)
    ]  # fmt: skip
    assert means[1] < 0.8 * means[0]


def test_conditioning_moves_the_query_away_from_what_is_labelled() -> None:
    near, far = torch.zeros(50, 2), torch.full((50, 2), 10.0)
    points = torch.cat([near, far]) + 0.1 * blobs(100).div(10)
    for seed in range(20):
        assert int(kmeans_plusplus(points, 1, seed=seed, chosen=points[:50])) >= 50


@pytest.mark.parametrize("bytes_at_once", [8, 1000, 1 << 20])
@pytest.mark.parametrize("width", [0, 1, 2, 64])
def test_first_weights_are_the_squared_distances_to_the_nearest_labelled_point(
    width: int, bytes_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first draw falls where the cumulated distances, taken from differences, have it; 0 is 0."""
    monkeypatch.setattr(reference, "PAIR_BYTES", bytes_at_once)
    chosen = 1e6 + blobs(70, width, seed=1).double() / 1000  # where products would cancel
    points = torch.cat([1e6 + blobs(90, width).double() / 1000, chosen])
    exact = (points[:, None] - chosen).square().sum(dim=2).amin(dim=1)
    assert int((exact == 0).sum()) >= 70
    cumulated = exact.cumsum(0) if width else torch.ones(160).double().cumsum(0)
    for u in (torch.arange(200) + 0.5) / 200:
        expected = int(torch.searchsorted(cumulated, u.double() * cumulated[-1], right=True))
        assert draw(points, [float(u)], chosen) == [expected]


def test_many_labelled_points_take_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *args, **how: calls.append(1) or cdist(*args, **how))
    kmeans_plusplus(blobs(3000), 2, chosen=blobs(2000, seed=1))
    assert len(calls) == 2  # 2097 rows of 32 MiB at a time


def test_chosen_of_no_rows_is_none() -> None:
    points = blobs(30)
    empty = points[:0]
    assert torch.equal(kmeans_plusplus(points, 5, chosen=empty), kmeans_plusplus(points, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_distances_are_float64_whatever_the_points_are(dtype: torch.dtype) -> None:
    points = blobs(30).round().to(dtype)  # small integers are exact in every dtype
    rows = kmeans_plusplus(points, 10)
    assert rows.dtype == torch.int64
    assert torch.equal(rows, kmeans_plusplus(points.double(), 10))


def test_input_is_left_alone_and_layout_does_not_matter() -> None:
    points = blobs(30)
    before = points.clone()
    strided = points.t().contiguous().t().requires_grad_()
    assert torch.equal(kmeans_plusplus(points, 10), kmeans_plusplus(strided, 10))
    assert torch.equal(points, before)


@pytest.mark.parametrize(
    ("points", "n", "arguments", "told"),
    [
        (torch.zeros(5, 2), 6, {}, ("5", "6")),
        (torch.zeros(5, 2), 0, {}, ("n must be at least 1", "0")),
        (torch.zeros(0, 2), 1, {}, ("0", "1")),
        (torch.zeros(5), 1, {}, ("[M, d]", "[5]")),
        (torch.zeros(5, 2, dtype=torch.int64), 1, {}, ("floating point", "torch.int64")),
        (torch.tensor([[0.0], [math.nan]]), 1, {}, ("points", "row 1")),
        (torch.tensor([[math.inf], [0.0]]), 1, {}, ("points", "row 0")),
        (torch.zeros(5, 2), 1, {"trials": 0}, ("trials", "0")),
        (torch.zeros(5, 2), 1, {"trials": 1.5}, ("trials must be at least 1, and whole", "1.5")),
        (torch.zeros(5, 2), 2.0, {}, ("n must be at least 1, and whole", "2.0")),
        (torch.zeros(5, 2), 1, {"seed": -1}, ("seed must be at least 0, and whole", "-1")),
        (np.zeros((5, 2)), 1, {}, ("points must be a torch.Tensor, got ndarray", "torch.from_numpy")),
        (torch.zeros(5, 2), 1, {"chosen": np.zeros((1, 2))}, ("chosen must be a torch.Tensor",)),
        (torch.zeros(5, 2), 1, {"chosen": torch.zeros(1, 3)}, ("2 columns", "3")),
        (torch.zeros(5, 2), 1, {"chosen": torch.zeros(3)}, ("chosen", "[3]")),
        (torch.zeros(5, 2), 1, {"chosen": torch.tensor([[0.0, math.nan]])}, ("chosen", "row 0")),
    ],
)
def test_wrong_input_is_named(
    points: torch.Tensor, n: int, arguments: dict[str, torch.Tensor], told: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as error:
        kmeans_plusplus(points, n, **arguments)
    assert all(part in str(error.value) for part in told)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5 * reference.SCANNED), st.floats(0, 1))
def test_sums_in_rows_are_prefix_sums_that_draw_nothing_without_a_weight(
    seed: int, count: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, generator=generator, dtype=torch.float64) * 10.0 ** (seed % 7)
    weights[torch.rand(count, generator=generator) < share] = 0
    sums = reference.sums_in_rows(weights)
    torch.testing.assert_close(sums, weights.cumsum(0), rtol=1e-12, atol=0)
    before = torch.nn.functional.pad(sums, (1, -1))
    assert bool((sums[weights == 0] == before[weights == 0]).all()) and bool((sums >= before).all())


def test_sums_in_rows_reach_infinity_where_the_weights_do() -> None:
    weights = torch.ones(3 * reference.SCANNED, dtype=torch.float64)
    weights[reference.SCANNED + 5] = torch.inf
    sums = reference.sums_in_rows(weights)
    assert torch.equal(sums.isinf(), weights.cumsum(0).isinf()) and not bool(sums.isnan().any())


@pytest.mark.gpu
def test_a_gpu_adds_alike_every_time() -> None:
    weights = torch.rand(300_000, dtype=torch.float64, device="cuda")
    first, *others = (reference.prefix_sums(weights) for _ in range(5))
    assert all(torch.equal(first, other) for other in others)
    torch.testing.assert_close(first, weights.cumsum(0), rtol=1e-12, atol=0)
