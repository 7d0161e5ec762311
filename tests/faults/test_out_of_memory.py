"""Memory that is used up: batches are halved and nothing is lost, or an error says what to lower."""

import contextlib
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from networks import blocks, calibrated, settle
from PIL import Image
from torch import nn

from meal_gpu import committee, experiment, passes
from meal_gpu.acquisition import acquire
from meal_gpu.adapters import adapt
from meal_gpu.config import Config
from meal_gpu.errors import InputError, MealGpuError
from meal_gpu.evaluate import evaluate
from meal_gpu.grid import Grid
from meal_gpu.images.loader import Loader
from meal_gpu.inference import Graphed, for_inference
from meal_gpu.memory import Halving, is_out_of_memory
from meal_gpu.models import Builder, Output, Segmenter
from meal_gpu.ops import reference
from meal_gpu.passes import ImageSet
from meal_gpu.patchwise import Patchwise
from meal_gpu.scoring import patch_features, score_pool, shared_features

CPU = torch.device("cpu")
GRID = Grid(2, 4, 32, 64)
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB. More."
HALVED = "the batch is halved, as often as it takes, and a warning says so; no score is lost or different"


def fault(what: str, outcome: str, id: str, *values: Any) -> Any:
    return pytest.param(*values, id=id, marks=pytest.mark.fault("resource", what, outcome))


class Hungry(nn.Module):
    """Class 1 is as likely as its pixel is bright; more than `most` images at once are out of memory.

    `meals` are the sizes of the batches that it managed, after `free` of any size.
    """

    align_corners = True
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def __init__(self, most: int, free: int = 0) -> None:
        super().__init__()
        self.most = most
        self.free = free
        self.meals: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hungry":
        return self  # so that a test sees the meals

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def forward(self, images: torch.Tensor) -> Output:
        share = self.features(images)[:, 0].clamp(1e-6, 1 - 1e-6)
        return Output(torch.stack([(1 - share).log(), share.log()], dim=1), images)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.most and len(self.meals) >= self.free:
            raise torch.OutOfMemoryError(FULL)
        self.meals.append(len(images))
        return images


def images(number: int = 6, **arguments: Any) -> ImageSet:
    return ImageSet(blocks()[:number], reference, **arguments)


def scores(pool: ImageSet, model: Any) -> list[torch.Tensor]:
    return [score_pool(pool, model, GRID).scores]


def everything(pool: ImageSet, model: Any) -> list[torch.Tensor]:
    found = score_pool(pool, model, GRID, features=True, classes=True, boundary=True)
    assert found.features is not None and found.classes is not None and found.boundary is not None
    return [found.scores, found.features, *found.classes, found.boundary]


def patches(pool: ImageSet, model: Any) -> list[torch.Tensor]:
    return [patch_features(pool, torch.tensor([40, 3, 3, 17, 0, 9]), model, GRID)]


def evaluation(pool: ImageSet, model: Any) -> list[torch.Tensor]:
    labels = torch.randint(2, (len(pool), 32, 64), generator=torch.Generator().manual_seed(0)).byte()
    return [evaluate(pool, labels, model, 255).confusion]


def members(pool: ImageSet, model: Any) -> list[torch.Tensor]:
    return list(committee.score_committee(pool, committee.members(pool, [model, Hungry(99)]), model, GRID))


def mirrored(pool: ImageSet, model: Any) -> list[torch.Tensor]:
    return list(committee.score_committee(pool, committee.mirrored(pool, model), model, GRID))


@pytest.mark.filterwarnings("ignore:cpu. out of memory")
@pytest.mark.parametrize(
    "work",
    [
        fault("the GPU's memory is used up while a pool is scored", HALVED, "scores", scores),
        fault("… while scores, features and classes come from one pass", HALVED, "all", everything),
        fault("… while features of patches are computed", HALVED, "patches", patches),
        fault(
            "… while features of whole images are computed", HALVED, "shared",
            lambda pool, model: [shared_features(pool, model, GRID)],
        ),
        fault("… while a model is validated", HALVED, "evaluation", evaluation),
        fault("… while an ensemble predicts", HALVED, "members", members),
        fault("… while mirrored images are predicted", HALVED, "mirrored", mirrored),
    ],
)  # fmt: skip
def test_half_a_batch_gives_the_same_bits(work: Callable[[ImageSet, Any], list[torch.Tensor]]) -> None:
    expected = work(images(batch_size=6), Hungry(99))
    for most in (1, 3):
        model = Hungry(most)
        found = work(images(batch_size=6), model)
        assert model.meals and max(model.meals) == most
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


def test_what_was_computed_before_is_kept_and_the_warning_names_the_numbers() -> None:
    model, done = Hungry(1, free=1), list[int]()
    pool = images(batch_size=4)
    with pytest.warns(UserWarning) as said:
        found = score_pool(pool, model, GRID, advance=done.append)
    # the second batch of four has two images; it is tried whole, then one by one
    assert model.meals == [4, 1, 1]
    assert done == [4, 1, 1]
    what = "a forward pass of images of 32×64 pixels in float32"
    assert [str(each.message) for each in said] == [
        f"cpu: out of memory in {what}; it goes on with 1 at once, not 2"
    ]
    assert torch.equal(found.scores, score_pool(images(), Hungry(99), GRID).scores)
    score_pool(pool, model, GRID)  # the next pass begins with what fits
    assert model.meals[3:] == [1] * 6


def deeplab() -> nn.Module:
    return calibrated(Builder("smp", 3, "none"), 0)


def unet() -> nn.Module:
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=3)
    settle(model)
    return model


@pytest.mark.filterwarnings("ignore:cpu. out of memory")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("build", [deeplab, unet])
def test_real_networks_give_the_bits_of_the_smaller_batch(
    build: Callable[[], nn.Module], precision: str
) -> None:
    """Libraries choose their algorithms by the size of a batch: of six images and of one, bits may differ."""
    network = adapt(build())
    assert isinstance(network, nn.Module)
    smaller = score_pool(images(batch_size=1, precision=precision), network, GRID, features=True)
    whole = score_pool(images(batch_size=6, precision=precision), network, GRID, features=True)

    def full(_module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > 1:
            raise torch.OutOfMemoryError(FULL)

    network.register_forward_pre_hook(full)
    found = score_pool(images(batch_size=6, precision=precision), network, GRID, features=True)
    assert found.features is not None and smaller.features is not None
    assert torch.equal(found.scores, smaller.scores)
    assert torch.equal(found.features, smaller.features)
    tolerance = 1e-5 if precision == "float32" else 5e-2
    torch.testing.assert_close(found.scores, whole.scores, rtol=0, atol=tolerance)


@pytest.mark.fault(
    "resource", "the GPU's memory is used up while outputs of a frozen encoder are kept",
    "what is kept is given up first, and the batch stays as it is: the same bits",
)  # fmt: skip
def test_a_cache_is_given_up_before_a_batch_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = calibrated(Builder("smp", 3, "none"), 0)
    model.freeze_encoder()
    pool = images(batch_size=2, cache_bytes=1 << 30)
    expected = score_pool(pool, model, GRID).scores
    assert len(pool._encoded) == 3
    decode, sizes = Segmenter.decode, list[int]()

    def full(self: Segmenter, encoded: Any) -> torch.Tensor:
        sizes.append(len(encoded.deep))
        if len(sizes) == 2:
            raise torch.OutOfMemoryError(FULL)
        return decode(self, encoded)

    monkeypatch.setattr(Segmenter, "decode", full)
    with pytest.warns(UserWarning, match="goes on without what was kept for speed"):
        found = score_pool(pool, model, GRID).scores
    assert torch.equal(found, expected)
    assert sizes == [2, 2, 2, 2]
    assert not pool._encoded
    sizes.clear()
    sizes += [0]
    with pytest.warns(UserWarning, match="goes on with 1 at once, not 2"):
        halved = score_pool(pool, model, GRID).scores
    torch.testing.assert_close(halved, expected, rtol=0, atol=1e-5)
    assert sizes[1:] == [2, 1, 1, 1, 1, 1, 1]


@pytest.mark.filterwarnings("ignore:cpu. out of memory")
@pytest.mark.fault("resource", "… while a CUDA graph is in use", "the graph is made anew for half the batch")
def test_a_graph_is_dropped_and_captured_for_the_smaller_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[tuple[weakref.ref[Any], int]] = []
    in_capture = True

    class Captured:
        def __init__(self, model: Any, batch: torch.Tensor, precision: str) -> None:
            assert all(made() is None for made, _ in graphs), "two graphs hold memory at once"
            self.model, self.size = model, len(batch)
            graphs.append((weakref.ref(self), len(batch)))
            if in_capture and len(batch) > 2:
                try:  # a capture that fails hides why
                    raise torch.OutOfMemoryError(FULL)
                except torch.OutOfMemoryError:
                    raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904

        def __call__(self, batch: torch.Tensor) -> Output:
            assert len(batch) <= self.size
            if self.size > 2:  # as what is made of the graph's output may be
                raise torch.OutOfMemoryError(FULL)
            output: Output = self.model(batch)
            return output

    assert Graphed.__call__.__annotations__.keys() == Captured.__call__.__annotations__.keys()
    expected = score_pool(images(batch_size=5), Hungry(99), GRID).scores
    monkeypatch.setattr(passes, "Graphed", Captured)
    monkeypatch.setattr(ImageSet, "_worth_a_graph", lambda self, model: True)
    for in_capture in (True, False):  # noqa: B007 - the class reads it
        graphs.clear()
        found = score_pool(images(batch_size=5), Hungry(99), GRID).scores
        assert [size for _, size in graphs] == [5, 2]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_pool_goes_with_its_last_reference(frozen: bool) -> None:
    """Not when the collector comes by: the next query asks how much memory is free."""
    model = calibrated(Builder("smp", 3, "none"), 0)
    if frozen:
        model.freeze_encoder()
    gc.disable()
    try:
        pool = ImageSet(blocks(), reference, cache_bytes=1 << 30)
        score_pool(pool, model, GRID, features=True)
        gone = weakref.ref(pool), weakref.ref(pool.images)
        del pool
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def test_a_graphs_output_is_looked_at_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Captured:
        def __init__(self, model: Any, batch: torch.Tensor, precision: str) -> None:
            self.model = model

        def __call__(self, batch: torch.Tensor) -> Output:
            output: Output = self.model(batch)
            return output

    monkeypatch.setattr(passes, "Graphed", Captured)
    monkeypatch.setattr(ImageSet, "_worth_a_graph", lambda self, model: True)
    with pytest.raises(InputError, match="3 classes"):
        score_pool(ImageSet(blocks(), reference, classes=7), calibrated(Builder("smp", 3, "none"), 0), GRID)


def test_a_network_that_memory_is_too_small_to_copy_is_left_as_it_is() -> None:
    class Large(nn.Module):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Large":
            raise torch.OutOfMemoryError(FULL)

    model = Large()
    with pytest.raises(torch.OutOfMemoryError):
        for_inference(model, "float32", CPU)  # type: ignore[arg-type]
    assert model.training


@pytest.mark.parametrize("times", [1, 2])
def test_dali_asks_once_more_when_what_torch_kept_is_free(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for number, image in enumerate(blocks()):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image.numpy()).save(files[-1])
    size = (32, 64)
    expected = [batch.clone() for batch in Loader(files, size, batch_size=2)]
    run, ran, released = Loader._run, [], []

    def full(self: Loader, pipeline: Any, start: int, stream: None) -> Any:
        ran.append(start)
        if 2 <= len(ran) < 2 + times:
            raise RuntimeError("Can't allocate 6291456 bytes on device 0.")
        return run(self, pipeline, start, stream)

    monkeypatch.setattr(Loader, "_run", full)
    monkeypatch.setattr("meal_gpu.images.loader.release", released.append)
    loader = Loader(files, size, batch_size=2)
    if times == 1:
        assert all(torch.equal(*pair) for pair in zip(loader, expected, strict=True))
        assert ran == [0, 2, 2, 4]
    else:
        with pytest.raises(MealGpuError, match="out of memory in decoding 2 files of 32×64 pixels"):
            list(loader)
    assert released == [CPU]


def test_nothing_holds_the_tensors_of_the_failed_attempt() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def run(rows: slice) -> int:
        assert all(tensor() is None for tensor in held)
        activations = torch.zeros(rows.stop - rows.start)
        held.append(weakref.ref(activations))
        if rows.stop - rows.start > 1:
            raise torch.OutOfMemoryError(FULL)
        return rows.start

    gc.disable()  # what only the collector frees is there when memory is asked for again
    try:
        with pytest.warns(UserWarning):
            found = [value for _, value in Halving(4, CPU, "a test", "").over(4, run)]
    finally:
        gc.enable()
    assert found == [0, 1, 2, 3]
    assert len(held) == 2 + 4


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError(FULL), True),
        (MemoryError("std::bad_alloc: out_of_memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (RuntimeError("Error in the pipeline: CUDA allocation failed"), True),
        (RuntimeError("Error in MIXED operator: Can't allocate 6291456 bytes on device 0."), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("a model is out of memory of its own"), False),
    ],
)
def test_other_errors_are_not_taken_for_it(error: Exception, full: bool) -> None:
    assert is_out_of_memory(error) is full
    tried: list[int] = []

    def run(rows: slice) -> None:
        tried.append(rows.stop - rows.start)
        raise error

    warned = pytest.warns(UserWarning) if full else contextlib.nullcontext()
    with warned, pytest.raises(MealGpuError if full else type(error)):
        list(Halving(2, CPU, "a test", "Lower it.").over(2, run))
    assert tried == ([2, 1] if full else [2])


@pytest.mark.filterwarnings("ignore:cpu. out of memory")
@pytest.mark.parametrize(
    "work",
    [
        fault("a single image is too large for the GPU", "an error says what to lower", "images", scores),
        fault("a single patch is too large for the GPU", "an error says what to lower", "patches", patches),
    ],
)
def test_one_image_that_does_not_fit_is_an_error(
    work: Callable[[ImageSet, Any], list[torch.Tensor]],
) -> None:
    with pytest.raises(MealGpuError) as raised:
        work(images(batch_size=4), Hungry(0))
    text = str(raised.value)
    for part in ("cpu: out of memory", "pixels in float32", "MiB free", "2.00 GiB", "bfloat16"):
        assert part in text
    assert "in a run lower pool_share" in text  # which other users do not have
    assert "\n" not in text


@pytest.mark.filterwarnings("ignore:cpu. out of memory")
def test_a_query_survives() -> None:
    model = Hungry(2)
    plain = acquire(Hungry(99), blocks(), 5, grid=(2, 4), strategy="entropy", batch_size=6)  # type: ignore[arg-type]
    found = acquire(model, blocks(), 5, grid=(2, 4), strategy="entropy", batch_size=6)  # type: ignore[arg-type]
    assert torch.equal(found.patch_ids, plain.patch_ids)
    assert found.pool_scores is not None and plain.pool_scores is not None
    assert torch.equal(found.pool_scores, plain.pool_scores)
    assert max(model.meals) == 1  # 6, 3, 1


@pytest.mark.fault(
    "resource", "the GPU's memory is used up in training",
    "an error names batch_size, because a smaller one is another result; `--resume` goes on with the step",
)  # fmt: skip
def test_training_names_the_batch_size(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Patchwise.__call__

    def full(self: Patchwise, encoded: Any, within: torch.Tensor) -> torch.Tensor:
        if len(encoded.deep) > 4 and (tmp_path / "run" / "steps" / "000").exists():
            raise torch.OutOfMemoryError(FULL)
        return decode(self, encoded, within)

    with monkeypatch.context() as patch:
        patch.setattr(Patchwise, "__call__", full)
        with pytest.raises(MealGpuError, match=r"step 1: training with batch_size 8, .* 96×192 .*2\.00 GiB"):
            experiment.run(tiny.replace(strategy="entropy"), tmp_path / "run")
    done = experiment.run(tiny.replace(strategy="entropy"), tmp_path / "run", resume=True).completed()
    assert len(done) == 3
