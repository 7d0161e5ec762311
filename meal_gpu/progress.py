"""How far a run is: bars with the time left on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from meal_gpu.scoring import Advance


class Terminal:
    """A monitor (`preparation.Monitor`) that writes to a console; lines that stay, bars that go."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    @contextmanager
    def stage(self, text: str, total: int) -> Iterator[Advance]:
        start = time.perf_counter()
        if not self._console.is_terminal:
            yield lambda _: None
            self.line(f"{text}: {time.perf_counter() - start:.1f} s")
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(text, total=total)
            yield lambda done: bars.advance(task, done)

    @contextmanager
    def transfer(self, text: str) -> Iterator[Callable[[int, int | None], None]]:
        """As `stage`, for bytes: the yielded function takes those done and, where known, the total."""
        if not self._console.is_terminal:
            yield lambda done, total: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                   TextColumn("left"), TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(text, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)

    def line(self, text: str) -> None:
        with suppress(OSError):  # a full disk ends no query
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
