"""Algorithm 1: train → evaluate → acquire → label → record, step after step.

Step 0 labels all patches of a few random images; step k labels the k-th query, made with the model of step
k - 1. Each step then trains from scratch on everything labelled so far and is recorded as a whole.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from meal_gpu import atomic, data, lock, models, rng, strategies
from meal_gpu import config as configs
from meal_gpu.acquisition import Query, describe, query
from meal_gpu.config import Config
from meal_gpu.errors import UnavailableError
from meal_gpu.frame import nearest
from meal_gpu.grid import Grid
from meal_gpu.learner import (
    Learner,
    calibrate,
    control_estimate,
    fit_manifold,
    known,
    load_learner,
    load_manifold,
    new_model,
    read_ledger,
    scored_pool,
    train_members,
    train_step,
)  # fmt: skip
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold, least_rows
from meal_gpu.memory import current
from meal_gpu.pool import SHARED
from meal_gpu.preparation import (
    Experiment,
    Monitor,
    Silent,
    initial_images,
    load,
    open_dataset,
    resolve,
)  # fmt: skip
from meal_gpu.record import RunFolder
from meal_gpu.scoring import patch_features, shared_features
from meal_gpu.strategies.base import Selection
from meal_gpu.timing import Stages
from meal_gpu.tracking import Tracker, flatten, open_now
from meal_gpu.train import Trained

# Lines on a query that is about to be made, such as `trust.stability_lines`
Examine = Callable[[Experiment, Learner, Manifold | None, Ledger, int], list[str]]


def run(
    config: Config, out: Path, *, resume: bool = False, monitor: Monitor | None = None,
    trackers: Sequence[Tracker] = (),
    examine: Examine | None = None,
) -> RunFolder:  # fmt: skip
    """Run, or continue, one experiment in the folder `out`.

    With `resume`, `out` must hold a run of the same configuration; it goes on after its last complete step
    and makes the queries that a run without a stop would have made. Every complete step is given to
    `trackers`, which stay open. What `examine` says of a query about to be made is shown by the monitor.

    Raises:
        ConfigError: an impossible setting, or one that differs from the run to be continued.
        DataError: a file that cannot be used; the file is named.
        RunError: a run folder that cannot be written or continued.
        UnavailableError: a package, device or weight file that is not there, or a tracker that cannot be
            opened.
    """
    monitor = monitor or Silent()
    config = resolve(config)
    if config.strategy != configs.SUPERVISED:
        strategies.needed(config.strategy, config.measure)
    if not resume:
        RunFolder.require_free(out)  # before images are decoded
        if (out / lock.FILE).exists():
            with lock.of_folder(out):
                pass
        dataset = open_dataset(config)
        experiment = load(config, monitor, dataset)
        with lock.of_folder(out):
            folder = RunFolder.create(out, config, experiment.pool.device, _made_on(config, dataset))
            try:
                open_now(trackers)
            except UnavailableError:
                folder.discard()
                raise
            folder.quarantine(experiment.quarantined)
            with current(experiment.pool.device):
                _steps(experiment, folder, monitor, trackers, examine)
        return folder
    folder = RunFolder.resume(out)
    configs.require_same(folder.config, config, folder.path)
    with lock.of_folder(out):
        dataset = open_dataset(config)
        folder.require_dataset(_made_on(config, dataset))
        folder.clean()
        folder.publish_ledger()  # it may have been killed between its last step and this
        experiment = load(config, monitor, dataset)
        folder.quarantine(experiment.quarantined)
        with current(experiment.pool.device):
            _steps(experiment, folder, monitor, trackers, examine)
    return folder


def _made_on(config: Config, dataset: data.Dataset) -> dict[str, Any]:
    """What a run cannot go on without, as JSON."""
    found = data.snapshot(dataset)
    weights = Path(config.encoder_weights)
    if config.encoder_weights not in ("imagenet", "none") and weights.is_file():
        with weights.open("rb") as file:
            found["encoder_weights"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def initial_patches(grid: Grid, images: int, count: int, seed: int) -> torch.Tensor:
    """All patches of `count` random images, ascending. It depends on the seed alone, not on the strategy."""
    drawn = rng.stream(seed, 0, "initial images").choice(images, count, replace=False)
    return torch.from_numpy(grid.patches_of(sorted(drawn)))


def _steps(
    experiment: Experiment, folder: RunFolder, monitor: Monitor, trackers: Sequence[Tracker],
    examine: Examine | None,
) -> None:  # fmt: skip
    config, grid = experiment.config, experiment.grid
    done = len(folder.completed())
    initial = initial_images(config, experiment.dataset)
    first = initial_patches(grid, len(experiment.pool), initial, config.seed)
    pool_size = len(experiment.pool) * grid.patches_per_image
    last = config.number_of_steps(pool_size, len(first))
    if done:
        ledger = read_ledger(experiment, folder, done - 1)
    else:
        ledger = Ledger.create(grid, experiment.dataset.train.names, device=nearest(experiment.pool.device))
    if done > last:
        return
    folder.continued(experiment.pool.device)
    learner = load_learner(experiment, folder, done - 1) if done else None
    manifold = None
    if not config.is_supervised and strategies.get(config.strategy).manifold:
        manifold = _manifold(experiment, folder, monitor)
    for step in range(done, last + 1):
        if step and not len(ledger.unlabelled()):
            break
        stages = Stages(experiment.pool.device)
        more: dict[str, Any] = {}
        if examine is not None and learner is not None:
            for line in examine(experiment, learner, manifold, ledger, step):
                monitor.line(line)
        with stages("acquire"):
            if learner is None:
                chosen = describe(Selection(first), ledger)
            else:
                chosen = acquire(experiment, learner, manifold, ledger, step, monitor)
        if learner is not None and chosen.control:
            with stages("control"):
                more["control"] = control_estimate(experiment, learner, chosen)
        ledger.label(chosen.patch_ids, step)
        ended = step == last or not len(ledger.unlabelled())
        model = new_model(experiment, step)
        saves, midway = folder.training(step), folder.is_midway(step)
        trained = train_step(experiment, model, ledger, step, ended, stages, monitor, saves)
        assert trained.evaluation is not None
        members = [] if ended else train_members(experiment, ledger, step, stages, monitor, saves)
        learner = Learner(model, members)
        if not config.is_supervised and strategies.get(config.strategy).calibrated:
            with stages("calibrate"):
                more["calibration"] = calibrate(experiment, learner, step)
        with stages("record"):
            metrics = _record(experiment, folder, step, learner, chosen, ledger, trained, more)
        seconds = {name: round(value, 3) for name, value in stages.seconds.items()}
        folder.log("step", step=step, seconds=seconds, **({"midway": True} if midway else {}))
        for tracker in trackers:
            tracker.log(flatten(metrics, stages.seconds), step)
        monitor.line(
            f"step {step}: {metrics['labelled']} patches ({metrics['share']:.2%}), "
            f"mIoU {trained.evaluation.mean_iou:.4f} at epoch {metrics['epoch']}"
        )


def _manifold(experiment: Experiment, folder: RunFolder, monitor: Monitor) -> Manifold | None:
    """Φ of the run: stored, or fitted on every patch with the pretrained encoder (Step 0); None: the pool is
    too small for a UMAP.
    """
    config, target = experiment.config, folder.path / "manifold"
    if target.exists():
        return load_manifold(experiment, folder)
    stages = Stages(experiment.pool.device)
    patches = torch.arange(len(experiment.pool) * experiment.grid.patches_per_image)
    if len(patches) < least_rows(config.manifold_dimension):
        return None
    with monitor.stage("features of the pool", len(patches)) as advance, stages("features"):
        model = new_model(experiment, 0)
        if config.features == SHARED:
            features = shared_features(experiment.pool, model, experiment.grid, advance)
        else:
            features = patch_features(experiment.pool, patches, model, experiment.grid, advance)
    with monitor.stage("fit the manifold", 1) as advance, stages("fit"):
        manifold = fit_manifold(experiment, features, rng.integer(config.seed, 0, "manifold"))
        advance(1)
    trust = manifold.trustworthiness()
    with folder.writing(target) as aside:
        manifold.save(aside / "umap.safetensors")
        everything = Ledger.create(experiment.grid, experiment.dataset.train.names)
        whole = len(manifold.rows) == len(patches)
        everything.set_embedding(patches, manifold.embedding if whole else manifold.transform(features))
        everything.frame.drop(columns=["step", "score"]).to_parquet(aside / "pool.parquet", index=False)
    fitted = {"rows": len(manifold.rows), "library": manifold.library, "trustworthiness": round(trust, 4)}
    folder.log("manifold", **fitted, seconds=stages.seconds)
    monitor.line(f"manifold: {manifold.library} on {len(manifold.rows)} patches, trustworthiness {trust:.3f}")
    return manifold


def acquire(
    experiment: Experiment, learner: Learner, manifold: Manifold | None, ledger: Ledger, step: int,
    monitor: Monitor,
) -> Query:  # fmt: skip
    """The query of step `step`; its scores and embedding are put into the ledger."""
    config = experiment.config
    with monitor.stage(f"step {step}: query", len(experiment.pool)) as advance:
        pool, drawn = scored_pool(experiment, learner, manifold, ledger, step, advance)
        chosen = query(pool, config.strategy, ledger, drawn)
    if chosen.pool_scores is not None:
        ledger.set_scores(chosen.pool_scores)
    if chosen.candidates is not None:
        ledger.set_embedding(*chosen.candidates)
    return chosen


def _record(
    experiment: Experiment, folder: RunFolder, step: int, learner: Learner, chosen: Query, ledger: Ledger,
    trained: Trained, more: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    assert trained.evaluation is not None
    labelled = len(ledger.labelled())
    metrics = {
        "step": step, "labelled": labelled, "patches": len(ledger), "share": labelled / len(ledger),
        "mean_iou": known(trained.evaluation.mean_iou),
        "class_iou": {
            name: known(iou)
            for name, iou in zip(experiment.dataset.classes, trained.evaluation.class_iou, strict=True)
        },
        "epoch": trained.epoch,
        "history": [{key: known(value) for key, value in row.items()} for row in trained.history],
        **more,
    }  # fmt: skip
    with folder.writing(folder.step(step)) as aside:
        models.save(learner.model, aside / "model.safetensors")
        for number, member in enumerate(learner.members, 1):
            models.save(member, aside / f"member-{number:02d}.safetensors")
        chosen.to_frame().to_parquet(aside / "query.parquet", index=False)
        ledger.write(aside / "ledger.parquet")
        atomic.write(aside / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    folder.publish_ledger()
    folder.clean()
    return metrics
