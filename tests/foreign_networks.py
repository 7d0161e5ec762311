"""Networks as other packages and other people build them."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import segmentation as torchvision

CLASSES = 7


class Plain(nn.Module):
    """Somebody's own network: logits at stride 2, in whatever wrapping."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any] = lambda logits: logits, classes: int = CLASSES):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.body = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Conv2d(8, classes, 1)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.unused = nn.Identity()
        self.wrap = wrap
        self.bodies = 0

    def forward(self, images: torch.Tensor) -> Any:
        stem = self.stem(images)
        self.pool(self.body(stem))
        self.bodies += 1
        return self.wrap(self.head(stem))


def hugging_face(name: str, **config: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra `dev`")
    config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **config)
    model = getattr(transformers, f"{name}ForSemanticSegmentation")(config)
    assert isinstance(model, nn.Module)
    return model


SEGFORMER = {
    "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 24,
}  # fmt: skip

# name: (how it is built, align_corners, what it pads to, stride of its logits, D of its features)
FAMILIES: dict[str, tuple[Callable[[], nn.Module], bool, int, int, int]] = {
    "smp DeepLabV3+": (
        lambda: smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=CLASSES), True, 16, 4, 1280
    ),
    "smp DeepLabV3": (
        lambda: smp.DeepLabV3("resnet18", encoder_weights=None, classes=CLASSES), True, 8, 8, 512
    ),
    "smp FPN": (lambda: smp.FPN("resnet18", encoder_weights=None, classes=CLASSES), True, 32, 4, 512),
    "smp PSPNet": (lambda: smp.PSPNet("resnet18", encoder_weights=None, classes=CLASSES), True, 8, 8, 128),
    "smp Segformer": (
        lambda: smp.Segformer("mit_b0", encoder_weights=None, classes=CLASSES), True, 32, 4, 256
    ),
    "smp UPerNet": (
        lambda: smp.UPerNet("resnet18", encoder_weights=None, classes=CLASSES), True, 32, 4, 512
    ),
    "smp Unet": (lambda: smp.Unet("resnet18", encoder_weights=None, classes=CLASSES), True, 1, 1, 512),
    "torchvision DeepLabV3": (
        lambda: torchvision.deeplabv3_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True
        ),
        False, 1, 16, 960,
    ),
    "torchvision FCN": (
        lambda: torchvision.fcn_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES),
        False, 1, 8, 2048,
    ),
    "torchvision LR-ASPP": (
        lambda: torchvision.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=CLASSES
        ),
        False, 1, 8, 960,
    ),
    "transformers SegFormer": (lambda: hugging_face("Segformer", **SEGFORMER), False, 1, 4, 32),
    "transformers MobileNetV2": (
        lambda: hugging_face("MobileNetV2", depth_multiplier=0.35, output_stride=16), False, 1, 16, 1280
    ),
    "plain": (Plain, False, 1, 2, 0),
}  # fmt: skip
_BUILT: dict[str, nn.Module] = {}


def built(name: str) -> nn.Module:
    """A network of a family, in train mode, with BatchNorm statistics that fit its activations."""
    if name not in _BUILT:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = FAMILIES[name][0]().train()
            norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = 1.0
            with torch.no_grad():
                model(torch.randn(4, 3, 96, 96))
        _BUILT[name] = model
    return copy.deepcopy(_BUILT[name])


def images(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def at_full_size(adapter: Any, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    full = F.interpolate(
        logits, size=adapter.padded_size(size), mode="bilinear", align_corners=adapter.align_corners
    )
    return full[:, :, : size[0], : size[1]]


def state(model: nn.Module) -> list[object]:
    return [
        (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]


def pool() -> torch.Tensor:
    """Six images of 64×96, in blocks, so that patches differ."""
    blocks = torch.randint(256, (6, 8, 12, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return blocks.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
