"""Kills `run`, `acquire` or `ingest` at every stage boundary and in every write, does it again, and compares.

    python tests/faults/crashing.py JOB ROOT [EVENT ...]

The program itself has no hook: Python's audit events say when a file is opened, made, renamed or removed, and
the stages of `meal_gpu.timing` are wrapped. One uninterrupted child says which events there are; then a child
for each is killed with SIGKILL at it, after a second one has done the job again its files are compared with
those of the first. A file that is complete but not yet renamed is cut to its half before the kill: that is a
write that was killed in the middle. Prints a line of JSON for each point.
"""

import gc
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typer.testing import CliRunner

from meal_gpu import cli, models, savepoint, timing
from meal_gpu import config as configs
from meal_gpu.annotate.asked import Asked
from meal_gpu.errors import RunError
from meal_gpu.experiment import run

ROOT = Path(sys.argv[2])
SETTINGS = configs.read(ROOT / "settings.toml")


class Stages(nn.Module):
    """An encoder of no depth: what is tested is the files, not the network."""

    def __init__(self) -> None:
        super().__init__()
        self.high = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        self.deep = nn.Conv2d(8, 16, kernel_size=4, stride=4)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        high = self.high(images)
        return [images, images, high, self.deep(high)]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(8, 256, kernel_size=1)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        wide: torch.Tensor = self.wide(stages[0])
        return wide


savepoint.SECONDS = 0.0  # one after every epoch
models._encoder = lambda architecture, weights: Stages()
models.Builder._decoder = lambda self: Decoder()  # type: ignore[method-assign]


def run_job(where: Path) -> None:
    run(SETTINGS, where / "run", resume=(where / "run" / "config.toml").exists())


def acquire_job(where: Path) -> None:
    frames = Path(str(SETTINGS.root)) / "leftImg8bit" / "train"
    command(
        "acquire", "--images", frames, "--model", "meal_gpu.models:segmenter", "--model-arg", "classes=3",
        "--candidates", 20, "-n", "6patches", "--ledger", where / "pool.parquet", "--out", where / "query",
    )  # fmt: skip


def acquire_again(where: Path) -> None:
    try:
        acquire_job(where)
    except RunError as error:  # it was killed after its last write
        assert "query is not empty" in str(error)


def ingest_job(where: Path) -> None:
    command("ingest", where / "answers", "--query", where / "query", "--ledger", where / "pool.parquet")


def command(*arguments: object) -> None:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if result.exit_code:
        raise result.exception or RuntimeError(result.output)


def nothing(where: Path) -> None:
    pass


def before_ingest(where: Path) -> None:
    acquire_job(where)
    asked = Asked.read(where / "query")
    for item in asked.items:
        mask = where / "answers" / f"{item.name}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(asked.path / "predictions" / f"{item.patch}.png", mask)


Job = Callable[[Path], None]
# What must be there before, the job, and how it is done again
JOBS: dict[str, tuple[Job, Job, Job]] = {
    "run": (nothing, run_job, run_job),
    "acquire": (nothing, acquire_job, acquire_again),
    "ingest": (before_ingest, ingest_job, ingest_job),
}


class Watch:
    """Names what happens below `where`, in order, and ends the process at the event named `deadly`."""

    def __init__(self, where: Path, deadly: str | None = None) -> None:
        self.where = str(where)
        self.deadly = deadly
        self.events: list[str] = []
        self._times: Counter[str] = Counter()
        self._busy = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy or event not in ("open", "os.rename", "os.mkdir", "os.remove", "shutil.rmtree"):
            return
        path = os.fspath(arguments[0]) if isinstance(arguments[0], str | Path) else ""
        if not path.startswith(self.where + "/"):
            return
        name = path.removeprefix(self.where + "/")
        if event != "open":
            self.reach(f"{event.partition('.')[2]} {name}")
        elif (isinstance(arguments[1], str) and arguments[1][0] in "wxa") or (
            arguments[1] is None and arguments[2] & os.O_CREAT
        ):
            self.reach(f"begin {name}")
        elif arguments[1] is None and ".partial-" in name and os.path.isfile(path):  # noqa: PTH113
            self.reach(f"half of {name}", Path(path))  # about to be synced

    def reach(self, event: str, half: Path | None = None) -> None:
        event = event.replace(".partial-", "~").replace(f"{socket.gethostname()}-{os.getpid()}-", "")
        event = re.sub(r"[0-9a-f]{16}", "KEY", event)
        event = re.sub(r"\d+\.png", "N.png", event)
        self._times[event] += 1
        event = f"{event} #{self._times[event]}"
        self.events.append(event)
        if event == self.deadly:
            self._busy = True
            if half is not None:
                os.truncate(half, half.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def stages(self) -> None:
        real, watch = timing.Stages.__call__, self

        @contextmanager
        def watched(stages: timing.Stages, name: str) -> Iterator[None]:
            watch.reach(f"stage {name}")
            with real(stages, name):
                yield
            watch.reach(f"end of stage {name}")

        timing.Stages.__call__ = watched  # type: ignore[method-assign, assignment]


def child(work: Callable[[], None]) -> int:
    """Do it in a process of its own; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def watched(job: Callable[[Path], None], where: Path, deadly: str | None, listed: Path | None) -> None:
    watch = Watch(where, deadly)
    sys.addaudithook(watch.audit)
    watch.stages()
    job(where)
    if listed is not None:
        listed.write_text(json.dumps(watch.events))


def differing(where: Path, reference: Path) -> list[str]:
    """Files that are not the same, or not in both; of what holds times, only whether it is there."""
    found = {p.relative_to(where): p for p in where.rglob("*") if p.is_file()}
    expected = {p.relative_to(reference): p for p in reference.rglob("*") if p.is_file()}
    different = [f"{p} (only after a kill)" for p in found.keys() - expected.keys()]
    different += [f"{p} (lost)" for p in expected.keys() - found.keys()]
    for name in found.keys() & expected.keys():
        held = name.name in ("env.json", "log.jsonl")
        if not held and found[name].read_bytes() != expected[name].read_bytes():
            different.append(str(name))
    return sorted(different)


def main() -> None:
    prepare, job, repeat = JOBS[sys.argv[1]]
    base = ROOT / sys.argv[1]
    base.mkdir()
    prepared, reference, where = base / "prepared", base / "reference", base / "here"
    prepared.mkdir()
    with tempfile.TemporaryDirectory() as once:  # imported and compiled once, for all children
        prepare(Path(once))
        job(Path(once))
    gc.collect()
    gc.freeze()  # a child need not copy what it does not use
    ended = child(lambda: prepare(prepared))
    assert ended == 0, f"ended with {ended}"
    shutil.copytree(prepared, where)
    ended = child(lambda: watched(job, where, None, base / "events.json"))
    assert ended == 0, f"ended with {ended}"
    where.rename(reference)
    events: list[str] = json.loads((base / "events.json").read_text())
    for event in sys.argv[3:] or events:
        shutil.copytree(prepared, where)
        killed = child(lambda event=event: watched(job, where, event, None))
        again = child(lambda: repeat(where))
        row = {"event": event, "killed": killed, "again": again, "differing": differing(where, reference)}
        print("POINT", json.dumps(row), flush=True)
        shutil.rmtree(where)


if __name__ == "__main__":
    main()
