"""How far the runs of a sweep are, read from their folders alone."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meal_gpu.config import Config

State = Literal["waiting", "running", "complete", "failed", "stopped"]


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        done: complete steps, of `last` + 1.
        mean_iou: after the newest complete step; None where there is none, or no class occurred.
        error: why it failed, one line.
    """

    name: str
    last: int
    state: State = "waiting"
    done: int = 0
    mean_iou: float | None = None
    error: str | None = None


def last_step(config: Config, images: int) -> int:
    """The number of the last step of a run over a pool of `images`."""
    if config.is_supervised:  # one patch an image, all labelled at step 0
        return 0
    per_image = config.grid[0] * config.grid[1]
    patches, initial = images * per_image, config.initial_images * per_image
    possible = -((initial - patches) // config.query_size)  # until all of them are labelled
    return max(0, min(config.number_of_steps(patches, initial), possible))


def progress(run: Run, path: Path, config: Config) -> Run:
    """`run` with what its folder, which need not be there, says of steps and mIoU.

    Its last step is that of the pool it has: with on_bad = "skip" some images may be left out.
    """
    # Not RunFolder: a gap, or a file of another kind, is for the run itself to complain about
    done = sum(1 for step in path.glob("steps/*") if step.name.isdecimal())
    try:
        metrics = json.loads((path / "steps" / f"{done - 1:03d}" / "metrics.json").read_text())
        last = last_step(config, metrics["patches"] // math.prod(config.grid))
        return dataclasses.replace(run, last=last, done=done, mean_iou=metrics["mean_iou"])
    except (OSError, ValueError, KeyError, TypeError):
        return dataclasses.replace(run, done=done, mean_iou=None)


def is_begun(path: Path) -> bool:
    """Whether there is a run to continue; without config.toml there is nothing of worth."""
    return (path / "config.toml").is_file()


def is_complete(run: Run, path: Path) -> bool:
    """Whether `run`, as `progress` sees it, has done all of its steps, and the report that ends it.

    A run that was killed between the two is continued, which brings the rest of its folder up to date.
    """
    return run.done > run.last and (path / "report.html").is_file()
