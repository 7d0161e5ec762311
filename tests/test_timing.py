"""Seconds per stage."""

import time

import pytest
import torch

from meal_gpu.timing import EventClock, HostClock, Stages


def clock(monkeypatch: pytest.MonkeyPatch, *readings: float) -> None:
    left = iter(readings)
    monkeypatch.setattr(time, "perf_counter", lambda: next(left))


def test_stages_add_up_and_end_with_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 0.0, 2.0, 10.0, 10.5, 20.0, 21.0)
    stages = Stages()
    with stages("train"):
        pass
    with stages("validate"):
        pass
    with pytest.raises(KeyError), stages("train"):
        raise KeyError
    assert stages.seconds == {"train": 3.0, "validate": 0.5}


def test_a_stage_inside_another_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 127.0)
    stages = Stages()
    with stages("train"):
        with stages("validate"):
            pass
        with stages("validate"), stages("train"):  # by another way into the same stage
            pass
    assert stages.seconds == {"train": 1.0 + 4.0 + 16.0 + 64.0, "validate": 2.0 + 8.0 + 32.0}
    assert list(stages.seconds) == ["train", "validate"]


def test_seconds_can_be_read_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 0.0, 1.0, 3.0, 7.0)
    stages = Stages()
    assert stages.seconds == {}
    with stages("outer"):
        with stages("inner"):
            assert stages.seconds == {"outer": 1.0}
        assert stages.seconds == {"outer": 1.0, "inner": 2.0}
        stages.seconds["outer"] = 99.0  # a copy
    assert stages.seconds == stages.seconds == {"outer": 5.0, "inner": 2.0}


class Gpu:
    """Events that are known only once the host has waited for them."""

    def __init__(self) -> None:
        self.marks = 0
        self.waits = 0
        self.known = 0

    def mark(self) -> int:
        self.marks += 1
        return self.marks

    def wait(self) -> None:
        self.waits += 1
        self.known = self.marks

    def between(self, start: int, end: int) -> float:
        assert end <= self.known, "read before it was waited for"
        return float(end - start)


def test_events_are_waited_for_once_and_only_when_read() -> None:
    gpu = Gpu()
    stages = Stages("cuda", clock=gpu)
    for _ in range(3):
        with stages("train"), stages("validate"):
            pass
    assert (gpu.marks, gpu.waits) == (12, 0)
    assert stages.seconds == {"train": 6.0, "validate": 3.0}
    assert stages.seconds == {"train": 6.0, "validate": 3.0}
    assert gpu.waits == 1
    with stages("validate"):
        pass
    assert stages.seconds == {"train": 6.0, "validate": 4.0}
    assert gpu.waits == 2


@pytest.mark.parametrize(
    ("device", "kind"),
    [("cpu", HostClock), (torch.device("cpu"), HostClock), ("cuda", EventClock), ("cuda:1", EventClock),
     (torch.device("cuda", 1), EventClock)],
)  # fmt: skip
def test_the_device_decides_which_clock(device: str | torch.device, kind: type) -> None:
    assert type(Stages(device)._clock) is kind


@pytest.mark.gpu
def test_on_a_gpu_work_counts_when_it_runs_and_nothing_waits() -> None:
    from torch.cuda import synchronize

    stages = Stages("cuda")
    square = torch.randn(4096, 4096, device="cuda")
    with stages("warm up"):
        square @ square
    synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = time.perf_counter()
        with stages("long"):
            for _ in range(40):
                square @ square
            with stages("short"):
                square + 1
        launched = time.perf_counter() - launched
    finally:
        torch.cuda.set_sync_debug_mode("default")
    seconds = stages.seconds
    assert seconds["long"] > launched  # the host was through before the GPU
    assert 0 < seconds["short"] < seconds["long"]


def test_an_event_is_recorded_on_the_devices_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            calls.append(("record", stream))

        def elapsed_time(self, end: object) -> float:
            assert isinstance(end, Event)
            return 1500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(("wait", device)))
    stages = Stages("cuda:1")
    with stages("score"):
        pass
    assert calls == [("record", "stream of cuda:1")] * 2
    assert stages.seconds == {"score": 1.5}  # events count in milliseconds
    assert calls[2:] == [("wait", "cuda:1")]
