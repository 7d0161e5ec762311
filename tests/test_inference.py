"""Networks made ready for inference compute what they did before."""

import copy
import threading
from typing import Any

import pytest
import torch
from networks import calibrated
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP
from torch import nn
from torch.nn.utils import parametrizations

from meal_gpu.inference import Graphed, autocast, default_precision, fold_batchnorm, for_inference
from meal_gpu.models import Builder, Output, Segmenter

CPU = torch.device("cpu")


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.fixture(params=["smp", "paper"])
def model(request: pytest.FixtureRequest) -> Segmenter:
    return calibrated(Builder(request.param, 5, "none"), 0)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_folding_leaves_no_batchnorm_and_the_same_function(model: Segmenter, images: torch.Tensor) -> None:
    exact = copy.deepcopy(model).double()
    folded = copy.deepcopy(exact)
    fold_batchnorm(folded)
    assert norms(model) > 50
    assert norms(folded) == 0
    for ours, theirs in zip(folded(images.double()), exact(images.double()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@torch.inference_mode()
def test_the_users_model_is_left_alone(model: Segmenter, images: torch.Tensor) -> None:
    model.train()
    before = copy.deepcopy(model.state_dict())
    ready = for_inference(model, "bfloat16", CPU)
    with autocast(CPU, "bfloat16"):
        ready(images)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(ready, Segmenter)
    assert not ready.training


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@torch.inference_mode()
def test_weights_cast_once_are_the_bits_that_autocast_gives(
    precision: str, model: Segmenter, images: torch.Tensor
) -> None:
    plain = copy.deepcopy(model)
    fold_batchnorm(plain)
    with autocast(CPU, precision):
        expected, actual = plain(images), for_inference(model, precision, CPU)(images)
    assert actual.logits.dtype == {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.features, expected.features)


class Mixed(nn.Module):
    """A head in float32, as mixed-precision training has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.stem(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(features.float())


@torch.inference_mode()
def test_a_network_that_turns_autocast_off_for_a_part_keeps_that_part(images: torch.Tensor) -> None:
    model = Mixed().eval()
    with autocast(CPU, "bfloat16"):
        expected, actual = model(images), for_inference(model, "bfloat16", CPU)(images)
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return nn.functional.conv2d(x, weight, self.bias)


class NormAct(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


class Backwards(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in reversed(self):
            x = module(x)
        return x


def unfoldable() -> dict[str, nn.Module]:
    def conv() -> nn.Conv2d:
        return nn.Conv2d(3, 3, 1)

    def norm(**options: bool) -> nn.BatchNorm2d:
        made = nn.BatchNorm2d(3, **options)
        if made.running_mean is not None and made.running_var is not None:
            made.running_mean.fill_(0.5)
            made.running_var.fill_(4)
        return made

    def watched(module: nn.Module) -> nn.Module:
        module.register_forward_hook(lambda module, args, output: output * 2)
        return module

    shared, own = conv(), NormAct(3)
    own.running_mean = torch.full((3,), 0.5)
    return {
        "an order of its own": Backwards(conv(), norm()),
        "statistics of the batch": nn.Sequential(conv(), norm(track_running_stats=False)),
        "something between": nn.Sequential(conv(), nn.ReLU(), norm()),
        "used twice": nn.Sequential(nn.Sequential(shared, norm()), nn.Sequential(shared, norm())),
        "no convolution": nn.Sequential(nn.ConvTranspose2d(3, 3, 1), norm()),
        "weights that are standardised": nn.Sequential(Standardised(3, 3, 1), norm()),
        "weights that are normalised": nn.Sequential(parametrizations.weight_norm(conv()), norm()),
        "a spectral norm": nn.Sequential(parametrizations.spectral_norm(conv()), norm()),
        "an activation in the norm": nn.Sequential(conv(), own),
        "a hook on the convolution": nn.Sequential(watched(conv()), norm()),
        "a hook on the norm": nn.Sequential(conv(), watched(norm())),
        "one alone": nn.Sequential(norm()),
        "nested": nn.Sequential(nn.Sequential(conv(), nn.Sequential(conv(), conv())), norm(affine=False)),
    }


@pytest.mark.parametrize("name", unfoldable())
@torch.inference_mode()
def test_only_what_can_be_folded_is(name: str, images: torch.Tensor) -> None:
    model = unfoldable()[name].eval()
    folded = copy.deepcopy(model)
    fold_batchnorm(folded)
    assert norms(folded) == (0 if name == "nested" else norms(model))
    torch.testing.assert_close(folded(images), model(images), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_channels_stay_last_through_the_pooling_of_aspp(model: Segmenter, images: torch.Tensor) -> None:
    ready = for_inference(model, "float32", CPU)
    assert isinstance(ready, Segmenter)
    decoder: Any = ready.decoder
    aspp = decoder.aspp if isinstance(decoder.aspp, ASPP) else decoder.aspp[0]
    given: list[torch.Tensor] = []
    aspp.project[0].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    ready(images)
    assert given[0].is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_in_float32_it_errs_no_more_than_the_network_itself(model: Segmenter, images: torch.Tensor) -> None:
    ready, exact = for_inference(model, "float32", CPU), copy.deepcopy(model).double()
    for ours, theirs, truth in zip(ready(images), model(images), exact(images.double()), strict=True):
        assert (ours - truth).abs().max() < 4 * (theirs - truth).abs().max()


def test_only_relu_behind_a_folded_convolution_works_in_place() -> None:
    def chain(relu: nn.Module, *between: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), *between, relu)

    shared = nn.ReLU()
    model = nn.Sequential(
        chain(nn.ReLU()), chain(nn.ReLU6()), chain(nn.ReLU(), nn.Identity()), chain(shared), chain(shared),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), Backwards(*chain(nn.ReLU())),
    )  # fmt: skip
    fold_batchnorm(model)
    found = [part[-1].inplace for part in model if isinstance(part, nn.Sequential)]
    assert found == [True, True, False, False, False, False, False]


def test_what_is_ready_is_not_made_again(model: Segmenter) -> None:
    ready = for_inference(model, "bfloat16", CPU)
    assert ready is not model
    assert for_inference(ready, "bfloat16", CPU) is ready
    assert for_inference(ready, "float32", CPU) is not ready
    assert for_inference(model, "bfloat16", CPU) is not ready  # which may have been trained meanwhile


def test_a_network_that_cannot_be_copied_serves_as_it_is() -> None:
    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    model = Locked()
    assert for_inference(model, "float32", CPU) is model  # type: ignore[arg-type,comparison-overlap]
    assert not model.training


def test_the_default_precision_is_what_the_hardware_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert default_precision(CPU) == expected
    assert default_precision(torch.device("cuda")) == "bfloat16"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@torch.inference_mode()
def test_a_replayed_graph_gives_the_networks_output(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else cuDNN takes TF32 for a batch of one size and float32 for one of another
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = calibrated(Builder("smp", 5, "none"), 0).cuda()
    ready = for_inference(model, precision, torch.device("cuda"))
    batches = torch.randn(3, 4, 3, 64, 96, generator=torch.Generator().manual_seed(1)).cuda()
    graphed = Graphed(ready, batches[0], precision)
    for batch in (*batches, batches[1, :3]):
        replayed = Output(*(part.clone() for part in graphed(batch)))
        with autocast(batch.device, precision):
            expected = ready(batch)
        for ours, theirs in zip(replayed, expected, strict=True):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours.float(), theirs.float(), rtol=2e-2, atol=2e-2)
