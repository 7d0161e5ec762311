"""What a query does not depend on leaves it as it is; what it depends on is measured right."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from meal_gpu.errors import InputError
from meal_gpu.passes import ImageSet
from meal_gpu.trust import commands, perturbing
from meal_gpu.trust.opening import Past, scored_pool
from meal_gpu.trust.perturbing import (
    Change,
    Outcome,
    Stability,
    coverage,
    examine,
    stability,
    stability_lines,
)
from meal_gpu.trust.variant import Variant

RunOf = Callable[[str], Path]

app = Typer()
commands.register(app)


def of(past: Past, strategy: str, **changes: object) -> Past:
    """As if another strategy had asked, without a control arm."""
    config = past.experiment.config.replace(strategy=strategy, control_share=0.0, **changes)
    return dataclasses.replace(past, experiment=dataclasses.replace(past.experiment, config=config))


def examined(past: Past, seeds: int) -> Stability:
    return examine(past.experiment, past.learner, past.manifold, past.ledger, past.step, seeds=seeds)


@pytest.fixture(scope="module")
def base(past: Past) -> Variant:
    return Variant(scored_pool(past))


def test_coverage_by_hand() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [0.0, 1.0]])
    assert coverage(points, points[:1]) == (0 + 5 + 10 + 1) / 4
    assert coverage(points, points[[0, 2]]) == (0 + 5 + 0 + 1) / 4
    assert coverage(points, points) == 0


def test_the_same_thing_again_is_the_same_query(past: Past, base: Variant) -> None:
    selection = base.chosen("meal")
    judge = perturbing._Judge(past, base, selection)
    pool = past.experiment.pool
    for same in (
        Variant(base), Variant(base, manifold=past.manifold),
        Variant(scored_pool(past, ImageSet(pool.images, pool.ops, precision="float32"))),
    ):  # fmt: skip
        found = judge(same, same.chosen("meal"))
        assert (found.chosen, found.candidates, found.coverage) == (1, 1, 1)


def test_other_draws_beside_numpy(past: Past, base: Variant) -> None:
    first = base.chosen("meal")
    other = Variant(base, draws=0)
    second = other.chosen("meal")
    found = perturbing._Judge(past, base, first)(other, second)
    a, b = first.patches.tolist(), second.patches.tolist()
    assert first.embedded is not None and first.embedding is not None
    points = dict(zip(first.embedded.tolist(), first.embedding.numpy().astype(np.float64), strict=True))

    def covered(chosen: list[int]) -> float:
        everything = np.stack(list(points.values()))
        squares = ((everything[:, None] - np.stack([points[p] for p in chosen])) ** 2).sum(axis=2)
        return float(np.sqrt(squares).min(axis=1).mean())

    assert a != b  # the draws are other ones
    assert found.chosen == len({*a} & {*b}) / len({*a} | {*b})
    assert found.candidates == 1
    assert found.coverage == pytest.approx(covered(b) / covered(a), rel=1e-12)
    nothing = perturbing._Judge(past, base, first)(base, first)
    assert nothing.random is not None and found.random is not None
    assert found.random / nothing.random == pytest.approx(found.coverage, rel=1e-12)


@pytest.mark.parametrize("strategy", ["meal-pca", "meal"])
def test_patches_outside_the_candidates_find_their_place(past: Past, strategy: str) -> None:
    asking = of(past, strategy)
    pool = Variant(scored_pool(asking))
    selection = pool.chosen(strategy)
    assert selection.embedded is not None and selection.embedding is not None
    again = pool.embedder(selection)(selection.embedded)
    scale = float(selection.embedding.abs().max())
    assert float((again - selection.embedding).abs().max()) <= 1e-4 * scale
    outside = pool.unlabelled[~torch.isin(pool.unlabelled, selection.embedded)][:3]
    assert pool.embedder(selection)(outside).shape == (3, selection.embedding.shape[1])


def test_a_run(run_of: RunOf) -> None:
    run = run_of("meal")
    found = stability(run, 1, seeds=2)
    assert (found.step, found.strategy, found.as_recorded) == (1, "meal", True)
    assert found.candidates == 20 and found.places == len(
        pd.read_parquet(run / "steps/001/ledger.parquet")[["embedding_0", "embedding_1"]]
        .dropna()
        .drop_duplicates()
    )
    assert [(change.name, len(change.outcomes)) for change in found.changes] == [
        ("nothing", 1), ("UMAP's seed", 2), ("float32 → bfloat16", 1), ("the draws", 2),
    ]  # fmt: skip
    nothing, umap, _, draws = (change.outcomes for change in found.changes)
    assert (nothing[0].chosen, nothing[0].candidates, nothing[0].coverage) == (1, 1, 1)
    assert all(outcome.candidates == 1 for outcome in (*umap, *draws))  # they come before the embedding
    outcomes = [outcome for change in found.changes for outcome in change.outcomes]
    assert all(0 <= o.chosen <= 1 and o.coverage is not None and o.coverage >= 0 for o in outcomes)


def test_a_umap_of_the_query_alone(past: Past) -> None:
    found = examined(of(past, "meal-ft"), 1)
    assert [change.name for change in found.changes][1] == "UMAP's seed"
    assert found.as_recorded is None


def test_what_a_strategy_does_not_use_is_not_changed(past: Past) -> None:
    entropy = examined(of(past, "entropy"), 1)
    assert [change.name for change in entropy.changes] == ["nothing", "float32 → bfloat16"]
    assert entropy.changes[0].outcomes == (Outcome(1.0, None, None, None),)
    badge = examined(of(past, "badge"), 1)
    assert [change.name for change in badge.changes] == ["nothing", "float32 → bfloat16", "the draws"]
    assert (badge.candidates, badge.places) == (None, None)


@pytest.mark.parametrize(("strategy", "measure"), [("bald", "entropy"), ("meal-raw", "mc-entropy")])
def test_dropout_is_a_draw(past: Past, strategy: str, measure: str) -> None:
    nothing, _, draws = examined(of(past, strategy, measure=measure), 3).changes
    assert draws.name == "the draws"
    assert nothing.outcomes[0].chosen == 1
    assert min(outcome.chosen for outcome in draws.outcomes) < 1
    if measure == "mc-entropy":  # which draws before there are candidates
        assert min(outcome.candidates or 1 for outcome in draws.outcomes) < 1


def test_a_precision_that_does_not_work_here_is_said(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no bfloat16 here\nand a long trace")

    asking = of(past, "entropy")
    monkeypatch.setattr(perturbing, "ImageSet", fails)
    found = examined(asking, 1)
    assert found.changes[1] == Change("float32 → bfloat16", problem="no bfloat16 here")
    args = (asking.experiment, asking.learner, asking.manifold, asking.ledger, asking.step)
    assert stability_lines(*args, seeds=1) == found.text().split("\n")
    assert "  float32 → bfloat16: no bfloat16 here" in found.text().split("\n")


def test_the_table() -> None:
    two = (Outcome(0.5, 1.0, 1.25, 0.75), Outcome(1.0, 1.0, 0.75, 0.25))
    found = Stability(3, "meal", (Change("nothing", two[1:]), Change("UMAP's seed", two)), 128, 4, True)
    assert found.text().split("\n")[:4] == [
        "step 3 (meal): the query when something else changes",
        "               chosen               candidates           coverage             of random",
        "  nothing      1.00                 1.00                 0.75                 0.25",
        "  UMAP's seed  0.75 (0.50 to 1.00)  1.00 (1.00 to 1.00)  1.00 (0.75 to 1.25)  0.50 (0.25 to 0.75)",
    ]
    assert found.text().split("\n")[-1] == "  embedding: 128 candidates in 4 different places"
    other = dataclasses.replace(found, as_recorded=False)
    assert other.text().endswith("not the recorded one: see `meal-gpu replay`")


def test_the_command(run_of: RunOf, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_of("entropy"), tmp_path / "run"))
    path = run / "steps/001/query.parquet"
    pd.read_parquet(path).iloc[[1, 0, 2, 3, 4, 5]].to_parquet(path, index=False)
    command = ["stability", str(run), "--step", "1", "--seeds", "1"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0
    assert said.stdout.startswith("step 1 (entropy): the query when something else changes\n")
    assert "  nothing             1.00    –           –         –\n" in said.stdout
    assert said.stdout.endswith("not the recorded one: see `meal-gpu replay`\n")
    plain = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert plain["as_recorded"] is False and plain["changes"][0]["outcomes"][0]["chosen"] == 1


def test_no_seeds(past: Past) -> None:
    with pytest.raises(InputError, match="seeds must be at least 1, and whole; got 0"):
        examined(past, 0)
