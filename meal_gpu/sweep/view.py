"""One view of all runs: a table and a bar with the time left on a terminal, plain lines elsewhere."""

import math
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from meal_gpu.sweep.folders import Run, State

_STYLES: dict[State, str] = {
    "running": "bold", "failed": "red", "waiting": "dim", "stopped": "yellow", "complete": "green",
}  # fmt: skip
_URGENCY: tuple[State, ...] = ("failed", "running", "stopped", "waiting", "complete")


class View:
    """Shows runs whenever `show` is called; use it in a `with`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._said: dict[str, str] = {}
        # The speed is that of all this sweep: a step may take minutes
        self._bar = Progress(
            TextColumn("steps {task.completed:.0f} of {task.total:.0f}"), BarColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), speed_estimate_period=math.inf,
        )  # fmt: skip
        self._live = Live(console=self._console, auto_refresh=True, refresh_per_second=2, transient=True)

    def __enter__(self) -> "View":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def show(self, runs: Sequence[Run]) -> None:
        """The runs as they are now, always the same ones in the same order."""
        if self._console.is_terminal:
            done, total = sum(run.done for run in runs), sum(run.last + 1 for run in runs)
            if not self._bar.tasks:
                self._bar.add_task("", total=total, completed=done)
            self._bar.update(self._bar.task_ids[0], completed=done)
            self._live.update(Group(self._table(runs), self._bar))
        else:
            for run in runs:
                if (text := describe(run)) != self._said.get(run.name, "waiting"):
                    with suppress(OSError):  # a full disk ends no sweep
                        line = f"{run.name}: {text}"
                        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
                self._said[run.name] = text

    def _table(self, runs: Sequence[Run]) -> Table:
        room = max(1, self._console.height - 3)
        if len(runs) > room:  # what needs a look comes first, what does not fit is counted
            runs = sorted(runs, key=lambda run: _URGENCY.index(run.state))
        shown = runs if len(runs) <= room else runs[: room - 1]
        table = Table.grid(padding=(0, 2))
        for run in shown:
            table.add_row(Text(run.name), Text(describe(run), style=_STYLES[run.state], overflow="ellipsis"))
        if hidden := len(runs) - len(shown):
            table.add_row(Text(f"and {hidden} more", style="dim"))
        return table


def describe(run: Run) -> str:
    """State, steps and mIoU of a run in one line."""
    if run.state == "failed":
        return f"failed: {run.error}"
    parts: list[str] = [run.state]
    if run.state != "complete" and run.state != "waiting":
        parts.append(f"step {min(run.done, run.last)} of {run.last}")
    if run.mean_iou is not None:
        parts.append(f"mIoU {run.mean_iou:.4f}")
    return ", ".join(parts)
