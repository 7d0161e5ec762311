"""Runs a sweep: what is complete is skipped, what is begun goes on, what is missing starts."""

import dataclasses
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from meal_gpu import data, lock
from meal_gpu.errors import ConfigError, RunError
from meal_gpu.inference import device_named
from meal_gpu.sweep.children import LOGS, Child, Signals, stop, threads_each
from meal_gpu.sweep.folders import Run, is_complete, last_step, progress
from meal_gpu.sweep.request import FILE, Sweep, read
from meal_gpu.sweep.view import View

_POLL = 0.2  # seconds
_BEGINNING = {FILE, f".partial-{FILE}", lock.FILE, LOGS}


def run(
    asked: Sweep,
    out: Path,
    *,
    resume: bool = False,
    jobs: int = 1,
    track: Sequence[str] = (),
    console: Console | None = None,
) -> list[Run]:
    """Run, or continue, all runs of a sweep, each in a process and a folder `out`/STRATEGY-SEED of its own.

    With `resume`, `out` must hold a sweep of the same settings; `asked` may add strategies and seeds to it.
    A run that fails does not stop the others. Runs do not depend on `jobs`, save that each process computes
    with an equal share of the cores (env.json says how many), and sums of floats may be rounded otherwise.

    Args:
        jobs: processes at once. They share one GPU: how many it holds depends on model and pool.
        track: names of trackers (`meal_gpu.tracking`), which each run opens for itself.

    Returns:
        All runs in order, "complete" or "failed".

    Raises:
        ConfigError: an impossible setting, or one that differs from the sweep to be continued.
        DataError: the dataset is not there.
        RunError: a folder that cannot be written or continued, or in which another sweep is at work.
        UnavailableError: a device that is not there.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP, the first argument; every child has ended before.
    """
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; it must be at least 1")
    if resume:
        asked = read(out).extended(asked, out)
    # Before anything is written, and once: the built-in dataset is drawn on its first use
    device_named(asked.base.device)
    dataset = data.open_dataset(asked.base.dataset, asked.base.root, size=asked.base.size)
    runs = {name: Run(name, last_step(config, len(dataset.train))) for name, config in asked.runs().items()}
    with Signals() as signals, lock.of_folder(out) as handle:
        if not resume and (found := {path.name for path in out.iterdir()} - _BEGINNING):
            raise RunError(
                f"{out} is not empty ({min(found)}): pass --resume to continue that sweep, or another --out"
            )
        asked.write(out)
        ended = _run_all(asked, runs, out, jobs, track, handle, signals, View(console))
    if signals.received:
        raise KeyboardInterrupt(signals.received)
    return ended


def _run_all(
    asked: Sweep, runs: dict[str, Run], out: Path, jobs: int, track: Sequence[str], handle: int,
    signals: Signals, view: View,
) -> list[Run]:  # fmt: skip
    configs = asked.runs()
    waiting: deque[str] = deque()
    children: dict[str, Child] = {}
    for name, run in runs.items():
        found = progress(run, out / name, configs[name])
        complete = is_complete(found, out / name)
        runs[name] = dataclasses.replace(found, state="complete" if complete else "waiting")
        if not complete:
            waiting.append(name)
    try:
        with view:
            while (waiting or children) and not signals.received:
                while waiting and len(children) < jobs:
                    name = waiting.popleft()
                    # Each finds free what the others are about to take
                    config = configs[name].replace(pool_share=configs[name].pool_share / jobs)
                    children[name] = Child(
                        out / name, config, track=track, threads=threads_each(jobs), lock=handle
                    )
                view.show(list(runs.values()))
                time.sleep(_POLL)
                for name, child in list(children.items()):
                    ended = child.process.poll() is not None  # before its folder is read for the last time
                    runs[name] = _look(progress(runs[name], out / name, configs[name]), child, ended)
                    if ended:
                        del children[name]
            for name in children:
                runs[name] = dataclasses.replace(runs[name], state="stopped")
            view.show(list(runs.values()))
    finally:
        stop(children.values())
    return list(runs.values())


def _look(run: Run, child: Child, ended: bool) -> Run:
    if not ended:
        return dataclasses.replace(run, state="running")
    if error := child.error():
        return dataclasses.replace(run, state="failed", error=error)
    return dataclasses.replace(run, state="complete")
