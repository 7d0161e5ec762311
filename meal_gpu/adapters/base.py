"""The adapter of any module, in which a family overrides what it knows better."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from meal_gpu.errors import InputError
from meal_gpu.models import LogitsOnly, Output
from meal_gpu.ops.public import ONE_CLASS

Normalisation = tuple[float, float, float]


class _Stop(BaseException):
    """Ends a forward pass at the layer; no `except Exception` on the way may stop it."""


class _Look:
    """Whether the values of a network's logits were looked at: its copies for inference share that."""

    done = False

    def __deepcopy__(self, _: object) -> "_Look":
        return self


class Adapter(nn.Module):
    """Any module; its subclasses know a family. Features are seen by a hook that lives for one call."""

    align_corners = False

    def __init__(self, model: nn.Module, layer: str | None, mean: Normalisation, std: Normalisation) -> None:
        super().__init__()
        self.model = model
        self.mean = mean
        self.std = std
        self._values = _Look()
        self._unread: str | None = None  # why the default layer gives no features
        self._default = self._default_layer()
        self._layer = self._default if layer is None else layer
        # A second reference keeps a BatchNorm from being folded into the very convolution that is looked at
        self._watched: nn.Module | None = None
        if self._layer is not None:
            if isinstance(model, torch.jit.ScriptModule):
                raise InputError(
                    f"layer {self._layer!r} of a scripted model cannot be looked at, because its submodules "
                    "run no hooks; pass the nn.Module that was scripted"
                )
            modules = dict(model.named_modules(remove_duplicate=False))
            if not self._layer or self._layer not in modules:
                raise InputError(f"{type(model).__name__} has no layer {self._layer!r}; {self._candidates()}")
            last = modules[self._layer]
            while isinstance(last, nn.Sequential) and len(last):
                last = last[-1]
            self._watched = last if isinstance(last, nn.Conv2d) else None

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) that the logits span."""
        return size

    def train(self, mode: bool = True) -> "Adapter":
        """Changes nothing: the adapter only infers, and its user's model keeps the mode that it has."""
        return self

    def forward(self, images: torch.Tensor) -> Output:
        if self._layer is None:
            with _evaluating(self.model):
                logits = self._seen_first(_checked(self._logits(images), self.model))
            return LogitsOnly.of(logits, self._missing_layer())
        with _evaluating(self.model), self._seen(len(images)) as seen:
            logits = self._seen_first(_checked(self._logits(images), self.model))
        if not seen and self._unread is not None:
            return LogitsOnly.of(logits, self._unread)
        return Output(logits, self._first(seen))

    def _seen_first(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits, of which the values of the first batch are looked at, and of no other: the host waits."""
        if not self._values.done and logits.numel():
            self._values.done = True
            if _are_probabilities(logits):
                raise InputError(
                    f"{type(self.model).__name__} returns probabilities, from 0 to 1 and of a sum of 1 over "
                    "the classes; return what goes into its softmax, the logits"
                )
        return logits

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """[B, D, h, w]: the layer's output; what comes after the layer is not computed."""
        if self._layer is None:
            raise InputError(self._missing_layer())
        with _evaluating(self.model), self._seen(len(images), stop=True) as seen:
            self._logits(images)
        return self._first(seen)

    @contextmanager
    def _seen(self, batch: int, *, stop: bool = False) -> Iterator[list[torch.Tensor]]:
        """Collects the layer's first output, checked; with `stop` the pass ends there."""
        assert self._layer is not None
        seen: list[torch.Tensor] = []

        def look(_module: nn.Module, _args: Any, output: Any) -> None:
            if not seen:
                try:
                    maps = self._map(output, batch)
                except InputError as error:
                    if stop or self._layer != self._default:
                        raise
                    self._unread = str(error)  # not everybody asks for features
                    return
                if not stop and isinstance(output, torch.Tensor) and output.ndim == 2:
                    self._unread = (
                        f"layer {self._layer!r} of {type(self.model).__name__} gives one vector for a whole "
                        'image, the same for all of its patches: take features="crop", or an earlier layer'
                    )
                    return
                # cloned, because what follows may work in place, as ReLU does
                seen.append(maps if stop else maps.clone())
            if stop:
                raise _Stop

        handle = self.model.get_submodule(self._layer).register_forward_hook(look)
        try:
            yield seen
        except _Stop:
            pass
        finally:
            handle.remove()

    def _first(self, seen: list[torch.Tensor]) -> torch.Tensor:
        if not seen:
            raise InputError(
                f"layer {self._layer!r} of {type(self.model).__name__} takes no part in the forward pass; "
                f"{self._candidates()}"
            )
        return seen[0]

    def _map(self, output: Any, batch: int) -> torch.Tensor:
        if self._layer == self._default:
            output = self._last_stage(output)
        if isinstance(output, torch.Tensor) and output.is_floating_point() and len(output) == batch:
            if output.ndim == 4:
                return output
            if output.ndim == 2:
                return output[:, :, None, None]
        found = f"{list(output.shape)} {output.dtype}" if isinstance(output, torch.Tensor) else type(output)
        raise InputError(
            f"layer {self._layer!r} of {type(self.model).__name__} gives {found}; features must be "
            f"floating point [{batch}, D, h, w] or [{batch}, D] for {batch} images; {self._candidates()}"
        )

    def _missing_layer(self) -> str:
        return f"no layer of {type(self.model).__name__} is known to give features; {self._candidates()}"

    def _candidates(self) -> str:
        children = ", ".join(name for name, _ in self.model.named_children()) or "none"
        return f"pass layer=NAME: one of its children ({children}), or a submodule of one by its dotted name"

    # What a family knows better

    def _default_layer(self) -> str | None:
        return None

    def _last_stage(self, output: Any) -> Any:
        """The feature map in the default layer's output."""
        return output

    def _logits(self, images: torch.Tensor) -> Any:
        return self.model(images)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while, flag by flag: `train` may have been overridden to leave parts out."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _checked(output: Any, model: nn.Module) -> torch.Tensor:
    """The logits in what a model returned."""
    if isinstance(output, Mapping):
        output = output.get("out", output.get("logits", output))
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    name = type(model).__name__
    if not isinstance(output, torch.Tensor):
        raise InputError(
            f"{name} returns {type(output).__name__}; expected logits [B, C, h, w]: a tensor, a dict with "
            '"out" or "logits", or a tuple that begins with them'
        )
    if output.ndim != 4 or not output.is_floating_point():
        raise InputError(
            f"{name} returns {list(output.shape)} {output.dtype}; expected floating-point logits "
            "[B, C, h, w], before any argmax"
        )
    if output.shape[1] < 2:
        raise InputError(f"{name} returns {output.shape[1]} logit per pixel, and {ONE_CLASS}")
    return output


def _are_probabilities(logits: torch.Tensor) -> bool:
    """Whether the classes of the first image sum to 1, as no logits do. The host waits for the answer."""
    first = logits.detach()[0].float()
    off = (first.sum(dim=0) - 1).abs().amax()
    return bool((first.amin() >= 0) & (off <= 1e-3 + torch.finfo(logits.dtype).eps))
