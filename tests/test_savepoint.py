"""A training that was killed goes on after its last savepoint and ends as if nothing had happened."""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from networks import calibrated

from meal_gpu import savepoint
from meal_gpu.errors import RunError
from meal_gpu.evaluate import Evaluation
from meal_gpu.grid import Grid
from meal_gpu.images.sources import Resident
from meal_gpu.models import Builder
from meal_gpu.ops import reference
from meal_gpu.oracle import Oracle
from meal_gpu.savepoint import Savepoint
from meal_gpu.train import Schedule, Trained, train

Weights = dict[str, torch.Tensor]
GRID = Grid(2, 4, 32, 64)
EPOCHS = 5


@pytest.fixture(autouse=True)
def _always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savepoint, "SECONDS", 0.0)


def oracle() -> Oracle:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (2, 32, 64), generator=generator, dtype=torch.uint8)
    pixels = torch.randint(256, (2, 32, 64, 3), generator=generator, dtype=torch.uint8)
    return Oracle(Resident(pixels), labels, GRID, reference, 255, "patch")


class Killed(BaseException):
    pass


@dataclass
class Case:
    """A training whose validations give `scores` in turn, a function of the epoch alone."""

    frozen: bool = True
    schedule: dict[str, float | str] = field(default_factory=dict)
    scores: tuple[float, ...] = ()
    patches: int = 8

    def run(self, path: Path | None, killed_after: int | None = None) -> tuple[Trained, Weights]:
        model = calibrated(Builder("smp", 2, "none"), 0)
        if self.frozen:
            model.freeze_encoder()
        done = 0

        def advance(epochs: int) -> None:
            nonlocal done
            if done == killed_after:
                raise Killed
            done += epochs

        def validate() -> Evaluation:
            model.eval()
            hits = self.scores[done]
            matrix = [[0, 0], [0, 0]] if hits < 0 else [[int(100 * hits), 100 - int(100 * hits)], [0, 0]]
            return Evaluation(torch.tensor(matrix))

        given = {"epochs": EPOCHS, "batch_size": 4, "learning_rate": 1e-3} | self.schedule
        trained = train(
            model, torch.arange(self.patches), oracle(), Schedule(**given),  # type: ignore[arg-type]
            seed=0, step=1, validate=validate if self.scores else None, advance=advance,
            savepoint=Savepoint(path) if path else None,
        )  # fmt: skip
        return trained, copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("killed_after", [0, 1, 3, 4])
@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(frozen=False),
        Case(schedule={"precision": "bfloat16", "cache_bytes": 1 << 30}),
        Case(frozen=False, schedule={"precision": "float16"}),
        Case(schedule={"decay_every": 2}),
        Case(scores=(0.2, 0.6, 0.6, 0.1, 0.5)),
        Case(scores=(-1, 0.1, -1, 0.3, 0.3)),
        Case(scores=(-1, -1, -1, -1, -1)),
        Case(scores=(0.2, 0.6, 0.6, 0.1, 0.5), schedule={"keep": "last"}),
        Case(scores=(0.2, 0.6, 0.6, 0.1, 0.5), schedule={"validate_every": 2}),
    ],
    ids=[
        "frozen",
        "fine-tuned",
        "bfloat16",
        "float16",
        "decay",
        "best",
        "nan",
        "all nan",
        "last",
        "every second",
    ],
)
def test_killed_after_any_epoch_it_ends_bit_for_bit_as_without(
    tmp_path: Path, case: Case, killed_after: int
) -> None:
    path = tmp_path / "training" / "model.safetensors"
    expected, weights = case.run(None)
    with pytest.raises(Killed):
        case.run(path, killed_after)
    assert path.exists() == (killed_after > 0)
    found, after = case.run(path)
    assert repr(found.history) == repr(expected.history)  # NaN is not equal to itself
    assert found.epoch == expected.epoch
    assert (found.evaluation is None) == (expected.evaluation is None)
    if found.evaluation is not None and expected.evaluation is not None:
        assert torch.equal(found.evaluation.confusion, expected.evaluation.confusion)
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(Killed):
        Case().run(path, 3)
    epochs = []
    monkeypatch.setattr("meal_gpu.train._epoch", lambda *_: epochs.append(1) or 0.0)
    Case().run(path)
    assert len(epochs) == EPOCHS - 3


@pytest.mark.parametrize("other", [Case(patches=7), Case(schedule={"epochs": 6})], ids=["patches", "epochs"])
def test_of_another_training_nothing_is_taken(tmp_path: Path, other: Case) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(Killed):
        other.run(path, 2)
    expected, weights = Case().run(None)
    found, after = Case().run(path)
    assert found.history == expected.history
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_nothing_is_written_before_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savepoint, "SECONDS", 300.0)
    Case().run(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_time_counts_from_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1000, 1299, 1300, 1300, 1599, 1600, 1600])
    monkeypatch.setattr(savepoint, "SECONDS", 300)
    monkeypatch.setattr(savepoint.time, "monotonic", lambda: next(clock))
    made = Savepoint(tmp_path / "x.safetensors")
    due = []
    for _ in range(4):
        due.append(made.due())
        if due[-1]:
            made.write({}, {})
    assert due == [False, True, False, True]


@pytest.mark.parametrize("damage", ["half", "empty", "other", "lacks"])
def test_a_damaged_one_is_named_with_the_way_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(Killed):
        Case().run(path, 2)
    match damage:
        case "half":
            path.write_bytes(path.read_bytes()[:-1000])
        case "empty":
            path.write_bytes(b"")
        case "other":
            path.write_bytes(savepoint.serialise({"x": torch.zeros(1)}))
        case _:
            found = Savepoint(path).read()
            assert found is not None
            del found[0]["random.cpu"]
            Savepoint(path).write(*found)
    with pytest.raises(
        RunError, match=r"model\.safetensors: no savepoint .* delete it, and the step is trained"
    ):
        Case().run(path)
    path.unlink()
    Case().run(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/model\.safetensors: could not be written: .*--resume"):
        Case().run(tmp_path / "file" / "model.safetensors")
