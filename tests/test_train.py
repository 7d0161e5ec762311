"""Training: it learns, it repeats, it keeps the epoch it should."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import calibrated

from meal_gpu.errors import InputError
from meal_gpu.evaluate import Evaluation
from meal_gpu.grid import Grid
from meal_gpu.images.sources import Resident
from meal_gpu.models import Builder, Segmenter
from meal_gpu.ops import reference
from meal_gpu.oracle import Oracle
from meal_gpu.train import Schedule, Trained, cross_entropy, split, train

VOID = 255
GRID = Grid(2, 4, 32, 64)
BUILDER = Builder("smp", 2, "none")


def halves() -> Oracle:
    """Two noisy images whose bright blocks of 8×8 pixels are class 1."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (2, 4, 8), generator=generator, dtype=torch.uint8)
    labels = labels.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    noise = torch.randint(60, (2, 32, 64, 3), generator=generator, dtype=torch.uint8)
    return Oracle(Resident(noise + 180 * labels[..., None]), labels, GRID, reference, VOID)


def network(*, frozen: bool = False) -> Segmenter:
    model = calibrated(BUILDER, 0)
    if frozen:
        model.freeze_encoder()
    return model


def fit(
    model: Segmenter, oracle: Oracle | None = None, patches: int = 8, seed: int = 0, step: int = 0,
    validate: Callable[[], Evaluation] | None = None, **schedule: float | str,
) -> Trained:  # fmt: skip
    given = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3} | schedule
    return train(
        model, torch.arange(patches), oracle or halves(), Schedule(**given),  # type: ignore[arg-type]
        seed=seed, step=step, validate=validate,
    )  # fmt: skip


def weights(model: Segmenter) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_loss_falls(frozen: bool) -> None:
    trained = fit(network(frozen=True) if frozen else BUILDER(0), epochs=14)
    losses = [row["loss"] for row in trained.history]
    assert [row["epoch"] for row in trained.history] == list(range(1, 15))
    assert losses[-1] < 0.7 * losses[0]
    assert trained.epoch == 14
    assert trained.evaluation is None


@pytest.mark.parametrize("frozen", [True, False])
def test_one_seed_gives_the_same_weights_bit_for_bit(frozen: bool) -> None:
    runs = []
    for seed, step in ((0, 1), (0, 1), (0, 2), (1, 1)):
        model = network(frozen=frozen)
        torch.manual_seed(seed + 10 * len(runs))  # the global state is not read
        history = fit(model, seed=seed, step=step).history
        runs.append((weights(model), history))
    assert equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not equal(runs[0][0], runs[2][0])
    assert not equal(runs[0][0], runs[3][0])


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    fit(network(), epochs=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_frozen_encoder_computed_once_gives_the_same_bits(precision: str) -> None:
    models = [network(frozen=True) for _ in range(2)]
    high, deep = models[0].encode(torch.zeros(1, 3, 16, 16))
    needed = 8 * (high.nbytes + deep.nbytes) // (2 if precision == "bfloat16" else 1)
    histories = [
        fit(model, precision=precision, cache_bytes=size).history
        for model, size in zip(models, (0, needed), strict=True)
    ]
    assert histories[0] == histories[1]
    assert equal(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize("context", ["patch", "image"])
def test_what_of_a_frozen_encoder_is_kept_changes_no_more_than_rounding(context: str) -> None:
    """Convolutions of other batch sizes may round otherwise."""
    oracle = replace(halves(), context=context)
    high, deep = network().encode(torch.zeros(4, 3, *oracle.sample_size))
    losses = []
    for size in (0, high.nbytes + deep.nbytes, 1 << 30):
        model = network(frozen=True)
        trained = fit(model, oracle, patches=14, cache_bytes=size, learning_rate=1e-9)
        losses.append([row["loss"] for row in trained.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_an_image_that_is_encoded_by_itself_is_rounded_as_in_a_batch() -> None:
    """Of five images one is left over; oneDNN rounds convolutions of one image of this size otherwise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, 64, 128, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(2, (5, 64, 128), generator=generator, dtype=torch.uint8)
    oracle = Oracle(Resident(images), labels, Grid(2, 4, 64, 128), reference, VOID, "image")
    models = [network(frozen=True) for _ in range(2)]
    zero, full = (
        fit(model, oracle, patches=40, cache_bytes=size).history
        for model, size in zip(models, (0, 1 << 30), strict=True)
    )
    assert zero == full
    assert equal(weights(models[0]), weights(models[1]))


def test_a_frozen_encoder_runs_once_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    frozen, open_ended = network(frozen=True), network()
    encode = Segmenter.encode
    monkeypatch.setattr(Segmenter, "encode", lambda self, x: (calls.append(len(x)), encode(self, x))[1])
    fit(frozen, epochs=3, cache_bytes=1 << 30)
    assert sum(calls) == 8
    calls.clear()
    fit(open_ended, epochs=3, cache_bytes=1 << 30)
    assert sum(calls) == 24
    calls.clear()
    high, deep = encode(frozen, torch.zeros(4, 3, 16, 16))
    fit(frozen, epochs=3, cache_bytes=high.nbytes + deep.nbytes)
    # The second half every time; one by itself is encoded twice
    assert sum(calls) - calls.count(2) == 4 + 3 * 4


def test_within_images_a_frozen_encoder_sees_each_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    frozen, encode = network(frozen=True), Segmenter.encode
    monkeypatch.setattr(Segmenter, "encode", lambda self, x: (calls.append(len(x)), encode(self, x))[1])
    within = replace(halves(), context="image")
    assert within.grid.patches_per_image == 8
    fit(frozen, within, patches=14, epochs=3, cache_bytes=1 << 30)
    assert sum(calls) == 2


@pytest.mark.parametrize(("frozen", "room", "expected"), [
    (True, 1 << 30, 2),  # each image is encoded once
    (True, 50_000, 4),  # there is room for the pixels alone, which are fetched for the attempt too
    (False, 1 << 30, 2),  # its pixels are kept
    (False, 0, 3 * 14),
])  # fmt: skip
def test_each_image_that_is_not_on_the_device_is_fetched_once_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, frozen: bool, room: int, expected: int
) -> None:
    within = replace(halves(), context="image")
    elsewhere = replace(halves(), context="image")
    elsewhere.images.resident = None  # type: ignore[misc, assignment]
    here = fit(network(frozen=frozen), within, patches=14, epochs=3, cache_bytes=room)
    fetched: list[int] = []
    pixels = Oracle.pixels
    monkeypatch.setattr(Oracle, "pixels", lambda *given: (fetched.append(len(given[1])), pixels(*given))[1])
    there = fit(network(frozen=frozen), elsewhere, patches=14, epochs=3, cache_bytes=room)
    assert sum(fetched) == expected
    assert there.history == here.history


def test_a_frozen_encoder_does_not_move_and_the_decoder_does() -> None:
    model = network(frozen=True)
    encoder, decoder = copy.deepcopy(model.encoder.state_dict()), copy.deepcopy(model.decoder.state_dict())
    fit(model)
    assert equal(encoder, model.encoder.state_dict())
    assert not equal(decoder, model.decoder.state_dict())


def test_gradients_that_overflow_float16_are_scaled_until_they_do_not() -> None:
    model = network()
    before = copy.deepcopy(model.decoder.state_dict())
    fit(model, epochs=12, precision="float16")
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    trained = [name for name, _ in model.decoder.named_parameters()]
    assert not any(torch.equal(before[name], model.decoder.state_dict()[name]) for name in trained)


@pytest.mark.parametrize("frozen", [True, False])
def test_patches_that_are_all_void_teach_nothing_and_break_nothing(frozen: bool) -> None:
    oracle = halves()
    oracle.labels.fill_(VOID)
    model = network(frozen=frozen)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = fit(model, oracle)
    assert [row["loss"] for row in trained.history] == [0.0, 0.0]
    assert equal(before, dict(model.named_parameters()))
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),  # BatchNorm cannot train on the one left over
        (10, 4, [4, 4, 2]),
        (3, 4, [3]),
        (5, 2, [2, 3]),
        (3, 2, [3]),
        (1, 4, [1]),
    ],
)
def test_a_last_batch_of_one_joins_its_neighbour(rows: int, size: int, expected: list[int]) -> None:
    parts = split(torch.arange(rows), size)
    assert [len(part) for part in parts] == expected
    assert torch.cat(parts).tolist() == list(range(rows))


@given(st.integers(2, 60), st.integers(2, 12))
def test_every_batch_can_train_batchnorm(rows: int, size: int) -> None:
    lengths = [len(part) for part in split(torch.arange(rows), size)]
    assert sum(lengths) == rows
    assert min(lengths) >= 2
    assert max(lengths) <= size + 1


@pytest.mark.parametrize(("patches", "batch_size"), [(1, 4), (0, 4), (8, 1)])
def test_too_little_for_batchnorm_is_named(patches: int, batch_size: int) -> None:
    with pytest.raises(InputError, match=f"{patches} patches in batches of {batch_size}"):
        fit(network(), patches=patches, batch_size=batch_size)


def test_a_remainder_of_one_trains() -> None:
    assert math.isfinite(fit(network(), patches=5).history[0]["loss"])


Weights = dict[str, torch.Tensor]


def scripted(model: Segmenter, scores: list[float]) -> tuple[Callable[[], Evaluation], list[Weights]]:
    """A validation that gives these mIoUs in turn, and the weights it was called with."""
    seen: list[Weights] = []

    def validate() -> Evaluation:
        score = scores[len(seen)]
        seen.append(weights(model))
        model.eval()  # as the real one does
        if math.isnan(score):
            return Evaluation(torch.zeros(2, 2, dtype=torch.int64))
        hits = round(1000 * score)
        return Evaluation(torch.tensor([[hits, 1000 - hits], [0, 0]]))

    return validate, seen


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "schedule", "kept", "calls"),
    [
        ([0.2, 0.8, 0.5], {}, 2, [1, 2, 3]),
        ([0.2, 0.5, 0.5], {}, 2, [1, 2, 3]),  # the earliest of equals
        ([0.9, 0.5, 0.1], {}, 1, [1, 2, 3]),
        ([NAN, 0.1, NAN], {}, 2, [1, 2, 3]),
        ([NAN, NAN, NAN], {}, 1, [1, 2, 3]),
        ([0.9], {"keep": "last"}, 3, [3]),
        ([0.9, 0.1], {"validate_every": 2}, 2, [2, 3]),  # the last epoch always counts
        ([0.1], {"validate_every": 5}, 3, [3]),
    ],
)
def test_the_epoch_that_is_kept(
    scores: list[float], schedule: dict[str, float | str], kept: int, calls: list[int]
) -> None:
    model = network()
    validate, seen = scripted(model, scores)
    trained = fit(model, validate=validate, epochs=3, **schedule)
    assert trained.epoch == kept
    assert [int(row["epoch"]) for row in trained.history if "mean_iou" in row] == calls
    assert equal(weights(model), seen[calls.index(kept)])
    assert trained.evaluation is not None
    # the second class has IoU 0
    assert trained.evaluation.mean_iou == pytest.approx(scores[calls.index(kept)] / 2, nan_ok=True)


def test_validation_does_not_change_what_is_trained() -> None:
    plain, validated = network(), network()
    fit(plain, epochs=3)
    fit(validated, epochs=3, keep="last", validate=scripted(validated, [0.5])[0])
    assert equal(weights(plain), weights(validated))


def test_the_rate_decays(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    def epoch(
        model: Segmenter, order: object, batches: object, optimiser: torch.optim.Optimizer, *_: object
    ) -> float:
        rates.append(optimiser.param_groups[0]["lr"])
        return 0.0

    monkeypatch.setattr("meal_gpu.train._epoch", epoch)
    fit(network(), epochs=5, decay_every=2, learning_rate=1e-2)
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4])


def test_progress_counts_epochs() -> None:
    done: list[int] = []
    schedule = Schedule(epochs=3, batch_size=4, learning_rate=1e-3)
    train(network(), torch.arange(4), halves(), schedule, seed=0, step=0, validate=None, advance=done.append)
    assert done == [1, 1, 1]


def test_the_loss_is_plain_cross_entropy() -> None:
    logits = torch.randn(2, 2, 13, 29, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = halves().labels[:2, :13, :29].clone()
    labels[:, :4] = VOID
    expected = F.cross_entropy(logits, labels.long(), ignore_index=VOID)
    torch.testing.assert_close(cross_entropy(logits, labels, VOID), expected)
    loss = cross_entropy(logits, torch.full_like(labels, VOID), VOID)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0


@pytest.mark.parametrize("frozen", [False, True])
def test_within_images_training_sees_no_label_outside_of_the_patches(frozen: bool) -> None:
    asked = 3  # of the first image, whose other patches have other labels then
    oracle = replace(halves(), context="image")
    other = oracle.labels.clone()
    other[0, GRID.patch_height :] = 1 - other[0, GRID.patch_height :]
    other[1:] = 1 - other[1:]
    assert int(GRID.boxes(range(asked))[:, 3].max()) <= GRID.patch_height
    histories = [
        fit(network(frozen=frozen), replace(oracle, labels=labels), patches=asked).history
        for labels in (oracle.labels, other)
    ]
    assert histories[0] == histories[1]


def test_what_surrounds_a_patch_counts_within_its_image_alone() -> None:
    for context, same in (("patch", True), ("image", False)):
        oracle = replace(halves(), context=context)
        assert oracle.images.resident is not None
        dark = oracle.images.resident.clone()
        dark[0, GRID.patch_height :] = 0
        found = [
            fit(network(), replace(oracle, images=Resident(pixels)), patches=3).history
            for pixels in (oracle.images.resident, dark)
        ]
        assert (found[0] == found[1]) is same
