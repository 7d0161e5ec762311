"""A query made again: the same bytes, or what differs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer import Typer
from typer.testing import CliRunner

from meal_gpu.errors import RunError, UnavailableError
from meal_gpu.trust import commands, replaying
from meal_gpu.trust.replaying import replay

RunOf = Callable[[str], Path]

app = Typer()
commands.register(app)


@pytest.fixture
def copied(run_of: RunOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_of("entropy"), tmp_path / "run"))


@pytest.mark.parametrize(
    ("strategy", "step", "line"),
    [
        ("meal", 0, "step 0: the same 16 patches byte for byte"),
        ("meal", 1, "step 1: the same 6 patches, scores and embedding byte for byte"),
        ("meal", 2, "step 2: the same 6 patches, scores and embedding byte for byte"),
        ("entropy", 1, "step 1: the same 6 patches and scores byte for byte"),
        ("badge", 1, "step 1: the same 6 patches byte for byte"),
    ],
)
def test_a_query_can_be_made_again(
    run_of: RunOf, strategy: str, step: int, line: str, tmp_path: Path
) -> None:
    run = run_of(strategy)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    replayed = replay(run, step)
    assert (replayed.same, replayed.differences, replayed.text()) == (True, (), line)
    replayed.query.to_parquet(tmp_path / "query.parquet")
    assert (tmp_path / "query.parquet").read_bytes() == (run / f"steps/{step:03d}/query.parquet").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


FRAME = pd.DataFrame(
    {
        "patch": [5, 3, 9, 7], "image": ["a", "a", "b", "b"], "left": [0, 8, 0, 8],
        "score": np.array([0.75, 0.5, 0.0, np.nan], np.float32),
        "embedding_0": np.array([1, 2, 3, np.nan], np.float32),
        "embedding_1": np.array([4, 5, 6, np.nan], np.float32),
    }
)  # fmt: skip


def score(*values: float) -> pd.DataFrame:
    return FRAME.assign(score=np.array(values, np.float32))


@pytest.mark.parametrize(
    ("now", "lines"),
    [
        (FRAME.copy(), []),
        (FRAME.assign(patch=[5, 3, 9, 8]), ["only recorded: 7", "only made here: 8"]),
        (FRAME.iloc[:3], ["4 patches recorded, 3 made here", "only recorded: 7"]),
        (FRAME.iloc[[0, 2, 1, 3]], ["another order from number 2 of the patches in both: 3, 9, 7"]),
        (FRAME.drop(columns="score"), ["columns only recorded: score"]),
        (FRAME.assign(arm="control"), ["columns only made here: arm"]),
        (FRAME.assign(left=[0, 8, 0, 9]), ["left: 1 of 4 differ"]),
        (FRAME.assign(image=list("abbb")), ["image: 1 of 4 differ"]),
        (score(0.75, 0.25, 0.0, np.nan), ["score: 1 of 4 differ, by 0.25 at most"]),
        (score(0.75, 0.5, -0.0, np.nan), ["score: 1 of 4 differ, by 0 at most"]),  # other bytes
        (score(0.75, 0.5, 0.0, 1.0), ["score: 1 of 4 differ, by 0 at most"]),
        (score(np.nextafter(np.float32(0.75), np.float32(1)), 0.5, 0, np.nan),
         ["score: 1 of 4 differ, by 5.96e-08 at most"]),
        (FRAME.assign(score=FRAME["score"].astype(np.float64)), ["score: 4 of 4 differ, by 0 at most"]),
        (FRAME.assign(embedding_0=np.array([1, 2, 4, np.nan], np.float32),
                      embedding_1=np.array([7, 5, 6, np.nan], np.float32)),
         ["embedding: 2 of 4 differ, by 3 at most"]),
    ],
)  # fmt: skip
def test_what_differs(now: pd.DataFrame, lines: list[str]) -> None:
    assert list(replaying.differences(FRAME, now)) == lines


def test_a_record_that_was_changed(copied: Path) -> None:
    path = copied / "steps/001/query.parquet"
    frame = pd.read_parquet(path)
    was = frame["patch"].tolist()
    other = next(p for p in range(96) if p not in was)
    frame.assign(patch=[other, *was[1:]]).to_parquet(path, index=False)
    replayed = replay(copied, 1)
    assert (replayed.missing, replayed.added) == ((other,), (was[0],))
    assert replayed.text().split("\n") == [
        "step 1: not the recorded query", f"  only recorded: {other}", f"  only made here: {was[0]}",
        "the environment is the recorded one: a file of the run or the dataset has changed",
    ]  # fmt: skip


def test_a_model_that_was_changed(copied: Path) -> None:
    path = copied / "steps/000/model.safetensors"
    weights = load_file(path)
    bias = next(name for name, values in weights.items() if values.shape == (19,))
    weights[bias][0] += 1
    save_file(weights, path)
    said = CliRunner().invoke(app, ["replay", str(copied), "--step", "1"])
    assert said.exit_code == 1
    assert said.stdout.startswith("step 1: not the recorded query\n") and "  score: " in said.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_on_another_device_in_another_place(copied: Path, scenes: Path) -> None:
    path = copied / "config.toml"
    text = path.read_text().replace(str(scenes), str(scenes / "gone"))
    was = next(line.split('"')[1] for line in text.splitlines() if line.startswith("ops"))
    text = text.replace(f'ops = "{was}"', 'ops = "cuda"').replace('device = "cpu"', 'device = "cuda:0"')
    path.write_text(text)
    there = json.loads((copied / "env.json").read_text())
    here = there["device"], there["packages"]["torch"]
    there["device"], there["packages"]["torch"] = "NVIDIA H100", "1.0"
    (copied / "env.json").write_text(json.dumps(there))
    with pytest.raises(UnavailableError, match="torch sees no GPU; use --device cpu"):
        replay(copied, 1)
    options = ["--step", "1", "--device", "cpu", "--root", str(scenes)]
    said = CliRunner().invoke(app, ["replay", str(copied), *options])
    assert said.exit_code == 0  # it was made on this CPU
    assert said.stdout == (
        "step 1: the same 6 patches and scores byte for byte, although "
        f"device NVIDIA H100, here {here[0]}; torch 1.0, here {here[1]}; ops cuda, here {was}\n"
    )


def test_of_a_run_continued_elsewhere_the_step_s_own_environment_counts(copied: Path) -> None:
    env = json.loads((copied / "env.json").read_text())
    for since, told in ((2, True), (1, False)):
        (copied / "env.json").write_text(
            json.dumps(env | {"commit": "begun", "resumed": [env | {"step": since}]})
        )
        said = replay(copied, 1).elsewhere
        assert any(line.startswith("commit begun, here ") for line in said) == told == bool(said)


@pytest.mark.parametrize("step", [3, -1])
def test_an_unknown_step(run_of: RunOf, step: int) -> None:
    with pytest.raises(RunError, match=f"has no query of step {step}: give a step from 0 to 2"):
        replay(run_of("meal"), step)


def test_what_cannot_be_read_is_named(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere holds no run"):
        replay(tmp_path / "nowhere", 1)
    (copied / "steps/001/query.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"query\.parquet: not a readable query"):
        replay(copied, 1)
