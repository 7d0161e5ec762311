"""Temperature scaling and calibration error, on logits of which the right answer is known."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import Painted, paint

from meal_gpu import rng
from meal_gpu.calibration import (
    LIMITS,
    PER_IMAGE,
    expected_calibration_error,
    fit_temperature,
    pixels_of,
    sampled,
)
from meal_gpu.config import Config
from meal_gpu.data import synthetic
from meal_gpu.learner import Learner, calibrate
from meal_gpu.ops import reference
from meal_gpu.passes import ImageSet
from meal_gpu.preparation import Silent, load, resolve

VOID = 255


def honest(pixels: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [K, C] and labels that were drawn from their softmax: calibrated as they are."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(pixels, classes, generator=generator) * 2
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("factor", [0.2, 1.0, 1.7, 6.0])
def test_the_factor_that_logits_were_scaled_by_is_the_temperature(factor: float) -> None:
    logits, truth = honest(100_000, 5)
    # The standard error of log T is near 1/200 here
    assert fit_temperature(factor * logits, truth) == pytest.approx(factor, rel=0.02)


@pytest.mark.parametrize("classes", [2, 19])
def test_no_other_temperature_has_a_lower_loss(classes: int) -> None:
    logits, truth = honest(500, classes)
    found = fit_temperature(3 * logits, truth)
    loss = {t: float(F.cross_entropy(3 * logits.double() / t, truth)) for t in np.geomspace(*LIMITS, 2000)}
    assert found == pytest.approx(min(loss, key=loss.__getitem__), rel=0.005)


def test_where_there_is_no_best_temperature() -> None:
    truth = torch.arange(1000) % 4
    right = F.one_hot(truth, 4).float()
    assert fit_temperature(right, truth) == pytest.approx(LIMITS[0], rel=1e-2)  # the surer the better
    wrong = F.one_hot((truth + 1) % 4, 4).float()
    assert fit_temperature(wrong, truth) == pytest.approx(LIMITS[1], rel=1e-2)  # the less sure the better
    assert LIMITS[0] <= fit_temperature(torch.zeros(1000, 4), truth) <= LIMITS[1]  # all are the same
    assert fit_temperature(torch.zeros(0, 4), truth[:0]) == 1.0


def test_calibration_error_by_hand() -> None:
    """Of five bins: 0.9 right; 0.75 wrong and 0.7 right; 0.55 right."""
    p = torch.tensor([[0.9, 0.1], [0.25, 0.75], [0.7, 0.3], [0.45, 0.55]], dtype=torch.float64)
    truth = torch.tensor([0, 0, 0, 1])
    # |1 - 0.9|, 2 · |0.5 - 0.725|, |1 - 0.55|
    assert expected_calibration_error(p.log(), truth, bins=5) == pytest.approx((0.1 + 0.45 + 0.45) / 4)
    # one bin: the gap between the shares of right answers, 3/4, and the mean confidence, 0.725
    assert expected_calibration_error(p.log(), truth, bins=1) == pytest.approx(0.025)
    assert math.isnan(expected_calibration_error(p[:0].log(), truth[:0]))
    # a bin has its upper end and not its lower: 1/2 right and 3/4 wrong lie in two of two
    p = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=torch.float64)
    assert expected_calibration_error(p.log(), torch.tensor([0, 1]), bins=2) == pytest.approx(
        (0.5 + 0.75) / 2
    )


def test_calibration_error_of_the_constant() -> None:
    sure = torch.tensor([[1000.0, 0.0]]).expand(10, 2)  # confidence 1 lies in the last bin
    truth = torch.tensor([0] * 7 + [1] * 3)
    assert expected_calibration_error(sure, truth) == pytest.approx(0.3)
    # of four equal classes the first is meant, with confidence 1/4
    assert expected_calibration_error(torch.zeros(10, 4), truth) == pytest.approx(0.7 - 0.25)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_bin_by_bin(bins: int) -> None:
    logits, truth = honest(3000, 4)
    confidence, predicted = (logits.double() / 0.5).softmax(dim=1).numpy().max(1), logits.argmax(1).numpy()
    error, edges = 0.0, np.linspace(0, 1, bins + 1)
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            accuracy = (predicted == truth.numpy())[inside].mean()
            error += inside.mean() * abs(accuracy - confidence[inside].mean())
    assert expected_calibration_error(logits, truth, 0.5, bins) == pytest.approx(error, abs=1e-12)


def test_the_temperature_mends_the_calibration() -> None:
    logits, truth = honest(50_000, 5)
    before = expected_calibration_error(4 * logits, truth)
    after = expected_calibration_error(4 * logits, truth, fit_temperature(4 * logits, truth))
    assert before > 0.1
    assert after < 0.01


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize(
    ("cells", "padded", "size"),
    [
        ((5, 7), (20, 28), (20, 28)),
        ((4, 4), (16, 32), (13, 27)),
        ((9, 6), (9, 6), (9, 6)),
        ((1, 1), (8, 8), (5, 8)),
        ((3, 1), (12, 1), (12, 1)),
    ],
)
def test_sampled_logits_are_those_of_the_whole_picture(
    corners: bool, cells: tuple[int, int], padded: tuple[int, int], size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, *cells, generator=generator)
    labels = torch.randint(4, (3, *size), generator=generator, dtype=torch.uint8)
    labels[:, 0] = VOID
    values, truth, image = sampled(logits, labels, padded, corners, VOID, rng.stream(0, 0, "here"), 200)
    full = F.interpolate(logits.double(), padded, mode="bilinear", align_corners=corners)
    flat = torch.from_numpy(rng.stream(0, 0, "here").integers(size[0] * size[1], size=(3, 200)))
    y, x = flat // size[1], flat % size[1]
    images = torch.arange(3)[:, None].expand_as(y)
    known = y > 0  # the first row is void
    assert values.dtype == torch.float32
    assert truth.dtype == torch.int64
    torch.testing.assert_close(values.double(), full[images, :, y, x][known], rtol=0, atol=2e-5)
    assert torch.equal(truth, labels[images, y, x][known].long())
    assert torch.equal(image, images[known])
    if size[0] > 1:
        assert len(torch.unique(y)) == size[0]  # all of the picture is looked at


def test_what_is_void_everywhere_gives_no_pixel() -> None:
    labels = torch.full((2, 8, 8), VOID, dtype=torch.uint8)
    draws = rng.stream(0, 0, "here")
    values, truth, image = sampled(torch.zeros(2, 3, 4, 4), labels, (8, 8), True, VOID, draws, 50)
    assert values.shape == (0, 3)
    assert image.shape == (0,)
    assert fit_temperature(values, truth) == 1.0


CLASSES = torch.randint(6, (5, 32, 48), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_pixels_of_validation_images() -> None:
    labels = CLASSES.clone()
    labels[:, :, :24] = VOID
    images = ImageSet(paint(CLASSES), reference, batch_size=2)
    labels[3] = VOID
    logits, truth, image = pixels_of(images, labels, Painted(), VOID, 0, 1)
    # half of them, to five standard errors
    assert abs(len(truth) - 4 * PER_IMAGE / 2) < 5 * (4 * PER_IMAGE / 4) ** 0.5
    assert torch.equal(logits.argmax(dim=1), truth)
    assert image.unique().tolist() == [0, 1, 2, 4]
    # other pixels in another step, and for another seed
    for seed, step in ((0, 2), (1, 1)):
        assert not torch.equal(pixels_of(images, labels, Painted(), VOID, seed, step)[0], logits)


def test_a_temperature_is_fitted_on_every_other_validation_image_and_judged_on_the_rest(
    tmp_path: Path,
) -> None:
    """The network is always right, and not sure of it; other labels make it wrong."""
    synthetic.write(tmp_path / "tree", train=2, val=5, size=(32, 48), seed=0)
    config = Config(
        dataset="cityscapes", root=tmp_path / "tree", size=(32, 48), encoder_weights="none",
        initial_images=1, steps=1, precision="float32", device="cpu", ops="reference",
    )  # fmt: skip
    experiment = load(resolve(config), Silent())

    def calibrated_on(labels: torch.Tensor) -> dict[str, float | None]:
        shown = replace(experiment, validation=images, validation_labels=labels)
        model: Any = Painted(sharpness=1.0)
        learner = Learner(model)
        found = calibrate(shown, learner, 0)
        assert learner.temperature == found["temperature"]
        return found

    images = ImageSet(paint(CLASSES), reference, batch_size=2)
    right = calibrated_on(CLASSES)
    assert right["temperature"] == pytest.approx(LIMITS[0], rel=1e-2)  # the surer the better
    assert right["ece_after"] == pytest.approx(0, abs=1e-6)
    assert right["ece_before"] > 0.01
    other = CLASSES.clone()
    other[1::2] = (CLASSES[1::2] + 1) % 6
    wrong = calibrated_on(other)
    assert wrong["temperature"] == right["temperature"]
    assert wrong["ece_after"] == pytest.approx(1, abs=1e-6)
    images = ImageSet(paint(CLASSES[:1]), reference)
    alone = calibrated_on(CLASSES[:1])
    assert alone["temperature"] == pytest.approx(LIMITS[0], rel=1e-2)
    assert (alone["ece_before"], alone["ece_after"]) == (None, None)
