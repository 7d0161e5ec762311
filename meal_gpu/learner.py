"""What a step trains: the model, the other members of an ensemble, a temperature; and what it is told by."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from meal_gpu import calibration, control, data, models, rng, strategies
from meal_gpu.acquisition import Query, draw_control
from meal_gpu.config import Config
from meal_gpu.errors import RunError
from meal_gpu.evaluate import Evaluation, evaluate
from meal_gpu.frame import nearest
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold
from meal_gpu.models import Segmenter
from meal_gpu.passes import ImageSet
from meal_gpu.pool import ScoredPool, Settings
from meal_gpu.preparation import Experiment, Monitor, cache_bytes
from meal_gpu.record import RunFolder
from meal_gpu.savepoint import Savepoint
from meal_gpu.scoring import Advance
from meal_gpu.timing import Stages
from meal_gpu.train import Schedule, Trained, train


@dataclass
class Learner:
    """What a step's training leaves for the query after it: the model, further members, the temperature."""

    model: Segmenter
    members: list[Segmenter] = field(default_factory=list)
    temperature: float = 1.0


def load_learner(experiment: Experiment, folder: RunFolder, step: int) -> Learner:
    """What step `step` of a run recorded. Raises ConfigError or UnavailableError for unreadable weights."""
    path = folder.step(step)
    learner = Learner(new_model(experiment, step))
    models.load(learner.model, path / "model.safetensors")
    for file in sorted(path.glob("member-*.safetensors")):
        member = new_model(experiment, step)
        models.load(member, file)
        learner.members.append(member)
    metrics = json.loads((path / "metrics.json").read_text())
    learner.temperature = metrics.get("calibration", {}).get("temperature", 1.0)
    return learner


def new_model(experiment: Experiment, step: int, member: int = 0) -> Segmenter:
    """From scratch: the pretrained encoder and a fresh decoder."""
    purpose = "decoder" if not member else f"decoder of member {member}"
    model = experiment.builder(rng.integer(experiment.config.seed, step, purpose)).to(experiment.pool.device)
    if not experiment.config.finetune:
        model.freeze_encoder()
    return model


def read_ledger(experiment: Experiment, folder: RunFolder, step: int) -> Ledger:
    """The ledger after step `step` of a run. Raises RunError where the dataset holds other images now."""
    ledger = Ledger.read(folder.step(step) / "ledger.parquet", device=nearest(experiment.pool.device))
    if (ledger.names, ledger.grid) != (experiment.dataset.train.names, experiment.grid):
        raise RunError(f"{folder.path} was made on other images than {experiment.dataset.root} now holds")
    return ledger


def load_manifold(experiment: Experiment, folder: RunFolder) -> Manifold:
    """Φ of a run. Raises RunError for a file that is missing or damaged."""
    path = folder.path / "manifold" / "umap.safetensors"
    return Manifold.load(path, device=experiment.pool.device, ops=experiment.pool.ops)


def fit_manifold(experiment: Experiment, features: torch.Tensor, seed: int) -> Manifold:
    """Φ by the run's settings, of features [M, D]."""
    config = experiment.config
    return Manifold.fit(
        features, seed=seed, neighbors=config.manifold_neighbors, min_dist=config.manifold_min_dist,
        dimension=config.manifold_dimension, limit=config.manifold_limit, build=config.manifold_build,
        deterministic=config.manifold_deterministic, ops=experiment.pool.ops,
    )  # fmt: skip


def scored_pool(
    experiment: Experiment, learner: Learner, manifold: Manifold | None, ledger: Ledger, step: int,
    advance: Advance = lambda _: None, *, images: ImageSet | None = None,
) -> tuple[ScoredPool, torch.Tensor]:  # fmt: skip
    """The pool as the query of step `step` sees it, and the patches [m] that are drawn for the control arm.

    `images` take the place of the experiment's own, in another precision, say.
    """
    config = experiment.config
    settings = Settings(
        candidates=config.candidates, seed=config.seed, step=step, neighbors=config.manifold_neighbors,
        min_dist=config.manifold_min_dist, dimension=config.manifold_dimension, features=config.features,
        build=config.manifold_build, deterministic=config.manifold_deterministic, measure=config.measure,
        passes=config.passes, temperature=learner.temperature,
    )  # fmt: skip
    n = round(config.control_share * config.query_size)
    drawn = draw_control(ledger, n, config.seed, step)
    pool = ScoredPool(
        images or experiment.pool, learner.model, ledger, config.query_size - n, settings, manifold, advance,
        excluded=drawn, needs=strategies.needed(config.strategy, config.measure), members=learner.members,
    )  # fmt: skip
    return pool, drawn


def known(figure: float) -> float | None:
    """NaN is no JSON."""
    return None if math.isnan(figure) else figure


def schedule_of(config: Config, epochs: int) -> Schedule:
    """How a run of `config` trains, for so many epochs."""
    return Schedule(
        epochs=epochs, batch_size=config.batch_size, learning_rate=config.learning_rate,
        decay_every=config.decay_every, keep=config.keep, validate_every=config.validate_every,
        precision=config.precision, cache_bytes=cache_bytes(config),
    )  # fmt: skip


def train_step(
    experiment: Experiment, model: Segmenter, ledger: Ledger, step: int, ended: bool, stages: Stages,
    monitor: Monitor, saves: Path | None = None,
) -> Trained:  # fmt: skip
    """The step's training, which goes on from its savepoint in the folder `saves`, if there is one."""
    config = experiment.config
    epochs = (config.final_epochs if ended else None) or config.epochs
    schedule = schedule_of(config, epochs)
    with monitor.stage(f"step {step}: train", epochs) as advance, stages("train"):
        return train(
            model, ledger.labelled(), experiment.oracle, schedule, seed=config.seed, step=step,
            validate=_validation(experiment, model, stages), advance=advance,
            savepoint=_savepoint(saves, "model"),
        )  # fmt: skip


def _validation(experiment: Experiment, model: Segmenter, stages: Stages) -> Callable[[], Evaluation]:
    def validate() -> Evaluation:
        with stages("validate"):
            return evaluate(experiment.validation, experiment.validation_labels, model, data.VOID)

    return validate


def _savepoint(saves: Path | None, name: str) -> Savepoint | None:
    return Savepoint(saves / f"{name}.safetensors") if saves else None


def train_members(
    experiment: Experiment, ledger: Ledger, step: int, stages: Stages, monitor: Monitor,
    saves: Path | None = None,
) -> list[Segmenter]:  # fmt: skip
    """The other members of an ensemble, where the next query asks for one, trained as the model is.

    Each goes on from its savepoint in the folder `saves`, if there is one.
    """
    config = experiment.config
    if config.is_supervised or not strategies.takes_members(config.strategy, config.measure):
        return []
    schedule = schedule_of(config, config.epochs)
    members = [new_model(experiment, step, number) for number in range(1, config.members)]
    total = config.epochs * len(members)
    with monitor.stage(f"step {step}: train members", total) as advance, stages("members"):
        for number, member in enumerate(members, 1):
            seed = rng.integer(config.seed, step, f"member {number}")
            savepoint = _savepoint(saves, f"member-{number:02d}")
            train(
                member, ledger.labelled(), experiment.oracle, schedule, seed=seed, step=step,
                validate=_validation(experiment, member, stages), advance=advance, savepoint=savepoint,
            )  # fmt: skip
    return members


def calibrate(experiment: Experiment, learner: Learner, step: int) -> dict[str, float | None]:
    """Set the temperature by every other validation image; what it does to the calibration on the others.

    By the labelled patches, which it was trained on, a network that is too sure would be made surer still.
    """
    logits, truth, image = calibration.pixels_of(
        experiment.validation, experiment.validation_labels, learner.model, data.VOID,
        experiment.config.seed, step,
    )  # fmt: skip
    fitted, judged = ((logits[half], truth[half]) for half in (image % 2 == 0, image % 2 == 1))
    learner.temperature = calibration.fit_temperature(*fitted)
    error = calibration.expected_calibration_error
    return {
        "temperature": learner.temperature,
        "ece_before": known(error(*judged)),
        "ece_after": known(error(*judged, learner.temperature)),
    }


def control_estimate(experiment: Experiment, learner: Learner, chosen: Query) -> dict[str, Any]:
    """The share of right pixels of an unlabelled patch, as the drawn ones show it, of the model before."""
    drawn = chosen.patch_ids[-chosen.control :]
    found = control.accuracy(drawn, learner.model, experiment.oracle, experiment.config.precision)
    return {
        "patches": found.n,
        "accuracy": known(found.mean),
        "low": known(found.low),
        "high": known(found.high),
    }
