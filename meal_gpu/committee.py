"""Several predictions of one pool: dropout passes, ensemble members, an image and its mirror image."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from meal_gpu import rng
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.inference import autocast, for_inference
from meal_gpu.models import Encoded, Network, Segmenter
from meal_gpu.ops import Committee
from meal_gpu.passes import ImageSet
from meal_gpu.scoring import Advance

# [T, B, C, h, w], batch after batch of the pool
Predictions = Iterator[torch.Tensor]
_Predict = Callable[[Network], torch.Tensor]  # a network's logits [B, C, h, w] of the batch at hand
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def score_committee(
    pool: ImageSet, predictions: Predictions, model: Network, grid: Grid, *, temperature: float = 1.0,
    valid: torch.Tensor | None = None, advance: Advance = lambda _: None,
) -> Committee:  # fmt: skip
    """`total` and `expected` entropy [P] float32 in nats of every patch, see `ops.Committee`.

    Args:
        predictions: what `dropout`, `members` or `mirrored` yields.
        model: says how logits lie over the image.
        valid: [H, W] bool, the pixels that count.
    """
    padded = model.padded_size(pool.size)
    counting = valid if valid is None else valid.to(pool.device, torch.uint8, non_blocking=True)
    parts: list[Committee] = []
    for logits in predictions:
        parts.append(
            pool.ops.patch_committee(
                logits, grid, padded, model.align_corners, temperature=temperature, valid=counting
            )
        )
        advance(logits.shape[1])
    return Committee(*(torch.cat(part).flatten() for part in zip(*parts, strict=True)))


@torch.inference_mode()
def dropout(pool: ImageSet, model: Network, passes: int, seed: int) -> Predictions:
    """Passes with dropout left on (Gal and Ghahramani 2016).

    One seed gives one result on one machine, for one size of batches. torch's global state is left alone.

    Raises:
        InputError: the network has no dropout.
    """
    ready = for_inference(model, pool.precision, pool.device)
    modules = ready.modules() if isinstance(ready, nn.Module) else ()
    layers = [module for module in modules if isinstance(module, _DROPOUT) and module.p]
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no dropout, so that all passes would be equal: choose another "
            "measure than mc-entropy and bald"
        )
    number = 0

    def use(predict: _Predict) -> torch.Tensor:
        drawn = rng.integer(seed, number, "dropout of a batch")
        with rng.seeded(drawn, pool.device), _training(layers):
            return torch.stack([predict(ready) for _ in range(passes)])

    own = isinstance(ready, Segmenter)
    for logits in _encoded(pool, ready, use) if own else _whole(pool, ready, use):
        yield logits
        number += 1


@torch.inference_mode()
def members(pool: ImageSet, models: Sequence[Network]) -> Predictions:
    """The members of an ensemble (Lakshminarayanan et al. 2017).

    Raises:
        InputError: fewer than two, or one that normalises images or lays its logits over them otherwise.
    """
    if len(models) < 2:
        raise InputError(f"an ensemble has two members or more, got {len(models)}: pass them as `members`")
    first, *others = (_geometry(model, pool.size) for model in models)
    for number, found in enumerate(others, 1):
        if found != first:
            raise InputError(
                f"member {number} of the ensemble has (mean, std, align_corners, padded size) {found}, "
                f"member 0 {first}: members are read alike"
            )
    ready = [for_inference(model, pool.precision, pool.device) for model in models]

    def use(predict: _Predict) -> torch.Tensor:
        first, *others = (predict(model) for model in ready)
        for number, logits in enumerate(others, 1):
            if logits.shape != first.shape:
                raise InputError(
                    f"member {number} of the ensemble returns logits {list(logits.shape)}, member 0 "
                    f"{list(first.shape)}: members must have the same classes and strides"
                )
        return torch.stack([first, *others])

    shared = _share_encoder(ready)
    yield from _encoded(pool, ready[0], use) if shared else _whole(pool, ready[0], use)


def _geometry(model: Network, size: tuple[int, int]) -> tuple[object, ...]:
    return tuple(model.mean), tuple(model.std), bool(model.align_corners), model.padded_size(size)


def _share_encoder(models: Sequence[Network]) -> bool:
    """Whether all are frozen networks of ours whose encoders compute the same: those of one run do.

    The host waits for the device, once.
    """
    encoders = [model.encoder for model in models if isinstance(model, Segmenter) and model.frozen]
    if len(encoders) < len(models):
        return False
    first, *others = (encoder.state_dict() for encoder in encoders)
    shapes = [{name: values.shape for name, values in state.items()} for state in (first, *others)]
    texts = [repr(encoder) for encoder in encoders]  # strides and dilations are no weights
    if any(shape != shapes[0] for shape in shapes) or any(text != texts[0] for text in texts):
        return False
    unequal = [(state[name] != values).any() for state in others for name, values in first.items()]
    return not bool(torch.stack(unequal).any())


@torch.inference_mode()
def mirrored(pool: ImageSet, model: Network) -> Predictions:
    """Every image and its mirror image, whose prediction is mirrored back."""
    ready = for_inference(model, pool.precision, pool.device)
    height, width = model.padded_size(pool.size)

    def run(pixels: torch.Tensor) -> torch.Tensor:
        # Padding would be on the other side of a mirrored image: what is mirrored is the padded one
        whole = F.pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))
        other = pool.forward(ready, whole.flip(3)).logits.flip(3)
        return torch.stack([pool.forward(ready, pixels).logits, other])

    yield from (logits for _, logits in pool.normalised(ready, run))


@contextmanager
def _training(layers: Sequence[nn.Module]) -> Iterator[None]:
    """The layers in train mode while they themselves run: an adapter sets all of its model to eval mode."""

    def begin(layer: nn.Module, _args: Any) -> None:
        layer.training = True

    def end(layer: nn.Module, _args: Any, _output: Any) -> None:
        layer.training = False

    handles = [layer.register_forward_pre_hook(begin) for layer in layers]
    handles += [layer.register_forward_hook(end, always_call=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _whole(pool: ImageSet, ready: Network, use: Callable[[_Predict], torch.Tensor]) -> Predictions:
    """What `use` makes of every batch by predictions of the whole network."""

    def run(pixels: torch.Tensor) -> torch.Tensor:
        # Of a copy, because somebody's network may work in place
        return use(lambda model: pool.forward(model, pixels.clone()).logits)

    yield from (logits for _, logits in pool.normalised(ready, run))


def _encoded(pool: ImageSet, ready: Network, use: Callable[[_Predict], torch.Tensor]) -> Predictions:
    """As `_whole` for networks of our own, of which the encoder, without dropout, runs once."""
    assert isinstance(ready, Segmenter)

    def run(encoded: Encoded) -> torch.Tensor:
        def predict(model: Network) -> torch.Tensor:
            assert isinstance(model, Segmenter)
            return model.decode(encoded)

        with autocast(pool.device, pool.precision):
            return use(predict)

    def encode_and_run(pixels: torch.Tensor) -> torch.Tensor:
        with autocast(pool.device, pool.precision):
            return run(ready.encode(pixels))

    found = pool.decoded(ready, run) if ready.frozen else pool.normalised(ready, encode_and_run)
    yield from (logits for _, logits in found)
