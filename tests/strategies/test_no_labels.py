"""No strategy sees a label: those of unlabelled patches may be any, and every query stays the same bytes."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from networks import settle

from meal_gpu import strategies
from meal_gpu.acquisition import Query
from meal_gpu.calibration import LIMITS
from meal_gpu.config import from_dict
from meal_gpu.data import synthetic
from meal_gpu.experiment import acquire, initial_patches
from meal_gpu.learner import Learner, calibrate, new_model, train_members, train_step
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold
from meal_gpu.preparation import Experiment, Silent, load, resolve
from meal_gpu.scoring import patch_features
from meal_gpu.strategies import STRATEGIES
from meal_gpu.timing import Stages


class World(NamedTuple):
    """An experiment after step 0, with everything that any strategy asks for."""

    experiment: Experiment
    learner: Learner
    manifold: Manifold


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Three images of 16 patches each, of which those of one are labelled."""
    root = tmp_path_factory.mktemp("scenes") / "tree"
    synthetic.write(root, train=3, val=1, size=(64, 128), seed=0)
    config = from_dict(
        {
            "dataset": "cityscapes", "root": str(root), "size": [64, 128], "encoder_weights": "none",
            "initial_images": 1, "query_size": 9, "candidates": 20, "steps": 1, "epochs": 10,
            "precision": "float32", "device": "cpu", "strategy": "ensemble", "members": 2, "passes": 2,
            "control_share": 0.3,
        }
    )  # fmt: skip
    experiment = load(resolve(config), Silent())
    # An encoder that tells images apart: of a fresh one all logits are 0, and any temperature is as good
    settled = experiment.builder(0)
    settle(settled)
    experiment.builder._encoder.load_state_dict(settled.encoder.state_dict())
    return experiment


def with_labels(experiment: Experiment, *, unlabelled: bool) -> Experiment:
    """Other labels of what is unlabelled, or of what is labelled and those alone."""
    labels = experiment.oracle.labels
    shown = initial_patches(experiment.grid, len(experiment.pool), 1, experiment.config.seed)[0]
    revealed = torch.arange(len(labels)) == shown // experiment.grid.patches_per_image
    given = labels.clone()
    changed = ~revealed if unlabelled else revealed
    given[changed] = labels.flip(0, 1, 2)[changed]
    assert float((given != labels)[changed].float().mean()) > 0.2
    return dataclasses.replace(experiment, oracle=dataclasses.replace(experiment.oracle, labels=given))


def trained(experiment: Experiment, manifold: Manifold) -> World:
    stages, ledger = Stages(torch.device("cpu")), made_ledger(experiment)
    model = new_model(experiment, 0)
    train_step(experiment, model, ledger, 0, False, stages, Silent())
    learner = Learner(model, train_members(experiment, ledger, 0, stages, Silent()))
    calibrate(experiment, learner, 0)
    return World(experiment, learner, manifold)


@pytest.fixture(scope="module")
def world(true: Experiment) -> World:
    everything = torch.arange(len(true.pool) * true.grid.patches_per_image)
    features = patch_features(true.pool, everything, new_model(true, 0), true.grid)
    return trained(true, Manifold.fit(features, seed=0))


@pytest.fixture(scope="module")
def hidden(true: Experiment, world: World) -> World:
    """All that was not revealed is labelled otherwise."""
    return trained(with_labels(true, unlabelled=True), world.manifold)


def made_ledger(experiment: Experiment) -> Ledger:
    ledger = Ledger.create(experiment.grid, experiment.dataset.train.names)
    ledger.label(initial_patches(experiment.grid, len(experiment.pool), 1, experiment.config.seed), 0)
    return ledger


def asked(world: World, strategy: str) -> Query:
    experiment, learner, manifold = world
    if not strategies.get(strategy).calibrated:
        learner = dataclasses.replace(learner, temperature=1.0)
    config = dataclasses.replace(experiment.config, strategy=strategy)
    return acquire(
        dataclasses.replace(experiment, config=config),
        learner,
        manifold,
        made_ledger(experiment),
        1,
        Silent(),
    )


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.numpy().tobytes() == other.numpy().tobytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labels_that_were_not_revealed_change_no_bit_of_a_query(
    strategy: str, world: World, hidden: World
) -> None:
    """Through training, members, calibration and the draw of control patches to the choice itself."""
    one, other = asked(world, strategy), asked(hidden, strategy)
    assert (len(one), one.control) == (9, 3)
    assert same(one.patch_ids, other.patch_ids)
    assert same(one.scores, other.scores)
    assert same(one.pool_scores, other.pool_scores)
    assert same(one.embedding, other.embedding)


def test_labels_that_were_revealed_do_change_a_query(true: Experiment, world: World, hidden: World) -> None:
    """So that the test above can fail."""
    assert LIMITS[0] * 1.1 < world.learner.temperature < LIMITS[1] / 1.1
    assert hidden.learner.temperature == world.learner.temperature
    other = trained(with_labels(true, unlabelled=False), world.manifold)
    assert other.learner.temperature != world.learner.temperature
    for strategy in ("entropy", "ensemble", "meal-calibrated"):
        assert not same(asked(world, strategy).pool_scores, asked(other, strategy).pool_scores)
    assert same(asked(world, "random").patch_ids, asked(other, "random").patch_ids)
