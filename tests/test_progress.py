"""What a run shows: bars on a terminal, plain lines elsewhere."""

import errno
import io

import pytest
from rich.console import Console

from meal_gpu.progress import Terminal


def console(*, terminal: bool) -> tuple[Terminal, io.StringIO]:
    buffer = io.StringIO()
    return Terminal(Console(file=buffer, force_terminal=terminal, width=100)), buffer


def test_a_stage_is_one_plain_line_where_there_is_no_terminal() -> None:
    monitor, buffer = console(terminal=False)
    with monitor.stage("step 1: train", 3) as advance:
        advance(2)
        assert buffer.getvalue() == ""
        advance(1)
    assert buffer.getvalue().startswith("step 1: train: ")
    assert buffer.getvalue().endswith(" s\n")
    assert "\x1b" not in buffer.getvalue()


def test_a_bar_shows_how_far_it_is_on_a_terminal() -> None:
    monitor, buffer = console(terminal=True)
    with monitor.stage("features", 4) as advance:
        advance(4)
    assert "features" in buffer.getvalue()
    assert "4/4" in buffer.getvalue()
    assert "left" in buffer.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_passes_through(terminal: bool) -> None:
    monitor, _ = console(terminal=terminal)
    with pytest.raises(KeyError), monitor.stage("train", 3):
        raise KeyError


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stage_goes_on_where_its_line_cannot_be_written() -> None:
    monitor = Terminal(Console(file=Full()))
    with monitor.stage("score", 1) as advance:
        advance(1)
    monitor.line("done")


def test_lines_are_printed_as_they_are() -> None:
    # names of files may hold what rich would take for markup, and may be longer than the terminal
    monitor, buffer = console(terminal=False)
    text = "[bold]a[/] " + "x" * 200
    monitor.line(text)
    assert buffer.getvalue() == text + "\n"
