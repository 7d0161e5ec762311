"""Whatever goes wrong is one line on stderr, and an exit code that docs/RELIABILITY.md names."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

from meal_gpu import cli
from meal_gpu.errors import DataError

fault = pytest.mark.fault
LOWER = "lower size, and in a run cache_gib or pool_share"


def outcome(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("x.png: truncated"), "meal-gpu: x.png: truncated\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/a"),
            "meal-gpu: [Errno 28] No space left on device: '/data/a'\n",
        ),
        pytest.param(
            MemoryError("4 GiB"), f"meal-gpu: out of memory (4 GiB): {LOWER}\n",
            marks=fault("resource", "out of host memory all the same", "one line, exit code 1"),
        ),
        pytest.param(
            torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB"),
            f"meal-gpu: out of memory (CUDA out of memory. Tried 2 GiB): {LOWER}\n",
            marks=fault("resource", "out of device memory elsewhere", "one line, exit code 1"),
        ),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            f"meal-gpu: out of memory (cuDNN error: CUDNN_STATUS_ALLOC_FAILED): {LOWER}\n",
        ),
    ],
    ids=["ours", "the system's", "host memory", "device memory", "of a library"],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(error, monkeypatch) == 1
    assert capsys.readouterr().err == line


@fault("fuzz", "a defect of meal-gpu", "one line that names the file with the traceback, exit code 70")
def test_a_defect_is_one_line_and_its_traceback_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert outcome(IndexError("list index\nout of range"), monkeypatch) == 70
    said = capsys.readouterr().err
    found = re.fullmatch(
        r"meal-gpu: a defect of meal-gpu \(IndexError: list index out of range\); "
        r"please report it with (\S+\.log)\n",
        said,
    )
    assert found
    log = Path(found[1]).read_text()
    assert log.startswith("Traceback (most recent call last):")
    assert "in app" in log


def meal_gpu(*arguments: object, **options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "meal_gpu", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options  # type: ignore[call-overload]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["strategies"], 0, ""),
        (["run", "--config", "nowhere.toml"], 1, "meal-gpu: nowhere.toml: cannot be read"),
        pytest.param(
            ["run", "--epochs", "many"], 2, "--epochs",
            marks=fault("fuzz", "an option that cannot be parsed", "its name and value, exit code 2"),
        ),
        (["run", "--no-such-option"], 2, "No such option"),
        (["no-such-command"], 2, "No such command"),
    ],
)  # fmt: skip
def test_exit_codes_of_processes(arguments: list[str], code: int, words: str) -> None:
    process = meal_gpu(*arguments)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert words in said
    assert "Traceback" not in said


@fault("fuzz", "a reader of the output that goes away (`| head`)", "quiet")
def test_a_broken_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "meal_gpu", "strategies"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert process.stderr == ""


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    ("stream", "code", "said"),
    [
        pytest.param(
            "stdout", 1,
            "meal-gpu: standard output: No space left on device; only the text is lost, files written before "
            "are whole\n",
            marks=fault("resource", "the disk is full that stdout goes to",
                        "said so, and that what was written before is there; exit code 1"),
        ),
        pytest.param(
            "stderr", 0, "synthetic: 1 train and 1 val images in",
            marks=fault("resource", "the disk is full that stderr goes to",
                        "progress is not shown; the command does its work, exit code 0"),
        ),
    ],
)  # fmt: skip
def test_a_full_disk_behind_a_stream(
    stream: str, code: int, said: str, buffered: bool, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "meal_gpu", "data", "draw", str(tmp_path / "drawn"), "--train", "1",
               "--val", "1", "--size", "32x64"]  # fmt: skip
    environment = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    with Path("/dev/full").open("w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        done = subprocess.run(command, text=True, env=environment, **streams)  # type: ignore[call-overload]
    assert done.returncode == code, done.stderr
    other = done.stderr if stream == "stdout" else done.stdout
    assert said in other and "Exception" not in other
    assert list((tmp_path / "drawn").rglob("*.png"))


def test_a_full_disk_does_not_hide_what_is_wrong() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "meal_gpu", "report", "nowhere"]
        assert subprocess.run(command, stderr=full).returncode == 1


SCRIPT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
MODULE, _, FUNCTION = SCRIPT["meal-gpu"].partition(":")
STARTS = {
    "python -m": ["-m", "meal_gpu"],
    "the program": ["-c", f"from {MODULE} import {FUNCTION}; {FUNCTION}()"],
}


@fault("fuzz", "Ctrl-C while the program is loaded", "quiet, exit code 130")
@pytest.mark.parametrize("start", STARTS)
def test_an_interrupt_at_the_start_is_quiet(start: str, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")  # found before the library
    command = [sys.executable, *STARTS[start], "strategies"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@fault("fuzz", "a working directory that was deleted", "one line, exit code 1")
@pytest.mark.parametrize("start", STARTS)
def test_a_working_directory_that_is_gone(start: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    command = ["sh", "-c", script, "sh", str(gone), sys.executable, *STARTS[start], "strategies"]
    done = subprocess.run(command, capture_output=True, text=True)
    told = "meal-gpu: the working directory is gone: cd into one that is there\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="SIGINT is ignored here")
@fault("fuzz", "Ctrl-C", "exit code 130, no traceback; a run says how to go on")
def test_an_interrupt_ends_a_run_with_130(tmp_path: Path) -> None:
    process = meal_gpu("run", "--out", tmp_path / "run", "--epochs", 1000, "--set", "encoder_weights=none",
                       env=os.environ | {"MEAL_GPU_CACHE": str(tmp_path / "cache")})  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/config.toml").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
