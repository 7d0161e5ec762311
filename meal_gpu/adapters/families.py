"""The families whose logits and features are where their authors put them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from meal_gpu.adapters.base import Adapter, Normalisation
from meal_gpu.models import altered


class Smp(Adapter):
    """segmentation_models_pytorch: the head is a convolution, an upsampling and an activation."""

    model: Any

    def __init__(self, model: nn.Module, layer: str | None, mean: Normalisation, std: Normalisation) -> None:
        super().__init__(model, layer, mean, std)
        divisible = getattr(model, "requires_divisible_input_shape", True)
        self._multiple = int(self.model.encoder.output_stride) if divisible else 1
        head = self.model.segmentation_head
        up = head[1] if isinstance(head, nn.Sequential) and len(head) == 3 else None
        # A head that somebody else wrote is called whole
        self._split = isinstance(up, nn.Identity) or (isinstance(up, nn.Upsample) and up.mode == "bilinear")
        self.align_corners = bool(getattr(up, "align_corners", True))

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = (-(-side // self._multiple) * self._multiple for side in size)
        return height, width

    def _default_layer(self) -> str:
        return "encoder"

    def _last_stage(self, output: Any) -> Any:
        return output[-1]

    def _logits(self, images: torch.Tensor) -> Any:
        height, width = images.shape[2:]
        to_height, to_width = self.padded_size((height, width))
        if (to_height, to_width) != (height, width):
            images = F.pad(images, (0, to_width - width, 0, to_height - height))
        head = self.model.segmentation_head
        if altered(self.model):
            return self.model(images)
        decoded = self.model.decoder(self.model.encoder(images))
        return head[0](decoded) if self._split and not altered(head, *list(head)[1:]) else head(decoded)


class Torchvision(Adapter):
    """DeepLabV3, FCN and LR-ASPP: a backbone that gives a dict, and a classifier."""

    model: Any

    def _default_layer(self) -> str:
        return "backbone"

    def _last_stage(self, output: Any) -> Any:
        return output["high" if "high" in output else "out"]

    def _logits(self, images: torch.Tensor) -> Any:
        if altered(self.model):
            return self.model(images)
        stages = self.model.backbone(images)
        return self.model.classifier(stages if "high" in stages else stages["out"])


class HuggingFace(Adapter):
    """`*ForSemanticSegmentation` of transformers: the base model is an attribute that the class names."""

    def _default_layer(self) -> str | None:
        name = str(self.model.base_model_prefix)
        return name if isinstance(getattr(self.model, name, None), nn.Module) else None

    def _last_stage(self, output: Any) -> Any:
        return output[0]  # last_hidden_state, of a ModelOutput and of a tuple

    def _logits(self, images: torch.Tensor) -> Any:
        return self.model(pixel_values=images)
