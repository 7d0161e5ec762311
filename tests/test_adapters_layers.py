"""Any module: what its logits may look like, and features of a layer by name."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from foreign_networks import (
    SEGFORMER,
    Plain,
    built,
    hugging_face,
    images,
    pool,
)
from torch import nn

from meal_gpu.acquisition import acquire
from meal_gpu.adapters import adapt
from meal_gpu.adapters.base import Adapter
from meal_gpu.errors import InputError
from meal_gpu.inference import for_inference
from meal_gpu.models import Builder


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits,
        lambda logits: {"out": logits, "aux": None},
        lambda logits: {"logits": logits},
        lambda logits: (logits, None),
    ],
)
def test_logits_are_found_in_what_a_model_returns(wrap: Callable[[torch.Tensor], Any]) -> None:
    model = Plain(wrap).eval()
    logits = adapt(model)(images((32, 32))).logits
    assert torch.equal(logits, model.head(model.stem(images((32, 32)))))


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda logits: logits.argmax(dim=1), ("[2, 16, 16]", "torch.int64", "argmax")),
        (lambda logits: logits.argmax(dim=1, keepdim=True), ("torch.int64", "argmax")),
        (lambda logits: logits[:, :1], ("1 logit per pixel", "always 0", "zeros_like")),
        (lambda logits: logits.softmax(dim=1), ("returns probabilities", "sum of 1", "the logits")),
        (lambda logits: logits.bfloat16().softmax(dim=1), ("returns probabilities",)),
        (lambda logits: None, ("NoneType", '"out"')),
        (lambda logits: {"masks": logits}, ("dict", '"logits"')),
    ],
)
def test_what_are_no_logits_is_said(wrap: Callable[[torch.Tensor], Any], told: tuple[str, ...]) -> None:
    for layer in (None, "body"):
        with pytest.raises(InputError) as raised:
            adapt(Plain(wrap), layer=layer)(images((32, 32)))
        assert all(part in str(raised.value) for part in ("Plain", *told))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ("body", (16, 8, 8)),
        ("stem", (8, 16, 16)),
        ("stem.0", (8, 16, 16)),
        ("stem.1", (8, 16, 16)),
        ("pool", (16, 1, 1)),
    ],
)
def test_features_of_a_layer_by_name(layer: str, shape: tuple[int, ...]) -> None:
    model = Plain().eval()
    norm = model.stem[1]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    batch = images((32, 32))
    with torch.no_grad():
        maps = {"stem.0": model.stem[0](batch), "stem": model.stem(batch)}
        maps["stem.1"] = norm(maps["stem.0"])
        maps["body"] = model.body(maps["stem"])
        maps["pool"] = maps["body"].mean(dim=(2, 3), keepdim=True)
        adapter = adapt(model, layer=layer)
        # folding BatchNorm must not reach the layer, nor ReLU in place
        ready = for_inference(adapter, "float32", torch.device("cpu"))
        for network in (adapter, ready, copy.deepcopy(adapter)):
            ways = [network.features]
            if layer != "pool":  # one vector for an image is none of its patches
                ways.append(lambda given, network=network: network(given).features)
            for found in (way(batch) for way in ways):
                assert found.shape == (2, *shape)
                torch.testing.assert_close(found, maps[layer], rtol=1e-5, atol=1e-6)


def test_features_alone_end_the_pass_at_the_layer() -> None:
    model = Plain()
    adapter = adapt(model, layer="stem")
    adapter.features(images((32, 32)))
    assert model.bodies == 0
    adapter(images((32, 32)))
    assert model.bodies == 1


@pytest.mark.parametrize(
    ("name", "layer", "dimension"),
    [
        ("smp DeepLabV3+", "decoder.aspp", 256),
        ("torchvision FCN", "backbone.layer3", 1024),
        ("transformers SegFormer", "decode_head.linear_fuse", 24),
    ],
)
def test_a_layer_goes_before_the_familys_own(name: str, layer: str, dimension: int) -> None:
    adapter = adapt(built(name), layer=layer)
    for network in (adapter, for_inference(adapter, "float32", torch.device("cpu"))):
        with torch.inference_mode():
            output = network(images((64, 64)))
            assert output.features.shape[1] == dimension
            assert torch.equal(network.features(images((64, 64))), output.features)


@pytest.mark.parametrize(
    ("make", "layer", "told"),
    [
        (Plain, "unused", ("'unused'", "takes no part", "stem, body, head")),
        (lambda: Plain(lambda logits: (logits, None)), "pool.0.x", ("no layer 'pool.0.x'", "stem, body")),
        (Plain, "", ("no layer ''",)),
        (lambda: built("torchvision FCN"), "backbone.layer9", ("'backbone.layer9'", "backbone, classifier")),
        (
            lambda: built("transformers SegFormer"),
            "decode_head.linear_projections.0",
            ("[2, 256, 24]", "[2, D, h, w]", "decode_head"),
        ),
        (lambda: built("smp FPN"), "decoder.seg_blocks", ("takes no part",)),
    ],
)
def test_a_layer_that_cannot_give_features_is_named(
    make: Callable[[], nn.Module], layer: str | None, told: tuple[str, ...]
) -> None:
    for use in (lambda adapter: adapter.features, lambda adapter: adapter):
        with pytest.raises(InputError) as raised:
            use(adapt(make(), layer=layer))(images((64, 64)))
        assert all(part in str(raised.value) for part in told)


def test_a_default_layer_of_tokens_gives_no_features() -> None:
    model = hugging_face("Segformer", reshape_last_stage=False, **SEGFORMER)
    with pytest.raises(InputError, match=r"'segformer'.* \[2, 4, 32\] .*decode_head"):
        adapt(model).features(images((64, 64)))


def test_without_a_layer_only_the_features_are_missing() -> None:
    adapter = adapt(Plain())
    output = adapter(images((32, 32)))
    logits, features = output
    assert torch.equal(logits, output.logits)
    assert features.shape == (2, 0, 1, 1)  # what takes an output apart, as slicing does, still works
    for ask in (lambda: output.features, lambda: adapter.features(images((32, 32)))):
        with pytest.raises(InputError, match=r"pass layer=NAME.*stem, body, head, pool, unused"):
            ask()


def test_what_is_a_network_already_is_returned() -> None:
    network = Builder("smp", 3, "none")(0)
    assert adapt(network) is network
    adapter = adapt(Plain())
    assert adapt(adapter) is adapter
    with pytest.raises(InputError, match="features of its own"):
        adapt(network, layer="encoder")


def test_values_are_looked_at_once() -> None:
    """On a GPU the host waits for them."""
    kinds = iter([lambda logits: logits, *[lambda logits: logits.softmax(dim=1)] * 2])
    adapter = adapt(Plain(lambda logits: next(kinds)(logits)))
    for network in (adapter, adapter, copy.deepcopy(adapter)):  # as for inference
        network(images((32, 32)))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_a_normalisation_may_be_any_three_numbers(kind: Callable[[list[float]], Any]) -> None:
    adapter = adapt(Plain(), mean=kind([0.5, 0.25, 0.0]), std=kind([0.5, 1.0, 2.0]))
    assert (adapter.mean, adapter.std) == ((0.5, 0.25, 0.0), (0.5, 1.0, 2.0))
    assert hash(adapter.mean) == hash((0.5, 0.25, 0.0))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((math.nan, 0.5, 0.5), (1, 1, 1)),
        ((0.5, math.inf, 0.5), (1, 1, 1)),
        ((0.5, 0.5), (1, 1, 1)),
        ((0.5, 0.5, 0.5), (1, 0, 1)),
        ((0.5, 0.5, 0.5), (1, 1, math.nan)),
        (0.5, (1, 1, 1)),
        ((0.5, 0.5, None), (1, 1, 1)),
    ],
)
def test_what_is_no_normalisation_is_named(mean: Any, std: Any) -> None:
    with pytest.raises(InputError, match="mean and std are three finite numbers each") as raised:
        adapt(Plain(), mean=mean, std=std)
    assert f"got {mean} and {std}" in str(raised.value)


@pytest.mark.parametrize("given", [lambda images: images, "model.pt", None, Plain, {"state_dict": 1}])
def test_what_is_no_model_is_named(given: Any) -> None:
    with pytest.raises(InputError, match=r"torch\.nn\.Module or a meal_gpu\.models\.Network") as raised:
        adapt(given)
    assert type(given).__name__ in str(raised.value)


def test_wrappers_are_taken_off() -> None:
    model = Plain()
    for wrapped in (nn.DataParallel(model), torch.compile(model), torch.compile(nn.DataParallel(model))):
        adapter = adapt(wrapped, mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.3))
        assert isinstance(adapter, Adapter)
        assert adapter.model is model
        assert (adapter.mean, adapter.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


def test_a_layer_is_asked_for_where_features_are_needed_only() -> None:
    for strategy in ("random", "entropy"):
        assert len(acquire(Plain(), pool(), 3, strategy=strategy, grid=(2, 3))) == 3
    for features in ("crop", "shared"):
        with pytest.raises(InputError, match="pass layer=NAME"):
            acquire(Plain(), pool(), 3, strategy="meal", features=features, grid=(2, 3), candidates=8)
