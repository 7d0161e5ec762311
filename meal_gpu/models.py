"""DeepLabV3+ on MobileNetV2: logits at stride 4 and encoder features in one pass.

`smp` is segmentation_models_pytorch's network (separable convolutions, 4.4 M parameters). `paper` is the
network that the trainable counts of MEAL's Table 1 identify: MobileNetV2 without its last 1×1 convolution
(1.8 M), ASPP and decoder with plain 3×3 convolutions (4.0 M).
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import nn

from meal_gpu import rng
from meal_gpu.errors import ConfigError, InputError, UnavailableError

ARCHITECTURES = ("smp", "paper")
MULTIPLE = 16  # input sides are padded to a multiple of the encoder's output stride
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_ENCODER = "mobilenet_v2"


class Encoded(NamedTuple):
    """What the decoder needs: `high` [B, 24, H'/4, W'/4] and `deep` [B, D, H'/16, W'/16]."""

    high: torch.Tensor
    deep: torch.Tensor


class Output(NamedTuple):
    """`logits` [B, C, h, w] and `features` [B, D, h', w'], the encoder's last stage."""

    logits: torch.Tensor
    features: torch.Tensor


class LogitsOnly(Output):
    """An output without features, which is told to whoever asks for them."""

    reason: str

    @classmethod
    def of(cls, logits: torch.Tensor, reason: str) -> "LogitsOnly":
        output = cls(logits, logits.new_empty(len(logits), 0, 1, 1))
        output.reason = reason
        return output

    @property
    def features(self) -> torch.Tensor:
        raise InputError(self.reason)


class DecoderParts(NamedTuple):
    """DeepLabV3+'s decoder: `fuse` takes ASPP after `after`, upsampled, beside `high` after `reduce`."""

    aspp: nn.Module
    after: nn.Module
    reduce: nn.Module
    fuse: nn.Module


class Network(Protocol):
    """What scoring asks of a model: called on normalised [B, 3, H, W] images, it returns an `Output`.

    Logits and features have any lower resolution; they span `padded_size((H, W))` pixels, and the logits are
    upsampled bilinearly with `align_corners`. `features` gives the second part of the output alone. `mean`
    and `std` are those of the normalisation, for values in 0..1.
    """

    align_corners: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]: ...

    def __call__(self, images: torch.Tensor, /) -> Output: ...

    def features(self, images: torch.Tensor, /) -> torch.Tensor: ...

    def eval(self) -> Any: ...


NETWORK = ("padded_size", "features", "mean", "std", "align_corners")
"""By what a `Network` is known."""


def is_network(model: object) -> TypeGuard[Network]:
    return not isinstance(model, type) and all(hasattr(model, name) for name in NETWORK)


class Segmenter(nn.Module):
    """Encoder, decoder and classifier; sides that are no multiple of 16 are padded with zeros."""

    align_corners = True
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    @staticmethod
    def padded_size(size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) rounded up to what the encoder takes; the logits span this size."""
        height, width = (-(-side // MULTIPLE) * MULTIPLE for side in size)
        return height, width

    def __init__(self, encoder: nn.Module, decoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.classifier = nn.Conv2d(256, classes, kernel_size=1)
        self.frozen = False

    def encode(self, images: torch.Tensor) -> Encoded:
        height, width = images.shape[2:]
        to_height, to_width = self.padded_size((height, width))
        padded = F.pad(images, (0, to_width - width, 0, to_height - height))
        stages = self.encoder(padded.contiguous(memory_format=torch.channels_last))
        return Encoded(stages[2], stages[-1])

    def decode(self, encoded: Encoded) -> torch.Tensor:
        # smp's decoder reads the third and the last stage only
        decoded = self.decoder([encoded.high, encoded.high, encoded.high, encoded.deep])
        logits: torch.Tensor = self.classifier(decoded)
        return logits

    def decoder_parts(self) -> DecoderParts:
        """For those who run them one by one: see `patchwise`."""
        decoder: Any = self.decoder
        if isinstance(decoder, _PaperDecoder):
            return DecoderParts(decoder.aspp, nn.Identity(), decoder.reduce, decoder.fuse)
        return DecoderParts(decoder.aspp[0], decoder.aspp[1:], decoder.block1, decoder.block2)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.encode(images).deep

    def forward(self, images: torch.Tensor) -> Output:
        encoded = self.encode(images)
        return Output(self.decode(encoded), encoded.deep)

    def freeze_encoder(self) -> None:
        """The encoder's weights and its BatchNorm statistics stay as they are, also in train mode."""
        self.frozen = True
        self.encoder.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Segmenter":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self


class _PaperDecoder(nn.Module):
    """DeepLabV3+ (Chen et al. 2018) with plain 3×3 convolutions, rates for output stride 16."""

    def __init__(self, deep_channels: int, high_channels: int) -> None:
        super().__init__()
        from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP

        self.aspp = ASPP(deep_channels, 256, (6, 12, 18), separable=False, dropout=0.5)
        self.reduce = _conv(high_channels, 48, 1)
        self.fuse = nn.Sequential(_conv(304, 256, 3), _conv(256, 256, 3))

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        high = stages[2]
        deep = F.interpolate(
            self.aspp(stages[-1]), size=high.shape[2:], mode="bilinear", align_corners=Segmenter.align_corners
        )
        fused: torch.Tensor = self.fuse(torch.cat([deep, self.reduce(high)], dim=1))
        return fused


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Builder:
    """Builds networks that share one pretrained encoder, each with its own fresh decoder.

    Args:
        architecture: "smp" or "paper".
        classes: C, the number of logits.
        encoder_weights: "imagenet" (fetched from the model hub), "none", or a .safetensors file with
            torchvision's MobileNetV2 names (`features.*`).

    Raises:
        ConfigError: an unknown architecture or a weight file that does not fit.
        UnavailableError: the hub or the file cannot be reached.
    """

    def __init__(self, architecture: str, classes: int, encoder_weights: str, *, seed: int = 0) -> None:
        if architecture not in ARCHITECTURES:
            raise ConfigError(f"architecture is {architecture!r}; known: {', '.join(ARCHITECTURES)}")
        self.architecture = architecture
        self.classes = classes
        with rng.seeded(seed):
            self._encoder = _encoder(architecture, encoder_weights)

    def __call__(self, seed: int) -> Segmenter:
        """A network with the encoder's given weights and a decoder initialised from `seed`."""
        with rng.seeded(seed):
            model = Segmenter(copy.deepcopy(self._encoder), self._decoder(), self.classes)
            nn.init.xavier_uniform_(model.classifier.weight)
            assert model.classifier.bias is not None
            nn.init.zeros_(model.classifier.bias)
        return model.to(memory_format=torch.channels_last)

    def _decoder(self) -> nn.Module:
        if self.architecture == "paper":
            return _PaperDecoder(deep_channels=320, high_channels=24)
        import segmentation_models_pytorch as smp

        decoder = smp.DeepLabV3Plus(_ENCODER, encoder_weights=None).decoder
        assert isinstance(decoder, nn.Module)
        return decoder


def segmenter(classes: int, architecture: str = "smp") -> Segmenter:
    """An untrained network, to load a run's `model.safetensors` into (`meal-gpu acquire --model`)."""
    return Builder(architecture, classes, "none")(0)


def _encoder(architecture: str, weights: str) -> nn.Module:
    from segmentation_models_pytorch.encoders import get_encoder

    try:
        encoder = get_encoder(
            _ENCODER, weights="imagenet" if weights == "imagenet" else None, output_stride=16
        )
    except Exception as error:  # the hub client raises many kinds, none of them worth telling apart here
        raise UnavailableError(
            f"the ImageNet weights of {_ENCODER} could not be fetched from the model hub "
            f"({type(error).__name__}). Pass --encoder-weights PATH.safetensors (torchvision's names, "
            "`features.*`) or --encoder-weights none."
        ) from error
    if weights not in ("imagenet", "none"):
        _load_encoder(encoder, Path(weights))
    if architecture == "paper":
        encoder.features = encoder.features[:-1]
        encoder._out_indexes[-1] = len(encoder.features) - 1
    assert isinstance(encoder, nn.Module)
    return encoder


def _load_encoder(encoder: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UnavailableError(f"{path}: no such weight file; known besides a path: imagenet, none")
    tensors = _read(path)
    expected = {k: v for k, v in encoder.state_dict().items() if not k.endswith("num_batches_tracked")}
    bad = [k for k, v in expected.items() if k not in tensors or tensors[k].shape != v.shape]
    if bad:
        raise ConfigError(
            f"{path}: {len(bad)} of {len(expected)} tensors of {_ENCODER} are missing or of another shape, "
            f"first {bad[0]!r}; expected torchvision's names (`features.*`)"
        )
    encoder.load_state_dict({k: tensors[k] for k in expected}, strict=False)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UnavailableError(f"{path}: no such weight file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path}: not a readable .safetensors file: {error}") from error


def save(model: nn.Module, path: Path) -> None:
    """Write the parameters and buffers as safetensors."""
    path.write_bytes(serialise({k: v.detach().contiguous() for k, v in model.state_dict().items()}))


def load(model: nn.Module, path: Path) -> None:
    """Read what `save` wrote into a model of the same architecture. Raises ConfigError where it differs."""
    tensors = _read(path)
    found, wanted = (weights.get("classifier.bias") for weights in (tensors, model.state_dict()))
    if found is not None and wanted is not None and len(found) != len(wanted):
        raise ConfigError(
            f"{path}: weights for {len(found)} classes, but the dataset has {len(wanted)}; use the dataset "
            "that they were trained on"
        )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"{path}: the weights are of another architecture: {error}") from error


def altered(*modules: nn.Module) -> bool:
    """Whether code of somebody's runs with a module: hooks, or a `forward` in the place of its class's."""
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules)
