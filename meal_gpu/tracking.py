"""Trackers: where the figures of each step go besides the run folder (TensorBoard, Weights & Biases, MLflow).

A tracker of `open_trackers` knows which steps it holds, so that a run that was killed and resumed is there
once and whole. The packages are imported when they are asked for.
"""

import dataclasses
import json
import os
import re
import time
import uuid
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from meal_gpu import atomic, lock
from meal_gpu.errors import ConfigError, UnavailableError
from meal_gpu.record import RunFolder


class Tracker(Protocol):
    """Takes the figures of complete steps; any object with these two methods will do."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """The figures of `step`, by name, such as "mean_iou" or "class_iou/road"; none is NaN."""
        ...

    def close(self) -> None:
        """No more steps follow."""
        ...


def open_trackers(names: Sequence[str], run_path: Path, *, resume: bool = False) -> list[Tracker]:
    """Trackers of the run in `run_path`, which need not be there yet. With `resume`, those of its steps that
    a tracker does not hold are logged now.

    Args:
        names: tensorboard (events in RUN/tensorboard), wandb (project $WANDB_PROJECT, else "meal-gpu") or
            mlflow (server $MLFLOW_TRACKING_URI, experiment $MLFLOW_EXPERIMENT_NAME, else "meal-gpu").

    Raises:
        ConfigError: an unknown name.
        UnavailableError: a package that is not installed.
        RunError: with `resume`, there is no run, or another process is at work on it.
    """
    require(names)
    opened = [_Once(name, run_path) for name in dict.fromkeys(names)]
    if resume and opened:
        with lock.of_folder(run_path):  # nothing of a run that another process is at work on
            for tracker in opened:
                tracker.catch_up()
    return list(opened)


def open_now(trackers: Sequence[Tracker]) -> None:
    """Open those that `open_trackers` made, for the run's folder is there and nothing is trained yet.

    Raises:
        UnavailableError: one cannot be opened; those that were are closed.
    """
    ours = [tracker for tracker in trackers if isinstance(tracker, _Once)]
    try:
        for tracker in ours:
            tracker.open()
    except UnavailableError:
        for tracker in ours:
            tracker.close()
        raise


def require(names: Sequence[str]) -> None:
    """Raises ConfigError for an unknown tracker, UnavailableError for one whose package is not installed."""
    for name in names:
        if name not in _VENDORS:
            raise ConfigError(f"unknown tracker {name!r}; known: {', '.join(_VENDORS)}")
        _VENDORS[name].require()


def flatten(
    metrics: Mapping[str, Any], seconds: Mapping[str, float] = MappingProxyType({})
) -> dict[str, float]:
    """A step's metrics.json, and the seconds of its stages, as name -> number.

    Names of nested ones are joined by "/" (class_iou/road, seconds/train). `history` gives loss/first and
    loss/last, of its epochs, and loss/kept, of the one whose weights are kept. What is null is left out.
    """
    found = _numbers({key: value for key, value in metrics.items() if key != "step"})
    losses = {int(row["epoch"]): row["loss"] for row in metrics.get("history", ())}
    if losses:
        epochs = {"first": min(losses), "last": max(losses), "kept": metrics["epoch"]}
        found |= _numbers({"loss": {name: losses.get(epoch) for name, epoch in epochs.items()}})
    return found | _numbers({"seconds": seconds})


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            found[prefix + key] = float(value)
    return found


def recorded(folder: RunFolder) -> list[dict[str, float]]:
    """The figures of every complete step of a run, in order, as they were logged or should have been."""
    seconds: dict[int, dict[str, float]] = {}
    log = folder.path / "log.jsonl"
    for line in log.read_bytes().splitlines() if log.exists() else ():
        try:
            row = json.loads(line)
            if row["event"] == "step":
                seconds[int(row["step"])] = dict(row["seconds"])
        except (ValueError, TypeError, KeyError):
            continue  # half a line, of a killed process, or none of ours
    return [flatten(metrics, seconds.get(step, {})) for step, metrics in enumerate(folder.metrics())]


class _Once:
    """Gives every step to a vendor once and in order. It is opened when the run's folder is there: its
    files lie in it, and it has to be empty before. What cannot be sent is a warning, and sent with the next
    step.
    """

    def __init__(self, name: str, run_path: Path) -> None:
        self._name, self._run = name, run_path
        self._vendor: _Vendor | None = None

    def open(self) -> None:
        self._opened()

    def log(self, metrics: dict[str, float], step: int) -> None:
        vendor = self._opened()
        with self._warned(f"step {step} is not logged yet, the run goes on"):
            if vendor.last < step - 1:
                self._write(recorded(RunFolder.resume(self._run))[:step])
            if vendor.last < step:
                vendor.write(metrics, step)
                vendor.last = step

    def catch_up(self) -> None:
        """Log the run's complete steps that are not there."""
        self._opened()
        steps = recorded(RunFolder.resume(self._run))
        with self._warned("the earlier steps are not logged yet, the run goes on"):
            self._write(steps)

    def close(self) -> None:
        vendor, self._vendor = self._vendor, None
        if vendor is not None:
            with self._warned("it was not closed, the last figures may be missing there"):
                vendor.close()

    @contextmanager
    def _warned(self, what: str) -> Iterator[None]:
        """Whatever a vendor raises is a warning: no reason to stop a run, or to hide why one stopped."""
        try:
            yield
        except Exception as error:
            warnings.warn(f"{self._name}: {what}: {error}", stacklevel=4)

    def _write(self, steps: Sequence[dict[str, float]]) -> None:
        vendor = self._opened()
        for step in range(vendor.last + 1, len(steps)):
            vendor.write(steps[step], step)
            vendor.last = step

    def _opened(self) -> "_Vendor":
        if self._vendor is None:
            folder = RunFolder.resume(self._run)
            try:
                self._vendor = _VENDORS[self._name](folder.path, dataclasses.asdict(folder.config))
            except Exception as error:  # no login, no server, ...: whatever a vendor raises
                why = " ".join(str(error).split())
                raise UnavailableError(f"--track {self._name} cannot be opened: {why}") from error
        return self._vendor


class _Vendor(ABC):
    """`last` is the newest step that it holds, -1 where there is none."""

    package: ClassVar[str]
    module: ClassVar[str]
    last: int = -1

    @abstractmethod
    def __init__(self, run: Path, settings: dict[str, Any]) -> None: ...

    @classmethod
    def require(cls) -> None:
        """Raises UnavailableError where the package is not installed."""
        try:
            import_module(cls.module)
        except ImportError as error:
            raise UnavailableError(
                f"--track {cls.package} needs the package {cls.package}: "
                f"pip install 'meal-gpu[{cls.package}]' ({error})"
            ) from error

    @abstractmethod
    def write(self, metrics: dict[str, float], step: int) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class _TensorBoard(_Vendor):
    package, module = "tensorboard", "torch.utils.tensorboard"

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        folder = run / "tensorboard"
        self.last = self._last(folder)
        self._writer = import_module(self.module).FileWriter(str(folder))

    def _last(self, folder: Path) -> int:
        accumulator = import_module("tensorboard.backend.event_processing.event_accumulator")
        if not folder.is_dir():
            return -1
        events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 1})  # the newest
        events.Reload()
        return max((events.Scalars(tag)[-1].step for tag in events.Tags()["scalars"]), default=-1)

    def write(self, metrics: dict[str, float], step: int) -> None:
        summary = import_module("tensorboard.compat.proto.summary_pb2").Summary
        values = [summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        # One event for all: a killed process leaves the whole step, or nothing that a reader takes
        self._writer.add_summary(summary(value=values), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB(_Vendor):
    package = module = "wandb"

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        self._notes = _Notes(run, self.package)
        self._notes.setdefault("id", uuid.uuid4().hex)
        self._run = import_module(self.module).init(
            project=os.environ.get("WANDB_PROJECT", "meal-gpu"), id=self._notes["id"], resume="allow",
            name=run.name, group=run.resolve().parent.name, dir=str(run), config=settings,
        )  # fmt: skip
        self._notes.save()
        # Offline only the notes know; a server that was reached may know more than they do
        self.last = max(self._notes.get("last", -1), self._run.step - 1)

    def write(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step, commit=True)
        self._notes["last"] = step
        self._notes.save()

    def close(self) -> None:
        self._run.finish()


class _MLflow(_Vendor):
    package = module = "mlflow"

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        mlflow = import_module(self.module)
        self._entities = import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        notes = _Notes(run, self.package)
        if "id" in notes:
            self._client.update_run(notes["id"], status="RUNNING")
            history = self._client.get_metric_history(notes["id"], "share")  # every step has it
            self.last = max((metric.step for metric in history), default=-1)
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "meal-gpu")
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name)
            notes["id"] = self._client.create_run(number, run_name=run.name).info.run_id
            parameters = [self._entities.Param(key, str(value)) for key, value in settings.items()]
            self._client.log_batch(notes["id"], params=parameters)
            notes.save()
        self._id = notes["id"]

    def write(self, metrics: dict[str, float], step: int) -> None:
        now = int(1000 * time.time())
        figures = [
            self._entities.Metric(re.sub(r"[^\w\-. /]", "_", name), value, now, step)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._id, metrics=figures)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class _Notes(dict[str, Any]):
    """What a vendor needs to find its run again: RUN/tracking/NAME.json."""

    def __init__(self, run: Path, name: str) -> None:
        self._file = run / "tracking" / f"{name}.json"
        super().__init__(json.loads(self._file.read_text()) if self._file.exists() else {})

    def save(self) -> None:
        self._file.parent.mkdir(exist_ok=True)
        atomic.write(self._file, json.dumps(self) + "\n")


_VENDORS: dict[str, type[_Vendor]] = {vendor.package: vendor for vendor in (_TensorBoard, _WandB, _MLflow)}
