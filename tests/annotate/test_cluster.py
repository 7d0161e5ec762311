"""`meal-gpu acquire --cluster`: the same bytes as one process gives, whatever happens to the others."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from acquire_command import acquire, options
from PIL import Image

from meal_gpu.annotate import shards
from meal_gpu.cluster import connected
from meal_gpu.errors import ConfigError, DataError, MealGpuError, RunError, UnavailableError
from meal_gpu.ledger import Ledger

pytest.importorskip("distributed")
TESTS = Path(__file__).parents[1]
FRAMES = 400
fault = pytest.mark.fault


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 frames of CamVid's size, the first 20 of each 100 darker than the rest."""
    folder = tmp_path_factory.mktemp("frames")
    random = np.random.default_rng(0)
    for number in range(FRAMES):
        coarse = random.integers(120 if number % 100 >= 20 else 60, 255, (9, 12, 3))
        image = np.kron(coarse, np.ones((40, 40, 1), np.uint8)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{number:03d}.jpg", quality=80)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("query.json", "pool.lock")
    }  # fmt: skip


@pytest.fixture(scope="module")
def alone(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    out = tmp_path_factory.mktemp("alone")
    assert f"{FRAMES} frames scored now" in acquire(frames, out)
    return files(out)


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(frames: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    assert f"{FRAMES} frames scored now" in acquire(frames, tmp_path, "--cluster", "local:2")
    assert files(tmp_path) == alone
    assert len(list((tmp_path / "pool.cache").iterdir())) == FRAMES / 40


def test_everything_a_pass_finds_crosses_over(frames: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for file in sorted(frames.iterdir())[:12]:
        (few / file.name).symlink_to(file)
    wanted: dict[str, bytes] = {}
    for where in ("here", "there"):
        out = tmp_path / where
        out.mkdir()
        cluster = ("--cluster", "local:1") if where == "there" else ()
        for strategy, measure in (
            ("clasp-pe", "entropy"), ("cereals", "entropy"), ("meal", "least-confidence"),
            ("margin", "entropy"),
        ):  # fmt: skip
            ledger = ("--ledger", out / f"{strategy}.parquet", "--out", out / strategy)
            chosen = ("--strategy", strategy, "--measure", measure)
            acquire(few, out, *ledger, "--shard", 5, *chosen, "--features", "shared", *cluster)
        wanted = wanted or files(out)
        assert files(out) == wanted


@pytest.mark.slow
@fault("crash", "a process of a cluster is killed while it scores", "another does its part; the same bytes")
def test_a_process_is_killed(
    frames: Path, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tmp_path / "once"
    once.touch()
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("TROUBLED_ONCE", str(once))
    acquire(frames, tmp_path / "out", "--cluster", "local:2")
    assert not once.exists()
    assert files(tmp_path / "out") == alone


Scheduler = tuple[subprocess.Popen[bytes], subprocess.Popen[bytes], str]


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Scheduler]:
    """A scheduler, its worker, and its address."""
    env = os.environ | {"PYTHONPATH": str(TESTS), "TROUBLED_SECONDS": "0.02"}
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
    log = tmp_path / "scheduler.log"
    with log.open("wb") as said:
        process = subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=said, stdout=said, env=env)
    worker = None
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"tcp://127.0.0.1:\d+", log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        worker = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", found[0], "--nthreads", "1",
             "--no-dashboard", "--local-directory", str(tmp_path)],
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env, cwd=tmp_path,
        )  # fmt: skip
        yield process, worker, found[0]
    finally:
        for each in (worker, process):
            if each is not None:
                each.kill()
                each.wait()


@pytest.mark.slow
@fault(
    "crash",
    "the scheduler of a cluster is killed",
    "named; the same command scores what is left",
)
def test_the_scheduler_is_killed(
    scheduler: Scheduler, frames: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    process, worker, address = scheduler
    out = tmp_path / "out"
    out.mkdir()
    job = subprocess.Popen(
        [sys.executable, "-m", "meal_gpu", *options(frames, out, "--cluster", address)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list((out / "pool.cache").glob("[!.]*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 1, said.decode()
    assert "the scheduler is gone" in said.decode() and "the same command continues" in said.decode()
    assert not (out / "pool.parquet").exists()
    worker.kill()  # or it goes on with what it has
    worker.wait()
    done = len(list((out / "pool.cache").glob("[!.]*.parquet")))
    assert 3 <= done < FRAMES / 40
    assert f"{FRAMES - 40 * done} frames scored now" in acquire(frames, out)
    assert files(out) == alone


Where = tuple[object, ...]


@fault("data", "a model that fails with some images", "named; `acquire --on-bad skip` goes on without them")
@pytest.mark.parametrize("where", [(), ("--cluster", "local:1")], ids=["here", "cluster"])
@pytest.mark.parametrize(
    ("nan", "said"),
    [(False, "Troubled raised ValueError: too dark"), (True, "the model's output is NaN or infinite")],
    ids=["raises", "nan"],
)
def test_a_model_that_fails_with_some_images(
    nan: bool, said: str, where: Where, frames: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for file in sorted(frames.iterdir())[15:25]:
        (folder / file.name).symlink_to(file)
    dark = 1.0  # 015 to 019 are below
    with pytest.raises(MealGpuError, match=rf"^015\.jpg: {said}"):
        acquire(folder, tmp_path, *where, dark=dark, nan=nan)
    assert not (tmp_path / "pool.parquet").exists()
    more = ("--on-bad", "skip", "--shard", 6, "--strategy", "meal", "-n", "70patches", *where)
    shown = acquire(folder, tmp_path, *more, dark=dark, nan=nan)
    assert "10 frames scored now" in shown and "left out: 5 frames" in shown
    listed = (tmp_path / "pool.quarantine.csv").read_text().splitlines()
    assert [Path(line.split(",")[0]).name for line in listed[1:]] == [f"{n:03d}.jpg" for n in range(15, 20)]
    ledger = Ledger.read(tmp_path / "pool.parquet")
    assert np.isnan(ledger.frame["score"].to_numpy()).tolist() == [True] * 80 + [False] * 80
    patches = [int(p.stem) for p in (tmp_path / "query" / "predictions").iterdir()]
    assert len(patches) == 70 and min(patches) >= 80


@fault("data", "a model that fails with every image", "named; nothing is written but the list of none")
def test_a_model_that_fails_with_all_images(frames: Path, tmp_path: Path) -> None:
    with pytest.raises(MealGpuError, match=r"000\.jpg: Troubled raised ValueError: too dark"):
        acquire(frames, tmp_path, "--on-bad", "skip", dark=10)
    assert not (tmp_path / "pool.parquet").exists()


def test_a_pool_that_grows_is_scored_where_it_is_new(frames: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    names = sorted(file.name for file in frames.iterdir())
    for number, name in enumerate(names[:100:5]):
        (folder / name).symlink_to(frames / name)
        if number == 9:
            assert "10 frames scored now" in acquire(folder, tmp_path)
    said = acquire(folder, tmp_path, "--out", tmp_path / "second", "--cluster", "local:1")
    assert "10 new frames, 10 frames scored now" in said
    again = acquire(folder, tmp_path, "--ledger", tmp_path / "pool.parquet", "--out", tmp_path / "third")
    assert "0 frames scored now" in again


def test_workers_may_have_another_working_directory(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for file in sorted(frames.iterdir())[:2]:
        (tmp_path / "few" / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)

    def run(function: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for number, part in enumerate(parts):
            os.chdir(tmp_path / "elsewhere")
            found = function(part)
            os.chdir(tmp_path)
            yield number, found

    monkeypatch.setattr("meal_gpu.cluster.connected", lambda _: nullcontext(run))
    said = acquire("few", Path(), "--cluster", "tcp://there:1", "--ledger", "pool.parquet")
    assert "2 frames scored now" in said and not any((tmp_path / "elsewhere").iterdir())


def test_workers_that_build_another_network_are_refused(frames: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a worker builds another network than this process"):
        acquire(frames, tmp_path, "--cluster", "local:1", "--model", "shard_networks:other_everywhere")


@pytest.mark.parametrize("address", ["local", "local:0", "local:two", "127.0.0.1:8786", ""])
def test_an_address_of_no_form(address: str) -> None:
    with pytest.raises(ConfigError, match="expected local:N with N processes, local-cuda, or tcp://"):
        connected(address).__enter__()


def test_a_strategy_of_other_passes_is_refused(frames: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'bald' takes passes that a cluster does not do yet"):
        acquire(frames, tmp_path, "--cluster", "local:1", "--strategy", "bald")


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meal_gpu.cluster._PATIENCE", "1s")
    with pytest.raises(UnavailableError, match=r"tcp://127\.0\.0\.1:9: no scheduler answers"):
        connected("tcp://127.0.0.1:9").__enter__()


def refused(number: int) -> int:
    if number == 2:
        raise PermissionError(13, "Permission denied", "/data/classes.json")
    return number


def test_a_workers_own_error_is_told() -> None:
    with connected("local:1") as run:
        said = (
            r"local:1: a worker raised PermissionError: \[Errno 13\] Permission denied: '/data/classes\.json'"
        )
        with pytest.raises(RunError, match=said) as told:
            list(run(refused, [1, 2, 3]))
        assert "scheduler" not in str(told.value) and "same command" not in str(told.value)
        assert dict(run(refused, [3, 4])) == {0: 3, 1: 4}


def test_dask_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match=r"pip install 'meal-gpu\[dask\]'"):
        connected("local:1").__enter__()


@fault("data", "a damaged shard of what is known of a pool", "its frames are scored again; the same bytes")
def test_a_damaged_shard(frames: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for file in sorted(frames.iterdir())[:12]:
        (folder / file.name).symlink_to(file)
    acquire(folder, tmp_path, "--shard", 4)
    expected = files(tmp_path)
    first = min((tmp_path / "pool.cache").iterdir())
    first.write_bytes(first.read_bytes()[:-40])
    said = acquire(folder, tmp_path, "--shard", 4, "--out", tmp_path / "again")
    assert "4 frames scored now" in said
    assert (tmp_path / "pool.cache" / first.name).read_bytes() == expected[f"pool.cache/{first.name}"]


def test_a_frame_of_another_size_is_named_by_a_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("RGB", (480, 360), "white").save(folder / "a.jpg")
    Image.new("RGB", (240, 180), "white").save(folder / "b.jpg")
    # As of frames behind URLs, which are not looked at before
    monkeypatch.setattr("meal_gpu.annotate.asking.usable", lambda listing, *_: (listing, []))
    with pytest.raises(DataError, match=r"b\.jpg: 180×240 pixels found, the pool's frames have 360×480"):
        acquire(folder, tmp_path, "--cluster", "local:1", "--shard", 1)


def test_what_is_known_may_lie_behind_a_url(frames: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for file in sorted(frames.iterdir())[:6]:
        (folder / file.name).symlink_to(file)
    place = f"memory://known/{tmp_path.name}"
    assert "6 frames scored now" in acquire(folder, tmp_path, "--cache", place, "--shard", 4)
    first = (tmp_path / "pool.parquet").read_bytes()
    said = acquire(folder, tmp_path, "--cache", place, "--shard", 4, "--out", tmp_path / "again")
    assert "0 frames scored now" in said
    assert (tmp_path / "pool.parquet").read_bytes() == first
    assert not (tmp_path / "pool.cache").exists()
    more = ("--cluster", "local:1", "--out", tmp_path / "third")
    with pytest.raises(RunError, match="scored by a worker, but not found in memory://"):
        acquire(folder, tmp_path, "--cache", f"{place}/2", *more)


def test_threads_of_a_worker_score_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `dask worker` has as many as the machine has cores: they share a network, with its hooks."""
    inside: list[int] = []

    def score(recipe: SimpleNamespace, shard: int) -> dict[int, str]:
        inside.append(shard)
        time.sleep(0.01)
        assert inside.pop() == shard
        assert not inside
        return {shard: ""}

    monkeypatch.setattr(shards, "_scored_there", score)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(partial(shards._there, SimpleNamespace(device="cpu")), range(24)))  # type: ignore[arg-type]
    assert found == [{shard: ""} for shard in range(24)]
