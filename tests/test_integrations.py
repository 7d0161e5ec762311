"""MEAL inside other packages' loops, against the packages themselves."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import meal_gpu
from meal_gpu.errors import InputError

LOGITS = 3 * torch.randn(3, 5, 16, 24, generator=torch.Generator().manual_seed(0))
GRID = (2, 3)


@pytest.fixture
def baal() -> Any:
    pytest.importorskip("baal", reason="baal is in the extras `baal` and `dev`")
    from meal_gpu.integrations import baal

    return baal


@pytest.fixture
def strategy() -> Any:
    pytest.importorskip("skactiveml", reason="scikit-activeml is in the extras `skactiveml` and `dev`")
    from meal_gpu.integrations.scikit_activeml import MealSampling

    return MealSampling


# baal


@pytest.mark.parametrize("size", [None, (32, 48)])
@pytest.mark.parametrize(
    "given",
    [
        lambda logits: logits,
        lambda logits: logits.numpy(),
        lambda logits: logits.softmax(dim=1).numpy(),
        lambda logits: logits[..., None].numpy(),
        lambda logits: [logits[..., None].numpy()],
        lambda logits: (part[None].numpy() for part in logits),
    ],
)
def test_baal_ranks_patches_by_entropy(baal: Any, given: Any, size: tuple[int, int] | None) -> None:
    from baal.active.heuristics import AbstractHeuristic

    heuristic = baal.PatchEntropy(GRID, size=size)
    assert isinstance(heuristic, AbstractHeuristic)
    ranks, scores = heuristic.get_ranks(given(LOGITS))
    expected = meal_gpu.patch_entropy(LOGITS, grid=GRID, size=size).flatten()
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert scores.dtype == np.float32
    assert ranks.tolist() == expected.argsort(descending=True, stable=True).tolist()
    assert heuristic(given(LOGITS)).tolist() == ranks.tolist()


def test_baal_is_told_the_entropy_of_the_mean_over_iterations(baal: Any) -> None:
    draws = torch.stack([LOGITS, -LOGITS, 2 * LOGITS.roll(1, dims=1)], dim=-1)
    mean = draws.softmax(dim=1).mean(dim=-1)
    expected = meal_gpu.patch_entropy(mean.log(), grid=GRID).flatten()
    np.testing.assert_allclose(baal.PatchEntropy(GRID).get_uncertainties(draws), expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_baal_ranks_images_after_a_reduction(baal: Any, reduction: str) -> None:
    ranks, scores = baal.PatchEntropy(GRID, reduction=reduction).get_ranks(LOGITS)
    patches = meal_gpu.patch_entropy(LOGITS, grid=GRID).numpy()
    expected = getattr(patches, reduction)(axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert ranks.tolist() == np.argsort(-expected).tolist()


def test_baals_ties_go_to_the_lower_index_and_lists_are_joined(baal: Any) -> None:
    scores = np.array([1, 2, 1, 2, 0], dtype=np.float32)
    heuristic = baal.PatchEntropy()
    assert heuristic.reorder_indices(scores).tolist() == [1, 3, 0, 2, 4]
    assert heuristic.reorder_indices([scores[:2], scores[2:]]).tolist() == [1, 3, 0, 2, 4]


def test_certain_probabilities_have_no_entropy(baal: Any) -> None:
    certain = torch.zeros(1, 3, 4, 4)
    certain[:, 1] = 1
    assert baal.PatchEntropy((1, 1)).get_uncertainties(certain).item() < 1e-30


def test_baals_loop_labels_what_is_uncertain(baal: Any) -> None:
    from baal.active import ActiveLearningDataset, ActiveLearningLoop
    from torch.utils.data import TensorDataset

    sharpness = torch.tensor([9.0, 1.0, 5.0, 0.1])
    logits = sharpness[:, None, None, None] * LOGITS[:1]
    dataset = ActiveLearningDataset(TensorDataset(torch.arange(4)))
    loop = ActiveLearningLoop(
        dataset,
        lambda pool: torch.stack([logits[int(pool[i][0])] for i in range(len(pool))]),
        baal.PatchEntropy(GRID, reduction="mean"),
        query_size=2,
    )
    assert loop.step()
    assert sorted(np.flatnonzero(dataset.labelled)) == [1, 3]


def test_baals_one_class_is_refused(baal: Any) -> None:
    for sigmoid in (torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8, 3)):
        with pytest.raises(InputError, match=r"entropy of a softmax over one class is always 0.*return two"):
            baal.PatchEntropy(GRID).get_uncertainties(sigmoid)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 4, 2, 2)])
def test_baals_other_predictions_are_named(baal: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="iterations"):
        baal.PatchEntropy().get_ranks(np.zeros(shape, dtype=np.float32))
    with pytest.raises(InputError, match=r"\[N\]"):
        baal.PatchEntropy().reorder_indices(np.zeros((2, 3)))


# scikit-activeml

POINTS = np.random.default_rng(0).normal(size=(40, 2))
LABELS = np.where(np.arange(40) % 4 == 0, 1.0, np.nan)
OPEN = np.flatnonzero(np.isnan(LABELS))
UNCERTAIN = np.random.default_rng(1).random(40)


@pytest.mark.parametrize("candidates", [None, OPEN[:20], OPEN[::-1]])
def test_the_query_is_kmeans_plusplus_among_the_most_uncertain(strategy: Any, candidates: Any) -> None:
    from skactiveml.base import SingleAnnotatorPoolQueryStrategy

    meal = strategy(n_candidates=12, random_state=3)
    assert isinstance(meal, SingleAnnotatorPoolQueryStrategy)
    query, utilities = meal.query(
        POINTS, LABELS, UNCERTAIN, candidates=candidates, batch_size=5, return_utilities=True
    )
    allowed = OPEN if candidates is None else candidates
    top = allowed[np.argsort(-UNCERTAIN[allowed], kind="stable")][:12]
    assert len(set(query)) == 5
    assert set(query) <= set(top)
    assert utilities.shape == (5, 40)
    free = set(allowed)
    for draw, row in enumerate(utilities):
        assert set(np.flatnonzero(~np.isnan(row))) == free
        assert row[list(free)].sum() == pytest.approx(1)
        assert set(np.flatnonzero(row > 0)) == set(top) - set(query[:draw])
        if draw:
            chosen = POINTS[query[:draw]]
            squared = ((POINTS[top][:, None] - chosen) ** 2).sum(axis=2).min(axis=1)
            found = np.nan_to_num(row[top])
            np.testing.assert_allclose(found, squared / squared.sum(), atol=1e-12)
        free -= {query[draw]}
    np.testing.assert_allclose(utilities[0, top], 1 / 12)


def test_one_random_state_is_one_query_and_queries_are_nested(strategy: Any) -> None:
    def ask(seed: Any, n: int) -> list[int]:
        query: np.ndarray = strategy(random_state=seed).query(POINTS, LABELS, UNCERTAIN, batch_size=n)
        assert query.dtype == np.int64
        return query.tolist()

    assert ask(0, 8) == ask(0, 8)
    assert ask(0, 8)[:3] == ask(0, 3)
    assert ask(0, 8) != ask(1, 8)
    assert ask(np.random.RandomState(0), 8) == ask(np.random.RandomState(0), 8)
    state = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    ask(0, 8)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[union-attr]


def test_candidates_may_be_embeddings_of_their_own(strategy: Any) -> None:
    pool = POINTS[OPEN]
    meal = strategy(n_candidates=6, random_state=0)
    query, utilities = meal.query(
        POINTS, LABELS, UNCERTAIN[OPEN], candidates=pool, batch_size=4, return_utilities=True
    )
    assert utilities.shape == (4, 30)
    assert set(query) <= set(np.argsort(-UNCERTAIN[OPEN])[:6])


def test_without_uncertainties_all_are_alike(strategy: Any) -> None:
    query = strategy(n_candidates=2, random_state=0).query(POINTS, LABELS, batch_size=30)
    assert sorted(query) == OPEN.tolist()


def test_more_than_there_is_is_lowered_as_scikit_activeml_does(strategy: Any) -> None:
    with pytest.warns(UserWarning, match="batch_size=30"):
        query = strategy(n_candidates=2).query(POINTS, LABELS, UNCERTAIN, batch_size=99)
    assert sorted(query) == OPEN.tolist()


def test_points_that_coincide_are_chosen_once(strategy: Any) -> None:
    query, utilities = strategy(random_state=0).query(
        np.zeros((5, 2)), np.full(5, np.nan), batch_size=5, return_utilities=True
    )
    assert sorted(query) == list(range(5))
    np.testing.assert_allclose(np.nansum(utilities, axis=1), 1)
    assert np.isnan(utilities).sum(axis=1).tolist() == list(range(5))


def test_draws_follow_the_squared_distance(strategy: Any) -> None:
    x = np.array([[0.0], [1.0], [3.0]])
    second = {0: 0, 1: 0, 2: 0}
    asked = 0
    for seed in range(600):
        query = strategy(random_state=seed).query(x, np.full(3, np.nan), batch_size=2)
        if query[0] == 0:
            second[int(query[1])] += 1
            asked += 1
    assert second[0] == 0
    assert second[2] / asked == pytest.approx(0.9, abs=0.08)  # 9 to 1


@pytest.mark.parametrize(
    ("settings", "uncertainties", "told"),
    [
        ({}, UNCERTAIN[:3], r"\[40\].*\[3\]"),
        ({}, np.full(40, np.nan), "finite"),
        ({"n_candidates": 0}, UNCERTAIN, "at least 1, got 0"),
    ],
)
def test_wrong_uncertainties_are_named(strategy: Any, settings: Any, uncertainties: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        strategy(**settings).query(POINTS, LABELS, uncertainties)


def test_it_is_cloned_as_any_estimator(strategy: Any) -> None:
    from sklearn.base import clone

    assert clone(strategy(n_candidates=7, random_state=1)).get_params() == {
        "n_candidates": 7, "missing_label": pytest.approx(np.nan, nan_ok=True), "random_state": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("module", "vendor", "extra"),
    [("baal", "baal", "baal"), ("scikit_activeml", "skactiveml", "skactiveml")],
)
def test_a_missing_package_is_named_with_its_command(module: str, vendor: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{vendor!r}] = None\n"
        "from meal_gpu.errors import UnavailableError\n"
        f"try: import meal_gpu.integrations.{module}\n"
        "except UnavailableError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"pip install 'meal-gpu[{extra}]'" in done.stdout
