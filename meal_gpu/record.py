"""The run folder: what was asked, what was done, and complete steps only.

config.toml  env.json           written before anything runs; who goes on elsewhere adds that to env.json
dataset.json                    the files it is made on, their sizes or hashes, and the classes
.lock                           held, and says by whom, while a process works on the run
ledger.parquet                  the newest step's
steps/003/                      complete, or not there: written aside, then renamed
  model.safetensors  query.parquet  metrics.json  ledger.parquet
steps/.training-004/            savepoints of the step at hand, where its training takes long
manifold/                       Φ and the pool's embedding, complete or not there
quarantine.csv                  files that were left out, and why (on_bad = "skip")
log.jsonl                       append-only: stage timings, losses
"""

import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from meal_gpu import atomic, data, lock
from meal_gpu import config as configs
from meal_gpu.config import Config
from meal_gpu.errors import ConfigError, RunError
from meal_gpu.images.probing import quarantine, quarantined

_PACKAGES = ("meal-gpu", "torch", "segmentation-models-pytorch", "umap-learn", "numpy", "pandas",
             "nvidia-dali-cuda130", "cupy-cuda13x", "cuml-cu13", "cudf-cu13")  # fmt: skip


_WRITTEN_FIRST = ("env.json", "dataset.json", "config.toml")
_BEGINNING = {lock.FILE, "steps", *_WRITTEN_FIRST[:2], *(f".partial-{name}" for name in _WRITTEN_FIRST)}


class RunFolder:
    """A folder that holds one run. Use `create` or `resume`."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(
        cls, path: Path, config: Config, device: torch.device, dataset: dict[str, Any] | None = None
    ) -> "RunFolder":
        """Start a run in a new or empty folder, on the `data.snapshot` of a dataset.

        Raises:
            RunError: something is in the folder already, or it cannot be written.
        """
        cls.require_free(path)
        try:
            (path / "steps").mkdir(parents=True, exist_ok=True)
            atomic.write(path / "env.json", json.dumps(environment(device), indent=2) + "\n")
            if dataset is not None:
                atomic.write(path / "dataset.json", json.dumps(dataset, indent=0) + "\n")
            atomic.write(path / "config.toml", config.to_toml())
        except OSError as error:
            raise RunError(f"{path}: the run folder cannot be written: {error.strerror}") from error
        return cls(path, config)

    @staticmethod
    def require_free(path: Path) -> None:
        """Raises RunError unless a run can start in `path`, for nothing of worth is there."""
        if path.exists() and not path.is_dir():
            raise RunError(f"{path}: the run folder cannot be written: File exists")
        # A process killed before it wrote config.toml, the last of all, leaves nothing to continue
        if path.is_dir() and not {p.name for p in path.iterdir()} <= _BEGINNING:
            raise RunError(f"{path} is not empty: pass --resume to continue that run, or another --out")

    def discard(self) -> None:
        """Remove all of a run that could not start, so that another one can; its lock is held."""
        for found in list(self.path.iterdir()):
            if found.name != lock.FILE:
                shutil.rmtree(found) if found.is_dir() else found.unlink()

    @classmethod
    def resume(cls, path: Path) -> "RunFolder":
        """Open a run to continue or read it. Raises RunError where there is none."""
        if not (path / "config.toml").is_file():
            if runs := sorted(path.glob("*/config.toml")):
                raise RunError(
                    f"{path} holds {len(runs)} runs and is none: name one, such as {runs[0].parent}"
                )
            raise RunError(f"{path} holds no run (no config.toml); `meal-gpu run --out {path}` starts one")
        try:
            return cls(path, configs.read(path / "config.toml"))
        except ConfigError as error:
            raise RunError(f"this run cannot be read: {error}") from error

    def continued(self, device: torch.device) -> None:
        """Add to env.json what makes the steps from here on, where it is not what made those before."""
        now, known = environment(device), self._environments()
        if any(known[-1].get(key) != value for key, value in now.items() if key != "command"):
            step = len(self.completed())
            since: dict[str, Any] = {"step": step} | ({"midway": True} if self.is_midway(step) else {})
            first, *others = [*known, since | now]
            self.write("env.json", json.dumps(first | {"resumed": others}, indent=2) + "\n")

    def environment(self, step: int) -> dict[str, Any]:
        """What ended a step, from env.json. Raises RunError where that cannot be read."""
        return [made for made in self._environments() if made.get("step", 0) <= step][-1]

    def makers(self) -> list[dict[str, Any]]:
        """All that had a part in the complete steps, from env.json.

        Raises RunError where that cannot be read.
        """
        steps, known, found = len(self.completed()), self._environments(), []
        for made, after in itertools.zip_longest(known, known[1:]):
            end = after["step"] + bool(after.get("midway")) if after else steps
            if made.get("step", 0) < min(end, steps):
                found.append(made)
        return found

    def _environments(self) -> list[dict[str, Any]]:
        """The first, and all that the run was continued in."""
        path = self.path / "env.json"
        try:
            first = json.loads(path.read_text(encoding="utf-8"))
            found = [first, *({**other, "step": int(other["step"])} for other in first.pop("resumed", []))]
            for made in found:
                made["packages"] = dict(made.get("packages") or {})
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: not a readable environment: {error!r}; restore it") from error

    def require_dataset(self, now: dict[str, Any]) -> None:
        """Raises RunError, naming what differs, unless dataset and encoder weights are those it began on."""
        path = self.path / "dataset.json"
        if not path.exists():  # of a version that did not write it
            return
        try:
            differs = data.difference(json.loads(path.read_text(encoding="utf-8")), now)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: not the record of a dataset: {error!r}; restore it") from error
        if differs:
            raise RunError(
                f"{self.path} was begun on other files ({differs}): restore them, or choose another --out"
            )

    def quarantine(self, problems: Sequence[data.Problem]) -> None:
        """List what is left out.

        Raises:
            RunError: naming a file that was used in the complete steps and cannot be now, or the reverse.
        """
        path = self.path / "quarantine.csv"
        now = quarantined(quarantine(problems))
        if self.completed():
            try:
                before = quarantined(path.read_bytes().decode()) if path.exists() else {}
            except (OSError, ValueError) as error:
                raise RunError(f"{path}: not a list of files: {error}; restore it") from error
            if differs := sorted(before.keys() ^ now.keys()):
                why = now.get(
                    differs[0], f"{differs[0]}: was left out when the run began, and can be used now"
                )
                more = f"; and {len(differs) - 1} more" if len(differs) > 1 else ""
                raise RunError(
                    f"{self.path} was begun on other files ({why}{more}): restore them as they were, "
                    "or choose another --out"
                )
        elif problems:
            self.write(path.name, quarantine(problems))

    def clean(self) -> None:
        """Remove what a killed process left half-written, and savepoints of steps that are complete."""
        steps, at_hand = self.path / "steps", self.training(len(self.completed()))
        trainings = [folder for folder in steps.glob(".training-*") if folder != at_hand]
        for leftover in [*self.path.glob(".partial-*"), *steps.glob(".partial-*"), *trainings]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def completed(self) -> list[int]:
        """The numbers of the complete steps, which must be 0, 1, 2, … without a gap."""
        found = sorted(int(p.name) for p in (self.path / "steps").iterdir() if p.name.isdecimal())
        if found != list(range(len(found))):
            raise RunError(f"{self.path}/steps holds {found}: a step is missing, restore it or start anew")
        return found

    def step(self, number: int) -> Path:
        return self.path / "steps" / f"{number:03d}"

    def training(self, number: int) -> Path:
        """A folder for the savepoints of a step that is being trained."""
        return self.path / "steps" / f".training-{number:03d}"

    def is_midway(self, number: int) -> bool:
        """Whether a step goes on from a savepoint."""
        return any(self.training(number).glob("*.safetensors"))

    @contextmanager
    def writing(self, target: Path) -> Iterator[Path]:
        """A folder to fill that becomes `target` in one rename, once all of it is on the disk."""
        self._require_here()
        try:
            with atomic.folder(target) as aside:
                yield aside
        except OSError as error:
            raise unwritten(target, error) from error

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, whole or not at all. Raises RunError where that is not possible."""
        self._require_here()
        try:
            atomic.write(self.path / name, text)
        except OSError as error:
            raise unwritten(self.path / name, error) from error

    def _require_here(self) -> None:
        if not (self.path / "config.toml").is_file():
            raise RunError(
                f"{self.path} was removed or moved while the run worked on it: "
                "continue it with --resume where it is now, or start anew"
            )

    def publish_ledger(self) -> None:
        """Make the newest step's ledger the run's. Raises RunError where that is not possible."""
        if done := self.completed():
            target = self.path / "ledger.parquet"
            try:
                with atomic.writing(target) as aside:
                    shutil.copyfile(self.step(done[-1]) / "ledger.parquet", aside)
            except OSError as error:
                raise unwritten(target, error) from error

    def metrics(self) -> list[dict[str, Any]]:
        """`metrics.json` of every complete step, in order."""
        return [json.loads((self.step(k) / "metrics.json").read_text()) for k in self.completed()]

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to log.jsonl. Raises RunError where that is not possible."""
        row = {"time": round(time.time(), 3), "event": event, **fields}
        try:
            with (self.path / "log.jsonl").open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a process was killed in the midst of a line
                        file.write(b"\n")
                file.write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise unwritten(self.path / "log.jsonl", error) from error


def unwritten(target: Path, error: OSError) -> RunError:
    """What to raise where a file of a run cannot be written."""
    return RunError(
        f"{target}: could not be written: {error.strerror or error}. "
        "Complete steps are intact: free some room and continue with --resume"
    )


def environment(device: torch.device) -> dict[str, Any]:
    """Device, package versions, commit and command line."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": ["meal-gpu", *sys.argv[1:]],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {os.cpu_count()} cores"


def commit() -> str | None:
    """The commit of the source tree this runs from, with "-dirty" where it was changed; None in a wheel."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        command = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True)
        if tracked.returncode:
            return None
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
