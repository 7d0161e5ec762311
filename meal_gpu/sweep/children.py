"""The processes of a sweep: `meal-gpu run`, one for each run folder."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType

from meal_gpu import lock as locks
from meal_gpu.config import Config
from meal_gpu.sweep.folders import is_begun

LOGS = "logs"
_GRACE = 5.0  # seconds for a child to end by itself


def command(path: Path, config: Config, settings: Path, track: Sequence[str]) -> list[str]:
    """What runs one run: it goes on where `path` holds one, and starts by `settings`, which is `config`'s
    file, elsewhere.
    """
    start = ["--config", str(settings)]
    if is_begun(path):
        start = ["--resume", "--root", config.root] if config.root else ["--resume"]
        for key in ("cache_gib", "pool_share"):
            start += ["--set", f"{key}={getattr(config, key)!r}"]
    tracked = [part for name in track for part in ("--track", name)]
    # A module in the working directory is not run, as by `meal-gpu`, unless the package itself lies there
    safe = [] if Path(__file__).resolve().parents[2] == Path.cwd() else ["-P"]
    return [sys.executable, *safe, "-m", "meal_gpu", "run", "--out", str(path), *start, *tracked]


class Child:
    """A run as a process of its own. What it was given and what it says is in logs/NAME.toml and .log."""

    def __init__(
        self, path: Path, config: Config, *, track: Sequence[str], threads: int | None, lock: int
    ) -> None:
        logs = path.parent / LOGS
        logs.mkdir(exist_ok=True)
        settings = logs / f"{path.name}.toml"
        settings.write_text(config.to_toml(), encoding="utf-8")
        environment = dict(os.environ)
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        self.log = logs / f"{path.name}.log"
        with self.log.open("ab") as log:
            self._start = log.tell()
            # A session of its own: Ctrl-C at the terminal is for the sweep, which stops its children.
            # They end with it, however it ends, and keep its lock until then.
            self.process = subprocess.Popen(
                command(path, config, settings, track), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment | locks.parent(), start_new_session=True, pass_fds=(lock,),
            )  # fmt: skip

    def error(self) -> str | None:
        """Why it ended, in one line; None where it ended well, or has not ended."""
        code = self.process.poll()
        if not code:
            return None
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        with self.log.open("rb") as log:
            log.seek(self._start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        ours = [line.removeprefix("meal-gpu: ") for line in lines if line.startswith("meal-gpu: ")]
        return (ours or lines or [f"exit code {code}"])[-1]


def stop(children: Collection[Child]) -> None:
    """Ask the processes to end, as Ctrl-C would; kill those that do not. Complete steps are on the disk."""
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _GRACE
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()


class Signals:
    """Within `with`, SIGINT, SIGTERM and SIGHUP are noted, not obeyed: no child is ever left behind.

    Attributes:
        received: the number of the last one, 0 before.
    """

    _NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received = 0
        handlers = {number: signal.getsignal(number) for number in self._NOTED}
        # Those that are ignored stay so (nohup); None is not Python's to put back
        self._before = {s: h for s, h in handlers.items() if h not in (signal.SIG_IGN, None)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)


def threads_each(jobs: int) -> int | None:
    """Threads for each of `jobs` processes on this machine's cores; None, torch's own choice, for one."""
    return None if jobs == 1 else max(1, len(os.sched_getaffinity(0)) // jobs)
