"""A dilated depthwise convolution by its phases, and which convolutions take that way."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from meal_gpu.convolution import Phased, phase_dilated, phased_conv2d
from meal_gpu.inference import autocast, for_inference
from meal_gpu.models import Builder

CPU = torch.device("cpu")


def depthwise(channels: int = 6, dilation: int = 12, kernel: int = 3, **options: Any) -> nn.Conv2d:
    given = {"dilation": dilation, "padding": dilation * (kernel // 2), "groups": channels} | options
    return nn.Conv2d(channels, channels, kernel, **given)


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3), channels=st.integers(1, 5), height=st.integers(1, 20), width=st.integers(1, 20),
    down=st.integers(1, 24), across=st.integers(1, 24), kernel=st.sampled_from([(3, 3), (5, 5), (1, 5)]),
    bias=st.booleans(), channels_last=st.booleans(),
)  # fmt: skip
def test_phases_are_the_convolution(
    batch: int, channels: int, height: int, width: int, down: int, across: int, kernel: tuple[int, int],
    bias: bool, channels_last: bool,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, channels, height, width, dtype=torch.float64, generator=generator)
    weight = torch.randn(channels, 1, *kernel, dtype=torch.float64, generator=generator)
    shift = torch.randn(channels, dtype=torch.float64, generator=generator) if bias else None
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    found = phased_conv2d(images, weight, shift, (down, across))
    around = (down * (kernel[0] // 2), across * (kernel[1] // 2))
    expected = F.conv2d(images, weight, shift, padding=around, dilation=(down, across), groups=channels)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dilation", [12, 24, 36])
def test_phases_round_no_worse_than_the_direct_way(dtype: torch.dtype, dilation: int) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, 32, 32, 64, generator=generator).to(dtype)
    convolution = depthwise(32, dilation).requires_grad_(False).to(dtype)
    direct = convolution(images)
    exact = copy.deepcopy(convolution).double()(images.double())
    phase_dilated(convolution)
    found = convolution(images)
    assert type(convolution) is Phased
    assert found.dtype == dtype
    assert (found - exact).abs().max() <= 1.5 * (direct - exact).abs().max()


class Own(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return -super().forward(input)


LEFT_ALONE = {
    "a small dilation": lambda: depthwise(dilation=6),
    "not depthwise": lambda: depthwise(groups=1),
    "several outputs per channel": lambda: nn.Conv2d(6, 12, 3, dilation=12, padding=12, groups=6),
    "a stride": lambda: depthwise(stride=2),
    "another padding": lambda: depthwise(padding=0),
    "a named padding": lambda: depthwise(padding="same"),
    "something else than zeros": lambda: depthwise(padding_mode="circular"),
    "an even kernel": lambda: depthwise(kernel=4),
    "a class of its own": lambda: Own(6, 6, 3, dilation=12, padding=12, groups=6),
    "a parametrised weight": lambda: weight_norm(depthwise()),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone(name: str) -> None:
    module = LEFT_ALONE[name]()
    kind = type(module)
    phase_dilated(module)
    assert type(module) is kind


@pytest.mark.parametrize("module", [depthwise(), depthwise(dilation=8, kernel=5), depthwise(bias=False)])
def test_hooks_and_weights_stay_with_the_module(module: nn.Conv2d) -> None:
    seen: list[torch.Tensor] = []
    module.register_forward_hook(lambda _module, _args, output: seen.append(output))
    names = list(module.state_dict())
    images = torch.randn(2, 6, 9, 20)
    expected = module(images)
    phase_dilated(module)
    copied = copy.deepcopy(module)
    for phased in (module, copied):
        assert type(phased) is Phased
        torch.testing.assert_close(phased(images), expected)
    assert len(seen) == 3
    assert list(module.state_dict()) == names


def phased(model: object) -> list[str]:
    assert isinstance(model, nn.Module)
    return [name for name, module in model.named_modules() if isinstance(module, Phased)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_on_the_cpu_gets_exactly_those_of_its_aspp(precision: str) -> None:
    model = Builder("smp", 3, "none")(0)
    rates = [f"decoder.aspp.0.convs.{branch}.0.0" for branch in (1, 2, 3)]
    ready = for_inference(model, precision, CPU)
    assert phased(ready) == rates
    assert phased(model) == []
    assert phased(for_inference(Builder("paper", 3, "none")(0), precision, CPU)) == []
    with torch.inference_mode(), autocast(CPU, precision):
        logits = ready(torch.randn(1, 3, 48, 80)).logits
    assert logits.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
def test_on_a_gpu_the_aspp_stays_as_it_is() -> None:
    device = torch.device("cuda")
    assert phased(for_inference(Builder("smp", 3, "none")(0).to(device), "float32", device)) == []


def test_batchnorm_behind_is_folded_first() -> None:
    model = nn.Sequential(depthwise(bias=False), nn.BatchNorm2d(6)).eval()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    norm.running_mean.normal_()
    nn.init.normal_(norm.weight)
    images = torch.randn(1, 6, 10, 15)
    ready: Any = for_inference(model, "float32", CPU)  # type: ignore[arg-type]
    assert type(ready[0]) is Phased
    assert ready[0].bias is not None
    with torch.no_grad():
        torch.testing.assert_close(ready(images), model(images))
