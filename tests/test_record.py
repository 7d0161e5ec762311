"""Complete or not there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from meal_gpu.atomic import write
from meal_gpu.config import Config
from meal_gpu.errors import RunError
from meal_gpu.record import RunFolder, environment


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", Config(seed=3), torch.device("cpu"))


def test_create_records_what_was_asked_before_anything_runs(folder: RunFolder) -> None:
    assert sorted(p.name for p in folder.path.iterdir()) == ["config.toml", "env.json", "steps"]
    assert RunFolder.resume(folder.path).config == Config(seed=3)


def test_a_step_appears_whole(folder: RunFolder) -> None:
    with folder.writing(folder.step(0)) as aside:
        (aside / "metrics.json").write_text("{}")
        assert folder.completed() == []
    assert folder.completed() == [0]
    assert [p.name for p in (folder.path / "steps").iterdir()] == ["000"]


def test_an_error_while_writing_leaves_no_step(folder: RunFolder) -> None:
    with pytest.raises(RunError, match=r"000.*No space left.*--resume"), folder.writing(folder.step(0)):
        raise OSError(28, "No space left on device")
    assert list((folder.path / "steps").iterdir()) == []


def test_clean_removes_what_a_killed_process_left(folder: RunFolder) -> None:
    (folder.path / "steps/.partial-001").mkdir()
    (folder.path / "steps/.partial-001/model.safetensors").write_text("half")
    (folder.path / ".partial-ledger").write_text("half")
    folder.clean()
    assert sorted(p.name for p in folder.path.rglob("*")) == ["config.toml", "env.json", "steps"]


def test_a_gap_in_the_steps_is_named(folder: RunFolder) -> None:
    folder.step(0).mkdir()
    folder.step(2).mkdir()
    with pytest.raises(RunError, match=r"\[0, 2\]"):
        folder.completed()


def test_folders_in_use_are_left_alone(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        RunFolder.create(folder.path, Config(), torch.device("cpu"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot be written: File exists"):
        RunFolder.create(tmp_path / "file", Config(), torch.device("cpu"))
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder.create(Path("/proc/run"), Config(), torch.device("cpu"))


def test_write_replaces_a_file_whole(tmp_path: Path) -> None:
    write(tmp_path / "a", "one")
    write(tmp_path / "a", "two")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "two")]


def test_the_log_is_appended(folder: RunFolder) -> None:
    folder.log("step", step=0)
    folder.log("step", step=1)
    rows = [json.loads(line) for line in (folder.path / "log.jsonl").read_text().splitlines()]
    assert [(row["event"], row["step"]) for row in rows] == [("step", 0), ("step", 1)]


def test_a_line_that_was_cut_short_takes_no_other_with_it(folder: RunFolder) -> None:
    folder.log("step", step=0)
    with (folder.path / "log.jsonl").open("ab") as file:
        file.write(b'{"event": "st')  # killed
    folder.log("step", step=1)
    folder.log("step", step=2)
    lines = (folder.path / "log.jsonl").read_text().splitlines()
    assert lines[1] == '{"event": "st'
    assert [json.loads(lines[i])["step"] for i in (0, 2, 3)] == [0, 1, 2]


def test_environment_names_device_and_versions() -> None:
    found = environment(torch.device("cpu"))
    assert found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert found["device"]
    assert set(found) == {"command", "device", "threads", "commit", "python", "packages"}


def test_who_goes_on_elsewhere_is_recorded(folder: RunFolder) -> None:
    device = torch.device("cpu")
    here = environment(device)
    folder.continued(device)  # the same one: nothing to say
    assert json.loads((folder.path / "env.json").read_text()) == here
    (folder.path / "env.json").write_text(json.dumps(here | {"commit": "begun"}))
    folder.step(0).mkdir()
    folder.continued(device)
    folder.continued(device)
    made = json.loads((folder.path / "env.json").read_text())
    assert made["commit"] == "begun" and made["resumed"] == [{"step": 1} | here]
    assert [folder.environment(step)["commit"] for step in (0, 1, 2)] == [
        "begun",
        here["commit"],
        here["commit"],
    ]


@pytest.mark.parametrize(
    ("since", "steps", "expected"),
    [
        ([], 2, "a"),
        ([{"step": 0}], 1, "b"),  # `a` completed nothing
        ([{"step": 1}], 1, "a"),  # and `b` nothing yet
        ([{"step": 1}], 2, "ab"),
        ([{"step": 0, "midway": True}], 0, ""),
        ([{"step": 0, "midway": True}], 1, "ab"),  # both trained it
        ([{"step": 1}, {"step": 1, "midway": True}], 2, "abc"),
        ([{"step": 1}, {"step": 1}, {"step": 3}], 4, "acd"),
        ([{"step": 1, "midway": True}, {"step": 3, "midway": True}], 3, "ab"),
    ],
)
def test_who_had_a_part_in_the_complete_steps(
    folder: RunFolder, since: list[dict[str, Any]], steps: int, expected: str
) -> None:
    others = [{"commit": commit} | made for commit, made in zip("bcd", since, strict=False)]
    (folder.path / "env.json").write_text(json.dumps({"commit": "a", "resumed": others}))
    for step in range(steps):
        folder.step(step).mkdir()
    assert "".join(made["commit"] for made in folder.makers()) == expected


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"packages": 1}', '{"resumed": [{}]}', '{"resumed": [1]}']
)
def test_an_environment_that_cannot_be_read_is_named(folder: RunFolder, text: str) -> None:
    (folder.path / "env.json").write_text(text)
    for use in (lambda: folder.environment(0), lambda: folder.continued(torch.device("cpu"))):
        with pytest.raises(RunError, match=r"env\.json: not a readable environment"):
            use()
