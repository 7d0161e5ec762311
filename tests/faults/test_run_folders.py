"""A run folder that another process holds, that belongs to another dataset, or that cannot be written."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from meal_gpu import cli, experiment, lock
from meal_gpu.annotate.ingest import ingest
from meal_gpu.config import Config
from meal_gpu.errors import ConfigError, RunError
from meal_gpu.models import Builder
from meal_gpu.preparation import Silent
from meal_gpu.record import RunFolder

fault = pytest.mark.fault

HOLD = """
import sys, time
from pathlib import Path
from meal_gpu.lock import held
sys.argv[:] = ["meal-gpu", "run", "--out", "x"]
with held(Path({file!r}), Path({what!r})):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def quick(tiny: Config) -> Config:
    return tiny.replace(strategy="entropy", steps=1, final_epochs=1)


@pytest.fixture(scope="module")
def made(quick: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step; to be read only."""
    return experiment.run(quick, tmp_path_factory.mktemp("made") / "run").path


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_finished_run_resumes_to_itself(copy: Path, quick: Config) -> None:
    before = files(copy)
    experiment.run(quick, copy, resume=True)
    assert files(copy) == before


@fault("folder", "encoder weights that were replaced since", "a resume is refused, with both SHA-256")
def test_other_encoder_weights_are_not_gone_on_with(quick: Config, tmp_path: Path) -> None:
    weights, other = tmp_path / "encoder.safetensors", tmp_path / "other.safetensors"
    for seed, file in enumerate((weights, other)):
        encoder = Builder("smp", 19, "none", seed=seed)(0).encoder
        save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, file)
    config = quick.replace(encoder_weights=str(weights))
    run = experiment.run(config, tmp_path / "run").path
    before = files(run)
    experiment.run(config, run, resume=True)
    weights.unlink()
    other.rename(weights)
    with pytest.raises(
        RunError, match=r"begun on other files .encoder_weights: a file of SHA-256 \w{12}… then"
    ):
        experiment.run(config, run, resume=True)
    assert files(run) == before


def holding(file: Path, what: Path) -> subprocess.Popen[str]:
    code = HOLD.format(file=str(file), what=str(what))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@fault("folder", "a run folder in use by another process", "refused: by which, since when")
def test_a_run_in_use_says_by_whom_and_is_free_once_that_was_killed(copy: Path, quick: Config) -> None:
    before = files(copy)
    process = holding(copy / lock.FILE, copy)
    try:
        with pytest.raises(RunError) as refused:
            experiment.run(quick, copy, resume=True)
    finally:
        process.kill()
        process.wait()
    message = str(refused.value)
    assert f"{copy} is in use by process {process.pid} on {os.uname().nodename} since 20" in message
    assert "(meal-gpu run --out x): wait for it, or end it" in message
    experiment.run(quick, copy, resume=True)  # the lock died with the process
    assert files(copy) == before


@fault("folder", "a new run into a folder in use", "refused; nothing is written")
def test_a_new_run_does_not_begin_in_a_folder_in_use(quick: Config, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with lock.of_folder(out), pytest.raises(RunError, match="is in use by process"):
        experiment.run(quick, out)
    assert [p.name for p in out.iterdir()] == [lock.FILE]


@fault("folder", "two processes ingest into one ledger", "the second is refused; nothing changes")
def test_two_ingests_do_not_meet(tmp_path: Path, scenes: Path) -> None:
    frames = scenes / "leftImg8bit" / "train"
    result = CliRunner().invoke(
        cli.app,
        ["acquire", "--images", str(frames), "--model", "meal_gpu.models:segmenter",
         "--model-arg", "classes=3", "-n", "4patches", "--strategy", "entropy",
         "--ledger", str(tmp_path / "pool.parquet"),
         "--out", str(tmp_path / "query")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    before = files(tmp_path)
    with (
        lock.of_ledger(tmp_path / "pool.parquet"),
        pytest.raises(RunError, match=r"pool\.parquet is in use by"),
    ):
        ingest(tmp_path / "query", tmp_path / "query" / "predictions", tmp_path / "pool.parquet")
    assert files(tmp_path) == before
    with pytest.raises(RunError, match=r"none\.parquet: no such ledger; pass the --ledger"):
        ingest(tmp_path / "query", tmp_path / "query" / "predictions", tmp_path / "none.parquet")
    assert files(tmp_path) == before


@pytest.mark.slow
@fault("folder", "a sweep whose parent alone is killed", "its runs end too, and the lock is free")
def test_the_runs_of_a_killed_sweep_end_with_it(quick: Config, tmp_path: Path) -> None:
    out, settings = tmp_path / "sweep", tmp_path / "settings.toml"
    settings.write_text(quick.replace(epochs=10_000).to_toml())
    sweep = subprocess.Popen(
        [sys.executable, "-m", "meal_gpu", "run", "--config", str(settings), "--seeds", "0,1",
         "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.glob("*/config.toml")) and time.monotonic() < deadline:
        time.sleep(0.1)
    (begun,) = out.glob("*/config.toml")
    assert "process" in _refusal(begun.parent)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    deadline = time.monotonic() + 60
    while _refusal(out) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _refusal(out)


def _refusal(folder: Path) -> str:
    try:
        with lock.held(folder / lock.FILE, folder):
            return ""
    except RunError as error:
        return str(error)


def changed(root: Path, what: str) -> None:
    image = sorted((root / "leftImg8bit/train").rglob("*.png"))[2]
    label = next((root / "gtFine/train").rglob(image.name.replace("leftImg8bit", "gtFine_labelIds")))
    if what == "image":
        image.write_bytes(image.read_bytes() + b"\0")
    elif what == "label":
        label.write_bytes(label.read_bytes() + b"\0")
    elif what == "gone":
        image.unlink()
        label.unlink()
    else:
        for file in (image, label):
            shutil.copyfile(file, file.with_name(file.name.replace("drawn_", "drawn_9", 1)))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        pytest.param(
            "image", r"the image of leftImg8bit/train/.* has changed, \d+ bytes then, \d+ now",
            marks=fault("folder", "an image that changed since the run began", "`--resume` names it"),
        ),
        pytest.param(
            "label", r"the label of leftImg8bit/train/.* has changed, \d+ bytes then, \d+ now",
            marks=fault("folder", "a label that changed since the run began", "`--resume` names it"),
        ),
        pytest.param(
            "gone", r"train: leftImg8bit/train/.* is gone",
            marks=fault("folder", "an image that went away since the run began", "`--resume` names it"),
        ),
        pytest.param(
            "new", r"train: leftImg8bit/train/.* is new",
            marks=fault("folder", "an image that was added since the run began", "`--resume` names it"),
        ),
    ],
)  # fmt: skip
def test_another_dataset_is_refused(
    what: str, message: str, scenes: Path, quick: Config, copy: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(scenes, tmp_path / "scenes"))
    config = quick.replace(root=str(root))
    (copy / "config.toml").write_text(RunFolder.resume(copy).config.replace(root=str(root)).to_toml())
    before = files(copy)
    experiment.run(config, copy, resume=True)  # a dataset that was copied is the same
    assert files(copy) == before
    changed(root, what)
    with pytest.raises(RunError, match=message) as refused:
        experiment.run(config, copy, resume=True)
    assert "was begun on other files" in str(refused.value)
    assert files(copy) == before


@fault("folder", "other settings on `--resume`", "refused, naming each: the recorded and the new value")
def test_other_settings_are_refused(copy: Path, quick: Config) -> None:
    with pytest.raises(ConfigError, match=r"epochs: 1 → 3"):
        experiment.run(quick.replace(epochs=3), copy, resume=True)


@fault("folder", "a step that was removed from the middle", "named; nothing is overwritten")
def test_a_missing_step_is_named(copy: Path, quick: Config) -> None:
    shutil.rmtree(copy / "steps/000")
    before = files(copy)
    with pytest.raises(RunError, match=r"steps holds \[1\]: a step is missing, restore it or start anew"):
        experiment.run(quick, copy, resume=True)
    assert files(copy) == before


@fault("folder", "a new run into a folder that holds one", "refused: `--resume`, or another `--out`")
def test_a_run_is_not_overwritten(copy: Path, quick: Config) -> None:
    before = files(copy)
    with pytest.raises(RunError, match="is not empty: pass --resume to continue that run, or another --out"):
        experiment.run(quick, copy)
    assert files(copy) == before


@fault("folder", "`--out` that is a file", "named; the file stays")
def test_a_file_is_no_run_folder(quick: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="file: the run folder cannot be written: File exists"):
        experiment.run(quick, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=fault("folder", f"a run folder {what} while the run works on it", outcome))
        for what, outcome in {
            "removed": "named; no half of it is made anew",
            "moved": "named; `--resume` where it is now gives the same files",
        }.items()
    ],
)
def test_a_run_folder_that_goes_away(what: str, made: Path, quick: Config, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    class Mover(Silent):
        def line(self, text: str) -> None:
            if text.startswith("step 0"):
                shutil.rmtree(out) if what == "removed" else out.rename(elsewhere)

    with pytest.raises(RunError, match=r"run was removed or moved while the run worked on it"):
        experiment.run(quick, out, monitor=Mover())
    assert not out.exists()
    if what == "moved":
        experiment.run(quick, elsewhere, resume=True)
        again, expected = files(elsewhere), files(made)
        for timed in ("env.json", "log.jsonl"):
            del again[timed], expected[timed]
        assert again == expected
