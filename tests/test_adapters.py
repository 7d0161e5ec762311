"""The user's own network, family by family: its logits, its features, and that it is left as it was."""

import copy
from threading import Lock
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from foreign_networks import (
    CLASSES,
    FAMILIES,
    Plain,
    at_full_size,
    built,
    images,
    pool,
    state,
)
from networks import calibrated
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from meal_gpu.acquisition import acquire
from meal_gpu.adapters import adapt
from meal_gpu.errors import InputError, MealGpuError
from meal_gpu.inference import autocast, for_inference
from meal_gpu.models import Builder

SIZES = ((96, 160), (90, 133))  # a multiple of 32, and of nothing


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def own_output(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """What the model's user sees at full size."""
    model.eval()
    with torch.no_grad():
        output = model(batch)
    if isinstance(output, dict):
        output = output["out"] if "out" in output else output["logits"]
    logits = F.interpolate(output, size=batch.shape[2:], mode="bilinear", align_corners=False)
    model.train()
    return logits


def up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_upsampled_logits_are_the_models_own_output(family: str, size: tuple[int, int]) -> None:
    _, align_corners, multiple, stride, dimension = FAMILIES[family]
    model = built(family).double()
    adapter = adapt(model)
    batch = images(size, torch.float64)
    padded = (up(size[0], multiple), up(size[1], multiple))
    assert adapter.align_corners == align_corners
    assert adapter.padded_size(size) == padded
    with torch.no_grad():
        output = adapter(batch)
    expected = own_output(model, F.pad(batch, (0, padded[1] - size[1], 0, padded[0] - size[0])))
    expected = expected[:, :, : size[0], : size[1]]
    assert expected.std() > 1e-3  # else there is nothing to compare
    assert output.logits.shape == (2, CLASSES, *(up(side, stride) // stride for side in padded))
    torch.testing.assert_close(at_full_size(adapter, output.logits, size), expected, rtol=1e-9, atol=1e-9)
    if dimension:
        assert output.features.shape[:2] == (2, dimension)
        assert output.features.ndim == 4
        with torch.no_grad():
            assert torch.equal(adapter.features(batch), output.features)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_made_ready_for_inference_it_computes_the_same(family: str, precision: str) -> None:
    dimension = FAMILIES[family][-1]
    model = built(family)
    batch = images(SIZES[1])
    adapter = adapt(model)
    ready = for_inference(adapter, precision, torch.device("cpu"))
    assert ready is not adapter

    def outputs(network: Any) -> tuple[torch.Tensor, ...]:
        found = network(batch)
        return (found.logits, found.features, network.features(batch)) if dimension else (found.logits,)

    with torch.inference_mode():
        exact = outputs(adapter)
        with autocast(batch.device, precision):
            plain, found = outputs(adapter), outputs(ready)
    for one, by_autocast, expected in zip(found, plain, exact, strict=True):
        if precision == "float32":
            assert (one - expected).abs().max() < 1e-4 * expected.abs().max()
            continue
        # rounding adds up over the layers of a random network; more than autocast alone is not allowed
        error, allowed = ((some.float() - expected).abs().mean() for some in (one, by_autocast))
        assert error < 1.5 * allowed


class FullSize(TorchDispatchMode):
    """Remembers which operations gave C channels at full size."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (CLASSES, *size)
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, torch.Tensor) and part.shape[-3:] == self.shape:
                self.found.append(str(func))
        return result


def test_no_full_size_logits_are_made(family: str) -> None:
    size = SIZES[0]
    model = built(family)
    with torch.no_grad(), FullSize(size) as own:
        own_output(model, images(size))
    with torch.no_grad(), FullSize(size) as watched:
        adapt(model)(images(size))
    assert own.found  # the watch works
    assert bool(watched.found) == (family == "smp Unet")  # whose last convolution is at full size


def test_the_users_model_stays_as_it_was(family: str) -> None:
    model = built(family)
    next(model.children()).eval()  # a mixture, as of a frozen encoder
    next(model.parameters()).requires_grad_(False)
    with torch.no_grad():
        model(images((96, 96)))  # transformers hooks itself in its first pass
    before, weights = state(model), copy.deepcopy(model.state_dict())
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    adapter = adapt(model)
    ready = for_inference(adapter, "bfloat16", torch.device("cpu"))
    with torch.inference_mode():
        for network in (adapter, ready):
            with autocast(torch.device("cpu"), "bfloat16"):
                network(images((64, 64)))
                if FAMILIES[family][-1]:
                    network.features(images((64, 64)))
    assert state(model) == before
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_model_that_cannot_be_copied_keeps_its_mode_too() -> None:
    model = Plain()
    model.lock = Lock()  # type: ignore[assignment]
    model.train()
    mean = model.stem[1].running_mean
    assert isinstance(mean, torch.Tensor)
    before, statistics = state(model), mean.clone()
    adapter = adapt(model, layer="body")
    ready = for_inference(adapter, "float32", torch.device("cpu"))
    assert ready is adapter
    first = ready(images((32, 32))).logits
    assert torch.equal(first, ready(images((32, 32))).logits)
    assert state(model) == before
    assert torch.equal(mean, statistics)
    with pytest.raises(RuntimeError):  # nor when the pass fails
        ready(torch.zeros(1, 5, 8, 8))
    assert state(model) == before


def test_frozen_parts_are_evaluated_too() -> None:
    # smp's train() passes over a frozen encoder, whose dropout would then stay random
    model = smp.Unet("efficientnet-b0", encoder_weights=None, classes=CLASSES).train()
    model.freeze_encoder()
    ready = for_inference(adapt(model), "float32", torch.device("cpu"))
    with torch.inference_mode():
        assert torch.equal(ready(images((64, 64))).logits, ready(images((64, 64))).logits)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax2d", "logsoftmax"])
@pytest.mark.parametrize("architecture", [smp.Unet, smp.FPN])
def test_the_heads_activation_is_left_out(architecture: Any, activation: str) -> None:
    model = architecture("resnet18", encoder_weights=None, classes=CLASSES, activation=activation).eval()
    bare = copy.deepcopy(model)
    bare.segmentation_head[2] = nn.Identity()
    adapter = adapt(model)
    with torch.no_grad():
        found = at_full_size(adapter, adapter(images((64, 64))).logits, (64, 64))
        torch.testing.assert_close(found, bare(images((64, 64))))


def test_a_head_of_ones_own_is_called_whole() -> None:
    model = smp.FPN("resnet18", encoder_weights=None, classes=CLASSES, aux_params={"classes": 2}).eval()
    model.segmentation_head = nn.Sequential(nn.Conv2d(128, CLASSES, 1), nn.Upsample(scale_factor=4))
    with torch.no_grad():
        torch.testing.assert_close(adapt(model)(images((64, 64))).logits, model(images((64, 64)))[0])


def test_a_forward_of_ones_own_is_called() -> None:
    class Doubled(smp.FPN):
        def forward(self, x: torch.Tensor) -> Any:
            return 2 * super().forward(x)

    model = Doubled("resnet18", encoder_weights=None, classes=CLASSES).eval()
    adapter = adapt(model, layer="encoder.layer4")
    with torch.no_grad():
        output = adapter(images((64, 64)))
        torch.testing.assert_close(output.logits, model(images((64, 64))))
    assert output.features.shape == (2, 512, 2, 2)


def test_a_scripted_model_is_one_of_any() -> None:
    model = smp.FPN("resnet18", encoder_weights=None, classes=CLASSES).train()
    scripted = torch.jit.script(model)
    with torch.no_grad():
        ready = for_inference(adapt(scripted), "float32", torch.device("cpu"))
        torch.testing.assert_close(ready(images((64, 64))).logits, model.eval()(images((64, 64))))
    assert scripted.training
    with pytest.raises(InputError, match="'encoder' of a scripted model"):
        adapt(scripted, layer="encoder")


@pytest.mark.parametrize("features", ["crop", "shared"])
def test_acquisition_takes_any_model(family: str, features: str) -> None:
    model = built(family)
    layer = None if FAMILIES[family][-1] else "body"
    query = acquire(
        model, pool(), 5, features=features, layer=layer, grid=(2, 3), candidates=12, ops="reference"
    )
    assert len(set(query.patch_ids.tolist())) == 5
    assert model.training


@pytest.mark.parametrize("name", ["smp DeepLabV3+", "torchvision DeepLabV3"])
@pytest.mark.parametrize("where", ["before the model", "behind the model", "behind the head", "forward"])
def test_code_that_runs_with_the_model_runs_here_too(name: str, where: str) -> None:
    build, *_ = FAMILIES[name]
    torch.manual_seed(0)
    model: Any = build().eval()
    batch = torch.randn(1, 3, 64, 64)
    before = adapt(model)(batch).logits.clone()
    if where == "before the model":
        model.register_forward_pre_hook(lambda _module, given: (torch.zeros_like(given[0]),))
    elif where == "behind the model":
        model.register_forward_hook(
            lambda _m, _g, out: {"out": 5 * out["out"]} if isinstance(out, dict) else 5 * out
        )
    elif where == "behind the head":
        head = model.segmentation_head if name.startswith("smp") else model.classifier
        head.register_forward_hook(lambda _m, _g, out: 5 * out)
    else:
        own = model.forward
        model.forward = lambda given: own(torch.zeros_like(given))
    expected = own_output(model, batch)
    adapted = adapt(model)
    with torch.inference_mode():
        found = adapted(batch).logits
    side = expected.shape[2:]
    whole = F.interpolate(found, side, mode="bilinear", align_corners=adapted.align_corners)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)
    assert found.shape != before.shape or not torch.allclose(found, before)


def test_a_network_of_ours_is_one_inside_a_data_parallel_wrapper_too() -> None:
    model = calibrated(Builder("smp", 3, "none"), 0)
    assert adapt(nn.DataParallel(model)) is model


def test_tokens_are_no_features_and_give_scores_all_the_same() -> None:
    class Tokens(Plain):
        base_model_prefix, main_input_name = "body", "pixel_values"

        def forward(self, pixel_values: torch.Tensor) -> Any:
            return super().forward(pixel_values)

    model = Tokens()
    model.body = nn.Sequential(model.body, nn.Flatten(2))
    model.pool = nn.Identity()
    pixels = torch.randint(0, 256, (2, 32, 64, 3), dtype=torch.uint8)
    assert len(acquire(model, pixels, 3, strategy="entropy")) == 3
    with pytest.raises(MealGpuError, match="layer 'body' of Tokens gives"):
        acquire(model, pixels, 3, strategy="core-set", features="shared")


def test_one_vector_for_an_image_tells_no_patches_apart() -> None:
    model = Plain()
    pixels = torch.randint(0, 256, (3, 32, 64, 3), dtype=torch.uint8)
    assert len(acquire(model, pixels, 3, strategy="core-set", layer="pool")) == 3
    with pytest.raises(MealGpuError, match=r"layer 'pool' of Plain gives one vector for a whole image"):
        acquire(model, pixels, 3, strategy="core-set", layer="pool", features="shared")
