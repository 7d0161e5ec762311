"""Images through a network: order, batches, the frozen encoder's cache."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import calibrated

from meal_gpu.errors import MealGpuError
from meal_gpu.grid import Grid
from meal_gpu.inference import autocast
from meal_gpu.models import IMAGENET_MEAN, IMAGENET_STD, Builder, Output, Segmenter
from meal_gpu.ops import Ops, reference
from meal_gpu.passes import ImageSet, default_batch
from meal_gpu.scoring import (
    boundary_lengths,
    patch_features,
    patches_at_once,
    require_finite,
    score_pool,
    shared_features,
)

GRID = Grid(2, 4, 32, 64)
BUILDER = Builder("smp", 3, "none")


class Brightness:
    """A user's own network: class 1 is as likely as its pixel is bright; the feature is the mean colour."""

    align_corners = True
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def __init__(self) -> None:
        self.evaluated = False

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def eval(self) -> None:
        self.evaluated = True

    def __call__(self, images: torch.Tensor, /) -> Output:
        share = images[:, 0].clamp(1e-6, 1 - 1e-6)
        return Output(torch.stack([(1 - share).log(), share.log()], dim=1), self.features(images))

    def features(self, images: torch.Tensor, /) -> torch.Tensor:
        return images


def scenes(images: int, height: int = 32, width: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (images, height, width, 3), generator=generator, dtype=torch.uint8)


def frozen(seed: int) -> Segmenter:
    model = calibrated(BUILDER, seed)
    model.freeze_encoder()
    return model


def pool(images: torch.Tensor, **arguments: int | str) -> ImageSet:
    return ImageSet(images, reference, **arguments)  # type: ignore[arg-type]


def test_scores_are_in_the_order_of_the_patch_ids() -> None:
    images = torch.zeros(3, 4, 8, 3, dtype=torch.uint8)
    grid = Grid(2, 2, 4, 8)
    images[1, 2:, :4] = 51  # patch 2 of image 1: a fifth
    images[2, :2, 4:] = 102  # patch 1 of image 2: two fifths
    model = Brightness()
    scores = score_pool(pool(images, batch_size=2), model, grid).scores
    assert model.evaluated
    assert (scores.shape, scores.dtype) == ((12,), torch.float32)
    expected = torch.zeros(12)
    expected[4 + 2] = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    expected[8 + 1] = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    torch.testing.assert_close(scores, expected, rtol=0, atol=2e-5)


def test_scores_equal_the_pipeline_by_hand() -> None:
    images, model = scenes(3), calibrated(BUILDER, 0)
    scores = score_pool(pool(images, batch_size=2), model, GRID).scores.view(3, -1)
    for image, expected in zip(images, scores, strict=True):
        with torch.inference_mode():
            logits = model(reference.normalise(image[None], IMAGENET_MEAN, IMAGENET_STD)).logits
        full = F.interpolate(logits.double(), size=(32, 64), mode="bilinear", align_corners=True)
        entropy = torch.special.entr(full.softmax(1)).sum(1)
        by_hand = F.avg_pool2d(entropy[None], (16, 16)).flatten()
        # batches of one and of two may round convolutions differently
        torch.testing.assert_close(expected.double(), by_hand, rtol=0, atol=1e-5)


def test_progress_counts_images() -> None:
    done: list[int] = []
    score_pool(pool(scenes(5), batch_size=2), Brightness(), GRID, advance=done.append)
    assert done == [2, 2, 1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_frozen_encoders_cache_changes_no_bit(precision: str) -> None:
    images = scenes(5)
    one_batch = 2 * (24 * 8 * 16 + 1280 * 2 * 4) * (4 if precision == "float32" else 2)
    sets = [
        pool(images, batch_size=2, cache_bytes=size, precision=precision)
        for size in (0, one_batch, one_batch + one_batch // 2, 1 << 30)
    ]
    for model in (frozen(0), frozen(1)):  # the decoder is another one in each step; the encoder stays
        expected = score_pool(sets[0], model, GRID).scores
        assert float(expected.std()) > 0.01
        for images_set in sets[1:]:
            assert torch.equal(score_pool(images_set, model, GRID).scores, expected)
    # what is kept: nothing, the first batch, the first batch, all three
    assert [len(images_set._encoded) for images_set in sets] == [0, 1, 1, 3]


def test_a_cached_pass_does_not_run_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    images_set, model = pool(scenes(3), cache_bytes=1 << 30), frozen(0)
    before = score_pool(images_set, model, GRID).scores
    monkeypatch.setattr(model.encoder, "forward", None)
    assert torch.equal(score_pool(images_set, model, GRID).scores, before)


def test_an_encoder_that_trains_is_never_cached() -> None:
    images_set = pool(scenes(2), cache_bytes=1 << 30)
    model = calibrated(BUILDER, 0)
    before = score_pool(images_set, model, GRID).scores
    assert not images_set._encoded
    with torch.no_grad():
        model.encoder.features[0][0].weight.mul_(2)
    assert not torch.equal(score_pool(images_set, model, GRID).scores, before)


def test_mixed_precision_stays_inside_the_forward_pass() -> None:
    for batch, output in pool(scenes(3), batch_size=2, precision="bfloat16").outputs(BUILDER(0)):
        assert output.logits.dtype == torch.bfloat16
        assert not torch.is_autocast_enabled("cpu")
        assert len(output.logits) == batch.stop - batch.start
    with autocast(torch.device("cpu"), "float32"):
        assert not torch.is_autocast_enabled("cpu")


def test_bfloat16_scores_are_close() -> None:
    model = calibrated(BUILDER, 0)
    exact, rounded = (
        score_pool(pool(scenes(2), precision=p), model, GRID).scores for p in ("float32", "bfloat16")
    )
    # eight bits of mantissa through fifty layers; the scores spread over more than 0.5
    assert float((rounded - exact).abs().mean()) < 0.1
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("grid", [GRID, Grid(2, 3, 32, 64)], ids=["even", "ragged"])
def test_a_patchs_features_are_those_of_its_crop(grid: Grid) -> None:
    images, model = scenes(2), calibrated(BUILDER, 0)
    patches = torch.tensor([7, 0, 3]) if grid is GRID else torch.tensor([5, 0, 8])
    features = patch_features(pool(images), patches, model, grid)
    assert (features.shape, features.dtype) == ((3, 1280), torch.float32)
    image, _, _ = grid.locate(patches)
    for row, (left, top, right, bottom) in enumerate(grid.boxes(patches)):
        crop = images[int(image[row]), top:bottom, left:right][None]
        pixels = reference.normalise(crop, model.mean, model.std)
        short = (0, grid.patch_width - pixels.shape[3], 0, grid.patch_height - pixels.shape[2])
        with torch.inference_mode():
            deep = model.encode(F.pad(pixels, short)).deep
        torch.testing.assert_close(features[row], deep.mean(dim=(2, 3))[0], rtol=1e-4, atol=1e-5)


def test_features_in_any_batches_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    images, model = scenes(2), calibrated(BUILDER, 0)
    patches = torch.tensor([9, 2, 2, 15, 0])
    whole = patch_features(pool(images), patches, model, GRID)
    done: list[int] = []
    monkeypatch.setattr("meal_gpu.scoring.patches_at_once", lambda grid, device: 2)
    parts = patch_features(pool(images), patches, model, GRID, done.append)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole[1], whole[2])
    assert done == [2, 2, 1]
    assert not whole.requires_grad


def test_the_default_batch_is_what_the_device_is_fast_at() -> None:
    assert (default_batch(torch.device("cpu")), default_batch(torch.device("cuda"))) == (1, 8)
    done: list[int] = []
    score_pool(pool(scenes(3)), Brightness(), GRID, advance=done.append)
    assert done == [1, 1, 1]


@pytest.mark.parametrize(
    ("grid", "on_cpu", "on_gpu"),
    [
        (Grid(4, 4, 512, 1024), 8, 128),
        (Grid(4, 4, 360, 480), 24, 128),
        (GRID, 32, 128),
        (Grid(1, 1, 1024, 2048), 1, 2),
        (Grid(1, 1, 2048, 4096), 1, 1),
    ],
)
def test_patches_of_a_bounded_area_pass_at_once(grid: Grid, on_cpu: int, on_gpu: int) -> None:
    assert patches_at_once(grid, torch.device("cpu")) == on_cpu
    assert patches_at_once(grid, torch.device("cuda")) == on_gpu


def test_a_users_own_network_gives_features_from_its_output() -> None:
    images = scenes(1, 4, 8)
    features = patch_features(pool(images), torch.tensor([1]), Brightness(), Grid(1, 2, 4, 8))
    torch.testing.assert_close(features[0], images[0, :, 4:].float().div(255).mean(dim=(0, 1)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_names_its_image(bad: float) -> None:
    scores = torch.zeros(16)
    require_finite(scores, GRID, ("a.png", "b.png"))
    scores[[11, 13]] = bad
    with pytest.raises(MealGpuError, match=r"b\.png: .*NaN or infinite \(patch 11\)") as raised:
        require_finite(scores, GRID, ("a.png", "b.png"))
    assert all(part in str(raised.value) for part in ("take precision float32", "-inf", "such as -10000"))


def test_a_class_that_is_left_out_by_the_advice_is_scored_in_any_precision() -> None:
    class Without(Brightness):
        def __call__(self, images: torch.Tensor, /) -> Output:
            output = super().__call__(images)
            logits = output.logits.to(torch.float16)
            logits[:, 0] = -10000
            return Output(logits, output.features)

    scores = score_pool(pool(scenes(1, 4, 8)), Without(), Grid(1, 2, 4, 8)).scores
    assert bool(scores.isfinite().all())


def test_masked_scores_are_those_of_the_pixels_left(on_cpu: Ops) -> None:
    images = torch.randint(0, 256, (2, 40, 56, 3), dtype=torch.uint8, generator=torch.manual_seed(1))
    model = Builder("smp", 4, "none")(0)
    valid = torch.rand(40, 56, generator=torch.manual_seed(2)) > 0.4
    pool, grid = ImageSet(images, on_cpu), Grid(3, 4, 40, 56)
    found = score_pool(pool, model, grid, valid=valid).scores.view(2, 12)
    for batch, output in pool.outputs(model):
        padded = model.padded_size((40, 56))
        full = F.interpolate(output.logits.double(), padded, mode="bilinear", align_corners=True)
        log_p = full.log_softmax(dim=1)[..., :40, :56]
        entropy = -(log_p.exp() * log_p).sum(dim=1)
        for patch, (left, top, right, bottom) in enumerate(grid.boxes(range(12))):
            inside = valid[top:bottom, left:right]
            expected = entropy[:, top:bottom, left:right][:, inside].mean(dim=1)
            assert torch.allclose(found[batch, patch].double(), expected, atol=2e-6)
    everywhere = score_pool(pool, model, grid, valid=torch.ones(40, 56) > 0).scores
    assert torch.allclose(everywhere, score_pool(pool, model, grid).scores, atol=2e-6)


# Four cells of classes by row, over 8 × 16 pixels: a cell is 2 high and 4 wide; patches are 4 × 8
BOUNDARIES = {
    "one class": (["0000"] * 4, [0, 0, 0, 0]),
    # across the columns, where patches 0 and 1 meet: 4 pixels of height each, on the side of the right one
    "at the border": (["0011"] * 4, [0, 4, 0, 4]),
    "inside": (["0111"] * 4, [4, 0, 4, 0]),
    # down the rows, at half of the upper patches: 8 pixels of width each
    "lying": (["0000", "1111", "1111", "1111"], [8, 8, 0, 0]),
    # one cell of another class: 2 + 2 of height and 4 + 4 of width
    "an island": (["0000", "0200", "0000", "0000"], [2 + 4, 2, 4, 0]),
    "three classes": (["0120", "0120", "0000", "0000"], [4, 4 + 4, 4, 4]),
    "a staircase": (["0000", "1000", "1100", "1110"], [2 + 4, 0, 4, 2 + 2 + 4]),
}  # fmt: skip


def seen_as(rows: list[str]) -> torch.Tensor:
    """Logits [1, 3, h, w] of which the digits are the most likely classes."""
    classes = torch.tensor([[int(digit) for digit in row] for row in rows])
    return F.one_hot(classes, 3).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize(("rows", "expected"), BOUNDARIES.values(), ids=BOUNDARIES)
def test_boundary_lengths_by_hand(rows: list[str], expected: list[float]) -> None:
    found = boundary_lengths(seen_as(rows), Grid(2, 2, 8, 16), (8, 16))
    assert found.dtype == torch.float32
    assert found.tolist() == [pytest.approx(expected)]


def test_boundary_lengths_of_a_batch_in_half_precision() -> None:
    logits = torch.cat([seen_as(rows) for rows, _ in BOUNDARIES.values()])
    expected = torch.tensor([lengths for _, lengths in BOUNDARIES.values()]).float()
    found = boundary_lengths(logits.bfloat16(), Grid(2, 2, 8, 16), (8, 16))
    torch.testing.assert_close(found, expected)


def test_boundary_lengths_of_ragged_patches_and_padding() -> None:
    """Of 6 × 10 pixels, over which 8 × 16 are spanned: patches are 6 × 4, 6 × 4 and 6 × 2."""
    # All of column 1, pixels 4 to 7, starts a boundary 6 pixels high; the one at 12 is in the padding
    found = boundary_lengths(seen_as(["0112"] * 4), Grid(1, 3, 6, 10), (8, 16))
    assert found.tolist() == [pytest.approx([0, 6, 0])]
    # A cell that two patches share is shared: 4 wide cells under patches of 6 and 4
    found = boundary_lengths(seen_as(["0122"] * 4), Grid(1, 2, 8, 12), (8, 16))
    # cells 4 … 7 and 8 … 11 start one each: patch 0 holds half of the first
    assert found.tolist() == [pytest.approx([4, 4 + 8])]


# The pixels that count, of 8 × 16 under 4 × 4 cells, and what they leave of an island's boundary by patch
MASKS = {
    "everything": ((slice(0, 8), slice(0, 16)), [2 + 4, 2, 4, 0]),
    "nothing": ((slice(0, 0), slice(0, 0)), [0, 0, 0, 0]),
    # the island's own row of cells, so that only its sides count
    "a row": ((slice(2, 4), slice(0, 16)), [2, 2, 0, 0]),
    # half of the island: its left side and half of its upper and lower one
    "half a cell": ((slice(0, 8), slice(0, 6)), [2 / 2 + 4 / 2, 0, 4 / 2, 0]),
    "the other half": ((slice(0, 8), slice(6, 16)), [4 / 2, 2 / 2, 4 / 2, 0]),
    "elsewhere": ((slice(0, 8), slice(12, 16)), [0, 0, 0, 0]),
}


@pytest.mark.parametrize(("where", "expected"), MASKS.values(), ids=MASKS)
def test_boundaries_in_masked_pixels_do_not_count(where: tuple[slice, slice], expected: list[float]) -> None:
    valid = torch.zeros(8, 16, dtype=torch.bool)
    valid[where] = True
    logits = seen_as(BOUNDARIES["an island"][0])
    found = boundary_lengths(logits, Grid(2, 2, 8, 16), (8, 16), valid)
    assert found.tolist() == [pytest.approx(expected)]


def test_masked_boundaries_beside_padding() -> None:
    """The padding's pixels are no pixels of the image: they make no cell count less."""
    logits, grid = seen_as(["0122"] * 4), Grid(1, 2, 6, 10)
    valid = torch.ones(6, 10, dtype=torch.bool)
    assert torch.equal(
        boundary_lengths(logits, grid, (8, 16), valid), boundary_lengths(logits, grid, (8, 16))
    )


def test_one_pass_finds_all_that_single_passes_find(on_cpu: Ops) -> None:
    images, model = ImageSet(scenes(3), on_cpu), calibrated(BUILDER, 0)
    valid = torch.rand(32, 64, generator=torch.Generator().manual_seed(2)) > 0.3
    done: list[int] = []
    whole = score_pool(
        images, model, GRID, measure="margin", temperature=2.0, features=True, classes=True, boundary=True,
        valid=valid, advance=done.append,
    )  # fmt: skip
    assert done == [1, 1, 1] and not whole.others
    done.clear()
    several = score_pool(
        images, model, GRID, others=("margin", "least-confidence"), temperature=2.0, valid=valid,
        advance=done.append,
    )  # fmt: skip
    assert done == [1, 1, 1]
    for measure, values in {"entropy": several.scores, **several.others}.items():
        alone = score_pool(images, model, GRID, measure=measure, temperature=2.0, valid=valid)
        assert torch.equal(values, alone.scores), measure
    assert torch.equal(
        whole.scores, score_pool(images, model, GRID, measure="margin", temperature=2.0, valid=valid).scores
    )
    assert whole.features is not None
    assert torch.equal(whole.features, shared_features(images, model, GRID))
    assert whole.classes is not None
    assert whole.classes.probabilities.shape == whole.classes.counts.shape == (24, 3)
    logits = torch.cat([output.logits for _, output in images.outputs(model)])
    by_hand = reference.patch_classes(logits, GRID, (32, 64), True, temperature=2.0, valid=valid)
    torch.testing.assert_close(whole.classes.probabilities, by_hand.probabilities.flatten(0, 1))
    assert torch.equal(whole.classes.counts, by_hand.counts.flatten(0, 1))
    assert whole.classes.counts.view(3, 8, 3).sum(dim=(1, 2)).tolist() == [int(valid.sum())] * 3
    assert whole.boundary is not None
    assert torch.equal(whole.boundary, boundary_lengths(logits, GRID, (32, 64), valid).flatten())
    alone = score_pool(images, model, GRID)
    assert (alone.features, alone.classes, alone.boundary) == (None, None, None)
