"""kill -9 at every stage boundary and in every write; done again, the files are those of a run without it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meal_gpu.config import from_dict
from meal_gpu.data import synthetic

DRIVER = Path(__file__).with_name("crashing.py")


def step(number: int) -> list[str]:
    folder, saves, ledger = f"run/steps/~00{number}", f"run/steps/.training-00{number}", number + 1
    written = ["model.safetensors", "query.parquet"]
    return [
        *(f"{edge}stage {name} #{ledger}" for name in ("acquire",) for edge in ("", "end of ")),
        *(f"{edge} #{ledger}" for edge in ("stage train", "stage validate")),
        *(f"end of {edge} #{ledger}" for edge in ("stage validate", "stage train")),
        f"mkdir {saves} #1", f"rmtree {saves} #1",
        *(f"{what} {saves}/~model.safetensors #1" for what in ("begin", "half of", "rename")),
        f"stage record #{ledger}", f"rmtree {folder} #1", f"mkdir {folder} #1",
        *(f"begin {folder}/{name} #1" for name in written),
        f"half of {folder}/~ledger.parquet #1", f"rename {folder}/~ledger.parquet #1",
        *(f"{what} {folder}/~metrics.json #1" for what in ("begin", "half of", "rename")),
        *(f"half of {folder}/{name} #1" for name in ("metrics.json", "ledger.parquet", *reversed(written))),
        f"rename {folder} #1",
        *(f"{what} run/~ledger.parquet #{ledger}" for what in ("begin", "half of", "rename")),
        f"end of stage record #{ledger}", f"begin run/log.jsonl #{ledger + 1}",
    ]  # fmt: skip


# Every event below the folder; a new write must come into this list
EVENTS = {
    "run": [
        "mkdir run #1", "begin run/.lock #1", "mkdir run/steps #1",
        *(
            f"{what} run/~{name} #1"
            for name in ("env.json", "dataset.json", "config.toml")
            for what in ("begin", "half of", "rename")
        ),
        "stage features #1", "end of stage features #1", "stage fit #1", "end of stage fit #1",
        "rmtree run/~manifold #1", "mkdir run/~manifold #1",
        *(f"{what} run/~manifold/~umap.safetensors #1" for what in ("begin", "half of", "rename")),
        *(f"half of run/~manifold/{name} #1" for name in ("umap.safetensors", "pool.parquet")),
        "begin run/~manifold/pool.parquet #1",
        "rename run/~manifold #1", "begin run/log.jsonl #1",
        *step(0), *step(1),
    ],
    "acquire": [
        "begin ~query.lock #1", "begin pool.lock #1", "mkdir pool.cache #1",
        *(f"{what} pool.cache/~KEY-KEY-KEY.parquet #1" for what in ("half of", "rename")),
        "mkdir pool.cache #2", "begin pool.cache/~manifold-KEY.safetensors #1",
        "half of pool.cache/~manifold-KEY.safetensors #1", "rename pool.cache/~manifold-KEY.safetensors #1",
        "half of ~pool.parquet #1", "rename ~pool.parquet #1",
        "rmtree ~query #1", "mkdir ~query #1", "mkdir ~query/predictions #1",
        *(f"begin ~query/predictions/N.png #{n}" for n in range(1, 7)),
        "begin ~query/query.parquet #1", "begin ~query/query.json #1", "begin ~query/budget.svg #1",
        *(f"half of ~query/predictions/N.png #{n}" for n in range(1, 7)),
        "half of ~query/query.parquet #1", "half of ~query/query.json #1", "half of ~query/budget.svg #1",
        "rename ~query #1", "remove ~query.lock #1",
    ],
    "ingest": [
        "begin pool.lock #1", "mkdir pool.labels #1",
        *(f"{what} pool.labels/~labels.json #1" for what in ("begin", "half of", "rename")),
        *(
            f"{what} #{n}"
            for n in range(1, 7)
            for what in (
                "mkdir pool.labels/000000", "begin pool.labels/000000/~N.png",
                "half of pool.labels/000000/~N.png", "rename pool.labels/000000/~N.png",
            )
        ),
        "half of ~pool.parquet #1", "rename ~pool.parquet #1",
    ],
}  # fmt: skip
# Of a new process each takes seconds: `make test` kills at these, `make soak` at all
SHORT = {
    "run": [
        "begin run/.lock #1", "half of run/~env.json #1", "half of run/~dataset.json #1",
        "half of run/~config.toml #1", "rename run/~config.toml #1", "stage features #1", "stage fit #1",
        "half of run/~manifold/~umap.safetensors #1", "half of run/~manifold/pool.parquet #1",
        "rename run/~manifold #1", "half of run/steps/.training-000/~model.safetensors #1",
        "rename run/steps/.training-000/~model.safetensors #1", "rmtree run/steps/.training-000 #1",
        "end of stage train #1", "half of run/steps/~000/model.safetensors #1",
        "end of stage acquire #2", "stage validate #2", "begin run/steps/~001/model.safetensors #1",
        "half of run/steps/~001/~ledger.parquet #1", "half of run/steps/~001/~metrics.json #1",
        "half of run/steps/~001/query.parquet #1", "rename run/steps/~001 #1",
        "half of run/~ledger.parquet #2", "rename run/~ledger.parquet #2", "begin run/log.jsonl #3",
    ],
    "acquire": [
        "half of pool.cache/~KEY-KEY-KEY.parquet #1", "rename ~pool.parquet #1",
        "half of ~query/query.parquet #1", "rename ~query #1", "remove ~query.lock #1",
    ],
    "ingest": [
        "half of pool.labels/~labels.json #1", "half of pool.labels/000000/~N.png #3",
        "mkdir pool.labels/000000 #6",
        "half of ~pool.parquet #1", "rename ~pool.parquet #1",
    ],
}  # fmt: skip
AGAIN = {
    "run": "`--resume` gives the files of a run without a kill, byte for byte",
    "acquire": "the same command gives the same query, ledger and cache, byte for byte",
    "ingest": "the same command gives the same masks and ledger, byte for byte",
}


def told(job: str, event: str) -> str:
    """An event for a reader of docs/RELIABILITY.md."""
    what = re.sub(r" #\d+$", "", event).replace("~", "").replace("run/", "")
    for short, long in (
        ("half of", "half-way through writing"),
        ("begin", "before writing"),
        ("rename", "before putting into place"),
        ("mkdir", "before making"),
        ("remove", "before removing"),
        ("stage", "at the beginning of the stage"),
        ("end of stage", "at the end of the stage"),
    ):
        if what.startswith(short + " "):
            what = f"{long} {what.removeprefix(short + ' ')}"
            break
    return f"`{job}` killed {what}"


class Matrix:
    """Both processes work at once; a row is waited for when it is asked for."""

    def __init__(self, root: Path, events: dict[str, list[str]]) -> None:
        self.root = root
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
            "NUMBA_THREADING_LAYER": "workqueue",  # it lives through a fork
        }  # fmt: skip
        self.processes = {}
        for job, chosen in events.items():
            with (root / f"{job}.out").open("w") as out, (root / f"{job}.err").open("w") as err:
                self.processes[job] = subprocess.Popen(
                    [sys.executable, str(DRIVER), job, str(root), *chosen],
                    env=environment, stdout=out, stderr=err, start_new_session=True,
                )  # fmt: skip

    def row(self, job: str, event: str) -> dict[str, Any]:
        self.processes[job].wait(timeout=1800)
        lines = (self.root / f"{job}.out").read_text().splitlines()
        rows = {r["event"]: r for r in (json.loads(line[6:]) for line in lines if line.startswith("POINT "))}
        assert event in rows, (self.root / f"{job}.err").read_text()[-2000:]
        found: dict[str, Any] = rows[event]
        return found

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def started(root: Path, events: dict[str, list[str]]) -> Matrix:
    synthetic.write(root / "tree", train=3, val=1, size=(64, 128), seed=0)
    settings = from_dict(
        {
            "dataset": "cityscapes", "root": str(root / "tree"), "size": [64, 128], "encoder_weights": "none",
            "initial_images": 1, "query_size": 6, "candidates": 20, "steps": 1, "epochs": 2,
            "final_epochs": 2, "validate_every": 2, "context": "patch", "precision": "float32",
            "device": "cpu",
        }
    )  # fmt: skip
    (root / "settings.toml").write_text(settings.to_toml())
    return Matrix(root, events)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    made = started(tmp_path_factory.mktemp("crash"), SHORT)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def whole_matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    made = started(tmp_path_factory.mktemp("crashes"), {job: [] for job in EVENTS})
    yield made
    made.stop()


def params(events: dict[str, list[str]], *, marked: bool) -> list[Any]:
    return [
        pytest.param(
            job, event, id=f"{job}: {event}",
            marks=[pytest.mark.fault("crash", told(job, event), AGAIN[job])] if marked else [],
        )
        for job, chosen in events.items()
        for event in chosen
    ]  # fmt: skip


def require_recovered(row: dict[str, Any]) -> None:
    assert row["killed"] == -signal.SIGKILL
    assert (row["again"], row["differing"]) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize(("job", "event"), params(SHORT, marked=True))
def test_killed_and_done_again(job: str, event: str, matrix: Matrix) -> None:
    require_recovered(matrix.row(job, event))


@pytest.mark.slow
@pytest.mark.parametrize("job", EVENTS)
def test_the_matrix_has_every_write(job: str, matrix: Matrix) -> None:
    matrix.row(job, SHORT[job][0])
    happened = json.loads((matrix.root / job / "events.json").read_text())
    assert set(happened) ^ set(EVENTS[job]) == set()
    assert sorted(happened) == sorted(EVENTS[job])
    assert set(SHORT[job]) <= set(EVENTS[job])


@pytest.mark.soak
@pytest.mark.parametrize(("job", "event"), params(EVENTS, marked=False))
def test_killed_anywhere_and_done_again(job: str, event: str, whole_matrix: Matrix) -> None:
    require_recovered(whole_matrix.row(job, event))
