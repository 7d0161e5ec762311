"""Training on labelled patches: cross-entropy, Adam, the epoch with the best validation mIoU is kept."""

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from meal_gpu import rng
from meal_gpu.errors import InputError, MealGpuError
from meal_gpu.evaluate import Evaluation
from meal_gpu.inference import autocast
from meal_gpu.memory import beside, explained
from meal_gpu.models import Encoded, Segmenter
from meal_gpu.oracle import Oracle
from meal_gpu.patchwise import patch_decoder
from meal_gpu.savepoint import Best, Savepoint, Training
from meal_gpu.scoring import Advance

_LOWER = (
    "Set a smaller batch_size (which is another result, so it is not done unasked), lower cache_gib or "
    "pool_share, compute in bfloat16, or end other programs on the device"
)
_PIXEL_BYTES = 3 * 4  # float32 colours


@dataclass(frozen=True)
class Schedule:
    """As the keys of the same names in `config.Config`."""

    epochs: int
    batch_size: int
    learning_rate: float
    decay_every: int = 0
    keep: str = "best"
    validate_every: int = 1
    precision: str = "float32"
    cache_bytes: int = 0


@dataclass(frozen=True)
class Trained:
    """`epoch` is the one kept, counted from 1; `history` has a dict of figures per epoch."""

    epoch: int
    evaluation: Evaluation | None
    history: list[dict[str, float]]


def train(
    model: Segmenter,
    patches: torch.Tensor,
    oracle: Oracle,
    schedule: Schedule,
    *,
    seed: int,
    step: int,
    validate: Callable[[], Evaluation] | None,
    advance: Advance = lambda _: None,
    savepoint: Savepoint | None = None,
) -> Trained:
    """Train `model` in place on the patches [M] and leave it at the epoch that is kept.

    All randomness (order, dropout) comes from (`seed`, `step`); torch's global state is left alone. A
    `savepoint` is written after an epoch when it is due. One of the same patches and epochs is where training
    begins; on a CPU it then ends as it would have without a stop, bit for bit.

    Out of memory is no reason for smaller batches: BatchNorm would make them another result.

    Raises:
        InputError: fewer than two patches, or batches of one.
        MealGpuError: the loss is NaN or infinite, or the device's memory is used up.
        RunError: the savepoint cannot be read or written.
    """
    if min(len(patches), schedule.batch_size) < 2:
        raise InputError(
            f"{len(patches)} patches in batches of {schedule.batch_size} were given; "
            "BatchNorm needs at least 2 of both"
        )
    device, (height, width) = oracle.images.device, oracle.sample_size
    what = (
        f"step {step}: training with batch_size {schedule.batch_size}, each of {height}×{width} pixels, "
        f"in {schedule.precision}"
    )
    with explained(device, what, _LOWER):
        return _trained(
            model, patches, oracle, schedule, seed=seed, step=step, validate=validate, advance=advance,
            savepoint=savepoint,
        )  # fmt: skip


def _trained(
    model: Segmenter, patches: torch.Tensor, oracle: Oracle, schedule: Schedule, *, seed: int, step: int,
    validate: Callable[[], Evaluation] | None, advance: Advance, savepoint: Savepoint | None,
) -> Trained:  # fmt: skip
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = oracle.images.device
    optimiser = torch.optim.Adam(trainable, schedule.learning_rate, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=schedule.precision == "float16")
    batches = _Batches(model, patches, oracle, schedule)
    what = f"{hashlib.sha256(patches.cpu().numpy().tobytes()).hexdigest()}, {schedule.epochs} epochs"
    training = Training(what, model, optimiser, scaler)
    with rng.seeded(rng.integer(seed, step, "dropout"), device):
        if savepoint:
            training.restore(savepoint)
            advance(len(training.history))
        for epoch in range(len(training.history) + 1, schedule.epochs + 1):
            if schedule.decay_every and epoch > 1 and (epoch - 1) % schedule.decay_every == 0:
                for group in optimiser.param_groups:
                    group["lr"] *= 0.1
            order = torch.from_numpy(rng.stream(seed, step, f"epoch {epoch}").permutation(len(patches)))
            loss = _epoch(model, order, batches, optimiser, scaler, schedule, oracle.void)
            if not math.isfinite(loss):
                raise MealGpuError(
                    f"step {step}, epoch {epoch} of {schedule.epochs}: the training loss is {loss}; lower "
                    f"learning_rate, which is {schedule.learning_rate:g}, or compute in float32 where "
                    f"precision is {schedule.precision}"
                )
            row = {"epoch": float(epoch), "loss": loss}
            last = epoch == schedule.epochs
            if validate and (last or (schedule.keep == "best" and epoch % schedule.validate_every == 0)):
                evaluation = validate()
                row["mean_iou"] = evaluation.mean_iou
                if schedule.keep == "last" or training.is_best(evaluation):
                    training.best = Best(epoch, evaluation, copy.deepcopy(model.state_dict()))
            training.history.append(row)
            advance(1)
            if savepoint and not last and savepoint.due():
                training.save(savepoint)
    best = training.best
    if best is None:
        return Trained(schedule.epochs, None, training.history)
    model.load_state_dict(best.weights)
    return Trained(best.epoch, best.evaluation, training.history)


def _epoch(
    model: Segmenter,
    order: torch.Tensor,
    batches: "_Batches",
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    schedule: Schedule,
    void: int,
) -> float:
    """One pass over the patches; the mean loss per batch."""
    model.train()
    total = torch.zeros((), device=next(model.parameters()).device)
    rows = split(order, schedule.batch_size)
    for batch in rows:
        with autocast(total.device, schedule.precision):
            logits, labels = batches(batch)
        optimiser.zero_grad(set_to_none=True)
        loss = cross_entropy(logits, labels, void)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimiser)
        scaler.update()
        total += loss.detach()
    return float(total) / len(rows)


def split(order: torch.Tensor, size: int) -> list[torch.Tensor]:
    """[M] -> batches of `size`; a last one of a single row joins its neighbour.

    BatchNorm after ASPP's global pooling has one value per channel and image: it cannot train on one image.
    """
    parts = list(torch.split(order, size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, void: int) -> torch.Tensor:
    """Mean over the pixels [B, H, W] that are not void, of logits [B, C, H, W]; 0 where all are void."""
    total = F.cross_entropy(logits, labels.long(), ignore_index=void, reduction="sum")
    return total / (labels != void).sum().clamp(min=1)


class _Batches:
    """Logits of patches with their labels.

    What would be made anew in every epoch is kept where it fits: the outputs of a frozen encoder, and of what
    is to be encoded again the pixels, if they do not live on the device.
    """

    def __init__(self, model: Segmenter, patches: torch.Tensor, oracle: Oracle, schedule: Schedule) -> None:
        self._model = model
        self._oracle = oracle
        self._decode = patch_decoder(model, oracle.grid, oracle.context, oracle.images.device)
        self._patches = patches
        shown, self._within = oracle.shown(patches)
        first, place = np.unique(shown.cpu().numpy(), return_index=True, return_inverse=True)[1:]
        self._place = torch.from_numpy(place)
        self._once = patches[torch.from_numpy(first).to(patches.device)]  # one for each that is shown
        self._pixels: torch.Tensor | None = None
        self._encoded = self._encodings(schedule) if model.frozen else None
        self._known = 0 if self._encoded is None else len(self._encoded.deep)
        left = self._once[self._known :]
        size = len(left) * math.prod(oracle.sample_size) * _PIXEL_BYTES
        free = schedule.cache_bytes - sum(maps.nbytes for maps in self._encoded or ())
        if oracle.images.resident is None and 0 < size <= free:
            self._pixels = oracle.pixels(left, model)

    def _encodings(self, schedule: Schedule) -> Encoded | None:
        self._model.eval()
        kept: Encoded | None = None
        fit = len(self._once)
        for places in torch.split(torch.arange(fit), schedule.batch_size):
            if not len(places := places[places < fit]):
                break
            with autocast(self._oracle.images.device, schedule.precision):
                part = self._encode(places)
            if kept is None:
                fit = min(fit, schedule.cache_bytes // sum(maps[0].nbytes for maps in part))
                if not fit:
                    return None
                kept = Encoded(*(_room(maps, fit) for maps in part))
            for maps, found in zip(kept, part, strict=True):
                maps[places[0] : places[0] + len(found)] = found[: fit - places[0]]
        return kept

    def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [B, C, ph, pw] and uint8 [B, ph, pw] of these of the patches."""
        places, within = self._place[rows], self._within[beside(rows, self._within.device)]
        encoded = self._encode(places) if self._encoded is None else self._found(places, self._encoded)
        patches = self._patches[beside(rows, self._patches.device)]
        return self._decode(encoded, within), self._oracle.truth(patches)

    def _found(self, places: torch.Tensor, kept: Encoded) -> Encoded:
        known = places < self._known
        encoded = Encoded(*(maps[beside(places.where(known, 0), maps.device)] for maps in kept))
        if not known.all():
            fresh = self._encode(places[~known])
            for maps, part in zip(encoded, fresh, strict=True):
                maps[beside((~known).nonzero()[:, 0], maps.device)] = part
        return encoded

    def _encode(self, places: torch.Tensor) -> Encoded:
        if len(places) == 1:  # a batch of one is rounded otherwise, and there is none where nothing is kept
            return Encoded(*(maps[:1] for maps in self._encode(places.expand(2))))
        if self._pixels is not None:
            pixels = self._pixels[beside(places - self._known, self._pixels.device)]
        else:
            pixels = self._oracle.pixels(self._once[beside(places, self._once.device)], self._model)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._model.frozen):
            return self._model.encode(pixels)


def _room(maps: torch.Tensor, n: int) -> torch.Tensor:
    """Memory for n of `maps` [B, C, h, w], laid out as these are."""
    channels_last = maps.is_contiguous(memory_format=torch.channels_last)
    form = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((n, *maps.shape[1:]), dtype=maps.dtype, device=maps.device, memory_format=form)
