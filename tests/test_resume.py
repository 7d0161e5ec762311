"""Kill -9 at the worst moments; --resume gives the queries and the ledger of a run that never stopped."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meal_gpu import experiment
from meal_gpu.config import Config
from meal_gpu.record import RunFolder

# A process of its own: `victim` is replaced so that its n-th call kills the process with SIGKILL, in the
# middle of what it does where it writes.
DRIVER = """
import os, signal, sys
from pathlib import Path
from meal_gpu import config, experiment, models, record, scoring, train
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold
from meal_gpu.ops import select

taken = select("auto")  # what the run takes, too
victim, nth, settings, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
owner, name = {
    "epoch": (train, "_epoch"), "entropy": (taken, "patch_entropy"), "umap": (taken, "umap_fit"),
    "model": (models, "save"), "ledger": (Ledger, "write"), "manifold": (Manifold, "save"),
    "publish": (record.RunFolder, "publish_ledger"), "config": (config.Config, "to_toml"),
}[victim]
real, calls = getattr(owner, name), 0

def deadly(*args, **kwargs):
    global calls
    calls += 1
    if calls < nth:
        return real(*args, **kwargs)
    if victim in ("model", "ledger", "manifold"):
        real(*args, **kwargs)
        path = next(a for a in args if isinstance(a, Path))
        os.truncate(path, path.stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, deadly)
experiment.run(config.read(Path(settings)), Path(out))
"""


@pytest.fixture(scope="module")
def uninterrupted(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return experiment.run(tiny, tmp_path_factory.mktemp("whole") / "run").path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "nth", "complete"),
    [
        ("config", 1, 0),  # before there is anything to continue
        ("umap", 1, 0),
        ("manifold", 1, 0),
        ("epoch", 2, 1),  # training of step 1
        ("entropy", 1, 1),  # scoring for step 1
        ("model", 2, 1),  # step 1 is being written
        ("publish", 2, 2),  # step 1 is complete, the run's ledger is not
        ("ledger", 3, 2),  # the last step is being written
    ],
)
def test_killed_and_resumed(
    victim: str, nth: int, complete: int, uninterrupted: Path, tiny: Config, tmp_path: Path
) -> None:
    settings, out = tmp_path / "settings.toml", tmp_path / "run"
    settings.write_text(tiny.to_toml())
    killed = subprocess.run(
        [sys.executable, "-c", DRIVER, victim, str(nth), str(settings), str(out)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    started = (out / "config.toml").exists()
    assert started == (victim != "config")
    if started:
        assert len(RunFolder.resume(out).completed()) == complete
    experiment.run(tiny, out, resume=started)
    expected = sorted(p.relative_to(uninterrupted) for p in uninterrupted.rglob("*") if p.is_file())
    found = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert found == expected  # nothing missing, no leftover
    for file in expected:
        if file.name not in ("env.json", "log.jsonl"):  # these hold times and the command
            assert (out / file).read_bytes() == (uninterrupted / file).read_bytes(), file


def test_a_finished_run_resumes_to_itself(uninterrupted: Path, tiny: Config) -> None:
    before = {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file()}
    experiment.run(tiny, uninterrupted, resume=True)
    assert {p: p.read_bytes() for p in uninterrupted.rglob("*") if p.is_file()} == before
