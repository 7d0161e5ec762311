"""NaN and infinite numbers out of a model: the image is named, or the step and the epoch."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import blocks, calibrated
from torch import nn

from meal_gpu import experiment
from meal_gpu.acquisition import acquire
from meal_gpu.config import Config
from meal_gpu.errors import MealGpuError
from meal_gpu.evaluate import evaluate
from meal_gpu.models import Builder, Output, Segmenter
from meal_gpu.ops import Ops, reference
from meal_gpu.passes import ImageSet

BAD = 4
NAMES = tuple("abcdef")
OUTCOME = "an error names the image; the ledger stays as it was"


class Broken(nn.Module):
    """Logits by the pixels' colours; in the white corner of one image they are `value`."""

    align_corners = True
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def __init__(self, value: float, *, feature: float | None = None) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.value = value
        self.feature = feature

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def forward(self, images: torch.Tensor) -> Output:
        # once for whole images, once for a patch of the corner
        white = (images == 1).all(dim=1, keepdim=True)
        logits = torch.where(white, self.value, self.drop(4 * images))
        return Output(logits, self.features(images))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        white = (images == 1).all(dim=1, keepdim=True)
        return images if self.feature is None else torch.where(white, self.feature, images)


def pixels() -> torch.Tensor:
    images = blocks().clamp(max=250)
    images[BAD, -4:, -4:] = 255
    return images


def fault(what: str, *values: Any) -> Any:
    return pytest.param(*values, id=what, marks=pytest.mark.fault("resource", what, OUTCOME))


@pytest.mark.parametrize(
    ("value", "options"),
    [
        fault("a model that gives NaN in a few pixels of one image", math.nan, {}),
        fault("… infinity", math.inf, {}),
        fault("… NaN, ranked by another measure", math.nan, {"strategy": "margin"}),
        fault("… infinity, ranked by another measure", math.inf, {"strategy": "least-confidence"}),
        fault("… NaN, and classes are counted", math.nan, {"strategy": "class-balanced"}),
        fault("… NaN, and boundaries are measured", math.nan, {"strategy": "cereals"}),
        fault("… NaN in an ensemble", math.nan, {"strategy": "ensemble", "members": [Broken(0.0)]}),
        fault("… NaN in the second member of an ensemble", 0.0,
              {"strategy": "ensemble", "members": [Broken(math.nan)]}),
        fault("… NaN with dropout left on", math.nan, {"strategy": "bald"}),
        fault("… NaN in mirrored images", math.nan, {"strategy": "equal"}),
        fault("… NaN in large batches of the compiled operations", math.nan, {"batch_size": 6, "ops": "cpu"}),
    ],
)  # fmt: skip
def test_the_image_is_named(value: float, options: dict[str, Any]) -> None:
    if options.get("ops") == "cpu":
        from meal_gpu.ops import why_not_cpu

        if missing := why_not_cpu():
            pytest.skip(missing)
    arguments = {"strategy": "entropy", "grid": (2, 4), **options}
    with pytest.raises(MealGpuError, match=rf"^{BAD}: the model's output is NaN or infinite"):
        acquire(Broken(value), pixels(), 5, **arguments)
    arguments["members"] = [Broken(0.5)] * len(options.get("members", ()))
    assert len(acquire(Broken(0.0), pixels(), 5, **arguments)) == 5


@pytest.mark.fault("resource", "a model with sound logits and a feature that is NaN", OUTCOME)
def test_the_image_of_a_feature_is_named() -> None:
    # of the 48 patches all are candidates
    options: dict[str, Any] = {"strategy": "core-set", "grid": (2, 4)}
    with pytest.raises(MealGpuError, match=rf"^{BAD}: .*NaN or infinite"):
        acquire(Broken(0.0, feature=math.nan), pixels(), 5, **options)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(math.nan, id="nan", marks=pytest.mark.fault(
            "resource", "a model that gives NaN while it is validated",
            "an error names the image: NaN is not taken for the first class",
        )),
        pytest.param(math.inf, id="inf", marks=pytest.mark.fault(
            "resource", "a model that gives infinity while it is validated", "an error names the image"
        )),
    ],
)  # fmt: skip
def test_a_validation_image_is_named(value: float) -> None:
    labels = torch.zeros(6, 32, 64, dtype=torch.uint8)
    images = ImageSet(pixels(), reference, batch_size=4, names=NAMES)
    with pytest.raises(MealGpuError, match=r"^e: the model's output is NaN or infinite.*learning_rate"):
        evaluate(images, labels, Broken(value), 255)
    assert int(evaluate(images, labels, Broken(0.0), 255).confusion.sum()) == labels.numel()


@pytest.mark.fault(
    "resource", "a model that leaves a class out by a logit of minus infinity",
    "an error names the image, and the way out: a low number",
)  # fmt: skip
def test_minus_infinity_is_not_finite_either() -> None:
    class Without(Broken):
        def forward(self, images: torch.Tensor) -> Output:
            logits = images.clone()
            logits[:, 2] = self.value
            return Output(logits, images)

    images, labels = ImageSet(pixels(), reference, names=NAMES), torch.zeros(6, 32, 64, dtype=torch.uint8)
    with pytest.raises(MealGpuError, match=r"^a: the model's output is NaN or infinite.*by -inf"):
        evaluate(images, labels, Without(-math.inf), 255)
    with pytest.raises(MealGpuError, match=r"^0: the model's output is NaN or infinite"):
        acquire(Without(-math.inf), pixels(), 5, strategy="entropy", grid=(2, 4))
    assert evaluate(images, labels, Without(-1e4), 255).confusion[:, 2].tolist() == [0, 0, 0]


@pytest.mark.fault(
    "resource", "a learning rate with which training diverges",
    "an error names the step, the epoch and the learning rate; nothing is recorded of the step",
)  # fmt: skip
def test_a_loss_that_is_not_finite_names_step_and_epoch(tiny: Config, tmp_path: Path) -> None:
    config = tiny.replace(strategy="entropy", learning_rate=1e30, epochs=3)
    with pytest.raises(
        MealGpuError,
        match=r"step 0, epoch [123] of 3: the training loss is (nan|inf); lower learning_rate, .*1e\+30",
    ):
        experiment.run(config, tmp_path / "run")
    assert not list((tmp_path / "run" / "steps").glob("0*"))


@pytest.mark.fault(
    "resource", "weights become NaN between two steps of a run",
    "an error names the validation image; the steps before stay, and `--resume` goes on after them",
)  # fmt: skip
def test_a_run_stops_and_goes_on(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.replace(strategy="entropy", steps=1)
    decode = Segmenter.decode

    def spoilt(self: Segmenter, encoded: Any) -> torch.Tensor:
        logits = decode(self, encoded)
        done = (tmp_path / "run" / "steps" / "000").exists()
        whole = encoded.deep.shape[2:] == (6, 12)  # not a patch
        return logits * math.nan if done and whole and labelled else logits

    labelled: list[bool] = []
    original = experiment.train_step

    def after_the_query(*arguments: Any) -> Any:
        labelled.append(True)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "decode", spoilt)
        patch.setattr(experiment, "train_step", after_the_query)
        with pytest.raises(MealGpuError, match=r"\.png: the model's output is NaN or infinite"):
            experiment.run(config, tmp_path / "run")
    folder = experiment.run(config, tmp_path / "run", resume=True)
    assert len(folder.completed()) == 2
    whole = experiment.run(config, tmp_path / "whole")
    for step in (0, 1):
        query = [(each.step(step) / "query.parquet").read_bytes() for each in (folder, whole)]
        assert query[0] == query[1]


def test_sound_networks_pass(on_cpu: Ops) -> None:
    model = calibrated(Builder("smp", 3, "none"), 0)
    images = ImageSet(pixels(), on_cpu, names=NAMES)
    assert int(evaluate(images, torch.zeros(6, 32, 64, dtype=torch.uint8), model, 255).confusion.sum())
