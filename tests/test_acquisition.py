"""The public backend: a network and images in, a query out."""

import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from networks import calibrated, settle
from PIL import Image
from small_networks import Small
from torch import nn

from meal_gpu import acquisition, committee, memory, ops, rng
from meal_gpu import pool as pool_module
from meal_gpu.acquisition import Query, acquire
from meal_gpu.errors import ConfigError, DataError, InputError, MealGpuError, RunError, UnavailableError
from meal_gpu.grid import Grid
from meal_gpu.images.opening import open_images
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold, subsample
from meal_gpu.models import Builder, Network, Output, Segmenter
from meal_gpu.ops import Committee, reference
from meal_gpu.passes import ImageSet
from meal_gpu.pool import ScoredPool, Settings, candidates_for
from meal_gpu.scoring import Scored, patch_features, score_pool
from meal_gpu.strategies import MEASURES, STRATEGIES, takes_members

# What has nothing to draw: the same for every seed
DRAWN = ("mc-entropy", "bald", "power")
FREE_OF_DRAWS = {*(set(MEASURES) - set(DRAWN)), "core-set", "suggestive"}
CHOSEN_TOGETHER = ("kmeans", "typiclust")  # n at a time: fewer are not their beginning
FEATURES_ALONE = ("core-set", "kmeans", "typiclust")  # nothing is scored

GRID = Grid(2, 4, 32, 64)
NAMES = tuple(f"city/{index}.png" for index in range(6))


def scenes() -> torch.Tensor:
    """Six images of blocks, so that patches differ."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (6, 8, 16, 3), generator=generator, dtype=torch.uint8)
    return blocks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)


IMAGES = scenes()


MEMBER = Small(3, seed=1)
PHI = Manifold.__new__(Manifold)  # not looked at


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return calibrated(Builder("smp", 3, "none"), 0)


@pytest.fixture(scope="module")
def manifold(model: Segmenter) -> Manifold:
    return Manifold.fit(patch_features(ImageSet(IMAGES, reference), torch.arange(48), model, GRID), seed=0)


@pytest.fixture(scope="module")
def small() -> Small:
    return Small(3, seed=0)


@pytest.fixture(scope="module")
def small_manifold(small: Small) -> Manifold:
    return Manifold.fit(patch_features(ImageSet(IMAGES, reference), torch.arange(48), small, GRID), seed=0)


def ask(
    model: Network, n: int, strategy: str, manifold: Manifold | None = None, **arguments: object
) -> Query:
    """With what `strategy` takes, and no more."""
    given: dict[str, object] = {"grid": (2, 4), "ops": "reference", "precision": "float32", "passes": 3}
    takes = STRATEGIES[strategy]
    if takes.measured:
        given["candidates"] = 20
    if takes.manifold:
        given["manifold"] = manifold
    if takes.calibrated:
        given["temperature"] = 1.5
    if takes_members(strategy, str(arguments.get("measure", "entropy"))):
        given["members"] = [MEMBER]
    return acquire(model, IMAGES, n, strategy=strategy, **(given | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_query_is_deterministic_and_whole(strategy: str, small: Small, small_manifold: Manifold) -> None:
    query = ask(small, 5, strategy, small_manifold)
    ids = query.patch_ids
    assert (ids.dtype, ids.device.type, len(query)) == (torch.int64, "cpu", 5)
    assert len(set(ids.tolist())) == 5
    assert (query.boxes.numpy() == GRID.boxes(ids)).all()
    assert query.names == tuple(str(int(i) // 8) for i in ids)
    np.random.seed(3)  # nothing global is read
    again = ask(small, 5, strategy, small_manifold)
    assert torch.equal(again.patch_ids, ids)
    pd.testing.assert_frame_equal(again.to_frame(), query.to_frame())
    # prefix-nested, as the public contract says
    if strategy not in CHOSEN_TOGETHER:
        assert torch.equal(ask(small, 3, strategy, small_manifold).patch_ids, ids[:3])
    other = ask(small, 5, strategy, small_manifold, seed=1)
    assert torch.equal(other.patch_ids, ids) == (strategy in FREE_OF_DRAWS)


@pytest.mark.parametrize("strategy", ["entropy", "meal", "meal-ft"])
def test_scores_and_candidates_are_those_of_the_pool(
    strategy: str, model: Segmenter, manifold: Manifold
) -> None:
    query = ask(model, 5, strategy, manifold)
    scores = score_pool(ImageSet(IMAGES, reference), model, GRID).scores
    assert query.pool_scores is not None
    assert torch.equal(query.pool_scores, scores)
    assert torch.equal(query.scores, scores[query.patch_ids])
    best = scores.argsort(descending=True, stable=True)[:20]
    if strategy == "entropy":
        assert torch.equal(query.patch_ids, best[:5])
        assert query.candidates is None
        return
    assert query.candidates is not None
    assert torch.equal(query.candidates[0], best)
    if strategy == "meal":
        features = patch_features(ImageSet(IMAGES, reference), best, model, GRID)
        assert torch.equal(query.candidates[1], manifold.transform(features))
    assert query.embedding is not None
    rows = [best.tolist().index(int(patch)) for patch in query.patch_ids]
    assert torch.equal(query.embedding, query.candidates[1][rows])


def test_candidates_are_the_highest_unlabelled_and_ties_go_to_the_lower_id(model: Segmenter) -> None:
    ledger = Ledger.create(GRID, NAMES)
    ledger.label(torch.arange(5, 11), step=0)
    scored = Scored(torch.arange(48).remainder(3).float())  # three scores, sixteen patches each
    pool = ScoredPool(ImageSet(IMAGES, reference), model, ledger, 4, Settings(candidates=30), scored=scored)
    expected = [patch for rest in (2, 1, 0) for patch in range(48) if patch % 3 == rest]
    assert pool.candidates().tolist() == [patch for patch in expected if not 5 <= patch < 11][:30]


def test_random_scores_nothing(model: Segmenter) -> None:
    query = ask(model, 5, "random")
    assert query.pool_scores is None
    assert query.embedding is None
    assert query.scores.dtype == torch.float32
    assert bool(query.scores.isnan().all())


def test_meal_fits_the_manifold_on_every_patch_where_none_is_given(
    model: Segmenter, manifold: Manifold
) -> None:
    own = Manifold.fit(manifold.features, seed=rng.integer(4, 0, "manifold"))
    expected = ask(model, 5, "meal", own, seed=4)
    assert torch.equal(ask(model, 5, "meal", seed=4).patch_ids, expected.patch_ids)


def test_features_that_the_manifold_was_fitted_to_are_not_computed_again(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def count(images: ImageSet, patches: torch.Tensor, *rest: object) -> torch.Tensor:
        asked.append(len(patches))
        return patch_features(images, patches, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("meal_gpu.pool.patch_features", count)
    whole = ask(small, 5, "meal")
    assert asked == [48]
    manifold = Manifold.fit(
        patch_features(ImageSet(IMAGES, reference), torch.arange(48), small, GRID), seed=0
    )
    assert len(ask(small, 5, "meal", manifold).patch_ids) == 5 and asked == [48, 20]
    assert len(ask(small, 5, "meal", manifold_limit=40).patch_ids) == 5 and asked == [48, 20, 40, 20]
    assert whole.embedding is not None and bool(whole.embedding.isfinite().all())


def test_the_manifold_is_fitted_on_as_many_patches_as_asked_for(model: Segmenter) -> None:
    rows = subsample(48, 12, rng.integer(4, 0, "manifold"))
    features = patch_features(ImageSet(IMAGES, reference), rows, model, GRID)
    part = Manifold.fit(features, seed=rng.integer(4, 0, "manifold"))
    expected = ask(model, 5, "meal", part, seed=4)
    found = ask(model, 5, "meal", seed=4, manifold_limit=12)
    assert found.candidates is not None and expected.candidates is not None
    assert torch.equal(found.candidates[1], expected.candidates[1])
    assert torch.equal(found.patch_ids, expected.patch_ids)
    # That of the candidates holds all of them, however many these are
    free, limited = (ask(model, 5, "meal-ft", seed=4, manifold_limit=limit) for limit in (50_000, 12))
    assert torch.equal(free.patch_ids, limited.patch_ids)
    with pytest.raises(InputError, match="manifold_limit must be at least 4, and whole; got 3"):
        ask(model, 5, "meal", manifold_limit=3)


def test_the_manifold_of_a_query_serves_the_next(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Algorithm 1 has it: fitted once, for all steps, however the network is trained in between."""
    first = ask(small, 5, "meal", seed=4)
    assert first.manifold is not None and first.candidates is not None
    monkeypatch.setattr(Manifold, "fit", None)
    trained = Small(3, seed=2)
    second = ask(trained, 5, "meal", first.manifold)
    assert second.manifold is first.manifold and second.candidates is not None
    features = patch_features(ImageSet(IMAGES, reference), second.candidates[0], trained, GRID)
    assert torch.equal(second.candidates[1], first.manifold.transform(features))
    assert ask(small, 5, "entropy").manifold is None
    monkeypatch.undo()
    assert ask(small, 5, "meal-ft").manifold is None  # that of its candidates serves no other step


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_the_ledger_calls_labelled_is_left_out(
    strategy: str, small: Small, small_manifold: Manifold
) -> None:
    ledger = Ledger.create(GRID, NAMES)
    seen: set[int] = set()
    for step in range(1, 5):
        before = ledger.frame.copy()
        query = ask(small, 13, strategy, small_manifold, ledger=ledger, seed=step)
        pd.testing.assert_frame_equal(ledger.frame, before)  # the caller labels, not acquire
        assert len(query) == min(13, 48 - len(seen))
        assert not seen & set(query.patch_ids.tolist())
        assert all(name.startswith("city/") for name in query.names)
        seen |= set(query.patch_ids.tolist())
        ledger.label(query.patch_ids, step)
    assert seen == set(range(48))
    # nothing is left to ask for
    empty = ask(small, 13, strategy, small_manifold, ledger=ledger)
    assert len(empty) == 0
    assert empty.to_frame().empty


def test_the_ledgers_grid_counts(model: Segmenter) -> None:
    ledger = Ledger.create(Grid(1, 2, 32, 64), NAMES)
    query = ask(model, 12, "entropy", ledger=ledger, grid=(9, 9))
    assert sorted(query.patch_ids.tolist()) == list(range(12))
    assert query.boxes[0, 3] == 32


@pytest.mark.parametrize("strategy", ["meal", "meal-ft"])
@pytest.mark.parametrize("labelled", [0, 4])  # of four patches a UMAP can be fitted
def test_where_patches_are_too_few_for_a_umap_their_scores_decide(
    strategy: str, labelled: int, small: Small, small_manifold: Manifold
) -> None:
    grid = Grid(1, 1, 32, 64) if not labelled else Grid(1, 7, 32, 64)
    images = IMAGES[: 3 if not labelled else 1]
    ledger = Ledger.create(grid, NAMES[: len(images)])
    ledger.label(torch.arange(labelled), 0)
    given: dict[str, object] = {"ledger": ledger, "precision": "float32", "ops": "reference"}
    query = acquire(small, images, 2, strategy=strategy, **given)  # type: ignore[arg-type]
    highest = acquire(small, images, 2, strategy="entropy", **given)  # type: ignore[arg-type]
    embedded = strategy == "meal" and labelled  # Φ is that of all seven
    assert (query.embedding is not None) == bool(embedded)
    assert len(query) == 2 and (embedded or torch.equal(query.patch_ids, highest.patch_ids))
    if strategy == "meal":  # one that is given serves any pool
        given["manifold"] = small_manifold
        assert acquire(small, images, 2, strategy=strategy, **given).embedding is not None  # type: ignore[arg-type]


def test_fewer_candidates_than_asked_for_are_refused(small: Small) -> None:
    with pytest.raises(InputError, match="candidates is 3, below the 12 patches to choose"):
        ask(small, 12, "meal", candidates=3)


def test_a_large_query_is_chosen_from_more_candidates() -> None:
    """Of n candidates all would be taken by their entropy alone, and cover nothing."""
    assert [candidates_for(n, None, "meal") for n in (1, 32, 33, 64, 320)] == [200, 200, 207, 400, 2000]
    assert candidates_for(64, 64, "meal") == 64 and candidates_for(64, 8, "entropy") == 400
    model, images = Small(3, seed=0), torch.cat([IMAGES, IMAGES.flip(2), IMAGES.flip(1)])  # 288 patches
    query = acquire(model, images, 201, precision="float32")
    entropy = acquire(model, images, 201, strategy="entropy", precision="float32")
    assert query.embedding is not None
    assert query.patch_ids.tolist() != entropy.patch_ids.tolist()


def test_a_table_that_cannot_be_written_is_named(
    model: Segmenter, manifold: Manifold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = ask(model, 5, "meal", manifold)
    with pytest.raises(
        RunError, match=r"nowhere/query\.parquet: the query could not be written: Cannot save"
    ):
        query.to_parquet(tmp_path / "nowhere" / "query.parquet")
    query.to_parquet(tmp_path / "query.parquet")
    before = (tmp_path / "query.parquet").read_bytes()

    def full(path: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("meal_gpu.atomic.sync", full)
    with pytest.raises(RunError, match=r"query\.parquet: the query could not be written: No space left"):
        query.to_parquet(tmp_path / "query.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["query.parquet"]
    assert (tmp_path / "query.parquet").read_bytes() == before


def test_the_query_as_a_table(model: Segmenter, manifold: Manifold, tmp_path: Path) -> None:
    query = ask(model, 5, "meal", manifold, ledger=Ledger.create(GRID, NAMES))
    query.to_parquet(tmp_path / "query.parquet")
    frame = pd.read_parquet(tmp_path / "query.parquet")
    without_embedding = ["patch", "image", "left", "top", "right", "bottom", "score"]
    assert list(frame) == [*without_embedding, "embedding_0", "embedding_1"]
    assert frame["patch"].tolist() == query.patch_ids.tolist()  # in order of choice
    assert frame["image"].tolist() == list(query.names)
    assert frame[["left", "top", "right", "bottom"]].to_numpy().tolist() == query.boxes.tolist()
    assert (frame["right"] - frame["left"] == 16).all()
    assert frame["score"].tolist() == query.scores.tolist()
    assert list(ask(model, 2, "random").to_frame()) == without_embedding


# One for each thing that is asked of the pool
ASKING = (
    "entropy",
    "mc-entropy",
    "ensemble",
    "equal",
    "ripu",
    "cereals",
    "core-set",
    "badge",
    "meal",
    "meal-ft",
)


@pytest.mark.parametrize("strategy", ASKING)
@pytest.mark.parametrize("where", ["classifier", "encoder"])
def test_a_model_that_diverged_is_named_with_its_image(
    strategy: str, where: str, small_manifold: Manifold
) -> None:
    if where == "classifier" and strategy in FEATURES_ALONE:
        return
    broken = Small(3, seed=0)
    with torch.no_grad():
        next(getattr(broken, where).parameters()).fill_(float("nan"))
    for given in (small_manifold, None) if strategy == "meal" else (small_manifold,):
        with pytest.raises(MealGpuError, match=r"^0: the model's output is NaN or infinite \(patch 0\)"):
            ask(broken, 5, strategy, given)


@pytest.mark.parametrize("measure", MEASURES)
def test_candidates_are_proposed_by_any_measure(measure: str, small: Small, small_manifold: Manifold) -> None:
    by_measure = ask(small, 20, measure, small_manifold)
    query = ask(small, 5, "meal", small_manifold, measure=measure)
    assert query.candidates is not None
    assert query.pool_scores is not None
    assert torch.equal(query.candidates[0], by_measure.patch_ids)
    assert torch.equal(query.pool_scores, by_measure.pool_scores)
    assert set(query.patch_ids.tolist()) < set(by_measure.patch_ids.tolist())


@pytest.mark.parametrize("strategy", ["entropy", "mc-entropy", "equal"])
def test_logits_are_divided_by_the_temperature(strategy: str, small: Small) -> None:
    """By so much that all three classes are as likely everywhere."""
    warm = ask(small, 5, strategy, temperature=1000.0).pool_scores
    torch.testing.assert_close(warm, torch.full((48,), math.log(3)), rtol=0, atol=1e-3)
    cold = ask(small, 5, strategy).pool_scores
    assert float((warm - cold).mean()) > 0.1


def test_one_bad_image_is_the_one_that_is_named(model: Segmenter) -> None:
    class Choking(Segmenter):
        def forward(self, images: torch.Tensor) -> object:  # type: ignore[override]
            output = model(images)
            output.logits[images.mean(dim=(1, 2, 3)) > 1] = torch.nan  # the white one
            return output

    images = IMAGES.clone()
    images[4] = 255
    choking = Choking(model.encoder, model.decoder, 3)
    with pytest.raises(MealGpuError, match=r"city/4\.png.*\(patch 32\)"):
        acquire(choking, images, 3, strategy="entropy", ledger=Ledger.create(GRID, NAMES))


def test_files_that_the_ledger_does_not_know_are_not_taken_for_others(small: Small, tmp_path: Path) -> None:
    for name, pixels in zip("bcd", IMAGES, strict=False):
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{name}.png")
    ledger = Ledger.create(GRID, ["b.png", "c.png", "d.png"])
    assert len(acquire(small, tmp_path, 2, ledger=ledger, candidates=8).patch_ids) == 2
    (tmp_path / "d.png").rename(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"image 0 is 'b\.png' in the ledger, and 'a\.png' among the images"):
        acquire(small, tmp_path, 2, ledger=ledger)


def test_a_file_that_would_be_read_wrongly_is_named(small: Small, tmp_path: Path) -> None:
    for number, pixels in enumerate(IMAGES[:2]):
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number}.png")
    Image.fromarray(np.full((32, 64), 4095, np.uint16)).save(tmp_path / "2.png")
    for images in (tmp_path, sorted(tmp_path.iterdir())):
        with pytest.raises(DataError, match=r"2\.png: I;16 pixels, of more than 8 bits"):
            acquire(small, images, 2)


@pytest.mark.parametrize("strategy", ["bald", "mc-entropy"])
def test_dropout_of_somebody_elses_network_decides(strategy: str) -> None:
    own = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=3)
    settle(own)
    scores = ask(own, 4, strategy).pool_scores
    certain = ask(own, 4, "entropy").pool_scores
    assert scores is not None and certain is not None
    # BALD without dropout is 0, and mc-entropy is the entropy
    assert float((scores if strategy == "bald" else (scores - certain).abs()).max()) > 1e-3


@pytest.mark.parametrize("of", ["dropout", "members", "mirrored"])
def test_a_committee_is_not_asked_about_absent_images(of: str, small: Small) -> None:
    images, absent = IMAGES.clone(), torch.arange(16, 24)
    images[2] = 255
    kept = torch.cat([torch.arange(16), torch.arange(24, 48)])

    class Choking(Small):
        def forward(self, images: torch.Tensor) -> Output:
            assert not bool((images.mean(dim=(1, 2, 3)) > 1).any())  # the white one
            return super().forward(images)

    def committee(pixels: torch.Tensor, names: tuple[str, ...], gone: torch.Tensor | None) -> Committee:
        network = Choking(3, seed=0)
        pool = ScoredPool(
            ImageSet(pixels, reference, batch_size=1), network, Ledger.create(GRID, names), 4, Settings(),
            excluded=gone, absent=gone, members=[network],
        )  # fmt: skip
        found = pool.committee(of)
        pool.require_finite()
        return found

    found = committee(images, NAMES, absent)
    alone = committee(torch.cat([images[:2], images[3:]]), (*NAMES[:2], *NAMES[3:]), None)
    for one, other in zip(found, alone, strict=True):
        assert torch.equal(one[kept], other) and one[absent].tolist() == [0] * 8


@pytest.mark.parametrize(
    ("images", "arguments", "error", "told"),
    [
        (IMAGES.float(), {}, InputError, ("uint8 [N, H, W, 3]", "torch.float32")),
        (IMAGES.permute(0, 3, 1, 2), {}, InputError, ("uint8 [N, H, W, 3]", "[6, 3, 32, 64]")),
        (IMAGES[0], {}, InputError, ("[32, 64, 3]",)),
        (IMAGES[:0], {}, InputError, ("[0, 32, 64, 3]",)),
        (IMAGES, {"n": 0}, InputError, ("n must be at least 1", "0")),
        (IMAGES, {"n": None}, InputError, ("n must be at least 1, and whole", "None")),
        (IMAGES, {"ledger": "pool.parquet"}, InputError, ("meal_gpu.Ledger, got str", "Ledger.read")),
        (IMAGES, {"manifold": "m", "strategy": "meal"}, InputError, ("Manifold, got str", "Manifold.load")),
        (IMAGES, {"members": MEMBER, "strategy": "ensemble"}, InputError, ("members=[model]",)),
        (IMAGES, {"members": None, "strategy": "ensemble"}, InputError, ("members=[model]",)),
        (IMAGES, {"n": 1.5}, InputError, ("n must be at least 1, and whole", "1.5")),
        (IMAGES, {"batch_size": 0}, InputError, ("batch_size must be at least 1", "0")),
        (IMAGES, {"size": "32x32"}, InputError, ("size is (height, width)", "'32x32'")),
        ([{"image": 1}] * 3, {}, InputError, ("must hold paths",)),
        (IMAGES, {"grid": (5, 40)}, InputError, ("40 columns", "64 pixels")),
        (IMAGES, {"grid": (0, 4)}, InputError, ("grid is (rows, columns)", "(0, 4)")),
        (IMAGES, {"grid": 4}, InputError, ("grid is (rows, columns), two whole numbers above 0", "got 4")),
        (IMAGES, {"size": (32, 32)}, InputError, ("size is for image files", "leave it out")),
        (IMAGES, {"size": 32}, InputError, ("size is (height, width)", "got 32")),
        (IMAGES, {"n": True}, InputError, ("n must be at least 1, and whole", "True")),
        (IMAGES, {"seed": -1}, InputError, ("seed must be at least 0, and whole", "-1")),
        (IMAGES, {"seed": 1.5}, InputError, ("seed must be at least 0, and whole", "1.5")),
        (IMAGES, {"pool_share": -3}, InputError, ("pool_share must be between 0 and 1", "-3")),
        (IMAGES, {"pool_share": math.nan}, InputError, ("pool_share", "nan")),
        (IMAGES, {"pool_share": "a"}, InputError, ("pool_share must be a number", "'a'")),
        (IMAGES, {"candidates": 20}, ConfigError, ("candidates was given", "'entropy' takes none")),
        (IMAGES, {"candidates": -5}, ConfigError, ("candidates was given", "'entropy' takes none")),
        (IMAGES, {"candidates": -5, "strategy": "meal"}, InputError, ("candidates must be at least 1", "-5")),
        (IMAGES, {"candidates": 20.0, "strategy": "meal"}, InputError, ("candidates", "and whole", "20.0")),
        (IMAGES, {"members": [MEMBER]}, ConfigError, ("members was given", "'entropy' takes none")),
        (IMAGES, {"manifold": PHI, "strategy": "meal-ft"}, ConfigError, ("manifold", "'meal-ft' takes none")),
        (IMAGES, {"strategy": "coreset"}, ConfigError, ("'coreset'", "core-set")),
        (IMAGES, {"strategy": ["meal"]}, ConfigError, ("unknown strategy ['meal']", "meal-ft")),
        (IMAGES, {"measure": ["bald"]}, ConfigError, ("unknown measure ['bald']", "cereals")),
        (np.array(["a.png", "b.png"]), {}, InputError, ("item 0", "of paths give a list")),
        (IMAGES, {"measure": "meal"}, ConfigError, ("unknown measure 'meal'", "cereals")),
        (IMAGES, {"strategy": "meal-calibrated"}, ConfigError, ("'meal-calibrated' needs", "temperature=")),
        (IMAGES, {"temperature": 0.0}, InputError, ("temperature must be above 0", "0.0")),
        (IMAGES, {"temperature": float("nan")}, InputError, ("temperature", "nan")),
        (IMAGES, {"temperature": "1"}, InputError, ("temperature must be a number", "'1'")),
        (IMAGES, {"temperature": torch.ones(2)}, InputError, ("temperature must be a number",)),
        (IMAGES, {"passes": 0}, InputError, ("passes must be at least 1", "0")),
        (IMAGES, {"passes": 2.5}, InputError, ("passes must be at least 1, and whole", "2.5")),
        (IMAGES, {"strategy": "bald", "passes": 1}, InputError, ("passes is 1", "bald takes 2 or more")),
        (IMAGES, {"strategy": "meal", "measure": "bald", "passes": 1}, InputError, ("passes is 1", "bald")),
        (IMAGES, {"strategy": "ensemble"}, InputError, ("two members or more", "got 1")),
        (IMAGES, {"strategy": "meal", "measure": "ensemble"}, InputError, ("two members or more",)),
        (IMAGES, {"ops": "gpu"}, InputError, ("'gpu'", "reference")),
        (IMAGES, {"ledger": Ledger.create(GRID, NAMES[:5])}, InputError, ("5 images", "6")),
        (IMAGES, {"ledger": Ledger.create(Grid(2, 4, 16, 64), NAMES)}, InputError, ("16×64", "32×64")),
    ],
)
def test_wrong_input_is_named(
    images: torch.Tensor, arguments: dict[str, object], error: type[Exception], told: tuple[str, ...],
    model: Segmenter,
) -> None:  # fmt: skip
    given = {"n": 3, "strategy": "entropy"} | arguments
    with pytest.raises(error) as raised:
        acquire(model, images, given.pop("n"), **given)  # type: ignore[arg-type]
    assert all(part in str(raised.value) for part in told)


@pytest.mark.parametrize("strategy", ["core-set", "kmeans", "badge", "meal-raw"])
@pytest.mark.parametrize("features", ["crop", "shared"])
def test_the_callers_autocast_is_not_ours(strategy: str, features: str, model: Segmenter) -> None:
    def chosen() -> list[int]:
        found = acquire(model, IMAGES, 8, strategy=strategy, features=features, precision="float32")
        return found.patch_ids.tolist()

    expected = chosen()
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen() == expected


def test_numbers_may_be_numpys(model: Segmenter, tmp_path: Path) -> None:
    whole = acquire(model, IMAGES, 3, strategy="entropy", batch_size=2, seed=1)
    found = acquire(model, IMAGES, np.int64(3), strategy="entropy", batch_size=np.int64(2), seed=np.int64(1))  # type: ignore[arg-type]
    assert torch.equal(found.patch_ids, whole.patch_ids)
    features = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    fitted = Manifold.fit(features, seed=np.int64(3), min_dist=np.float32(0.1))  # type: ignore[arg-type]
    fitted.save(tmp_path / "phi")
    assert torch.equal(Manifold.load(tmp_path / "phi").embedding, fitted.embedding)


def test_ops_that_cannot_work_here_are_not_replaced_in_silence(model: Segmenter) -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA may work here")
    with pytest.raises(UnavailableError, match="cuda"):
        ask(model, 3, "entropy", ops="cuda")


def test_images_on_the_cpu_stay_there(model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine with a GPU, whose ops cannot read them."""
    monkeypatch.setattr(ops, "why_not_cuda", lambda: None)
    monkeypatch.setattr(memory, "share_allocator", lambda: None)
    assert len(ask(model, 3, "entropy", ops="auto")) == 3
    with pytest.raises(
        InputError, match="need arrays on a GPU, these are on cpu: move them, or use ops='auto'"
    ):
        ask(model, 3, "entropy", ops="cuda")


def test_nothing_that_acquisition_takes_can_hold_a_label() -> None:
    for function in (acquire, ScoredPool.__init__, ImageSet.__init__, score_pool, patch_features):
        assert not any("label" in name for name in inspect.signature(function).parameters), function


def test_the_public_name_is_the_function_whatever_was_imported_before() -> None:
    code = "import meal_gpu.experiment, meal_gpu; assert callable(meal_gpu.acquire), meal_gpu.acquire"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class _SeenError(Exception):
    pass


def test_every_argument_reaches_what_takes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number, pixels in enumerate(IMAGES.numpy()):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    ledger = Ledger.create(Grid(2, 2, 16, 32), [f"{number}.png" for number in range(6)])
    ledger.label([3], 4)
    opened: dict[str, object] = {}
    seen: list[object] = []

    def opening(*given: object, **more: object) -> object:
        opened.update(more)
        return open_images(*given, **more)  # type: ignore[arg-type]

    def pool(*given: object, **more: object) -> None:
        seen.extend((*given, more))
        raise _SeenError

    monkeypatch.setattr(acquisition, "open_images", opening)
    monkeypatch.setattr(acquisition, "ScoredPool", pool)
    plain, member = (nn.Sequential(nn.Conv2d(3, 3, 1)) for _ in range(2))
    with pytest.raises(_SeenError):
        acquire(
            plain, tmp_path, 2, strategy="meal", measure="ensemble", members=[member], ledger=ledger, seed=9,
            candidates=11, manifold_limit=40, features="shared", layer="0", mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6), size=(16, 32), batch_size=3, precision="bfloat16", pool_share=0.25,
            ops="reference", passes=5, temperature=1.5,
        )  # fmt: skip
    images, network, given, n, settings, manifold, more = seen
    assert opened == {"size": (16, 32), "share": 0.25}
    assert isinstance(images, ImageSet) and isinstance(more, dict)
    assert (images.precision, images._batch_size, images.ops) == ("bfloat16", 3, reference)
    assert [images.name(number) for number in range(6)] == list(ledger.names)
    assert (given, n, manifold) == (ledger, 2, None)
    assert settings == Settings(
        candidates=11, features="shared", seed=9, step=5, limit=40, measure="ensemble", passes=5,
        temperature=1.5,
    )  # fmt: skip
    for found in (network, *more["members"]):
        assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert len(more["members"]) == 1
    with pytest.raises(InputError, match="meta device"):
        acquire(plain, tmp_path, 2, strategy="ensemble", members=[member.to("meta")], layer="0")


def test_settings_reach_what_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws, the seeds of dropout and of a fit by their step; what a fit is told; the valid pixels."""
    calls: dict[str, dict[str, object]] = {}

    def spy(module: object, name: str) -> None:
        real = getattr(module, name)

        def called(*given: object, **more: object) -> object:
            calls[name] = more
            return real(*given, **more)

        monkeypatch.setattr(module, name, called)

    spy(pool_module, "score_pool")
    spy(committee, "score_committee")
    spy(Manifold, "fit")
    images, ledger = ImageSet(IMAGES, reference), Ledger.create(GRID, NAMES)
    valid = torch.ones(32, 64, dtype=torch.bool)
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))

    def of(step: int) -> ScoredPool:
        settings = Settings(step=step, seed=3, neighbors=7, min_dist=0.3, dimension=3, passes=2)
        return ScoredPool(images, Small(3, seed=0), ledger, 4, settings, valid=valid, needs=("margin",))

    one, two = of(1), of(2)
    assert not torch.equal(one.uniforms("here", 5), two.uniforms("here", 5))
    assert one._dropout_seed() != two._dropout_seed()
    one.uncertainty("entropy")
    assert calls["score_pool"]["valid"] is valid and calls["score_pool"]["others"] == ["margin"]
    one.committee("mirrored")
    assert calls["score_committee"]["valid"] is valid
    one.fit_manifold(features)
    first = calls["fit"]
    assert (first["neighbors"], first["min_dist"], first["dimension"]) == (7, 0.3, 3)
    two.fit_manifold(features)
    assert calls["fit"]["seed"] != first["seed"]


@pytest.mark.parametrize(
    ("strategy", "of"),
    [
        ("random", lambda query: query.patch_ids),
        ("mc-entropy", lambda query: query.pool_scores),
        ("meal-ft", lambda query: query.candidates[1]),
    ],
)
def test_every_step_draws_anew(strategy: str, of: Callable[[Query], torch.Tensor], small: Small) -> None:
    """One seed and the same patches labelled: what is drawn depends on the step."""
    found = []
    for step in (0, 1, 1):
        ledger = Ledger.create(GRID, NAMES)
        ledger.label([0], step)
        found.append(of(ask(small, 8, strategy, ledger=ledger)))
    assert torch.equal(found[1], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("measure", ["entropy", "mc-entropy", "equal", "ensemble"])
def test_pixels_that_do_not_count_count_in_no_measure(measure: str, small: Small) -> None:
    valid = torch.zeros(32, 64, dtype=torch.bool)
    valid[:, :32] = True
    pool = ScoredPool(
        ImageSet(IMAGES, reference), small, Ledger.create(GRID, NAMES), 4,
        Settings(measure=measure, passes=2), members=[MEMBER], valid=valid,
    )  # fmt: skip
    scores = pool.scores().view(6, 2, 4)
    assert bool((scores[..., :2] > 0).all()) and not bool(scores[..., 2:].any())


def test_a_pool_is_passed_through_once_for_all_measures(small: Small) -> None:
    """What a strategy says it needs is found in the first pass."""
    done: list[int] = []
    pool = ScoredPool(
        ImageSet(IMAGES, reference), small, Ledger.create(GRID, NAMES), 4, Settings(measure="margin"),
        advance=done.append, needs=("margin", "least-confidence", "classes", "boundary"),
    )  # fmt: skip
    for measure in ("entropy", "margin", "least-confidence"):
        pool.uncertainty(measure)
    pool.classes()
    pool.boundary()
    assert sum(done) == len(IMAGES)
