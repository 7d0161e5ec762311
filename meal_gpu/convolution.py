"""Convolutions computed as the CPU's library is fast at them, with the same result."""

import torch
import torch.nn.functional as F
from torch import nn

# Measured with oneDNN: below, its own kernel serves dilated depthwise convolutions, and is faster; from here
# on it falls back to one that is slower many times over
_PHASED_FROM = 8


class Phased(nn.Conv2d):
    """A depthwise convolution whose dilation is taken out of it: see `phased_conv2d`."""

    def _conv_forward(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        dilation = (self.dilation[0], self.dilation[1])
        return phased_conv2d(input, weight, bias, dilation)


def phase_dilated(model: nn.Module) -> None:
    """Turn every depthwise convolution of a dilation of 8 or more into a `Phased` one, in place.

    Only where output and input have one size: stride 1, odd kernels, zeros around. Convolutions of another
    class, parametrised ones among them, stay as they are; hooks and parameters go with the module.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_dilated_depthwise(module):
            module.__class__ = Phased


def _is_dilated_depthwise(module: nn.Conv2d) -> bool:
    around = tuple(d * (k // 2) for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return (
        module.groups == module.in_channels == module.out_channels
        and max(module.dilation) >= _PHASED_FROM
        and all(k % 2 for k in module.kernel_size)
        and (module.stride, module.padding, module.padding_mode) == ((1, 1), around, "zeros")
    )


def phased_conv2d(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: tuple[int, int]
) -> torch.Tensor:
    """The depthwise convolution of `images` [B, C, H, W] with odd kernels, "same" size and zeros around.

    Pixels whose rows and columns are equal modulo the dilation see only each other: each such phase is an
    image of its own, convolved without dilation (the à-trous identity).

    Args:
        weight: [C, 1, ky, kx], of the dtype of the images unless autocast is on.
        bias: [C], or None.
        dilation: (down, across).

    Returns:
        [B, C, H, W] in channels-last memory.
    """
    batch, channels, height, width = images.shape
    # Taps farther away than the image is long meet zeros, however far away they are
    down, across = min(dilation[0], height), min(dilation[1], width)
    rows, columns = -(-height // down), -(-width // across)
    if (rows * down, columns * across) != (height, width):
        images = F.pad(images, (0, columns * across - width, 0, rows * down - height))
    phases = images.permute(0, 2, 3, 1).reshape(batch, rows, down, columns, across, channels)
    phases = phases.permute(2, 4, 0, 1, 3, 5).reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)
    around = (weight.shape[2] // 2, weight.shape[3] // 2)
    phases = F.conv2d(phases, weight, bias, padding=around, groups=channels)
    whole = phases.permute(0, 2, 3, 1).reshape(down, across, batch, rows, columns, channels)
    whole = whole.permute(2, 3, 0, 4, 1, 5).reshape(batch, rows * down, columns * across, channels)
    return whole[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
