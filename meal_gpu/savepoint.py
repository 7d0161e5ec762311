"""A training in progress, and the file from which it goes on after its process was killed."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from meal_gpu import atomic
from meal_gpu.errors import RunError
from meal_gpu.evaluate import Evaluation
from meal_gpu.models import Segmenter
from meal_gpu.record import unwritten

SECONDS = 300.0  # of work that may be lost
_FORMAT = "meal-gpu savepoint 1"
Tensors = dict[str, torch.Tensor]


class Savepoint:
    """A file of tensors and of figures as JSON; whole, or as it was before. Its folder is made if need be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._since = time.monotonic()

    def due(self) -> bool:
        """Whether `SECONDS` have passed since it was made or written."""
        return time.monotonic() - self._since >= SECONDS

    def write(self, tensors: Tensors, figures: dict[str, Any]) -> None:
        """Raises RunError where the file cannot be written."""
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        try:
            self.path.parent.mkdir(exist_ok=True)
            atomic.write(self.path, serialise(whole, {_FORMAT: json.dumps(figures)}))
        except OSError as error:
            raise unwritten(self.path, error) from error
        self._since = time.monotonic()

    def read(self) -> tuple[Tensors, dict[str, Any]] | None:
        """What was written last, in host memory; None for no file. Raises RunError for a damaged one."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                figures = json.loads((file.metadata() or {})[_FORMAT])
                return {name: file.get_tensor(name) for name in file.keys()}, figures  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise self.unusable(error) from error

    def unusable(self, error: Exception) -> RunError:
        return RunError(
            f"{self.path}: no savepoint of this training: {error!r}; delete it, and the step is trained from "
            "its first epoch"
        )


class Best(NamedTuple):
    """The epoch to be kept, as far as is known."""

    epoch: int
    evaluation: Evaluation
    weights: Tensors


@dataclass
class Training:
    """All that changes from epoch to epoch; a savepoint that says another `what` is not taken."""

    what: str
    model: Segmenter
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    history: list[dict[str, float]] = field(default_factory=list)
    best: Best | None = None

    def is_best(self, evaluation: Evaluation) -> bool:
        """Of equal ones the first is the best; an mIoU of NaN is the lowest."""
        if self.best is None:
            return True
        now, before = evaluation.mean_iou, self.best.evaluation.mean_iou
        return now > before or (math.isnan(before) and not math.isnan(now))

    def save(self, savepoint: Savepoint) -> None:
        """With torch's random state. Raises RunError."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for number, parameter in enumerate(self._trained()):
            moments = self.optimiser.state[parameter]
            tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in moments.items()}
        if self.best:
            tensors["confusion"] = self.best.evaluation.confusion
            tensors |= {f"best.{name}": tensor for name, tensor in self.best.weights.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        figures = {
            "what": self.what, "history": self.history, "best": self.best and self.best.epoch,
            "learning_rate": self.optimiser.param_groups[0]["lr"], "scaler": self.scaler.state_dict(),
        }  # fmt: skip
        savepoint.write(tensors, figures)

    def restore(self, savepoint: Savepoint) -> None:
        """What `save` wrote, with torch's random state, if that was trained on the same. Raises RunError."""
        found = savepoint.read()
        if found is None or found[1].get("what") != self.what:
            return
        tensors, figures = found
        try:
            self.model.load_state_dict(_part(tensors, "model."))
            for number, parameter in enumerate(self._trained()):
                moments = _part(tensors, f"optimiser.{number}.")
                state = self.optimiser.state[parameter] = {"step": moments.pop("step").to(parameter.device)}
                for name, tensor in moments.items():  # laid out as the parameter: the fused step wants that
                    state[name] = torch.empty_like(parameter).detach().copy_(tensor)
            for group in self.optimiser.param_groups:
                group["lr"] = figures["learning_rate"]
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(figures["scaler"])
            self.history = figures["history"]
            if figures["best"]:
                evaluation = Evaluation(tensors["confusion"])
                self.best = Best(figures["best"], evaluation, _part(tensors, "best."))
            torch.set_rng_state(tensors["random.cpu"])
            if self._device.type == "cuda" and "random.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["random.cuda"], self._device)
        except (KeyError, TypeError, RuntimeError) as error:
            raise savepoint.unusable(error) from error

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _trained(self) -> list[torch.Tensor]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
