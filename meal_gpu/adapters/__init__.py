"""Trained networks of other packages as scoring sees them: logits before their last upsampling, and features.

A family is known by where its `forward` is defined, so that a subclass with a `forward` of its own is called
as any other module is. Nothing of a vendor is imported for it.
"""

import math
from collections.abc import Sequence

from torch import nn

from meal_gpu.adapters.base import Adapter, Normalisation
from meal_gpu.adapters.families import HuggingFace, Smp, Torchvision
from meal_gpu.errors import InputError
from meal_gpu.models import IMAGENET_MEAN, IMAGENET_STD, NETWORK, Network, is_network

__all__ = ["Adapter", "Normalisation", "adapt"]

_SMP = "segmentation_models_pytorch.base.model"
_TORCHVISION = ("torchvision.models.segmentation._utils", "torchvision.models.segmentation.lraspp")


def adapt(
    model: Network | nn.Module,
    *,
    layer: str | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Network:
    """A trained segmentation network as a `Network`; the model, its mode and its hooks stay as they are.

    Networks of segmentation_models_pytorch and torchvision are read before their last upsampling and
    activation; those of Hugging Face (`*ForSemanticSegmentation`) return low-resolution logits of their own.
    Any other module is called with the images, and must return logits (not probabilities) [B, C, h, w] of any
    resolution that span the whole image: a tensor, a dict with "out" or "logits", or a tuple that begins with
    them. Data-parallel wrappers and `torch.compile`'s are taken off.

    Args:
        model: the network, or something that is a `Network` already and is returned as it is.
        layer: dotted name of the submodule whose output, [B, D, h, w] or [B, D], gives the features. None:
            the last stage of the encoder where the family is known; otherwise there are no features, and
            the first use of them raises an InputError.
        mean, std: three numbers each, of the normalisation that the model was trained with, for values in
            0..1.

    Raises:
        InputError: something that is no module; a layer that is not there; numbers that are no mean or
            standard deviation. When it is called: logits of another rank or dtype or of one class,
            probabilities, a layer whose output is no feature map.
    """
    scale = _normalisation(mean, std)
    if isinstance(model, nn.Module):
        model = _unwrapped(model)
    if is_network(model):
        if layer is not None:
            raise InputError(
                f"{type(model).__name__} is a Network with features of its own; leave out layer="
            )
        if scale != (IMAGENET_MEAN, IMAGENET_STD):
            raise InputError(
                f"{type(model).__name__} is a Network with a normalisation of its own; leave out mean and std"
            )
        return model
    if not isinstance(model, nn.Module):
        raise InputError(
            f"a model is a torch.nn.Module or a meal_gpu.models.Network (with {', '.join(NETWORK)}); "
            f"got {type(model).__module__}.{type(model).__qualname__}"
        )
    return _family(model)(model, layer, *scale)


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[Normalisation, Normalisation]:
    try:
        (a, b, c), (d, e, f) = (map(float, each) for each in (mean, std))
    except (TypeError, ValueError):
        a = b = c = d = e = f = math.nan
    if not (all(map(math.isfinite, (a, b, c, d, e, f))) and min(d, e, f) > 0):
        raise InputError(
            f"mean and std are three finite numbers each, those of std above 0; got {mean} and {std}"
        )
    if max(map(abs, (a, b, c))) > 10:
        raise InputError(f"mean and std are for values in 0..1: divide by 255; got {mean} and {std}")
    return (a, b, c), (d, e, f)


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def _family(model: nn.Module) -> "type[Adapter]":
    home = getattr(getattr(type(model), "forward", None), "__module__", None)
    if home == _SMP:
        return Smp
    if home in _TORCHVISION:
        return Torchvision
    if hasattr(model, "base_model_prefix") and getattr(model, "main_input_name", None) == "pixel_values":
        return HuggingFace
    return Adapter
