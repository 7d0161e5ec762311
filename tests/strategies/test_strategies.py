"""What each strategy chooses from a pool of which everything is known by hand."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meal_gpu import rng
from meal_gpu.acquisition import ScoredPool
from meal_gpu.errors import ConfigError
from meal_gpu.manifold import Manifold
from meal_gpu.ops import Ops, reference
from meal_gpu.strategies import STRATEGIES, Pool, Selection, get

WITH_EMBEDDING = ("meal", "meal-ft")


class Doubled(Manifold):
    """An embedding that is known: twice the features."""

    def __init__(self, embedding: torch.Tensor | None = None) -> None:
        if embedding is not None:
            self.embedding = embedding

    def transform(self, features: torch.Tensor, *, check: bool = True) -> torch.Tensor:
        return 2 * features


@dataclass
class Known:
    """A pool by hand; patch p has the features (p, 0). It records what it was asked for."""

    all_scores: list[float]
    n: int
    limit: int = 200
    labelled: tuple[int, ...] = ()
    seed: int = 0
    ops: Ops = reference
    asked: list[str] = field(default_factory=list)

    @property
    def unlabelled(self) -> torch.Tensor:
        everything = torch.arange(len(self.all_scores))
        return everything[~torch.isin(everything, torch.tensor(self.labelled, dtype=torch.int64))]

    def scores(self) -> torch.Tensor:
        self.asked.append("scores")
        return torch.tensor(self.all_scores)

    def candidates(self) -> torch.Tensor:
        scores = self.scores()[self.unlabelled]
        return self.unlabelled[scores.argsort(descending=True, stable=True)][: self.limit]

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        self.asked.append(f"features of {len(patches)}")
        return torch.stack([patches.float(), torch.zeros(len(patches))], dim=1)

    def manifold(self) -> Manifold:
        self.asked.append("manifold")
        return Doubled()

    def fit_manifold(self, features: torch.Tensor) -> Manifold:
        self.asked.append(f"fit of {len(features)}")
        return Doubled(2 * features)

    def uniforms(self, purpose: str, n: int) -> torch.Tensor:
        return rng.uniforms(self.seed, 1, purpose, n)


def select(name: str, pool: Known) -> Selection:
    checked: Pool = pool  # mypy holds the fake to the Protocol
    return get(name).select(checked)


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
    pool = Known(scores, min(n, len(scores) - len(labelled)), labelled=labelled)
    selection = select("entropy", pool)
    assert selection.patches.tolist() == expected
    assert selection.embedding is None
    assert pool.asked == ["scores"]


def test_random_is_a_prefix_of_one_permutation_and_asks_for_nothing() -> None:
    pool = Known([0.0] * 30, n=30, labelled=(3, 4))
    whole = select("random", Known([0.0] * 30, n=28, labelled=(3, 4))).patches
    assert sorted(whole.tolist()) == pool.unlabelled.tolist()
    assert whole.tolist() != sorted(whole.tolist())
    some = Known([0.0] * 30, n=5, labelled=(3, 4))
    assert torch.equal(select("random", some).patches, whole[:5])
    assert some.asked == []
    assert not torch.equal(select("random", Known([0.0] * 30, n=28, labelled=(3, 4), seed=1)).patches, whole)


def test_random_is_uniform() -> None:
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[select("random", Known([0.0] * 10, n=3, seed=seed)).patches] += 1
    # binomial with p = 0.3: five standard errors of 2000 draws
    assert bool(((counts - 600).abs() < 5 * (2000 * 0.3 * 0.7) ** 0.5).all())


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("meal", ["scores", "manifold", "features of 6"]),
        ("meal-ft", ["scores", "features of 6", "fit of 6"]),
    ],
)
def test_meal_chooses_among_the_candidates_only(name: str, asked: list[str]) -> None:
    scores = [float(p % 7) for p in range(40)]
    pool = Known(scores, n=4, limit=6, labelled=(6,))
    candidates = pool.candidates()
    pool.asked.clear()
    selection = select(name, pool)
    assert sorted(pool.asked) == sorted(asked)
    assert selection.patches.dtype == torch.int64
    assert set(selection.patches.tolist()) < set(candidates.tolist())
    assert len(set(selection.patches.tolist())) == 4
    # which ones: K-Means++ over the candidates' embedding, with this step's draws
    embedding = torch.stack([2 * candidates.float(), torch.zeros(6)], dim=1)
    rows = reference.kmeans_plusplus(embedding, pool.uniforms("kmeans_plusplus", 4)[:, None], None)
    assert torch.equal(selection.patches, candidates[rows])
    assert selection.embedded is not None
    assert selection.embedding is not None
    assert torch.equal(selection.embedded, candidates)
    assert torch.equal(selection.embedding, embedding)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("open_patches", [9, 4, 3, 1, 0])
def test_fewer_patches_than_asked_for_are_all_taken(name: str, open_patches: int) -> None:
    # N_I = 200 and N = 4: at 9 all are candidates, from 4 on all are taken, also where UMAP could not fit
    pool = Known([0.1] * 12, n=min(4, open_patches), labelled=tuple(range(12 - open_patches)))
    patches = select(name, pool).patches
    assert len(patches) == min(4, open_patches)
    assert set(patches.tolist()) <= set(pool.unlabelled.tolist())
    if open_patches <= 4:
        assert sorted(patches.tolist()) == pool.unlabelled.tolist()


@pytest.mark.parametrize("name", WITH_EMBEDDING)
def test_embeddings_that_coincide_still_give_distinct_patches(name: str) -> None:
    class Coinciding(Known):
        def features(self, patches: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(patches), 2)

    patches = select(name, Coinciding([0.5] * 20, n=8)).patches.tolist()
    assert len(set(patches)) == 8


@settings(deadline=None)
@given(
    st.sampled_from(list(STRATEGIES)),
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40),
    st.data(),
)
def test_every_query_is_distinct_unlabelled_and_repeatable(
    name: str, scores: list[float], data: st.DataObject
) -> None:
    labelled = tuple(data.draw(st.sets(st.integers(0, len(scores) - 1), max_size=len(scores) - 1)))
    n = data.draw(st.integers(1, len(scores) - len(labelled)))
    limit = data.draw(st.integers(n, 50))
    query = select(name, Known(scores, n, limit, labelled)).patches
    assert len(query) == n == len(set(query.tolist()))
    assert not set(query.tolist()) & set(labelled)
    assert torch.equal(select(name, Known(scores, n, limit, labelled)).patches, query)


@pytest.mark.parametrize("name", STRATEGIES)
def test_queries_are_prefix_nested(name: str) -> None:
    scores = [0.01 * ((7 * p) % 31) for p in range(31)]
    longer = select(name, Known(scores, n=12, limit=20)).patches
    assert torch.equal(select(name, Known(scores, n=5, limit=20)).patches, longer[:5])


def test_names_are_keys_and_every_strategy_says_what_it_is() -> None:
    assert list(STRATEGIES) == ["random", "entropy", "meal", "meal-ft"]
    for name, strategy in STRATEGIES.items():
        assert strategy.name == name
        assert strategy.summary
        assert strategy.source
        assert strategy.needs_manifold == (name == "meal")


def test_an_unknown_strategy_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="'coreset'; known: random, entropy, meal, meal-ft"):
        get("coreset")


def test_the_pool_that_strategies_get_has_no_labels() -> None:
    # the fake above and the real pool offer the Protocol and nothing that could hold a label
    public = {name for name in dir(ScoredPool) if not name.startswith("_")}
    protocol = {name for name in dir(Pool) if not name.startswith("_")}
    assert public - {"require_finite"} <= protocol
    assert not any("label" in name.replace("unlabelled", "") for name in protocol)
