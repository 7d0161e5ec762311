"""Models that do not fit: they are handled, or an error names what came and what was expected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import blocks, calibrated
from torch import nn

from meal_gpu import models
from meal_gpu.acquisition import Query, acquire
from meal_gpu.adapters import adapt
from meal_gpu.cli import app
from meal_gpu.committee import members, score_committee
from meal_gpu.errors import ConfigError, InputError, MealGpuError, UnavailableError
from meal_gpu.evaluate import evaluate
from meal_gpu.grid import Grid
from meal_gpu.models import Builder
from meal_gpu.ops import reference
from meal_gpu.passes import ImageSet

CLASSES = 3


class Net(nn.Module):
    """Logits [B, 3, 8, 16] for images of 32 × 64, of which `then` makes something else."""

    def __init__(self, then: Callable[[torch.Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, CLASSES, 4, stride=4)
        self.drop = nn.Dropout(0.5)
        self.then = then

    def forward(self, images: torch.Tensor) -> Any:
        return self.then(self.drop(self.stem(images)))


def ask(model: Any, **options: Any) -> Query:
    arguments = {"strategy": "entropy", "grid": (2, 4), "batch_size": 6, **options}
    return acquire(model, blocks(), 5, **arguments)


def fault(what: str, outcome: str, *values: Any) -> Any:
    return pytest.param(*values, id=what, marks=pytest.mark.fault("resource", what, outcome))


BOTH = "an error names the shape that came and what was expected"


@pytest.mark.parametrize(
    ("then", "message"),
    [
        fault("a model that returns logits without an axis for the images", BOTH, lambda x: x[0],
              r"Net returns \[3, 8, 16\] .* expected floating-point logits \[B, C, h, w\]"),
        fault("a model that returns classes as whole numbers", BOTH, lambda x: x.argmax(1, keepdim=True),
              r"Net returns \[6, 1, 8, 16\] torch.int64; expected floating-point .* before any argmax"),
        fault("a model for one class against the rest", "an error says how to return two",
              lambda x: x[:, :1], r"Net returns 1 logit per pixel"),
        fault("a model that returns text", BOTH, lambda x: "logits", r"Net returns str; expected logits"),
        fault("a model that gives fewer results than images", BOTH, lambda x: x[:4],
              r"Net returns logits of 4 images on cpu for 6 images on cpu"),
        fault("a model whose result is rotated", BOTH, lambda x: x.transpose(2, 3),
              r"logits of 16×8 for 32×64 pixels, 2 pixels down and 8 across for one: .*transposes"),
        fault("a model that cuts off the border of images", BOTH, lambda x: x[:, :, 2:-2, 2:-2],
              r"logits of 4×12 for 32×64 pixels, 8 pixels down and 5\.33 across"),
        fault("a model that returns empty logits", BOTH, lambda x: x[..., :0],
              r"Net returns logits \[6, 3, 8, 0\], which are empty"),
        fault("a model that returns sparse logits", "an error says how to make them dense",
              lambda x: x.to_sparse(), r"Net returns logits of layout torch\.sparse_coo; .*to_dense"),
        fault("a model with pixels flattened into a row", BOTH, lambda x: x.flatten(2)[:, :, None],
              r"logits of 1×128 for 32×64 pixels"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(then: Callable[[torch.Tensor], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(Net(then))


SAME = "handled: the query is the same"


@pytest.mark.parametrize(
    "build",
    [
        fault("a model that returns a dict", SAME, lambda: Net(lambda x: {"aux": 0, "out": x})),
        fault("a model that returns a tuple", SAME, lambda: Net(lambda x: (x, None))),
        fault("a model left in train mode, with dropout", SAME, lambda: Net().train()),
        fault("a model in double precision", SAME, lambda: Net().double()),
        fault("a model that changes its input", SAME, lambda: InPlace(Net().stem)),
    ],
)
def test_what_can_be_handled_is(build: Callable[[], nn.Module]) -> None:
    model, expected = build(), ask(Net())
    mode, dtypes = model.training, {each.dtype for each in model.parameters()}
    found = ask(model)
    assert found.pool_scores is not None and expected.pool_scores is not None
    assert torch.equal(found.pool_scores, expected.pool_scores)
    assert torch.equal(found.patch_ids, expected.patch_ids)
    assert (model.training, {each.dtype for each in model.parameters()}) == (mode, dtypes)


@pytest.mark.fault(
    "resource", "a model in half precision", "handled: its weights are computed with in float32"
)
def test_a_model_in_half_precision_is_that_of_its_rounded_weights() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        found, expected = ask(Net().to(dtype)).pool_scores, ask(Net().to(dtype).float()).pool_scores
        assert found is not None and expected is not None
        assert torch.equal(found, expected)


class InPlace(nn.Module):
    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.stem(images.clone())
        images.zero_()
        return logits


def test_members_do_not_see_what_another_did_to_the_images() -> None:
    pool, grid = ImageSet(blocks(), reference, batch_size=6), Grid(2, 4, 32, 64)
    model = adapt(Net())
    both = [
        score_committee(pool, members(pool, [adapt(first), model]), model, grid)
        for first in (InPlace(Net().stem), Net())
    ]
    assert torch.equal(both[0].total, both[1].total)


@pytest.mark.fault("resource", "an ensemble whose members know other classes", BOTH)
def test_members_of_other_classes_are_named() -> None:
    with pytest.raises(
        InputError, match=r"member 1 .*\[6, 2, 8, 16\], member 0 \[6, 3, 8, 16\].*same classes"
    ):
        ask(Net(), strategy="ensemble", members=[Net(lambda x: x[:, :2])])


@pytest.mark.fault(
    "resource", "a model without its weights (on torch's meta device)", "an error says how to load them"
)
def test_a_model_on_meta_is_named() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, CLASSES, 1))
    for device in (None, "cpu"):
        with pytest.raises(
            InputError, match=r"Sequential is on the meta device: 0\.weight .*load_state_dict"
        ):
            ask(model, device=device)
    with pytest.raises(InputError, match="Sequential is on the meta device"):
        ask(Net(), strategy="ensemble", members=[model])


RAISED = "an error names the image and what was raised"


def acquired(model: str, scenes: Path, folder: Path) -> None:
    """By the command line, into `folder`."""
    arguments = ["acquire", "--images", scenes / "leftImg8bit" / "train", "--model", model, "-n", 3,
                 "--ledger", folder / "pool.parquet", "--out", folder / "query", "--strategy", "entropy",
                 "--device", "cpu"]  # fmt: skip
    app([str(argument) for argument in arguments], standalone_mode=False)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, CLASSES, 1))


def leaving() -> nn.Module:
    def leave(_: torch.Tensor) -> None:
        raise SystemExit(3)

    return Net(leave)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        fault("`acquire` with a model on torch's meta device", "an error says how to load its weights",
              "on_meta", r"^Sequential is on the meta device: 0\.weight .*load_state_dict"),
        fault("`acquire` with a model whose forward pass calls sys.exit", RAISED,
              "leaving", r"\.png: Net raised SystemExit: 3"),
    ],
)  # fmt: skip
def test_a_model_of_the_command_line_is_named(
    factory: str, message: str, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(MealGpuError, match=message):
        acquired(f"{__name__}:{factory}", scenes, tmp_path)
    assert not (tmp_path / "query").exists()


@pytest.mark.fault("resource", "a GPU is asked for, and there is none", "an error says so, with the way out")
def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match="device 'cuda': torch sees no GPU"):
        ask(Net(), device="cuda")


@pytest.mark.gpu
def test_a_model_on_another_device_is_named() -> None:
    with pytest.raises(InputError, match=r"Net has stem\.weight on cpu, and the images are on cuda"):
        ask(Net(), device="cuda")


class Picky(nn.Module):
    """Fails for images whose first pixel is white."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CLASSES, 4, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if bool((images[:, :, 0, 0] > 2).all(dim=1).any()):
            raise ZeroDivisionError("no road in sight")
        logits: torch.Tensor = self.stem(images)
        return logits


@pytest.mark.parametrize(
    "options",
    [
        fault("a model that fails for one image of a batch", RAISED, {}),
        fault("a model that fails for one patch", "an error names the patch's image and what it raised",
              {"strategy": "core-set", "layer": "stem"}),
        fault("a member of an ensemble that fails for one image", RAISED,
              {"strategy": "ensemble", "members": [Picky()]}),
    ],
)  # fmt: skip
def test_the_image_with_which_a_model_fails_is_named(options: dict[str, Any]) -> None:
    images = blocks().clamp(max=200)
    images[4, 0, 0] = 255
    model = Net() if "members" in options else Picky()
    arguments = {"strategy": "entropy", "grid": (2, 4), "batch_size": 4, **options}
    with pytest.raises(MealGpuError, match=r"^4: Picky raised ZeroDivisionError: no road") as raised:
        acquire(model, images, 5, **arguments)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    "classes",
    [
        fault("a model with more classes than the dataset", "an error names both numbers", 2),
        fault("a model with fewer classes than the dataset", "an error names both numbers", 4),
    ],
)
def test_classes_of_the_dataset(classes: int) -> None:
    labels = torch.randint(classes, (6, 32, 64), generator=torch.Generator().manual_seed(0)).byte()
    frozen = calibrated(Builder("smp", CLASSES, "none"), 0)
    frozen.freeze_encoder()
    for model in (adapt(Net()), frozen):
        with pytest.raises(InputError, match=rf"returns logits of 3 classes, but {classes} are named"):
            evaluate(ImageSet(blocks(), reference, classes=classes), labels, model, 255)


UNWRITTEN = "an error names both numbers; nothing is written"


@pytest.mark.fault("resource", "weights of a run on a dataset with another number of classes", BOTH)
def test_weights_for_other_classes(tmp_path: Path) -> None:
    models.save(Builder("smp", 11, "none")(0), tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors: weights for 11 classes, .* has 19"):
        models.load(Builder("smp", 19, "none")(0), tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "names",
    [
        fault("`acquire --classes` with fewer names than the model has classes", UNWRITTEN, 2),
        fault("`acquire --classes` with more names than the model has classes", UNWRITTEN, 7),
    ],
)  # fmt: skip
def test_classes_of_a_list(names: int, scenes: Path, tmp_path: Path) -> None:
    listed = tmp_path / "classes.txt"
    listed.write_text("".join(f"class-{number}\n" for number in range(names)))
    frames, ledger, out = scenes / "leftImg8bit" / "train", tmp_path / "pool.parquet", tmp_path / "query"
    arguments = ["acquire", "--images", frames, "--model", "meal_gpu.models:segmenter", "--model-arg",
                 "classes=5", "--ledger", ledger, "--out", out, "-n", 3, "--strategy", "entropy",
                 "--classes", listed]  # fmt: skip
    with pytest.raises(InputError, match=rf"returns logits of 5 classes, but {names} are named"):
        app([str(argument) for argument in arguments], standalone_mode=False)
    assert not out.exists() and not ledger.exists()


def test_logits_of_any_stride_lie_over_the_image() -> None:
    """Of an odd size, padded or not, larger than the image, or a single cell: these are no errors."""
    for cells in ((9, 17), (7, 15), (8, 17), (64, 128), (1, 2), (1, 1), (32, 64)):
        model = Net(lambda x, cells=cells: F.interpolate(x, cells))  # type: ignore[misc]
        assert len(ask(model)) == 5
