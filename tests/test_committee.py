"""Several predictions of one pool, against the same done by hand in float64."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import calibrated
from torch import nn

from meal_gpu import committee
from meal_gpu.adapters import adapt
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.models import IMAGENET_MEAN, IMAGENET_STD, Builder, Output, Segmenter
from meal_gpu.ops import Committee, reference
from meal_gpu.passes import ImageSet
from meal_gpu.scoring import score_pool
from meal_gpu.windowed import windowed

# No multiple of 16 across: 8 columns are padding. No multiple of the patch's width either
SIZE = (32, 56)
GRID = Grid(2, 3, *SIZE)


def pool(images: int = 3, **arguments: Any) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, *SIZE, 3), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, reference, **arguments)


class Noisy(nn.Module):
    """A network of somebody's own, whose logits [B, 3, H, W] are its pixels after dropout and BatchNorm."""

    align_corners = False
    mean = IMAGENET_MEAN
    std = IMAGENET_STD

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.drop = nn.Dropout(p)
        self.norm = nn.BatchNorm2d(3)

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def forward(self, images: torch.Tensor) -> Output:
        return Output(self.norm(self.drop(images)), images)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images


class Uncopied(Noisy):
    def __deepcopy__(self, memo: dict[int, Any]) -> "Uncopied":
        raise TypeError("it holds an open file")


@pytest.fixture(scope="module")
def models() -> list[Segmenter]:
    return [calibrated(Builder("smp", 3, "none"), seed) for seed in range(3)]


def scored(images: ImageSet, predictions: Iterator[torch.Tensor], model: Any, **arguments: Any) -> Committee:
    return committee.score_committee(images, predictions, model, GRID, **arguments)


def by_hand(
    logits: list[torch.Tensor], padded: tuple[int, int], corners: bool, valid: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Members' [B, C, h, w] -> (total, expected) [B · patches] float64, pixel by pixel."""
    inside = torch.ones(SIZE, dtype=torch.bool) if valid is None else valid
    p = torch.stack([
        F.interpolate(each.double(), padded, mode="bilinear", align_corners=corners).softmax(dim=1)
        for each in logits
    ])[..., : SIZE[0], : SIZE[1]]  # fmt: skip
    maps = torch.special.entr(p.mean(dim=0)).sum(dim=1), torch.special.entr(p).sum(dim=2).mean(dim=0)
    total, expected = (
        torch.stack([
            image[top:bottom, left:right][inside[top:bottom, left:right]].mean()
            for image in each
            for left, top, right, bottom in GRID.boxes(torch.arange(GRID.patches_per_image))
        ])
        for each in maps
    )  # fmt: skip
    return total, expected


def hold(found: Committee, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == ((18,), torch.float32)
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-5)


def pixels_of(images: ImageSet) -> torch.Tensor:
    assert images.images.resident is not None
    return reference.normalise(images.images.resident, IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("frozen", [False, True])
def test_members_are_those_by_hand(models: list[Segmenter], frozen: bool) -> None:
    builder = Builder("smp", 3, "none")
    networks = [calibrated(builder, seed) for seed in range(3)]
    if frozen:
        for network in networks:
            network.encoder.load_state_dict(networks[0].encoder.state_dict())
            network.freeze_encoder()
    images = pool(cache_bytes=1 << 30)
    with torch.inference_mode():
        logits = [network(pixels_of(images)).logits for network in networks]
    expected = by_hand(logits, (32, 64), True)
    for _ in range(2):  # the second time from the encoder's cache
        found = scored(images, committee.members(images, networks), networks[0])
        hold(found, expected)
    assert bool((found.total - found.expected > 1e-3).all())
    assert len(images._encoded) == (3 if frozen else 0)


def dilated(network: Segmenter) -> None:
    """The same weights, and other features."""
    first = next(module for module in network.encoder.modules() if isinstance(module, nn.Conv2d))
    first.dilation, first.padding = (2, 2), (2, 2)


@pytest.mark.parametrize(
    ("frozen", "seeds", "change"),
    [((0,), (0, 1), None), ((0, 1), (0, 1), None), ((0, 1), (0, 0), dilated)],
    ids=["one not frozen", "other weights", "other dilation"],
)
def test_an_ensemble_of_several_encoders_shares_none(
    frozen: tuple[int, ...], seeds: tuple[int, ...], change: Callable[[Segmenter], None] | None
) -> None:
    networks = [calibrated(Builder("smp", 3, "none", seed=seed), seed) for seed in seeds]
    for number in frozen:
        networks[number].freeze_encoder()
    if change:
        change(networks[1])
    images = pool(cache_bytes=1 << 30)
    with torch.inference_mode():
        logits = [network(pixels_of(images)).logits for network in networks]
    found = scored(images, committee.members(images, networks), networks[0])
    hold(found, by_hand(logits, (32, 64), True))
    assert not images._encoded


def test_members_that_agree_say_nothing(models: list[Segmenter]) -> None:
    images = pool()
    found = scored(images, committee.members(images, [models[0], models[0]]), models[0])
    torch.testing.assert_close(found.total, found.expected, rtol=0, atol=1e-6)
    alone = score_pool(images, models[0], GRID).scores
    torch.testing.assert_close(found.total, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_an_ensemble_has_two_members(models: list[Segmenter], number: int) -> None:
    with pytest.raises(InputError, match=rf"two members or more, got {number}: pass them as `members`"):
        next(committee.members(pool(), models[:number]))


def test_members_are_read_alike(models: list[Segmenter]) -> None:
    class Otherwise(Segmenter):
        align_corners = False

    other = copy.copy(models[1])
    other.__class__ = Otherwise
    with pytest.raises(InputError, match=r"member 1 of the ensemble has .* False, .*, member 0 .* True, "):
        next(committee.members(pool(), [models[0], other]))


def test_mirrored_images_are_those_by_hand(models: list[Segmenter]) -> None:
    images, model = pool(), models[0]
    pixels = pixels_of(images)
    whole = torch.zeros(3, 3, 32, 64)
    whole[..., :56] = pixels  # the padding is zeros, on the right
    mirrored = torch.stack([whole[..., 63 - column] for column in range(64)], dim=3)
    with torch.inference_mode():
        logits = [model(pixels).logits, model(mirrored).logits.flip(3)]
    found = scored(images, committee.mirrored(images, model), model)
    hold(found, by_hand(logits, (32, 64), True))
    assert bool((found.total - found.expected > 1e-4).all())


def test_what_does_not_know_left_from_right_agrees_with_its_mirror_image() -> None:
    images, model = pool(), Noisy()
    found = scored(images, committee.mirrored(images, model), model)
    torch.testing.assert_close(found.total, found.expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.total, score_pool(images, model, GRID).scores, rtol=0, atol=1e-6)


PREDICTIONS: dict[str, Callable[[ImageSet, list[Segmenter]], Iterator[torch.Tensor]]] = {
    "members": committee.members,
    "mirrored": lambda images, models: committee.mirrored(images, models[0]),
}


@pytest.mark.parametrize("of", PREDICTIONS)
def test_the_size_of_batches_changes_nothing(of: str, models: list[Segmenter]) -> None:
    found = []
    for batch_size in (1, 2, 3):
        images = pool(batch_size=batch_size)
        done: list[int] = []
        found.append(scored(images, PREDICTIONS[of](images, models), models[0], advance=done.append))
        assert done == {1: [1, 1, 1], 2: [2, 1], 3: [3]}[batch_size]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_temperature_and_mask(models: list[Segmenter]) -> None:
    images = pool()
    valid = torch.rand(SIZE, generator=torch.Generator().manual_seed(3)) > 0.5
    with torch.inference_mode():
        logits = [network(pixels_of(images)).logits / 2.5 for network in models]
    found = scored(images, committee.members(images, models), models[0], temperature=2.5, valid=valid)
    hold(found, by_hand(logits, (32, 64), True, valid))


def dropped(images: ImageSet, model: Any, passes: int, seed: int) -> torch.Tensor:
    return torch.cat(list(committee.dropout(images, model, passes, seed)), dim=1)


@pytest.mark.parametrize("frozen", [False, True])
def test_dropout_is_decided_by_its_seed(models: list[Segmenter], frozen: bool) -> None:
    model = calibrated(Builder("smp", 3, "none"), 0)
    if frozen:
        model.freeze_encoder()
    images = pool(cache_bytes=1 << 30)
    first = dropped(images, model, 4, seed=1)
    assert first.shape[:3] == (4, 3, 3)
    torch.manual_seed(99)
    assert torch.equal(dropped(images, model, 4, seed=1), first)
    assert not torch.equal(dropped(images, model, 4, seed=2), first)
    # all passes differ, in every image
    assert all(
        not torch.equal(first[a, i], first[b, i]) for a in range(4) for b in range(a) for i in range(3)
    )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_image_has_noise_of_its_own(batch_size: int) -> None:
    """Also where each is a batch of its own: half of the pixels fall together by chance, not all."""
    dropped_pixels = dropped(pool(batch_size=batch_size), Noisy(), 2, seed=0) == 0
    for one, other in ((0, 1), (0, 2), (1, 2)):
        agreeing = (dropped_pixels[:, one] == dropped_pixels[:, other]).float().mean()
        assert abs(float(agreeing) - 0.5) < 0.03


def test_dropout_leaves_torchs_state_and_the_model_alone(
    models: list[Segmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the state of GPUs that it does not use: `torch.manual_seed` would set all of them."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    model = models[0]
    before = {name: module.training for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    seeded.clear()
    state = torch.random.get_rng_state()
    predictions = committee.dropout(pool(), model, 2, seed=0)
    next(predictions)
    assert torch.equal(torch.random.get_rng_state(), state)  # between batches, too
    list(predictions)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert seeded == []
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("network", [Noisy, Uncopied])
def test_only_dropout_is_in_train_mode(network: type[Noisy]) -> None:
    """And of a network that cannot be copied no longer than a pass."""
    images, model = pool(), network(0.25)
    predictions = committee.dropout(images, model, 50, seed=0)
    logits = next(predictions)
    assert model.drop.training == (network is Noisy)  # the user's own, or a copy
    assert model.norm.num_batches_tracked == 0
    pixels = pixels_of(images)[:1].expand_as(logits) / (1 + model.norm.eps) ** 0.5
    # inverted dropout: 0 with the chance 1/4, else 4/3 of the value
    zero = logits == 0
    assert abs(float(zero.float().mean()) - 0.25) < 0.01
    torch.testing.assert_close(logits[~zero], pixels[~zero] * 4 / 3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("windows", [False, True])
def test_dropout_of_an_adapted_network_is_on_and_nothing_else(training: bool, windows: bool) -> None:
    """An adapter holds its user's model in eval mode, whatever mode that has."""
    own = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.25)).train(training)
    images, network = pool(), adapt(own)
    if windows:
        network = windowed(network, SIZE, (32, 32))
    logits = next(committee.dropout(images, network, 50, seed=0))
    if not windows:  # where these overlap both would have to be 0
        assert abs(float((logits == 0).float().mean()) - 0.25) < 0.01
    assert len(logits.unique(dim=0)) == 50
    assert [module.training for module in own.modules()] == [training] * 3
    assert own[0].num_batches_tracked == 0 and not own[1]._forward_hooks and not own[1]._forward_pre_hooks


@pytest.mark.parametrize("model", [Noisy(0.0), nn.Sequential()], ids=["never drops", "no layer"])
def test_a_network_without_dropout_is_named(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"has no dropout.*another measure than mc-entropy and bald"):
        next(committee.dropout(pool(), model, 2, seed=0))


def test_one_pass_is_certain_of_itself(models: list[Segmenter]) -> None:
    images = pool()
    found = scored(images, committee.dropout(images, models[0], 1, seed=0), models[0])
    torch.testing.assert_close(found.total, found.expected, rtol=0, atol=1e-6)
    several = scored(images, committee.dropout(images, models[0], 6, seed=0), models[0])
    assert bool((several.total - several.expected > 1e-5).all())


def test_dropout_of_an_encoder_that_was_frozen_is_that_of_one_that_was_not() -> None:
    """What the frozen encoder computed once is what it computes now: the decoder's noise is the same."""
    found = []
    for frozen in (False, True):
        model = calibrated(Builder("smp", 3, "none"), 0)
        if frozen:
            model.freeze_encoder()
        found.append(dropped(pool(), model, 3, seed=4))
    torch.testing.assert_close(found[0], found[1])
