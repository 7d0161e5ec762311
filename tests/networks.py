"""Untrained networks that tell images apart."""

import torch
from torch import nn

from meal_gpu.models import Builder, Segmenter


def calibrated(builder: Builder, seed: int) -> Segmenter:
    """A network of ours whose BatchNorm statistics fit its activations, in eval mode."""
    model = builder(seed)
    settle(model)
    with torch.no_grad():
        model.classifier.weight.mul_(4)
    return model


def settle(model: nn.Module) -> None:
    """Let BatchNorm statistics fit the activations, and leave the model in eval mode.

    With those of a fresh network activations fade layer by layer, and all logits are equal.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        model.train()(torch.randn(4, 3, 64, 64))
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def blocks() -> torch.Tensor:
    """Six images [6, 32, 64, 3] uint8 of blocks, so that patches differ."""
    small = torch.randint(256, (6, 8, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return small.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
