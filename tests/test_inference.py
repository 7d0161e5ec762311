"""Networks made ready for inference compute what they did before."""

import contextlib
import copy
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from foreign_networks import FAMILIES, built
from networks import calibrated, settle
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP
from torch import nn
from torch.nn.utils import parametrizations

from meal_gpu.adapters import adapt
from meal_gpu.inference import Graphed, autocast, default_precision, fold_batchnorm, for_inference
from meal_gpu.models import Builder, Output, Segmenter
from meal_gpu.windowed import Windowed

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


# BatchNorms, and how many of them stay: those of the known libraries that stand beside their convolution, not
# behind it in a Sequential, and all of somebody's own
NORMS = {
    "smp DeepLabV3+": (61, 0), "smp DeepLabV3": (27, 18), "smp FPN": (20, 17), "smp PSPNet": (24, 17),
    "smp Segformer": (1, 0), "smp UPerNet": (32, 17), "smp Unet": (30, 17), "torchvision DeepLabV3": (54, 0),
    "torchvision FCN": (54, 49), "torchvision LR-ASPP": (47, 0), "transformers SegFormer": (1, 1),
    "transformers MobileNetV2": (55, 55), "plain": (1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_networks_of_known_libraries_are_folded(name: str) -> None:
    model = built(name)
    network = adapt(model)
    for there in (network, Windowed(network, (64, 64))):
        ready = for_inference(there, "float32", CPU)
        assert isinstance(ready, nn.Module) and ready is not there
        assert (norms(model), norms(ready)) == NORMS[name]


@pytest.mark.parametrize("encoder", ["vgg11_bn", "densenet121", "timm-efficientnet-b0", "tu-resnet18"])
@torch.inference_mode()
def test_known_libraries_do_not_read_between_what_is_folded(encoder: str) -> None:
    exact = smp.Unet(encoder, encoder_depth=3, decoder_channels=(8, 8, 8), encoder_weights=None).double()
    for norm in (module for module in exact.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    folded = copy.deepcopy(exact.eval())
    fold_batchnorm(folded)
    assert norms(folded) < norms(exact)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(folded(images.clone()), exact(images), rtol=1e-9, atol=1e-9)


class Reaching(nn.Module):
    """Somebody's own: a part in a Sequential, and code that calls what is inside one by one."""

    def __init__(self, reach: Callable[[nn.Sequential, torch.Tensor], list[torch.Tensor]]) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.reach = reach

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.reach(self.block, images), dim=1)


def before_the_activation(block: nn.Sequential, x: torch.Tensor) -> list[torch.Tensor]:
    before = block[:2](x)
    return [before, block[2](before)]


def every_output(block: nn.Sequential, x: torch.Tensor) -> list[torch.Tensor]:
    outputs = []
    for module in block:
        x = module(x)
        outputs.append(x)
    return outputs


def outputs_seen(block: nn.Sequential, x: torch.Tensor) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
        for module in block
    ]
    block(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("reach", [before_the_activation, every_output, outputs_seen])
@pytest.mark.parametrize("inside", [False, True])
@torch.inference_mode()
def test_whoever_reads_between_convolution_and_activation_sees_what_was_there(
    inside: bool, reach: Callable[[nn.Sequential, torch.Tensor], list[torch.Tensor]], images: torch.Tensor
) -> None:
    own = Reaching(reach)
    settle(own)
    model = adapt(nn.Sequential(own, nn.Conv2d(len(own(images)[0]), 3, 1)) if inside else own)
    assert torch.equal(for_inference(model, "float32", CPU)(images).logits, model(images).logits)


@pytest.mark.parametrize("whose", ["the ReLU", "the Sequential around the convolution"])
@torch.inference_mode()
def test_a_hook_sees_what_was_there(whose: str, images: torch.Tensor) -> None:
    seen: list[torch.Tensor] = []
    relu, inner = nn.ReLU(), nn.Sequential(nn.Conv2d(3, 4, 1))
    model = nn.Sequential(inner, nn.BatchNorm2d(4), relu)
    settle(model)
    if whose == "the ReLU":
        relu.register_forward_hook(lambda module, args, output: seen.append(args[0].clone()))
    else:
        inner.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    folded = copy.deepcopy(model)
    fold_batchnorm(folded)
    for each in (model, folded):
        each(images)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-5)


def test_a_forward_put_in_place_of_a_modules_own_is_somebodys_code() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    model[0].forward = lambda x: model[0][0](x)  # type: ignore[method-assign,index,operator]
    fold_batchnorm(model)
    assert norms(model) == 1


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
    for capability, expected in (((7, 5), "float32"), ((8, 0), "bfloat16"), ((12, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, has=capability: has)
        assert default_precision(torch.device("cuda", 1)) == expected


def test_a_graph_is_captured_on_the_gpu_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would capture on the one that was current first, and replay nothing."""
    streams: list[SimpleNamespace] = []

    def stream(device: torch.device) -> SimpleNamespace:
        streams.append(SimpleNamespace(device=device, wait_stream=lambda _: None))
        return streams[-1]

    captured: list[dict[str, object]] = []
    nothing = contextlib.nullcontext()
    for name, stand_in in (
        ("Stream", stream), ("current_stream", stream), ("stream", lambda _: nothing), ("CUDAGraph", object),
        ("graph", lambda _, **how: captured.append(how) or nothing),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr("meal_gpu.inference.autocast", lambda *_: nothing)
    batch = torch.zeros(2, 3, 32, 32, device="meta")
    Graphed(lambda images: Output(images, images), batch, "float32")  # type: ignore[arg-type]
    assert [how["stream"] for how in captured] == [streams[0]] and streams[0].device == batch.device


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
