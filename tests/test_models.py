"""The two networks: the paper's counts, smp's numbers, weights from a file."""

import copy
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from networks import calibrated
from safetensors.torch import load_file, save_file
from torch import nn

from meal_gpu import models
from meal_gpu.errors import ConfigError, UnavailableError
from meal_gpu.models import Builder, Segmenter
from meal_gpu.scoring import pool_features


def count(module: nn.Module, *, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def images(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=models.ARCHITECTURES)
def builder(request: pytest.FixtureRequest) -> Builder:
    return Builder(request.param, 19, "none", seed=1)


@pytest.fixture(scope="module")
def smp_builder() -> Builder:
    return Builder("smp", 5, "none")


@pytest.mark.parametrize("classes", [11, 19])
def test_the_paper_network_has_the_counts_of_table_1(classes: int) -> None:
    model = Builder("paper", classes, "none")(0)
    # Table 1: 4.0e6 trainable with a frozen backbone, 5.8e6 fine-tuned; section 4: MobileNetV2's 1.81e6
    assert round(count(model.encoder) / 1e6, 2) == 1.81
    assert round(count(model, trainable=True) / 1e6, 1) == 5.8
    model.freeze_encoder()
    assert round(count(model, trainable=True) / 1e6, 1) == 4.0


def test_smp_is_the_smaller_decoder() -> None:
    assert round(count(Builder("smp", 19, "none")(0)) / 1e6, 1) == 4.4


@pytest.mark.parametrize(("architecture", "deep"), [("smp", 1280), ("paper", 320)])
def test_encoder_stages(architecture: str, deep: int) -> None:
    model = Builder(architecture, 3, "none")(0).eval()
    encoded = model.encode(images(2, 32, 64))
    assert encoded.high.shape == (2, 24, 8, 16)
    assert encoded.deep.shape == (2, deep, 2, 4)
    assert model(images(2, 32, 64)).features.shape == (2, deep, 2, 4)


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        ((32, 64), (32, 64)),
        ((90, 120), (96, 128)),  # a CamVid patch
        ((360, 480), (368, 480)),  # a CamVid image
        ((128, 256), (128, 256)),  # a Cityscapes patch
        ((1, 17), (16, 32)),
    ],
)
def test_logits_are_at_stride_4_of_the_padded_size(
    size: tuple[int, int], padded: tuple[int, int], smp_builder: Builder
) -> None:
    model = calibrated(smp_builder, 0)
    assert Segmenter.padded_size(size) == padded
    with torch.inference_mode():
        output = model(images(1, *size))
        assert output.logits.shape == (1, 5, padded[0] // 4, padded[1] // 4)
        # zeros below and to the right, which is the mean colour after normalisation
        by_hand = F.pad(images(1, *size), (0, padded[1] - size[1], 0, padded[0] - size[0]))
        assert torch.equal(output.logits, model(by_hand).logits)


def test_smp_gives_the_numbers_of_segmentation_models_pytorch(smp_builder: Builder) -> None:
    model = calibrated(smp_builder, 3).double()
    peer = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=5).eval().double()
    peer.encoder.load_state_dict(model.encoder.state_dict())
    peer.decoder.load_state_dict(model.decoder.state_dict())
    peer.segmentation_head[0].load_state_dict(model.classifier.state_dict())
    with torch.inference_mode():
        x = images(2, 64, 96).double()
        logits = model(x).logits
        full = F.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=model.align_corners)
        torch.testing.assert_close(full, peer(x), rtol=1e-9, atol=1e-9)


def test_one_pass_gives_what_encode_and_decode_give(builder: Builder) -> None:
    model = calibrated(builder, 0)
    with torch.inference_mode():
        output = model(images(2, 32, 64))
        encoded = model.encode(images(2, 32, 64))
        assert torch.equal(output.logits, model.decode(encoded))
        assert torch.equal(output.features, encoded.deep)
        assert torch.equal(model.features(images(2, 32, 64)), encoded.deep)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_pooled_features_are_float32_sums(dtype: torch.dtype) -> None:
    deep = (1 + torch.rand(2, 7, 8, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
    pooled = pool_features(deep)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, deep.double().mean(dim=(2, 3)).float(), rtol=1e-6, atol=0)


def test_one_seed_gives_one_network(builder: Builder) -> None:
    again = Builder(builder.architecture, builder.classes, "none", seed=1)
    assert same(builder(5), again(5))
    assert not same(builder(5).decoder, builder(6).decoder)
    # every step starts from the same encoder, with a fresh decoder
    assert same(builder(5).encoder, builder(6).encoder)
    assert not same(builder(5).encoder, Builder(builder.architecture, 19, "none", seed=2)(5).encoder)


def test_networks_do_not_share_weights(builder: Builder) -> None:
    one = builder(0)
    before = copy.deepcopy(one.state_dict())
    other = builder(0)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    assert all(torch.equal(before[k], v) for k, v in one.state_dict().items())
    assert same(one, builder(0))


def test_the_global_random_state_is_left_alone(builder: Builder) -> None:
    state = torch.get_rng_state()
    Builder(builder.architecture, 3, "none", seed=4)(9)
    assert torch.equal(torch.get_rng_state(), state)


def statistics(module: nn.Module) -> list[torch.Tensor]:
    return [b.clone() for name, b in module.named_buffers() if "running" in name]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_keeps_weights_and_statistics_in_train_mode(
    frozen: bool, smp_builder: Builder
) -> None:
    model = smp_builder(0)
    if frozen:
        model.freeze_encoder()
    encoder, decoder = statistics(model.encoder), statistics(model.decoder)
    weights = [p.clone() for p in model.encoder.parameters()]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # switching modes must not thaw it
        model.eval()
        model.train()
        model(images(2, 32, 32)).logits.square().mean().backward()
        optimiser.step()
    unchanged = all(map(torch.equal, encoder, statistics(model.encoder)))
    assert unchanged == frozen
    assert all(map(torch.equal, weights, model.encoder.parameters())) == frozen
    assert not all(map(torch.equal, decoder, statistics(model.decoder)))
    assert model.training
    assert model.encoder.training != frozen


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder's weights under torchvision's names, as of another seed than the tests use."""
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.safetensors"
    encoder = Builder("smp", 2, "none", seed=77)(0).encoder
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
@pytest.mark.parametrize("with_counters", [True, False])
def test_encoder_weights_from_a_file(
    architecture: str, with_counters: bool, weights: Path, tmp_path: Path
) -> None:
    tensors = load_file(weights)
    if not with_counters:  # older torchvision files have no num_batches_tracked; a classifier is ignored
        tensors = {k: v for k, v in tensors.items() if "num_batches" not in k}
        tensors["classifier.1.bias"] = torch.zeros(9)
    save_file(tensors, tmp_path / "w.safetensors")
    encoder = Builder(architecture, 2, str(tmp_path / "w.safetensors"), seed=0)(0).encoder
    for name, value in encoder.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(value, tensors[name]), name


def test_torchvisions_own_names_fit(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    peer = torchvision.models.mobilenet_v2(weights=None)
    save_file(peer.state_dict(), tmp_path / "tv.safetensors")
    encoder = Builder("smp", 2, str(tmp_path / "tv.safetensors"))(0).encoder
    assert torch.equal(encoder.features[5].conv[0][0].weight, peer.features[5].conv[0][0].weight)


def test_weight_files_that_do_not_fit_are_named(weights: Path, tmp_path: Path) -> None:
    tensors = load_file(weights)
    first = "features.0.0.weight"
    wrong = {
        "missing": {k: v for k, v in tensors.items() if k != first},
        "other shape": tensors | {first: torch.zeros(1)},
        "other names": {f"encoder.{k}": v for k, v in tensors.items()},
    }
    for name, content in wrong.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(content, path)
        with pytest.raises(ConfigError) as error:
            Builder("smp", 2, str(path))
        assert all(part in str(error.value) for part in (str(path), first, "features.*")), name
    (tmp_path / "damaged.safetensors").write_bytes(weights.read_bytes()[:-1000])
    (tmp_path / "text.safetensors").write_text("not tensors at all")
    for name in ("damaged", "text"):
        with pytest.raises(ConfigError, match=f"{name}.safetensors: not a readable .safetensors"):
            Builder("smp", 2, str(tmp_path / f"{name}.safetensors"))


def test_a_weight_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"none\.safetensors: no such weight file"):
        Builder("smp", 2, str(tmp_path / "none.safetensors"))
    # a misspelt word is taken for a path: the message must still help
    with pytest.raises(UnavailableError, match=r"imagnet.*imagenet, none"):
        Builder("smp", 2, "imagnet")


def test_an_unreachable_hub_says_what_to_pass_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> nn.Module:
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.get_encoder", unreachable)
    with pytest.raises(UnavailableError) as error:
        Builder("smp", 2, "imagenet")
    advice = ("--encoder-weights PATH.safetensors", "--encoder-weights none", "features.*")
    assert all(part in str(error.value) for part in ("ConnectionError", *advice))


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="'resnet'; known: smp, paper"):
        Builder("resnet", 2, "none")


def test_saved_and_loaded_a_network_gives_the_same_bits(builder: Builder, tmp_path: Path) -> None:
    model = builder(0)
    model.train()
    model(images(2, 32, 32))  # moves the BatchNorm statistics away from their start
    models.save(model, tmp_path / "model.safetensors")
    other = builder(8)
    models.load(other, tmp_path / "model.safetensors")
    assert same(model, other)
    with torch.inference_mode():
        x = images(2, 32, 32)
        assert torch.equal(model.eval()(x).logits, other.eval()(x).logits)


def test_weights_of_another_network_are_named(smp_builder: Builder, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    models.save(smp_builder(0), path)
    for other, message in (
        (Builder("paper", 5, "none")(0), "the weights are of another"),
        (Builder("smp", 6, "none")(0), "weights for 5 classes, but the dataset has 6"),
    ):
        with pytest.raises(ConfigError, match=rf"model\.safetensors: {message}"):
            models.load(other, path)
    with pytest.raises(UnavailableError, match=r"nothing\.safetensors"):
        models.load(smp_builder(0), tmp_path / "nothing.safetensors")
