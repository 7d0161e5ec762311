"""A past query made again with other labels, and without any: not a bit of it may change."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from meal_gpu.acquisition import Query
from meal_gpu.data import VOID
from meal_gpu.errors import MealGpuError, RunError
from meal_gpu.experiment import acquire
from meal_gpu.learner import Learner, calibrate, new_model, train_members, train_step
from meal_gpu.ledger import Ledger
from meal_gpu.ops.reference import patch_of_pixels
from meal_gpu.preparation import Experiment, Monitor, Silent
from meal_gpu.strategies import get
from meal_gpu.timing import Stages
from meal_gpu.trust.opening import Past, here, open_past, open_run
from meal_gpu.trust.replaying import differences


@dataclass(frozen=True)
class NoPeek:
    """A query under three sets of labels.

    Attributes:
        step: which.
        query: with the labels as they are.
        changed: the share of the unlabelled patches' pixels whose label was another one when shuffled.
        found: what differs, a line each; none: the query is the same byte for byte.
        trained: whether the model before the query was trained again, too.
    """

    step: int
    query: Query
    changed: float
    found: tuple[str, ...]
    trained: bool

    def text(self) -> str:
        """One line where nothing differs, else a line for each difference."""
        what = "training and query" if self.trained else "query"
        under = f"labels shuffled ({self.changed:.0%} of the unlabelled pixels changed) and absent"
        if self.found:
            lines = "".join(f"\n  {line}" for line in self.found)
            return f"step {self.step}: the {what} depends on labels that were not revealed; {under}:{lines}"
        return f"step {self.step}: {what} the same byte for byte with {under}: {len(self.query)} patches"


def no_peek(
    run: Path, step: int | None = None, *, train: bool = False, device: str | None = None,
    root: Path | None = None, monitor: Monitor | None = None,
) -> NoPeek:  # fmt: skip
    """Make a query of a run again with the labels as they are, shuffled, and absent, and compare.

    Shuffled: every patch that was not labelled before the query gets the labels of another image. Absent: the
    query runs with neither oracle nor label files, so that whatever asks for one ends it. With `train`, the
    model before the query is trained anew each time, on what was labelled; absent labels are then void.

    Args:
        step: of the query; None: the newest.
        device: where to compute instead of the recorded device.
        root: where the dataset is now, if it was moved.

    Raises:
        RunError: no such run or step, or labels that shuffling does not change, which could prove nothing.
        DataError: the dataset cannot be used.
        UnavailableError: the recorded device or ops are not there.
    """
    monitor = monitor or Silent()
    folder = open_run(run, step if step is not None else 1, least=1)
    step = len(folder.completed()) - 1 if step is None else step
    past = open_past(folder, step, here(folder.config, device, root), monitor)
    labels, hidden = past.experiment.oracle.labels, _hidden(past)
    shuffled = torch.where(hidden, labels.roll(1, 0).flip(2), labels)
    changed = float((shuffled != labels).sum()) / max(1, int(hidden.sum()))
    if not changed:
        raise RunError(f"{run}: shuffling changes no label of the unlabelled patches; nothing could be seen")
    absent = torch.where(hidden, torch.full_like(labels, VOID), labels)

    def asked(given: torch.Tensor, *, without: bool = False) -> Query:
        experiment = _labelled(past.experiment, given)
        learner = _trained(experiment, past, monitor) if train else past.learner
        experiment = _unlabelled(experiment) if without else experiment
        return acquire(experiment, learner, past.manifold, _copy(past.ledger), step, monitor)

    query = asked(labels)
    found = [f"shuffled: {line}" for line in _apart(query, asked(shuffled))]
    try:
        found += [f"absent: {line}" for line in _apart(query, asked(absent, without=True))]
    except _LabelReadError as error:
        found.append(f"absent: {error}")
    return NoPeek(step, query, changed, tuple(found), train)


def _copy(ledger: Ledger) -> Ledger:
    return Ledger(ledger.frame.copy(), ledger.grid, ledger.names, ledger.origin)


class _LabelReadError(MealGpuError):
    pass


class _NoOracle:
    def __getattr__(self, name: str) -> NoReturn:
        raise _LabelReadError(f"the query asks the oracle for {name!r}")


def _hidden(past: Past) -> torch.Tensor:
    """[N, H, W] bool: the pixels of patches that were not labelled before the query."""
    labels, grid = past.experiment.oracle.labels, past.experiment.grid
    known = torch.zeros(len(past.ledger), dtype=torch.bool, device=labels.device)
    known[past.ledger.labelled().to(labels.device)] = True
    hidden: torch.Tensor = ~known.view(-1, grid.patches_per_image)[:, patch_of_pixels(grid, labels.device)]
    return hidden


def _labelled(experiment: Experiment, labels: torch.Tensor) -> Experiment:
    return dataclasses.replace(experiment, oracle=dataclasses.replace(experiment.oracle, labels=labels))


def _unlabelled(experiment: Experiment) -> Experiment:
    dataset = experiment.dataset
    bare = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, labels=None))
    oracle: Any = _NoOracle()
    return dataclasses.replace(experiment, dataset=bare, oracle=oracle)


def _trained(experiment: Experiment, past: Past, monitor: Monitor) -> Learner:
    """The learner of the step before, as the run trained it."""
    ledger, step, stages = past.ledger, past.step - 1, Stages(experiment.pool.device)
    model = new_model(experiment, step)
    train_step(experiment, model, ledger, step, False, stages, monitor)
    learner = Learner(model, train_members(experiment, ledger, step, stages, monitor))
    if get(experiment.config.strategy).calibrated:
        calibrate(experiment, learner, step)
    return learner


def _apart(one: Query, other: Query) -> list[str]:
    found = list(differences(one.to_frame(), other.to_frame()))
    for what, a, b in (
        ("scores of the pool", (one.pool_scores,), (other.pool_scores,)),
        ("candidates", one.candidates or (None,), other.candidates or (None,)),
    ):
        if [_bytes(part) for part in a] != [_bytes(part) for part in b]:
            found.append(f"{what} differ")
    return found


def _bytes(values: torch.Tensor | None) -> bytes | None:
    return None if values is None else values.numpy().tobytes()
