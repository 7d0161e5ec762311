"""A sweep on the command line: run it, write its report, say what failed."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import typer

from meal_gpu import report, tracking
from meal_gpu.saying import note, say
from meal_gpu.sweep import running
from meal_gpu.sweep.children import LOGS
from meal_gpu.sweep.request import Sweep


def execute(asked: Sweep, out: Path, *, resume: bool, jobs: int, track: Sequence[str]) -> int:
    """Do what `running.run` does and print how it ended.

    Returns:
        The exit code: 0; 1 where a run failed; 128 and the signal's number where one stopped the sweep.
    """
    tracking.require(track)
    try:
        runs = running.run(asked, out, resume=resume, jobs=jobs, track=track)
    except KeyboardInterrupt as stopped:
        options = ["--jobs", str(jobs)] * (jobs > 1) + [part for name in track for part in ("--track", name)]
        again = shlex.join(["meal-gpu", "run", "--out", str(out), "--resume", *options])
        say(f"stopped; complete steps are kept: {again}")
        return 128 + (stopped.args[0] if stopped.args else 2)
    failed = [run for run in runs if run.state == "failed"]
    for run in failed:
        note(f"failed: {run.name}: {run.error} ({out / LOGS / run.name}.log)")
    typer.echo(f"sweep: {len(runs) - len(failed)} of {len(runs)} runs complete")
    if begun := [out / run.name for run in runs if run.done]:
        note(f"drawing the report of {len(begun)} runs: minutes for full-size images")
        typer.echo(f"report: {report.write(begun, out / 'report.html')}")
        typer.echo(f"statistics: {shlex.join(['meal-gpu', 'compare', str(out)])}")
    return 1 if failed else 0
