"""A past query with all that it was made from, opened from the run folder."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from meal_gpu import strategies
from meal_gpu.config import Config
from meal_gpu.errors import RunError
from meal_gpu.inference import device_named
from meal_gpu.learner import Learner, load_learner, load_manifold, read_ledger
from meal_gpu.learner import scored_pool as of_step
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold, least_rows
from meal_gpu.passes import ImageSet
from meal_gpu.pool import ScoredPool
from meal_gpu.preparation import Experiment, Monitor, load, resolve
from meal_gpu.record import RunFolder


@dataclass(frozen=True)
class Past:
    """What the query of step k was made from.

    Attributes:
        ledger: of step k - 1, as it was before the query.
    """

    experiment: Experiment
    learner: Learner
    manifold: Manifold | None
    ledger: Ledger
    step: int


def open_run(run: Path, step: int, *, least: int = 0) -> RunFolder:
    """The folder of a run that has completed step `step`.

    Raises:
        RunError: there is no run, or it has no such step; the message says which it has.
    """
    folder = RunFolder.resume(run)
    last = len(folder.completed()) - 1
    if folder.config.is_supervised:
        raise RunError(f"{run} is a supervised run: it labels every image at once and makes no query")
    if not least <= step <= last:
        if last < least:
            raise RunError(f"{run} has made no query yet: its last complete step is {last}")
        hint = " (step 0 is drawn from the seed alone)" if step == 0 else ""
        raise RunError(f"{run} has no query of step {step}{hint}: give a step from {least} to {last}")
    return folder


def recorded(folder: RunFolder, step: int) -> pd.DataFrame:
    """The query that a step recorded. Raises RunError naming a file that cannot be read."""
    path = folder.step(step) / "query.parquet"
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not a readable query: {error}") from error


def here(config: Config, device: str | None = None, root: Path | None = None) -> Config:
    """A run's configuration for this machine: as recorded, or on `device` with the ops that belong to it.

    The precision stays what it was; `root` is where the dataset lies now, if not where it did.

    Raises:
        UnavailableError: the device is not there.
    """
    config = config if root is None else config.replace(root=str(root))
    where = device_named(device or config.device)
    if where.type == torch.device(config.device).type:
        return config.replace(device=str(where))
    return resolve(config.replace(device=str(where), ops="auto"))


def open_past(folder: RunFolder, step: int, config: Config, monitor: Monitor) -> Past:
    """Open the pool, the model of step `step` - 1 and, for strategies that need it, Φ.

    Raises:
        RunError: the dataset is another one now, or a file of the run cannot be read.
        DataError: an image or label file that cannot be used.
        UnavailableError: ops or weights that are not there.
    """
    experiment = load(config, monitor)
    ledger = read_ledger(experiment, folder, step - 1)
    needs = strategies.get(config.strategy).manifold and len(ledger) >= least_rows(config.manifold_dimension)
    manifold = load_manifold(experiment, folder) if needs else None
    learner = load_learner(experiment, folder, step - 1)
    return Past(experiment, learner, manifold, ledger, step)


def scored_pool(past: Past, images: ImageSet | None = None) -> ScoredPool:
    """The pool as the query of `past` saw it; `images`: in another precision."""
    return of_step(
        past.experiment, past.learner, past.manifold, past.ledger, past.step, images=images
    )[0]  # fmt: skip
