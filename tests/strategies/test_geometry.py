"""Covers, seeding and clustering against hand cases, float64 and scikit-learn."""

import numpy as np
import pytest
import torch

from meal_gpu.ops import reference
from meal_gpu.strategies import geometry
from meal_gpu.strategies.geometry import (
    by_content,
    d2_sampling,
    greedy_k_center,
    k_means,
    medoid,
    nearest_centre,
    squared_distances,
)


def cloud(rows: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def uniforms(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def euclidean(points: torch.Tensor):
    return lambda row: squared_distances(points, points[row])


@pytest.fixture(params=[None, 64], ids=["whole", "in chunks"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(geometry, "CHUNK", dict.fromkeys(geometry.CHUNK, request.param))


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_distances_are_those_of_float64(offset: float) -> None:
    """Also of points that lie far from the origin, and near each other."""
    points, centres = cloud(50) + offset, cloud(9, seed=1) + offset
    expected = torch.cdist(points.double(), centres.double()).square()
    distances, numbers = nearest_centre(points, centres)
    assert (distances.dtype, numbers.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(distances.double(), expected.min(dim=1).values, rtol=1e-5, atol=1e-5)
    assert torch.equal(numbers, expected.argmin(dim=1))
    found = squared_distances(points, centres[3:4])
    torch.testing.assert_close(found.double(), expected[:, 3], rtol=1e-6, atol=0)


def test_distances_are_never_negative_and_equal_centres_go_to_the_first() -> None:
    points = 100 + cloud(40) / 1000
    distances, numbers = nearest_centre(points, points[[3, 3]])
    assert bool((distances >= 0).all())
    assert numbers.tolist() == [0] * 40


def test_the_medoid_has_the_least_sum_of_squared_distances() -> None:
    points = cloud(41)
    sums = torch.cdist(points.double(), points.double()).square().sum(dim=1)
    assert medoid(points).tolist() == [int(sums.argmin())]


@pytest.mark.parametrize(
    ("points", "covered", "expected"),
    [
        ([0, 1, 5, 10], [0], [3, 2, 1, 0]),  # 10; then 5, as far from both ends; then 1, then what is covered
        (
            [0, 1, 5, 10],
            [],
            [2, 0, 3, 1],
        ),  # 5 is nearest to the mean of 4; both ends are 5 away, the lower first
        ([0, 1, 5, 10], [4, 11], [0, 1, 2, 3]),  # 16, 9, 1, 1; 0 chosen: 1, 1, 1 for all others
        ([7, 7, 7], [], [0, 1, 2]),  # coinciding: never twice
        ([7, 7, 7], [7], [0, 1, 2]),
        ([3], [], [0]),
    ],
)
def test_greedy_k_center_by_hand(points: list[float], covered: list[float], expected: list[int]) -> None:
    rows, centres = torch.tensor(points).float()[:, None], torch.tensor(covered).float()[:, None]
    for n in range(1, len(points) + 1):
        assert greedy_k_center(rows, centres, n).tolist() == expected[:n]


@pytest.mark.parametrize("covered", [0, 1, 7])
def test_greedy_k_center_against_float64(covered: int) -> None:
    points, centres = cloud(60), cloud(covered, seed=1)
    all_points = torch.cat([centres, points]).double()
    distances = torch.cdist(all_points, all_points)
    chosen = list(range(covered)) or [int(medoid(points))]
    while len(chosen) < covered + 12:
        chosen.append(int(distances[:, chosen].amin(dim=1).argmax()))
    expected = [row - covered for row in chosen[covered:]][:12]
    assert greedy_k_center(points, centres, 12).tolist() == expected


def test_d2_sampling_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0]])
    # weights 1, 3, 4: 0.2 of 8 is 1.6. Squared distances to the second are 1, 0, 4, of whose sum 0.1 is the
    # first
    found = d2_sampling(
        euclidean(points), torch.tensor([1.0, 3.0, 4.0]), torch.tensor([0.2, 0.1, 0.9]).double()
    )
    assert found.tolist() == [1, 0, 2]
    # a border belongs to what comes after it, and a weight of 0 has no chance
    for draw, row in ((0.0, 0), (0.124, 0), (0.125, 2), (0.999, 2)):
        weights = torch.tensor([1.0, 0.0, 7.0])
        assert d2_sampling(euclidean(points), weights, torch.tensor([draw]).double()).tolist() == [row]
    # without any weight: equal chances
    found = d2_sampling(euclidean(points), torch.zeros(3), torch.tensor([0.5, 0.1, 0.9]).double())
    assert sorted(found.tolist()) == [0, 1, 2] and found[0] == 1


def test_the_largest_draw_and_weights_that_overflowed() -> None:
    points, draw = cloud(4), torch.tensor([np.nextafter(1, 0)])
    for weights, row in (([1e-30, 0.3, 0.1, 0.0], 2), ([1.0, torch.inf, 2.0, torch.inf], 1)):
        assert d2_sampling(euclidean(points), torch.tensor(weights), draw).tolist() == [row]
    far = torch.tensor([[0.0], [1e30], [2e30], [1.0]])  # squares beyond float32
    assert sorted(d2_sampling(euclidean(far), torch.ones(4), uniforms(4)).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(8))
def test_d2_sampling_is_kmeans_plusplus_where_the_space_is_euclidean(seed: int) -> None:
    points, draws = cloud(50, seed=seed), uniforms(20, seed)
    expected = reference.kmeans_plusplus(points, draws[:, None], None)
    assert torch.equal(d2_sampling(euclidean(points), torch.ones(50), draws), expected)


def test_d2_sampling_of_points_that_coincide_is_distinct() -> None:
    points = torch.zeros(20, 3)
    draws = uniforms(20)
    found = d2_sampling(euclidean(points), torch.ones(20), draws)
    assert sorted(found.tolist()) == list(range(20))
    assert torch.equal(found, reference.kmeans_plusplus(points, draws[:, None], None))


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize(("rows", "k"), [(200, 5), (200, 40), (30, 30), (50, 1)])
def test_k_means_is_that_of_scikit_learn(rows: int, k: int, offset: float) -> None:
    from sklearn.cluster import KMeans

    points = cloud(rows) + offset
    seeds = k_means(points, k, uniforms(k), rounds=0)
    assert torch.cdist(seeds.double(), points.double()).amin(dim=1).max() <= 1e-6 * (1 + offset)
    peer = KMeans(k, init=seeds.double().numpy(), n_init=1, algorithm="lloyd", max_iter=20, tol=0)
    peer.fit(points.double().numpy())
    found = k_means(points, k, uniforms(k)).double()
    torch.testing.assert_close(found, torch.from_numpy(peer.cluster_centers_), rtol=1e-5, atol=1e-5)


def test_the_rounds_of_k_means_are_counted() -> None:
    from sklearn.cluster import KMeans

    points = cloud(300)
    seeds = k_means(points, 8, uniforms(8), rounds=0)
    peer = KMeans(8, init=seeds.double().numpy(), n_init=1, algorithm="lloyd", max_iter=3, tol=0)
    peer.fit(points.double().numpy())
    assert peer.n_iter_ == 3
    found = k_means(points, 8, uniforms(8), rounds=3).double()
    torch.testing.assert_close(found, torch.from_numpy(peer.cluster_centers_), rtol=1e-4, atol=1e-5)


def test_a_centre_that_nothing_is_nearest_to_stays() -> None:
    points = torch.tensor([[5.0], [5.0], [6.0]])
    assert sorted(k_means(points, 3, uniforms(3)).flatten().tolist()) == [5.0, 5.0, 6.0]


def test_k_means_does_not_depend_on_the_order_of_the_points() -> None:
    points = cloud(80)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(3))
    found = k_means(points[order], 6, uniforms(6))
    torch.testing.assert_close(found, k_means(points, 6, uniforms(6)), rtol=1e-5, atol=1e-5)
    assert torch.equal(order[by_content(points[order])], by_content(points))
