"""Trackers hold every step once and whole, however a run was stopped."""

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from meal_gpu import experiment, lock, tracking
from meal_gpu.config import Config
from meal_gpu.errors import ConfigError, RunError, UnavailableError
from meal_gpu.record import RunFolder

needs_tensorboard = pytest.mark.skipif(not find_spec("tensorboard"), reason="tensorboard is not installed")
needs_wandb = pytest.mark.skipif(not find_spec("wandb"), reason="wandb is not installed")
needs_mlflow = pytest.mark.skipif(not find_spec("mlflow"), reason="mlflow is not installed")

STEP = {
    "step": 2, "labelled": 28, "patches": 96, "share": 0.25, "mean_iou": 0.5,
    "class_iou": {"road": 0.75, "<b>sky</b>": None}, "epoch": 2,
    "history": [
        {"epoch": 1.0, "loss": 3.0}, {"epoch": 2.0, "loss": 2.0, "mean_iou": 0.5},
        {"epoch": 3.0, "loss": 1.0, "mean_iou": 0.4},
    ],
    "calibration": {"temperature": 1.5, "method": "grid"},
}  # fmt: skip
FLAT = {
    "labelled": 28.0, "patches": 96.0, "share": 0.25, "mean_iou": 0.5, "class_iou/road": 0.75, "epoch": 2.0,
    "loss/first": 3.0, "loss/last": 1.0, "loss/kept": 2.0, "calibration/temperature": 1.5,
}  # fmt: skip


def test_a_step_is_flat_numbers_by_name() -> None:
    assert tracking.flatten(STEP) == FLAT
    seconds = {"train": 1.5, "acquire": 0.25}
    assert tracking.flatten(STEP, seconds) == FLAT | {"seconds/train": 1.5, "seconds/acquire": 0.25}


@pytest.mark.parametrize("nothing", [None, math.nan, "text", True, [1.0]])
def test_what_is_no_number_is_left_out(nothing: Any) -> None:
    assert tracking.flatten({"mean_iou": nothing, "share": 0.5, "class_iou": {"a": nothing}}) == {
        "share": 0.5
    }


def add_steps(folder: RunFolder, *numbers: int) -> None:
    for step in numbers:
        with folder.writing(folder.step(step)) as aside:
            (aside / "metrics.json").write_text(json.dumps(STEP | {"step": step, "share": step / 8}))
        folder.log("step", step=step, seconds={"train": step + 0.5})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "sweep" / "meal-0", Config(), torch.device("cpu"))


def expected(step: int) -> dict[str, float]:
    return FLAT | {"share": step / 8, "seconds/train": step + 0.5}


def test_the_figures_are_read_back_from_the_folder(folder: RunFolder) -> None:
    assert tracking.recorded(folder) == []
    add_steps(folder, 0, 1)
    with (folder.path / "log.jsonl").open("a") as log:
        log.write('[3]\n7\n{"time": 1}\n{"event": "step", "step": 1, "seconds": 2}\n{"event": "st')  # killed
    assert tracking.recorded(folder) == [expected(0), expected(1)]


class Vendor(tracking._Vendor):
    """Holds its steps outside of the tracker, as a server does."""

    package, module = "vendor", "json"
    held: list[tuple[int, dict[str, float]]]
    opened: int
    closed: int
    broken = False

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        assert settings["strategy"] == "meal"
        if self.broken:
            raise ValueError("no\nlogin")
        type(self).opened += 1
        self.last = max((step for step, _ in self.held), default=-1)

    def write(self, metrics: dict[str, float], step: int) -> None:
        if self.broken:
            raise ConnectionError("the server is gone")
        self.held.append((step, metrics))

    def close(self) -> None:
        type(self).closed += 1
        if self.broken:
            raise ConnectionError("the server is gone")


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> type[Vendor]:
    fresh = type("Fresh", (Vendor,), {"held": [], "opened": 0, "closed": 0})
    monkeypatch.setitem(tracking._VENDORS, "vendor", fresh)
    return fresh


def test_nothing_is_opened_before_the_first_step(vendor: type[Vendor], tmp_path: Path) -> None:
    (tracker,) = tracking.open_trackers(["vendor", "vendor"], tmp_path / "not there yet")
    tracker.close()
    assert (vendor.opened, vendor.closed) == (0, 0)
    assert list(tmp_path.iterdir()) == []


def test_every_step_is_logged_once(vendor: type[Vendor], folder: RunFolder) -> None:
    add_steps(folder, 0)
    (tracker,) = tracking.open_trackers(["vendor"], folder.path)
    tracker.log(expected(0), 0)
    tracker.log(expected(0), 0)
    add_steps(folder, 1)  # killed before it was logged
    tracker.close()
    (tracker,) = tracking.open_trackers(["vendor"], folder.path, resume=True)
    assert vendor.held == [(0, expected(0)), (1, expected(1))]
    add_steps(folder, 2)
    tracker.log(expected(2), 2)
    tracker.close()
    tracking.open_trackers(["vendor"], folder.path, resume=True)[0].close()
    assert vendor.held == [(step, expected(step)) for step in range(3)]
    assert (vendor.opened, vendor.closed) == (3, 3)


def test_a_run_in_progress_keeps_its_trackers_to_itself(vendor: type[Vendor], folder: RunFolder) -> None:
    add_steps(folder, 0)
    with lock.of_folder(folder.path), pytest.raises(RunError, match="is in use by process"):
        tracking.open_trackers(["vendor"], folder.path, resume=True)
    assert (vendor.opened, vendor.held) == (0, [])


def test_a_server_that_is_gone_stops_no_run_and_gets_the_rest_later(
    vendor: type[Vendor], folder: RunFolder
) -> None:
    (tracker,) = tracking.open_trackers(["vendor"], folder.path)
    for step in range(3):
        add_steps(folder, step)
        vendor.broken = step == 1 and vendor.opened == 1
        if vendor.broken:
            with pytest.warns(UserWarning, match="vendor: step 1 is not logged yet, .* the server is gone"):
                tracker.log(expected(step), step)
        else:
            tracker.log(expected(step), step)
    assert vendor.held == [(step, expected(step)) for step in range(3)]


def test_a_server_that_is_gone_at_the_end_or_at_a_resume_is_a_warning_too(
    vendor: type[Vendor], folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_steps(folder, 0)

    def gone(self: Vendor, metrics: dict[str, float], step: int) -> None:
        raise ConnectionError("the server is gone")

    with monkeypatch.context() as patched:
        patched.setattr(vendor, "write", gone)
        words = "vendor: the earlier steps are not logged yet, the run goes on: the server is gone"
        with pytest.warns(UserWarning, match=words):
            (tracker,) = tracking.open_trackers(["vendor"], folder.path, resume=True)
    add_steps(folder, 1)
    tracker.log(expected(1), 1)
    assert vendor.held == [(step, expected(step)) for step in range(2)]
    vendor.broken = True
    with pytest.warns(UserWarning, match="vendor: it was not closed, .*: the server is gone"):
        tracker.close()
    tracker.close()  # it is closed
    assert vendor.closed == 1


def test_a_tracker_that_cannot_be_opened_is_an_error(vendor: type[Vendor], folder: RunFolder) -> None:
    vendor.broken = True
    with pytest.raises(UnavailableError, match="--track vendor cannot be opened: no login"):
        tracking.open_trackers(["vendor"], folder.path, resume=True)


def test_a_tracker_that_cannot_be_opened_ends_a_run_before_it_trains_and_blocks_no_other(
    vendor: type[Vendor], tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    monkeypatch.setattr(experiment, "_steps", lambda *given: trained.append(vendor.opened))
    other = type("Other", (vendor,), {"held": [], "opened": 0, "closed": 0, "broken": True})
    monkeypatch.setitem(tracking._VENDORS, "other", other)
    trackers = tracking.open_trackers(["vendor", "other"], tmp_path / "run")
    with pytest.raises(UnavailableError, match="--track other cannot be opened: no login"):
        experiment.run(tiny, tmp_path / "run", trackers=trackers)
    for tracker in trackers:
        tracker.close()
    assert (trained, vendor.opened, vendor.closed) == ([], 1, 1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    experiment.run(tiny, tmp_path / "run", trackers=trackers[:1])
    assert trained == [2]


def test_unknown_missing_and_nothing_to_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown tracker 'comet'; known: tensorboard, wandb, mlflow"):
        tracking.open_trackers(["comet"], tmp_path)
    for name, vendor in tracking._VENDORS.items():
        monkeypatch.setattr(vendor, "module", f"not_there_{name}")
        with pytest.raises(UnavailableError) as caught:
            tracking.open_trackers([name], tmp_path)
        assert f"--track {name} needs the package {name}: pip install 'meal-gpu[{name}]'" in str(caught.value)
    monkeypatch.setitem(tracking._VENDORS, "vendor", Vendor)
    with pytest.raises(RunError, match="holds no run"):
        tracking.open_trackers(["vendor"], tmp_path, resume=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # none waits for a busy core
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_run_gives_every_step_to_its_trackers(tiny: Config, tmp_path: Path) -> None:
    class Mine:
        def __init__(self) -> None:
            self.steps: list[tuple[int, dict[str, float]]] = []

        def log(self, metrics: dict[str, float], step: int) -> None:
            self.steps.append((step, metrics))

        def close(self) -> None:
            raise AssertionError("it is not the run's to close")

    mine = Mine()
    config = tiny.replace(strategy="random", steps=1, final_epochs=1)
    folder = experiment.run(config, tmp_path / "run", trackers=[mine])
    assert [step for step, _ in mine.steps] == [0, 1]
    for (_, given), recorded in zip(mine.steps, tracking.recorded(folder), strict=True):
        assert given == pytest.approx(recorded, abs=1e-3)  # log.jsonl rounds seconds
        assert {"mean_iou", "share", "labelled", "loss/kept", "seconds/train", "class_iou/road"} <= set(given)
    experiment.run(config, tmp_path / "run", resume=True, trackers=[mine])
    assert len(mine.steps) == 2


# The packages themselves


def events(path: Path) -> dict[str, list[tuple[int, float]]]:
    module = import_module("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(path / "tensorboard"))
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


def log_in_two_halves(name: str, folder: RunFolder) -> None:
    """Steps 0 and 1, then a new process would log 2 (which was lost) and 3."""
    (tracker,) = tracking.open_trackers([name], folder.path)
    for step in (0, 1):
        add_steps(folder, step)
        tracker.log(expected(step), step)
    tracker.close()
    add_steps(folder, 2)
    (tracker,) = tracking.open_trackers([name], folder.path, resume=True)
    add_steps(folder, 3)
    tracker.log(expected(3), 3)
    tracker.close()
    tracking.open_trackers([name], folder.path, resume=True)[0].close()


@needs_tensorboard
def test_tensorboard(folder: RunFolder) -> None:
    log_in_two_halves("tensorboard", folder)
    assert events(folder.path) == {
        tag: [(step, expected(step)[tag]) for step in range(4)] for tag in expected(0)
    }


@needs_tensorboard
def test_tensorboard_after_a_kill_in_the_middle_of_an_event(folder: RunFolder) -> None:
    add_steps(folder, 0, 1)
    tracking.open_trackers(["tensorboard"], folder.path, resume=True)[0].close()
    (file,) = (folder.path / "tensorboard").iterdir()
    os.truncate(file, file.stat().st_size - 5)
    tracking.open_trackers(["tensorboard"], folder.path, resume=True)[0].close()
    assert {tuple(step for step, _ in values) for values in events(folder.path).values()} == {(0, 1)}


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB) after a header of 7 bytes."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (room := 32768 - place % 32768) < 7:
            place += room
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


@needs_wandb
def test_wandb_offline(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_in_two_halves("wandb", folder)
    pb = import_module("wandb.proto.wandb_internal_pb2")
    steps: Counter[int] = Counter()
    ids = set()
    for file in folder.path.glob("wandb/offline-run-*/*.wandb"):
        for data in wandb_records(file):
            record = pb.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = record.history.item
                row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
                step = record.history.step.num
                steps[step] += 1
                assert {key: row[key] for key in expected(step)} == expected(step)
    assert steps == {0: 1, 1: 1, 2: 1, 3: 1}
    assert ids == {json.loads((folder.path / "tracking/wandb.json").read_text())["id"]}


@needs_mlflow
def test_mlflow(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = import_module("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    try:
        log_in_two_halves("mlflow", folder)
        client = mlflow.MlflowClient()
        (run,) = client.search_runs([client.get_experiment_by_name("test").experiment_id])
        assert (run.info.run_name, run.info.status) == ("meal-0", "FINISHED")
        assert run.data.params["strategy"] == "meal"
        for tag in expected(0):
            history = client.get_metric_history(run.info.run_id, tag)
            assert sorted((m.step, m.value) for m in history) == [(k, expected(k)[tag]) for k in range(4)]
    finally:
        mlflow.set_tracking_uri(before)
