"""Time per named stage: the host's clock on the CPU, CUDA events on a GPU."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Clock(Protocol):
    """Sets marks without waiting; what lies between two of them can be read after `wait`."""

    def mark(self) -> Any: ...

    def wait(self) -> None: ...

    def between(self, start: Any, end: Any) -> float:
        """Seconds from one mark to the other."""
        ...


class HostClock:
    def mark(self) -> float:
        return time.perf_counter()

    def wait(self) -> None:
        pass

    def between(self, start: float, end: float) -> float:
        return end - start


class EventClock:
    """Marks are events on the GPU's current stream: work counts when it runs, not when it is launched."""

    def __init__(self, device: "torch.device | str") -> None:
        self._device = device

    def mark(self) -> "torch.cuda.Event":
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize(self._device)

    def between(self, start: "torch.cuda.Event", end: "torch.cuda.Event") -> float:
        return float(start.elapsed_time(end)) / 1000


class Stages:
    """Adds up the seconds of each stage; a stage inside another counts for itself alone, not for the outer.

    Nothing waits for the GPU until `seconds` is read.
    """

    def __init__(self, device: "torch.device | str" = "cpu", *, clock: Clock | None = None) -> None:
        self._clock = clock or (EventClock(device) if str(device).startswith("cuda") else HostClock())
        self._open: list[str] = []
        self._since: Any = None
        self._spans: list[tuple[str, Any, Any]] = []
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._cut()
        self._open.append(name)
        try:
            yield
        finally:
            self._cut()
            self._open.pop()

    def _cut(self) -> None:
        """End the innermost stage's span here, and begin the next."""
        now = self._clock.mark()
        if self._open:
            self._spans.append((self._open[-1], self._since, now))
        self._since = now

    @property
    def seconds(self) -> dict[str, float]:
        """Per stage, in the order in which they first ran; of open stages, what is over."""
        if self._spans:
            self._clock.wait()
        for name, start, end in self._spans:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock.between(start, end)
        self._spans.clear()
        return dict(self._seconds)
