"""Seconds per stage."""

import time

import pytest

from meal_gpu.timing import Stages


def test_stages_add_up_and_end_with_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 10.5, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    stages = Stages()
    with stages("train"):
        pass
    with stages("validate"):
        pass
    with pytest.raises(KeyError), stages("train"):
        raise KeyError
    assert stages.seconds == {"train": 3.0, "validate": 0.5}
