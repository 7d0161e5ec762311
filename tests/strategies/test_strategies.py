"""What holds of every strategy, and what the paper's own choose from a pool that is known by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known import Known, chosen, generic, select

from meal_gpu import ops
from meal_gpu.errors import ConfigError
from meal_gpu.grid import Grid
from meal_gpu.ledger import Ledger
from meal_gpu.ops import reference
from meal_gpu.passes import ImageSet
from meal_gpu.pool import ScoredPool, Settings
from meal_gpu.strategies import MEASURES, STRATEGIES, Pool, get, get_measure, needed, takes_members, typiclust
from meal_gpu.strategies.base import highest
from meal_gpu.strategies.geometry import k_means

SEEDED = ("meal", "meal-ft", "meal-pca", "meal-raw", "meal-calibrated")


@pytest.mark.parametrize(
    ("scores", "n", "labelled", "expected"),
    [
        ([0.1, 0.4, 0.3, 0.2], 2, (), [1, 2]),
        ([0.1, 0.4, 0.3, 0.2], 2, (1,), [2, 3]),
        ([0.5, 0.5, 0.5, 0.5], 3, (), [0, 1, 2]),  # ties go to the lower id
        ([0.1, 0.5, 0.9, 0.5, 0.5], 3, (2,), [1, 3, 4]),
        ([0.0, 0.0, 0.1], 3, (), [2, 0, 1]),
        ([0.3, 0.1], 2, (0, 1), []),
    ],
)
def test_entropy_takes_the_highest(
    scores: list[float], n: int, labelled: tuple[int, ...], expected: list[int]
) -> None:
    pool = Known(scores, min(n, len(scores) - len(labelled)), taken=labelled)
    selection = select("entropy", pool)
    assert selection.patches.tolist() == expected
    assert selection.embedding is None
    assert pool.asked == (["entropy"] if expected else [])


@given(st.data())
@settings(deadline=None)
def test_the_highest_are_the_beginning_of_a_stable_order(data: st.DataObject) -> None:
    """In any order of ties, infinite and undefined values: as Python's own sort has it."""
    few = st.sampled_from([0.0, -0.0, 0.5, -1.0, float("inf"), float("-inf"), float("nan")])
    values = data.draw(st.lists(few | st.floats(width=32), min_size=1, max_size=40))
    of = sorted(data.draw(st.sets(st.integers(0, len(values) - 1), min_size=1)))
    n = data.draw(st.integers(1, len(of) + 2))

    def rank(patch: int) -> tuple[float, int]:
        return (-values[patch] if values[patch] == values[patch] else -float("inf")), patch

    found = highest(torch.tensor(values), torch.tensor(of), n)
    assert found.tolist() == sorted(of, key=rank)[:n]


def test_random_is_a_prefix_of_one_permutation_and_asks_for_nothing() -> None:
    pool = Known([0.0] * 30, n=28, taken=(3, 4))
    whole = chosen("random", pool)
    assert sorted(whole) == pool.unlabelled.tolist()
    assert whole != sorted(whole)
    some = Known([0.0] * 30, n=5, taken=(3, 4))
    assert chosen("random", some) == whole[:5]
    assert some.asked == []
    assert chosen("random", Known([0.0] * 30, n=28, taken=(3, 4), seed=1)) != whole
    assert chosen("random", Known([0.0] * 30, n=28, taken=(3, 4), step=2)) != whole


def test_random_is_uniform() -> None:
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[select("random", Known([0.0] * 10, n=3, seed=seed)).patches] += 1
    # binomial with p = 0.3: five standard errors of 2000 draws
    assert bool(((counts - 600).abs() < 5 * (2000 * 0.3 * 0.7) ** 0.5).all())


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("meal", ["manifold", "features of 6"]),
        ("meal-calibrated", ["manifold", "features of 6"]),
        ("meal-ft", ["features of 6", "fit of 6"]),
        ("meal-raw", ["features of 6"]),
    ],
)
def test_meal_chooses_among_the_candidates_only(name: str, asked: list[str]) -> None:
    scores = [float(p % 7) for p in range(40)]
    pool = Known(scores, n=4, limit=6, taken=(6,))
    candidates = pool.candidates()
    pool.asked.clear()
    selection = select(name, pool)
    assert [what for what in pool.asked if what != "entropy"] == asked
    assert selection.patches.dtype == torch.int64
    assert set(selection.patches.tolist()) < set(candidates.tolist())
    # which ones: K-Means++ over the candidates' embedding, with this step's draws
    scale = 1 if name == "meal-raw" else 2
    embedding = torch.stack([scale * candidates.float(), torch.zeros(6)], dim=1)
    rows = reference.kmeans_plusplus(embedding, pool.uniforms("kmeans_plusplus", 4)[:, None], None)
    assert torch.equal(selection.patches, candidates[rows])
    if name == "meal-raw":  # the ledger and the query have no place for features
        assert selection.embedding is None
        return
    assert selection.embedded is not None
    assert selection.embedding is not None
    assert torch.equal(selection.embedded, candidates)
    assert torch.equal(selection.embedding, embedding)


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.measured])
def test_candidates_are_proposed_by_the_pools_measure(name: str) -> None:
    pool = generic(40, n=4, limit=8)
    pool.measure = "bald"
    bald = torch.sub(*pool.committees["dropout"])
    selection = select(name, pool)
    assert selection.scores is not None
    assert torch.equal(selection.scores, bald)
    assert set(selection.patches.tolist()) < set(bald.argsort(descending=True)[:8].tolist())
    assert "entropy" not in pool.asked


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("n", [9, 4, 3, 1, 0])
def test_fewer_patches_than_asked_for_are_all_taken(name: str, n: int) -> None:
    # N_I = 200 and N = 4: at 9 all are candidates, from 4 on all are taken, also where UMAP could not fit
    pool = generic(12, n=min(4, n), labelled=12 - n)
    patches = chosen(name, pool)
    assert len(patches) == len(set(patches)) == min(4, n)
    assert set(patches) <= set(pool.unlabelled.tolist())


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_asked_for_is_nothing_computed(name: str) -> None:
    """A query may be all control patches."""
    pool = generic(12, n=0, labelled=3)
    assert select(name, pool).patches.shape == (0,)
    assert pool.asked == []


@pytest.mark.parametrize("name", STRATEGIES)
def test_patches_that_coincide_are_still_chosen_once(name: str) -> None:
    """Features, scores and classes are all equal, and the features zero or not."""
    for value in (0.0, 3.0):
        pool = generic(20, n=8, labelled=4)
        equal = torch.full((20,), 0.5)
        pool.entropies, pool.points = [0.5] * 20, torch.full((20, 6), value)
        pool.probabilities, pool.counts = torch.full((20, 4), 0.25), torch.full((20, 4), 9)
        pool.committees, pool.lengths = dict.fromkeys(pool.committees, (equal, equal)), equal
        patches = chosen(name, pool)
        assert len(set(patches)) == 8
        assert not set(patches) & set(pool.taken)


@settings(deadline=None)
@given(st.sampled_from(list(STRATEGIES)), st.integers(1, 40), st.integers(0, 10), st.data())
def test_every_query_is_distinct_unlabelled_and_repeatable(
    name: str, patches: int, seed: int, data: st.DataObject
) -> None:
    labelled = data.draw(st.integers(0, patches - 1))
    n = data.draw(st.integers(1, patches - labelled))
    limit = data.draw(st.integers(n, 50))
    pool = generic(patches, n, labelled=labelled, limit=limit, seed=seed)
    pool.entropies = [round(4 * value) / 4 for value in pool.entropies]  # ties, also at 0
    query = chosen(name, pool)
    assert len(query) == n == len(set(query))
    assert not set(query) & set(pool.taken)
    torch.manual_seed(data.draw(st.integers(0, 9)))
    assert chosen(name, pool) == query


@pytest.mark.parametrize("name", STRATEGIES)
def test_global_random_state_is_neither_read_nor_changed(name: str) -> None:
    pool = generic(31, n=12, labelled=5, limit=20)
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    query = chosen(name, pool)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    torch.manual_seed(2)
    np.random.seed(2)
    assert chosen(name, pool) == query


def prefixes(name: str, n: int, k: int, labelled: int, seed: int) -> tuple[list[int], list[int]]:
    """A query of k of 31 patches, and the first k of a query of n."""
    whole, part = (chosen(name, generic(31, m, limit=20, labelled=labelled, seed=seed)) for m in (n, k))
    return part, whole[:k]


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.nested])
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_queries_are_prefix_nested(name: str, data: st.DataObject) -> None:
    labelled = data.draw(st.integers(0, 9))
    n = data.draw(st.integers(1, 19 if get(name).measured else 31 - labelled))  # not all the candidates
    part, first = prefixes(name, n, data.draw(st.integers(1, n)), labelled, data.draw(st.integers(0, 99)))
    assert part == first


def test_others_say_that_they_are_not() -> None:
    """n patches are chosen together: asking for fewer is another question."""
    others = [name for name, strategy in STRATEGIES.items() if not strategy.nested]
    assert others == ["kmeans", "typiclust"]
    for name in others:
        part, first = prefixes(name, n=12, k=5, labelled=5, seed=0)
        assert part != first


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_says_what_it_needs(name: str) -> None:
    """What is not named in `needs`, by it or the pool's measure, is not asked for, and what is named is."""
    pool = generic(31, n=5, limit=20)
    select(name, pool)
    strategy = get(name)
    found = needed(name, "entropy")
    besides = {"classes", "boundary", *ops.MEASURES} - {"entropy"}
    assert besides & {*pool.asked} == set(found)
    assert ("members" in pool.asked) == strategy.members == takes_members(name, "entropy")
    assert ("manifold" in pool.asked) == strategy.manifold
    pool.asked.clear()
    pool.measure = "ensemble"
    select(name, pool)
    assert ("members" in pool.asked) == takes_members(name, "ensemble")
    assert takes_members(name, "ensemble") == (strategy.measured or strategy.members)


def test_names_are_keys_and_every_strategy_says_what_it_is() -> None:
    measures = (
        "entropy", "margin", "least-confidence", "mc-entropy", "bald", "ensemble", "equal", "ripu",
        "class-balanced", "power", "cereals",
    )  # fmt: skip
    choosing = (
        "random", "class-random", "clasp-pe", "core-set", "kmeans", "typiclust", "badge", "suggestive",
        "meal", "meal-ft", "meal-pca", "meal-raw", "meal-calibrated",
    )  # fmt: skip
    assert tuple(MEASURES) == measures
    assert tuple(STRATEGIES) == measures + choosing
    for name, strategy in STRATEGIES.items():
        assert strategy.name == name
        assert strategy.summary
        assert strategy.source
        assert strategy.manifold == (name in ("meal", "meal-calibrated"))
        assert strategy.calibrated == (name == "meal-calibrated")
        assert strategy.measured == (name in (*SEEDED, "suggestive"))
    for name, measure in MEASURES.items():
        assert (measure.name, measure.summary) == (name, STRATEGIES[name].summary)


def test_needs_are_those_of_strategy_and_measure() -> None:
    assert needed("random", "entropy") == ()
    assert needed("meal", "entropy") == ()
    assert set(needed("meal", "cereals")) == {"boundary"}
    assert set(needed("badge", "entropy")) == {"classes"}
    assert set(needed("cereals", "entropy")) == {"boundary"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_measure_that_nothing_would_look_at_is_refused(name: str) -> None:
    if get(name).measured:
        assert set(needed(name, "cereals")) == {"boundary", *needed(name, "entropy")}
        return
    with pytest.raises(
        ConfigError, match=f"measure is 'margin', but strategy '{name}' takes none: .* meal, "
    ):
        needed(name, "margin")


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'coreset'; known: entropy, margin, "):
        get("coreset")
    with pytest.raises(ConfigError, match=r"unknown measure 'meal'; known: entropy, margin, .*, cereals$"):
        get_measure("meal")


def test_the_pool_that_strategies_get_has_no_labels() -> None:
    """The real pool offers the Protocol and nothing that could hold a label."""
    images = ImageSet(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), reference)
    pool = ScoredPool(images, object(), Ledger.create(Grid(2, 2, 8, 8), ("a", "b")), 3, Settings())
    protocol = {name for name in dir(Pool) if not name.startswith("_")}
    public = {name for name in dir(pool) if not name.startswith("_")}
    assert public == protocol | {"require_finite", "fitted"}
    # who is labelled is told, by ids; nothing else
    assert {name for name in protocol if "label" in name} == {"labelled", "unlabelled"}
    assert pool.labelled.dtype == pool.unlabelled.dtype == torch.int64


@pytest.mark.parametrize("name", ["meal", "meal-ft", "meal-pca", "meal-raw", "meal-calibrated", "suggestive"])
def test_where_all_candidates_are_taken_their_scores_order_them(name: str) -> None:
    pool = generic(20, n=6, limit=6)
    selection = select(name, pool)
    assert selection.patches.tolist() == pool.candidates().tolist()
    assert selection.embedding is None and {*pool.asked} == {"entropy"}


def test_where_all_patches_are_taken_nothing_is_clustered() -> None:
    pool = generic(12, n=8, labelled=4)
    assert chosen("kmeans", pool) == pool.unlabelled.tolist()
    assert pool.asked == []


def test_typiclust_has_no_more_clusters_than_its_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(points: torch.Tensor, k: int, draws: torch.Tensor) -> object:
        made.append(k)
        return k_means(points, k, draws)

    monkeypatch.setattr(typiclust, "MOST_CLUSTERS", 5)
    monkeypatch.setattr(typiclust, "k_means", counted)
    assert len({*chosen("typiclust", generic(40, n=9, labelled=4))}) == 9
    assert made == [5]
