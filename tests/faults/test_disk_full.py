"""A disk that is full, or read-only: a file system of a few kilobytes, made for each test."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from meal_gpu import cli, data, experiment, report
from meal_gpu.annotate.asked import Asked
from meal_gpu.config import Config
from meal_gpu.errors import RunError
from meal_gpu.record import RunFolder

fault = pytest.mark.fault


class Disk:
    """A tmpfs at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, room: int) -> None:
        """Leave `room` bytes."""
        with self._ballast.open("wb") as file:
            free = os.statvfs(self.path)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_bsize - room)

    def free(self) -> None:
        self._ballast.unlink()

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    where = tmp_path / "disk"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(where)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield Disk(where)
    subprocess.run(["umount", "--lazy", str(where)], check=True)


@pytest.fixture(scope="module")
def quick(tiny: Config) -> Config:
    return tiny.replace(strategy="entropy", steps=1, final_epochs=1)


@pytest.fixture(scope="module")
def made(quick: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return experiment.run(quick, tmp_path_factory.mktemp("whole") / "run").path


def files(folder: Path) -> dict[str, bytes]:
    timed = ("env.json", "log.jsonl")
    found = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    return {str(name): b"" if p.name in timed else p.read_bytes() for name, p in found.items()}


@pytest.mark.slow
@fault(
    "resource",
    "the disk is full when a step is written",
    "the step is named; `--resume` gives the same files",
)
def test_a_step_that_does_not_fit(disk: Disk, quick: Config, made: Path) -> None:
    step = sum(p.stat().st_size for p in (made / "steps/000").iterdir())
    disk.fill(step + step // 2)
    out = disk.path / "run"
    with pytest.raises(RunError, match=r"steps/001: could not be written: .*: free some room and continue"):
        experiment.run(quick, out)
    assert RunFolder.resume(out).completed() == [0]
    assert not list((out / "steps").glob(".partial-*"))
    disk.free()
    experiment.run(quick, out, resume=True)
    assert files(out) == files(made)


@fault(
    "resource", "the disk is full when a run begins", "named; the next try starts as though there was none"
)
def test_a_run_that_cannot_begin(disk: Disk, quick: Config) -> None:
    disk.fill(4096)
    out = disk.path / "run"
    with pytest.raises(RunError, match=r"run: the run folder cannot be written: No space left on device"):
        experiment.run(quick, out)
    assert not (out / "config.toml").exists()
    disk.free()
    RunFolder.create(out, quick, torch.device("cpu"))


@fault("resource", "a read-only run folder", "named before anything is computed")
def test_a_read_only_run_folder(disk: Disk, quick: Config, made: Path) -> None:
    out = Path(shutil.copytree(made, disk.path / "run"))
    before = files(out)
    disk.remount("ro")
    with pytest.raises(RunError, match=r"the lock cannot be written: Read-only file system"):
        experiment.run(quick, out, resume=True)
    assert files(out) == before


@fault("resource", "the disk is full when log.jsonl grows", "named; complete steps are intact")
def test_a_log_that_cannot_grow(disk: Disk, made: Path) -> None:
    folder = RunFolder.resume(Path(shutil.copytree(made, disk.path / "run")))
    folder.log("x", text="y" * (4096 - (folder.path / "log.jsonl").stat().st_size % 4096))
    disk.fill(0)
    with pytest.raises(RunError, match=r"log\.jsonl: could not be written: No space left on device"):
        folder.log("step", text="z" * 8192)
    assert folder.completed() == [0, 1]


@fault("resource", "the disk is full when the run's ledger is renewed", "named; the old one stays whole")
def test_a_ledger_that_cannot_be_renewed(disk: Disk, made: Path) -> None:
    folder = RunFolder.resume(Path(shutil.copytree(made, disk.path / "run")))
    before = files(folder.path)
    disk.fill(0)
    with pytest.raises(RunError, match=r"ledger\.parquet: could not be written: No space left on device"):
        folder.publish_ledger()
    assert files(folder.path) == before


Command = Callable[..., str]


@pytest.fixture
def command(scenes: Path, disk: Disk) -> Command:
    """`meal-gpu acquire`, `ingest` or `export` on the disk; what it says when it fails."""

    def call(name: str, *more: object) -> str:
        folder = disk.path
        given: dict[str, list[object]] = {
            "acquire": ["--images", scenes / "leftImg8bit" / "train", "--model", "meal_gpu.models:segmenter",
                        "--model-arg", "classes=3", "-n", "6patches", "--strategy", "entropy",
                        "--ledger", folder / "pool.parquet", "--out", folder / "query"],
            "ingest": [folder.parent / "answers", "--query", folder / "query",
                       "--ledger", folder / "pool.parquet"],
            "export": ["--query", folder / "query"],
        }  # fmt: skip
        result = CliRunner().invoke(cli.app, [str(a) for a in (name, *given[name], *more)])
        return str(result.exception) if result.exit_code else ""

    return call


def answered(disk: Disk) -> None:
    asked = Asked.read(disk.path / "query")
    for item in asked.items:
        mask = disk.path.parent / "answers" / f"{item.name}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(asked.path / "predictions" / f"{item.patch}.png", mask)


@fault(
    "resource",
    "the disk is full when a query is written",
    "named; the same command gives it once there is room",
)
def test_a_query_that_cannot_be_written(disk: Disk, command: Command) -> None:
    assert command("acquire") == ""
    whole = files(disk.path)
    for path in disk.path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for room in (0, 8192, 32768):  # at the cache, the ledger, the query
        disk.fill(room)
        assert os.strerror(errno.ENOSPC) in command("acquire"), room
        assert not (disk.path / "query").exists()
        disk.free()
    assert command("acquire") == ""
    assert files(disk.path) == whole


@fault("resource", "the disk is full when Φ is kept", "named; the ledger stays, there is no query")
def test_a_manifold_that_cannot_be_kept(disk: Disk, command: Command) -> None:
    assert command("acquire", "--strategy", "meal") == ""
    shutil.rmtree(disk.path / "query")
    (fitted,) = (disk.path / "pool.cache").glob("manifold-*")
    fitted.unlink()  # scores and features are known still
    ledger = (disk.path / "pool.parquet").read_bytes()
    disk.fill(0)
    said = command("acquire", "--strategy", "meal")
    assert f"{fitted.name}: the manifold could not be written: {os.strerror(errno.ENOSPC)}" in said
    assert (disk.path / "pool.parquet").read_bytes() == ledger
    assert not (disk.path / "query").exists()
    disk.free()
    assert command("acquire", "--strategy", "meal") == ""


@fault(
    "resource",
    "the disk is full when masks come back",
    "named; the ledger marks nothing; again, all are taken",
)
def test_masks_that_cannot_be_stored(disk: Disk, command: Command) -> None:
    assert command("acquire") == ""
    answered(disk)
    ledger = (disk.path / "pool.parquet").read_bytes()
    for room in (0, 8192):
        disk.fill(room)
        assert os.strerror(errno.ENOSPC) in command("ingest")
        assert (disk.path / "pool.parquet").read_bytes() == ledger
        disk.free()
    assert command("ingest") == ""
    assert not list(disk.path.rglob(".partial-*"))


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(
            form,
            marks=fault("resource", f"the disk is full during `export --to {form}`", "named; no half of it"),
        )
        for form in ("cvat", "coco")
    ],
)
def test_an_export_that_does_not_fit(form: str, disk: Disk, command: Command) -> None:
    assert command("acquire") == ""
    before = files(disk.path)
    disk.fill(4096)
    assert os.strerror(errno.ENOSPC) in command("export", "--to", form)
    disk.free()
    assert files(disk.path) == before
    assert command("export", "--to", form) == ""


@fault("resource", "the disk is full when a report is written", "named; the report before it stays")
def test_a_report_that_does_not_fit(disk: Disk, made: Path) -> None:
    out = Path(shutil.copytree(made, disk.path / "run"))
    page = report.write([out], images=False)
    before = page.read_bytes()
    disk.fill(0)
    with pytest.raises(
        RunError, match=r"report\.html: the report cannot be written: No space left on device"
    ):
        report.write([out], images=False)
    assert page.read_bytes() == before


@fault("resource", "the disk is full when a dataset is packed", "named; no half of a pack")
def test_a_pack_that_does_not_fit(disk: Disk, scenes: Path) -> None:
    disk.fill(65536)
    opened = data.open_dataset("cityscapes", scenes, size=(96, 192))
    with pytest.raises(RunError, match=r"pack.*: No space left on device"):
        data.pack(opened, disk.path / "pack")
    disk.free()
    assert not list(disk.path.iterdir())
