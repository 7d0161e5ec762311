"""Sweeps: what is asked for, which runs it means, and that nothing stops them for good."""

import dataclasses
import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from meal_gpu import config as configs
from meal_gpu import experiment, lock
from meal_gpu.config import Config
from meal_gpu.errors import ConfigError, RunError
from meal_gpu.sweep import children, command, folders, request, running
from meal_gpu.sweep.folders import Run
from meal_gpu.sweep.request import Sweep, parse_seeds, parse_strategies
from meal_gpu.sweep.view import View, describe

BASE = Config()
FOUR = Sweep(base=BASE, strategies=("random", "meal"), seeds=(0, 1))


# What is asked for


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", (3,)),
        ("0..4", (0, 1, 2, 3, 4)),
        ("7..7", (7,)),
        ("0,2,5", (0, 2, 5)),
        ("5,0..2, 9", (5, 0, 1, 2, 9)),
    ],
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected such as 0..4, 0,2,5 or 3"),
        ("0,,1", "seeds '0,,1': expected"),
        ("-1", "each at least 0"),
        ("0...4", "expected"),
        ("0-4", "expected"),
        ("1.5", "expected"),
        ("²", "expected"),
        ("9" * 5000, "expected"),
        ("4..0", "4..0 counts down; write 0..4"),
        ("0..3,2", "2 is given twice"),
        ("0..9999999999", "more than 10000 seeds"),
        ("0..9999,10000", "more than 10000 seeds"),
    ],
)
def test_impossible_seeds_are_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_seeds(text)
    assert words in str(caught.value)


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=20))
def test_a_list_of_seeds_is_read_as_it_was_written(seeds: list[int]) -> None:
    assert parse_seeds(",".join(map(str, seeds))) == tuple(seeds)


@given(st.integers(0, 10**9), st.integers(0, 50), st.integers(1, 50))
def test_a_range_is_the_list_of_its_seeds(first: int, length: int, gap: int) -> None:
    last = first + length
    assert parse_seeds(f"{first}..{last}") == tuple(range(first, last + 1))
    assert parse_seeds(f"{last + gap},{first}..{last}") == (last + gap, *range(first, last + 1))
    for twice in (first, last):
        with pytest.raises(ConfigError, match=f"{twice} is given twice"):
            parse_seeds(f"{first}..{last},{twice}")


def test_strategies() -> None:
    assert parse_strategies("meal") == ("meal",)
    assert parse_strategies("random, meal,supervised") == ("random", "meal", "supervised")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("random,meall", "unknown strategy 'meall'; known: "),
        ("random,", "a name is missing"),
        ("random,meal,random", "random is given twice"),
    ],
)
def test_impossible_strategies_are_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_strategies(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("strategy", "seeds", "resume", "stored", "sweep"),
    [
        ("meal", None, False, False, False),
        ("meal", None, False, True, False),
        ("meal", None, True, False, False),
        ("", None, True, True, True),
        ("meal,random", None, False, False, True),
        ("", "3", False, False, True),
    ],
)
def test_what_is_a_sweep(
    strategy: str, seeds: str | None, resume: bool, stored: bool, sweep: bool, tmp_path: Path
) -> None:
    if stored:
        FOUR.write(tmp_path)
    assert request.is_asked(strategy, seeds, resume, tmp_path) is sweep


def test_a_sweep_is_every_strategy_with_every_seed() -> None:
    runs = FOUR.runs()
    assert list(runs) == ["random-0", "meal-0", "random-1", "meal-1"]
    for name, config in runs.items():
        assert name == f"{config.strategy}-{config.seed}"
        assert dataclasses.replace(config, strategy=BASE.strategy, seed=0) == BASE


def test_the_supervised_baseline_keeps_its_own_settings_save_those_given() -> None:
    plain = request.build(BASE, {}, strategy="supervised", seeds="4")
    assert plain.config("supervised", 4) == dataclasses.replace(configs.supervised(BASE), seed=4)
    # As `meal-gpu run --strategy supervised --epochs 2` does
    settings = {"epochs": 2, "size": (96, 192)}
    asked = request.build(BASE, settings, strategy="random,supervised", seeds=None)
    assert asked.config("supervised", 0) == configs.supervised(BASE).replace(**settings)
    assert asked.config("random", 0) == BASE.replace(strategy="random", **settings)
    assert asked.seeds == (BASE.seed,)
    # As with a file that says so
    base = BASE.replace(epochs=3, seed=5)
    asked = request.build(base, {}, strategy="supervised", seeds=None, said=("epochs", "seed", "strategy"))
    assert asked.given == ("epochs",)
    assert asked.config("supervised", 1) == configs.supervised(BASE).replace(epochs=3, seed=1)


def test_it_is_written_and_read(tmp_path: Path) -> None:
    asked = request.build(BASE.replace(root="a b"), {"epochs": 2}, strategy="random,meal", seeds="0,7..9")
    asked.write(tmp_path)
    again = request.read(tmp_path)
    assert (again, again.runs()) == (asked, asked.runs())
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]


@pytest.mark.parametrize("text", ["seeds = [", "strategies = []\nseeds = []\n", "base = {x = 1}\n"])
def test_a_file_that_is_no_sweep_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no sweep"):
        request.read(tmp_path)
    (tmp_path / "sweep.toml").write_text(text)
    with pytest.raises(RunError, match=r"sweep\.toml: this sweep cannot be continued"):
        request.read(tmp_path)


def test_strategies_and_seeds_can_be_added() -> None:
    added = request.build(BASE, {}, strategy="meal,entropy,random", seeds="0..2", stored=FOUR)
    larger = FOUR.extended(added, Path("s"))
    assert (larger.strategies, larger.seeds) == (("random", "meal", "entropy"), (0, 1, 2))
    assert larger.runs().items() >= FOUR.runs().items()
    # What is left out is as before
    assert FOUR.extended(request.build(BASE, {}, strategy=None, seeds=None, stored=FOUR), Path("s")) == FOUR


SUPERVISED = request.build(BASE, {"epochs": 2}, strategy="random,supervised", seeds="0")


@pytest.mark.parametrize(
    ("stored", "base", "settings", "strategy", "seeds", "words"),
    [
        (FOUR, BASE, {}, "random", None, "strategies random, meal, now it is asked for random:"),
        (FOUR, BASE, {}, None, "1..3", "seeds 0, 1, now it is asked for 1, 2, 3:"),
        (FOUR, BASE, {"epochs": 2}, None, None, "other settings (epochs: 25 → 2)"),
        (FOUR, BASE.replace(size=(96, 192)), {}, None, None, "(size: None → (96, 192))"),
        # For the baseline they are others, although the base has them
        (FOUR, BASE, {"epochs": 25}, "random,meal,supervised", None, "(epochs: 60 → 25)"),
    ],
)
def test_another_request_is_an_error_with_both_values(
    stored: Sweep, base: Config, settings: dict[str, Any], strategy: str, seeds: str, words: str
) -> None:
    asked = request.build(base, settings, strategy=strategy, seeds=seeds, stored=stored)
    with pytest.raises(ConfigError) as caught:
        stored.extended(asked, Path("runs/s"))
    assert words in str(caught.value)
    assert "runs/s was started with" in str(caught.value)


def test_where_the_pool_lies_may_change_while_a_sweep_stands() -> None:
    moved = {"root": "elsewhere", "cache_gib": 1.0, "pool_share": 0.25}
    found = FOUR.extended(request.build(BASE, moved, strategy=None, seeds=None, stored=FOUR), Path("s"))
    assert found == dataclasses.replace(FOUR, base=BASE.replace(**moved))


def test_settings_that_are_named_again_are_no_other_ones() -> None:
    for base, settings in ((SUPERVISED.base, {}), (SUPERVISED.base, {"epochs": 2}), (BASE, {"epochs": 2})):
        asked = request.build(base, settings, strategy=None, seeds=None, stored=SUPERVISED)
        assert SUPERVISED.extended(asked, Path("s")) == SUPERVISED


# How far a run is


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({"steps": 2}, 2),
        ({"steps": 0}, 0),
        ({"budget": 0.5, "query_size": 8}, 2),  # (48 - 32) / 8
        ({"steps": 99, "query_size": 10}, 7),  # after 6 queries 92 of 96 are labelled, then 96
        ({"steps": 99, "query_size": 8}, 8),
        ({"steps": 99, "initial_images": 6}, 0),
        ({"steps": 99, "strategy": "supervised"}, 0),
    ],
)
def test_the_last_step(settings: dict[str, Any], last: int) -> None:
    assert folders.last_step(BASE.replace(**settings), images=6) == last


def test_only_strategies_that_take_a_measure_get_one() -> None:
    asked = Sweep(base=BASE.replace(measure="margin"), strategies=("random", "meal"), seeds=(0,))
    assert {name: config.measure for name, config in asked.runs().items()} == {
        "random-0": "entropy", "meal-0": "margin",
    }  # fmt: skip


def fake(path: Path, steps: int, *, report: bool = False, images: int = 6) -> Path:
    """A run folder as far as a sweep reads it."""
    for step in range(steps):
        (path / f"steps/{step:03d}").mkdir(parents=True, exist_ok=True)
        (path / f"steps/{step:03d}/metrics.json").write_text(
            json.dumps({"mean_iou": step / 8, "patches": 16 * images})
        )
    if report:
        (path / "report.html").touch()
    return path


def test_how_far_a_folder_is(tmp_path: Path) -> None:
    def found(path: Path, steps: int) -> Run:
        return folders.progress(Run("a", steps), path, BASE.replace(steps=steps, query_size=8))

    assert found(tmp_path / "none", 3) == Run("a", 3)
    path = fake(tmp_path / "run", 3)
    (path / "steps/.partial-003").mkdir()
    assert found(path, 3) == Run("a", 3, done=3, mean_iou=0.25)
    assert not folders.is_complete(found(path, 3), path)
    assert not folders.is_complete(found(path, 2), path)  # killed before its report
    assert folders.is_complete(found(fake(path, 3, report=True), 2), path)
    (path / "steps/002/metrics.json").write_text("{}")
    assert found(path, 2) == Run("a", 2, done=3)


def test_a_run_that_left_images_out_has_as_many_steps_as_the_rest_allows(tmp_path: Path) -> None:
    config = BASE.replace(budget=0.5, query_size=4, candidates=4)
    last = folders.last_step(config, 8)
    path = fake(tmp_path / "run", last, images=7, report=True)
    run = folders.progress(Run("a", last), path, config)
    assert (run.last, folders.last_step(config, 7)) == (last - 2, last - 2)
    assert folders.is_complete(run, path)


# One view


def shown(*states: list[Run], terminal: bool, height: int = 25) -> str:
    buffer = io.StringIO()
    size = {"width": 100, "height": height}
    with View(Console(file=buffer, force_terminal=terminal, **size)) as view:  # type: ignore[arg-type]
        for runs in states:
            view.show(runs)
    return buffer.getvalue()


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_no_sweep() -> None:
    with View(Console(file=Full())) as view:
        view.show([Run("a-0", 2, state="failed", error="no room")])


def test_plain_lines_say_what_changed() -> None:
    a, b = Run("a-0", 2), Run("b-0", 2)
    half = dataclasses.replace(a, state="running", done=1, mean_iou=0.25)
    over = dataclasses.replace(a, state="complete", done=3, mean_iou=0.5)
    broken = dataclasses.replace(b, state="failed", error="[b] no room")
    text = shown([a, b], [half, b], [half, b], [over, broken], terminal=False)
    assert text.splitlines() == [
        "a-0: running, step 1 of 2, mIoU 0.2500",
        "a-0: complete, mIoU 0.5000",
        "b-0: failed: [b] no room",
    ]


def test_a_terminal_shows_every_run_and_the_steps() -> None:
    runs = [Run("a-0", 2, "running", 1, 0.25), Run("b-0", 2)]
    text = shown(runs, terminal=True)
    for words in ("a-0", "running, step 1 of 2, mIoU 0.2500", "b-0", "waiting", "steps 1 of 6", "left"):
        assert words in text


def test_what_needs_a_look_comes_first_where_not_all_fit() -> None:
    runs = [Run(f"r-{i}", 0, "complete", 1) for i in range(30)] + [Run("last-0", 0, "failed", error="why")]
    text = shown(runs, terminal=True, height=10)
    assert "failed: why" in text
    assert "and 25 more" in text


def test_a_stopped_run_says_where() -> None:
    assert describe(Run("a-0", 2, "stopped", 3)) == "stopped, step 2 of 2"


# Processes; stand-ins for `meal-gpu run` that take no time


STUB = """
import json, os, signal, sys, time
from pathlib import Path
path, behaviour, steps = Path(sys.argv[1]), sys.argv[2], 2
(path / "steps").mkdir(parents=True, exist_ok=True)
(path / "config.toml").touch()
start = time.monotonic()
for step in range(steps):
    folder = path / f"steps/{step:03d}"
    if step == 1 and behaviour == "error":
        sys.exit("a warning\\nmeal-gpu: images/7.png: cannot be decoded\\na tracker's farewell")
    if step == 1 and behaviour == "silent":
        sys.exit(3)
    if step == 1 and behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 1 and behaviour == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if step == 1 and behaviour in ("slow", "deaf"):
        (path / "slow").touch()
        time.sleep(60)
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps({"mean_iou": 0.5, "patches": 96}))
(path / "times").write_text(f"{start} {time.monotonic()} {os.environ.get('OMP_NUM_THREADS')}")
(path / "report.html").touch()
"""


@pytest.fixture
def shares() -> list[float]:
    """The `pool_share` that each run of `stubs` was given."""
    return []


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch, tiny: Config, shares: list[float]) -> Callable[..., Sweep]:
    """Call it with how runs behave, by name; all others end well at once."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def prepare(**behaviour: str) -> Sweep:
        def stand_in(path: Path, config: Config, settings: Path, track: object) -> list[str]:
            given = configs.read(settings)
            assert given.strategy == path.name.rpartition("-")[0]
            shares.append(given.pool_share)
            return [sys.executable, "-c", STUB, str(path), behaviour.get(path.name.replace("-", "_"), "well")]

        monkeypatch.setattr(children, "command", stand_in)
        base = tiny.replace(steps=1, pool_share=0.5)
        return Sweep(base=base, strategies=("random", "entropy"), seeds=(0, 1))

    return prepare


def run(asked: Sweep, out: Path, **options: Any) -> dict[str, Run]:
    console = Console(file=io.StringIO())
    return {run.name: run for run in running.run(asked, out, console=console, **options)}


def test_every_run_of_a_sweep_is_run_once(stubs: Callable[..., Sweep], tmp_path: Path) -> None:
    asked, out = stubs(), tmp_path / "s"
    runs = run(asked, out, jobs=2)
    assert list(runs) == list(asked.runs())
    assert {(r.state, r.done, r.last, r.mean_iou, r.error) for r in runs.values()} == {
        ("complete", 2, 1, 0.5, None)
    }
    assert request.read(out) == asked
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/times")}
    assert len(before) == 4
    assert run(asked, out, resume=True) == runs
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/times")} == before


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_more_processes_than_jobs_share_the_cores_and_the_memory(
    jobs: int, stubs: Callable[..., Sweep], shares: list[float], tmp_path: Path
) -> None:
    run(stubs(), tmp_path, jobs=jobs)
    assert shares == [0.5 / jobs] * 4
    times = [path.read_text().split() for path in tmp_path.glob("*/times")]
    spans = [(float(start), float(end)) for start, end, _ in times]
    for start, _ in spans:
        assert sum(s <= start < e for s, e in spans) <= jobs
    threads = children.threads_each(jobs)
    assert {said for _, _, said in times} == {str(threads)}
    assert (threads is None) == (jobs == 1)


def test_threads_are_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert [children.threads_each(jobs) for jobs in (1, 2, 3, 16, 99)] == [None, 8, 5, 1, 1]


def test_a_run_that_fails_stops_no_other_and_is_continued(
    stubs: Callable[..., Sweep], tmp_path: Path
) -> None:
    runs = run(stubs(random_0="error", entropy_0="killed", random_1="silent"), tmp_path)
    assert {name: (r.state, r.done, r.error) for name, r in runs.items()} == {
        "random-0": ("failed", 1, "images/7.png: cannot be decoded"),
        "entropy-0": ("failed", 1, "killed by SIGKILL"),
        "random-1": ("failed", 1, "exit code 3"),
        "entropy-1": ("complete", 2, None),
    }
    assert "a warning" in (tmp_path / "logs/random-0.log").read_text()
    again = run(stubs(random_1="error"), tmp_path, resume=True)
    assert [r.state for r in again.values()] == ["complete", "complete", "failed", "complete"]


def test_a_sweep_grows(stubs: Callable[..., Sweep], tmp_path: Path) -> None:
    asked = stubs()
    run(asked, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/times")}
    larger = dataclasses.replace(asked, seeds=(0, 1, 2))
    assert list(run(larger, tmp_path, resume=True)) == list(larger.runs())
    assert request.read(tmp_path) == larger
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/times")}.items() > before.items()
    with pytest.raises(ConfigError, match="seeds 0, 1, 2, now it is asked for 0, 1"):
        run(asked, tmp_path, resume=True)
    assert request.read(tmp_path) == larger


def test_a_folder_with_something_in_it_is_left_alone(stubs: Callable[..., Sweep], tmp_path: Path) -> None:
    asked = stubs()
    asked.write(tmp_path)  # killed before a run was begun: nothing is lost
    run(asked, tmp_path)
    with pytest.raises(RunError, match=r"is not empty \(entropy-0\): pass --resume"):
        run(asked, tmp_path)
    with pytest.raises(RunError, match="holds no sweep"):
        run(asked, tmp_path / "other", resume=True)
    with pytest.raises(ConfigError, match="jobs is 0; it must be at least 1"):
        run(asked, tmp_path, resume=True, jobs=0)


def test_two_sweeps_do_not_share_a_folder(stubs: Callable[..., Sweep], tmp_path: Path) -> None:
    # As a child does whose parent was killed
    with (tmp_path / lock.FILE).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="is in use by another process: wait for it"):
            run(stubs(), tmp_path)
    assert not (tmp_path / "sweep.toml").exists()
    run(stubs(), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_first(
    number: signal.Signals, stubs: Callable[..., Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "_GRACE", 0.3)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def when_both_work() -> None:
        while len(list(tmp_path.glob("*/slow"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    asked = stubs(random_0="slow", entropy_0="deaf")
    thread = threading.Thread(target=when_both_work)
    thread.start()
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(asked, tmp_path, jobs=2)
    thread.join()
    assert stopped.value.args == (number,)
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert not (tmp_path / "random-1").exists()
    # The lock is free: no child lives
    assert {r.state for r in run(stubs(), tmp_path, resume=True).values()} == {"complete"}


def test_how_it_ended_is_printed(
    stubs: Callable[..., Sweep],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reported: list[list[str]] = []

    def write(paths: list[Path], out: Path) -> Path:
        reported.append([path.name for path in paths])
        return out

    monkeypatch.setattr(command.report, "write", write)  # stand-ins record too little for one
    out = tmp_path / "s"
    assert command.execute(stubs(random_0="error"), out, resume=False, jobs=2, track=[]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-2:] == [
        f"failed: random-0: images/7.png: cannot be decoded ({out}/logs/random-0.log)",
        "drawing the report of 4 runs: minutes for full-size images",
    ]
    assert printed.out.splitlines() == [
        "sweep: 3 of 4 runs complete",
        f"report: {out}/report.html",
        f"statistics: meal-gpu compare {out}",
    ]
    assert command.execute(stubs(), out, resume=True, jobs=2, track=[]) == 0
    assert reported == [["random-0", "entropy-0", "random-1", "entropy-1"]] * 2


@pytest.mark.parametrize("begun", [False, True])
def test_what_a_child_is_called_with(begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # whose modules are not run
    if begun:
        (tmp_path / "config.toml").touch()
    config = BASE.replace(root="a b", cache_gib=1.0, pool_share=0.25)
    called = children.command(tmp_path, config, Path("logs/a.toml"), ["tensorboard", "wandb"])
    places = ["--root", "a b", "--set", "cache_gib=1.0", "--set", "pool_share=0.25"]
    start = ["--resume", *places] if begun else ["--config", "logs/a.toml"]
    assert called[1:] == [
        "-P", "-m", "meal_gpu", "run", "--out", str(tmp_path), *start, "--track", "tensorboard", "--track",
        "wandb",
    ]  # fmt: skip
    monkeypatch.chdir(Path(children.__file__).parents[2])  # of the package: a checkout
    assert children.command(tmp_path, config, Path("logs/a.toml"), [])[1:3] == ["-m", "meal_gpu"]


# The real thing


def queries(path: Path) -> list[list[int]]:
    return [pd.read_parquet(p)["patch"].tolist() for p in sorted(path.glob("steps/*/query.parquet"))]


MEAL = [sys.executable, "-m", "meal_gpu", "run"]


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process and its children: sums are rounded alike, and none waits for a busy core."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_killed_and_resumed_it_asks_the_queries_of_plain_runs(tiny: Config, tmp_path: Path) -> None:
    base = tiny.replace(final_epochs=1, query_size=4)
    (tmp_path / "tiny.toml").write_text(base.to_toml())
    command = [*MEAL, "--config", "tiny.toml", "--strategy", "random,entropy", "--seeds", "0..1"]
    first = subprocess.Popen(
        [*command, "--jobs", "2", "--out", "s"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    out, deadline = tmp_path / "s", time.monotonic() + 120
    while not list(out.glob("*/steps/000")) and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    errors = first.communicate(timeout=60)[1]
    assert first.returncode == 130, errors
    assert "meal-gpu run --out s --resume --jobs 2" in errors
    assert "Traceback" not in errors
    assert not list(out.glob("*/report.html"))
    done = subprocess.run(
        [*MEAL, "--out", "s", "--resume", "--jobs", "2"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "sweep: 4 of 4 runs complete" in done.stdout
    assert f"report: {Path('s/report.html')}" in done.stdout
    for strategy in ("random", "entropy"):
        for seed in (0, 1):
            plain = experiment.run(
                base.replace(strategy=strategy, seed=seed), tmp_path / f"{strategy}-{seed}"
            )
            assert queries(out / f"{strategy}-{seed}") == queries(plain.path)
            assert [len(query) for query in queries(plain.path)] == [16, 4, 4]
    # Initial pools are paired: they depend on the seed alone
    initial = {name: queries(out / name)[0] for name in ("random-0", "entropy-0", "random-1", "entropy-1")}
    assert initial["random-0"] == initial["entropy-0"] != initial["random-1"] == initial["entropy-1"]
