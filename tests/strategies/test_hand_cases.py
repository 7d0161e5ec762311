"""Every measure and strategy on numbers that a person can follow."""

import math

import pytest
import torch
from known import Known, chosen, generic, select, values
from scipy.stats import chisquare

from meal_gpu.grid import Grid
from meal_gpu.ops import reference
from meal_gpu.strategies import MEASURES, STRATEGIES
from meal_gpu.strategies.badge import errors
from meal_gpu.strategies.cereals import clicks
from meal_gpu.strategies.class_random import round_robin
from meal_gpu.strategies.meal_pca import principal
from meal_gpu.strategies.power import noised
from meal_gpu.strategies.ripu import impurity
from meal_gpu.strategies.suggestive import max_cover
from meal_gpu.strategies.typiclust import turns, typicality

E = math.e


def uniform_of(*gumbel: float) -> torch.Tensor:
    """The uniforms whose Gumbel noise is `gumbel`: g = -log(-log u)."""
    return torch.tensor([math.exp(-math.exp(-g)) for g in gumbel], dtype=torch.float64)


def close(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


# Half and half is ln 2; all of one class 0; 1 : 3 is -(ln(1/4) / 4 + 3 ln(3/4) / 4) = 0.562335
SHARES = torch.tensor([[50, 50], [100, 0], [25, 75], [0, 0]], dtype=torch.int32)
# Patch 3, labelled, counts for nothing: of three unlabelled patches two are mostly class 0
DOMINANT = torch.tensor([[9, 1], [8, 2], [2, 8], [0, 9]], dtype=torch.int32)
CLASSES = torch.tensor([[9, 1], [8, 2], [0, 9], [4, 5]])  # two patches are mostly 0, two 1
TWO = (torch.tensor([0.9, 0.5, 0.6, 0.0]), torch.tensor([0.8, 0.5, 0.1, 0.0]))  # total, expected
MEASURED = [
    ("entropy", {"entropies": [0.1, 0.4, 0.3, 0.2]}, [0.1, 0.4, 0.3, 0.2], [1, 2]),
    ("margin", {"others": {"margin": [0.7, 0.1, 0.9, 0.2]}}, [0.7, 0.1, 0.9, 0.2], [2, 0]),
    ("least-confidence", {"others": {"least-confidence": [0, 0.5, 0.4, 0.2]}}, [0, 0.5, 0.4, 0.2], [1, 2]),
    ("mc-entropy", {"committees": {"dropout": TWO}}, [0.9, 0.5, 0.6, 0.0], [0, 2]),
    ("bald", {"committees": {"dropout": TWO}}, [0.1, 0.0, 0.5, 0.0], [2, 0]),
    ("ensemble", {"committees": {"members": TWO}}, [0.1, 0.0, 0.5, 0.0], [2, 0]),
    ("equal", {"committees": {"mirrored": TWO}}, [0.9, 0.5, 0.6, 0.0], [0, 2]),
    (
        "ripu", {"entropies": [0.5, 3.0, 1.0, 1.0], "counts": SHARES},
        [0.5 * math.log(2), 0.0, 0.562335, 0.0], [2, 0],
    ),
    (
        "class-balanced", {"entropies": [1.0, 0.9, 0.8, 1.0], "counts": DOMINANT, "taken": (3,)},
        [math.exp(-2 / 3), 0.9 * math.exp(-2 / 3), 0.8 * math.exp(-1 / 3), math.exp(-1 / 3)], [2, 0],
    ),
    (
        # log 1 + 1, log e - 1, log e^2 + 0, log e + 0.5
        "power", {"entropies": [1.0, E, E**2, E], "draws": {"power": uniform_of(1, -1, 0, 0.5)}},
        [1.0, 0.0, 2.0, 1.5], [2, 3],
    ),
    (
        # 10/3 clicks to look, and one for every 12 pixels of π/4 of the steps: 48 steps are π clicks
        "cereals", {"entropies": [1.0, 1.0, 2.0, 3.0], "lengths": torch.tensor([0.0, 48.0, 48.0, 960.0])},
        [0.3, 1 / (10 / 3 + math.pi), 2 / (10 / 3 + math.pi), 3 / (10 / 3 + 20 * math.pi)], [2, 0],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "expected", "query"), MEASURED, ids=[case[0] for case in MEASURED])
def test_measures_and_the_query_that_ranks_by_them(
    name: str, given: dict[str, object], expected: list[float], query: list[int]
) -> None:
    pool = Known(**({"entropies": [0.0] * 4, "n": 2} | given))
    close(values(name, pool), expected)
    selection = select(name, pool)
    assert selection.patches.tolist() == query
    assert selection.scores is not None
    close(selection.scores, expected)


# Patches 3, 1, 0, 2 by entropy lie at 2p = 6, 2, 0, 4 (or p, or, up to sign, p less the mean). 0.3 of four
# equal weights is the second; squared distances to it are 16, 0, 4, 4, of whose sum 0.75 is 18: the third;
# what is left is 16, 0, 0, 4, of whose sum 0.9 is 18: the last
BY_RANK = {"entropies": [0.2, 0.3, 0.1, 0.4], "draws": {"kmeans_plusplus": torch.tensor([0.3, 0.75, 0.9])}}
SEEDED = [1, 0, 2]
CHOOSING = [
    ("random", {"entropies": [0.0] * 4, "draws": {"random": torch.tensor([0.5, 0.2, 0.9, 0.1])}}, [3, 1, 0]),
    (
        # class 1 begins: its highest draw, that of class 0, again class 1
        "class-random",
        {
            "entropies": [0.0] * 4, "counts": CLASSES,
            "draws": {
                "random": torch.tensor([0.5, 0.6, 0.1, 0.3]),
                "turns of the classes": torch.tensor([0.2, 0.8]),
            },
        },
        [3, 1, 2],
    ),
    (
        # in step 2: 2 log H + noise = 1.5, 2, -1, -3; class 0 begins
        "clasp-pe",
        {
            "entropies": [1.0, E, 1.0, 1.0], "step": 2, "counts": CLASSES,
            "draws": {
                "power": uniform_of(1.5, 0, -1, -3), "turns of the classes": torch.tensor([0.8, 0.2]),
            },
        },
        [1, 2, 0],
    ),
    # 0 is labelled: the farthest of 1 … 10 is 10; of what lies between, 5; then 2, 3, 7 and 8 are 2 away
    ("core-set", {"entropies": [0.0] * 11, "taken": (0,)}, [10, 5, 2]),
    # nothing is labelled: the medoid first; both ends are as far from it, and the lower id is first
    ("core-set", {"entropies": [0.0] * 11}, [5, 0, 10]),
    (
        # all but 4 are candidates, by entropy 0, 1, 2, 3. From a cosine of -1 everywhere 1 raises the sum to
        # that of 0.6, 1, 0.8, 0, 0.6 and no other to more; 3 then adds 1, and 2 and 0 tell apart 0.2 + 0.2
        # from 0.4
        "suggestive",
        {
            "entropies": [0.9, 0.8, 0.7, 0.6, 0.0], "limit": 4,
            "points": torch.tensor([[200.0, 0, 0], [3.0, 4, 0], [0, 1.0, 0], [0, 0, 5.0], [7.0, 0, 0]]),
        },
        [1, 3, 0],
    ),
    *((name, BY_RANK, SEEDED) for name in ("meal", "meal-ft", "meal-pca", "meal-raw", "meal-calibrated")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "query"), CHOOSING, ids=[case[0] for case in CHOOSING])
def test_what_is_chosen(name: str, given: dict[str, object], query: list[int]) -> None:
    assert chosen(name, Known(**({"n": 3} | given))) == query


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_takes_the_middle_of_two_groups_whatever_the_seeds(seed: int) -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    assert sorted(chosen("kmeans", Known([0.0] * 6, n=2, seed=seed, points=points))) == [1, 4]


@pytest.mark.parametrize("seed", range(5))
def test_typiclust_takes_the_middle_of_the_larger_group_first(seed: int) -> None:
    # On a line the middle patch has the least mean distance to the others: 1 and 103
    points = torch.tensor([[0.0], [1.0], [3.0], [100.0], [101.0], [103.0], [106.0], [110.0]])
    assert chosen("typiclust", Known([0.0] * 8, n=2, seed=seed, points=points)) == [5, 1]
    # With a label in the larger group two clusters for one choice: that of the other
    assert chosen("typiclust", Known([0.0] * 8, n=1, taken=(4,), seed=seed, points=points)) == [1]


def test_badge_seeds_over_gradients() -> None:
    """|g|² are 0.18 · 25, 0.02 · 100 and 0.02 · 1 by falling norm, of patches 1, 0 and 2: 6.52 in all."""
    pool = Known(
        [0.0] * 3, n=2, points=torch.tensor([[10.0, 0], [0, 5.0], [1.0, 0]]),
        probabilities=torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.8, 0.2]]),
        counts=torch.tensor([[70, 30], [70, 30], [70, 30]]),
    )  # fmt: skip
    expected = torch.tensor([[-0.1, 0.1], [-0.3, 0.3], [0.1, -0.1]])
    torch.testing.assert_close(errors(pool.classes()), expected)
    # g1 ⊥ g0, g2: from patch 1 it is 4.5 + 2 and 4.5 + 0.02, of whose sum 0.5 is patch 0, 0.7 is patch 2.
    # g2 = -g0 / 10: from patch 0 it is 6.5 and 2 · 1.1² = 2.42, of whose sum 0.7 is patch 1, 0.8 patch 2
    for draws, query in (
        ([0.6, 0.5], [1, 0]), ([0.6, 0.7], [1, 2]), ([0.8, 0.7], [0, 1]), ([0.8, 0.8], [0, 2]),
        ([0.998, 0.1], [2, 1]),
    ):  # fmt: skip
        pool.draws = {"kmeans_plusplus": torch.tensor(draws)}
        assert chosen("badge", pool) == query


def test_patches_without_a_pixel_that_counts_have_no_gradient() -> None:
    found = errors(reference.PatchClasses(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32)))
    assert torch.equal(found, torch.zeros(2, 3))


@pytest.mark.parametrize("seed", range(6))
def test_badge_equals_seeding_over_written_out_gradients(seed: int) -> None:
    pool = generic(40, n=10, labelled=5, seed=seed)
    patches = pool.unlabelled
    a = errors(pool.classes())[patches].double()
    gradients = torch.einsum("pc,pd->pcd", a, pool.features(patches).double()).flatten(1)
    norms = gradients.square().sum(dim=1)
    order = norms.argsort(descending=True)
    weights, rows = norms[order], []
    nearest = torch.full_like(norms, torch.inf)
    for draw in pool.uniforms("kmeans_plusplus", 10):
        rows.append(int((weights.cumsum(0) <= draw * weights.sum()).sum()))
        distances = torch.cdist(gradients[order], gradients[order][rows[-1:]])[:, 0].square()
        weights = nearest = torch.minimum(nearest, distances)
    assert chosen("badge", pool) == patches[order[rows]].tolist()


def test_every_measure_and_strategy_is_here() -> None:
    here = {case[0] for case in (*MEASURED, *CHOOSING)} | {"kmeans", "typiclust", "badge"}
    assert here == set(STRATEGIES)
    assert {case[0] for case in MEASURED} == set(MEASURES)


def test_impurity_is_the_entropy_of_the_shares() -> None:
    close(impurity(SHARES), [math.log(2), 0.0, 0.562335, 0.0])
    close(impurity(torch.full((1, 19), 7)), [math.log(19)])


def test_clicks() -> None:
    close(clicks(torch.tensor([0.0, 12.0, 48.0])), [10 / 3, 10 / 3 + math.pi / 4, 10 / 3 + math.pi])


def test_noise_by_step() -> None:
    pool = Known([1.0] * 3, n=1, taken=(1,), draws={"power": uniform_of(0.5, 9, -1)})
    scores = torch.tensor([E, E, 1.0])
    close(noised(scores, pool), [1.5, 1.0, -1.0])  # the labelled patch has no draw
    close(noised(scores, pool, coldness=3.0), [3.5, 3.0, -1.0])


def test_zeros_are_finite_and_come_last() -> None:
    """A score of 0 has no chance, and a draw of 0 is the lowest."""
    pool = Known([0.0, 1e-3, 0.0], n=3, draws={"power": torch.tensor([0.999, 0.0, 0.5])})
    assert bool(values("power", pool).isfinite().all())
    assert chosen("power", pool) == [1, 0, 2]


def test_power_draws_without_replacement_in_proportion() -> None:
    """Weights 1, 2, 3, 4: the pair (i, j) has the chance w_i / 10 · w_j / (10 - w_i)."""
    counts = torch.zeros(4, 4)
    rounds = 4000
    for seed in range(rounds):
        first, second = chosen("power", Known([0.1, 0.2, 0.3, 0.4], n=2, seed=seed))
        counts[first, second] += 1
    w = [1, 2, 3, 4]
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = [rounds * w[i] / 10 * w[j] / (10 - w[i]) for i, j in pairs]
    assert chisquare([float(counts[pair]) for pair in pairs], expected).pvalue > 0.001


def test_later_steps_of_clasp_pe_are_ever_closer_to_the_highest() -> None:
    """Two patches of weights 1 : 2: the second is first with the chance 2^k / (1 + 2^k)."""
    counts = torch.tensor([[9, 0], [9, 0]])
    for step in (1, 2, 4):
        pools = (Known([0.3, 0.6], n=1, seed=seed, step=step, counts=counts) for seed in range(1000))
        second = sum(chosen("clasp-pe", pool) == [1] for pool in pools)
        p = 2**step / (1 + 2**step)
        assert abs(second - 1000 * p) < 4 * math.sqrt(1000 * p * (1 - p))


def test_round_robin() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 3])
    within = torch.tensor([0.1, 0.5, 0.3, 0.9, 0.2, 0.4])
    # group 1 before 3 before 0; group 2 has no row
    between = torch.tensor([0.2, 0.9, 0.95, 0.5])
    assert round_robin(groups, within, between).tolist() == [3, 5, 1, 4, 2, 0]
    # equals within a group: the earlier row first; no row at all
    assert round_robin(torch.zeros(3, dtype=torch.int64), torch.ones(3), between).tolist() == [0, 1, 2]
    assert round_robin(groups[:0], within[:0], between).tolist() == []


def test_max_cover_by_hand() -> None:
    # over -1 everywhere: 4, 4.8, 4; then 0.1 + 0 + 0, and 0 + 0 + 1
    similarity = torch.tensor([[1.0, 0, 0], [0.9, 0.9, 0], [0, 0, 1.0]])
    assert max_cover(similarity, 3).tolist() == [1, 2, 0]
    assert max_cover(torch.ones(3, 4), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_max_cover_is_greedy(seed: int) -> None:
    similarity = (
        torch.rand(12, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    )
    rows: list[int] = []
    for _ in range(6):
        left = [row for row in range(12) if row not in rows]
        rows.append(max(left, key=lambda row: float(similarity[[*rows, row]].amax(dim=0).sum())))
    assert max_cover(similarity, 6).tolist() == rows


def test_typicality_by_hand() -> None:
    # mean distances (1 + 3) / 2, (1 + 2) / 2, (3 + 2) / 2
    close(typicality(torch.tensor([[0.0], [1.0], [3.0]])), [1 / 2, 2 / 3, 2 / 5])
    assert typicality(torch.tensor([[4.0]])).tolist() == [0.0]
    assert bool(typicality(torch.ones(3, 2)).isfinite().all())


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize(("width", "noise"), [(3, 1.0), (320, 1.0), (320, 1e-3), (320, 1e-4)])
def test_typicality_looks_at_twenty_neighbours(width: int, noise: float, offset: float) -> None:
    """Also where near-duplicates are: what is typical is among them."""
    points = torch.randn(60, width, generator=torch.Generator().manual_seed(0)) * noise + offset
    points[30:] += 1
    nearest = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    expected = 1 / nearest.sort(dim=1).values[:, 1:21].mean(dim=1)
    torch.testing.assert_close(typicality(points).double(), expected, rtol=1e-6, atol=0)


def test_turns_of_clusters() -> None:
    clusters = torch.tensor([0] * 3 + [1] * 5 + [2] * 2)
    # Without a label 1, the largest, then 0; then all have one label, and 4, 2, 2 patches
    covered = torch.tensor([0, 0, 1])
    assert turns(clusters, covered, 4) == [1, 0, 1, 0]
    # Of five patches, the labelled one among them, a cluster is small: it comes last, without a label too
    clusters = torch.tensor([0] * 6 + [1] * 5 + [2] * 4)
    assert turns(clusters, torch.tensor([1, 0, 1]), 9) == [0] * 6 + [1, 1, 2]
    # Clusters run dry, and one without unlabelled patches has no turn
    everything = turns(clusters, torch.tensor([0, 0, 1, 0]), 15)
    assert [everything.count(cluster) for cluster in range(4)] == [6, 5, 4, 0]


@pytest.mark.parametrize(("rows", "width", "dimension"), [(30, 8, 2), (30, 8, 5), (4, 8, 6), (30, 3, 5)])
def test_principal_components_are_those_of_scikit_learn(rows: int, width: int, dimension: int) -> None:
    from sklearn.decomposition import PCA

    features = torch.randn(rows, width, generator=torch.Generator().manual_seed(1)) * torch.arange(
        1, width + 1
    )
    d = min(rows, width, dimension)
    found = principal(features + 3, dimension).double()
    expected = torch.from_numpy(PCA(d).fit_transform(features.double().numpy()))
    assert found.shape == (rows, d)
    signs = (found * expected).sum(dim=0).sign()
    torch.testing.assert_close(found * signs, expected, rtol=1e-3, atol=1e-4)


def test_mutual_information_is_between_0_and_the_logarithm_of_the_committee() -> None:
    logits = torch.randn(5, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 4
    committee = reference.patch_committee(logits, Grid(2, 2, 16, 16), (16, 16), True)
    pool = Known([0.0] * 12, n=3, committees=dict.fromkeys(
        ("dropout", "members"), (committee.total.flatten(), committee.expected.flatten())
    ))  # fmt: skip
    for name in ("bald", "ensemble"):
        found = values(name, pool)
        assert bool((found > 0.01).all())
        assert bool((found < math.log(5)).all())
