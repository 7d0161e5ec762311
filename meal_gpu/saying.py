"""What the program says of itself on stderr, and what became of what it prints."""

import os
import sys
import traceback
from contextlib import suppress

import typer


def note(text: str) -> None:
    """A line on stderr; where that cannot be written, the work goes on."""
    with suppress(OSError):
        typer.echo(text, err=True)


def say(text: str) -> None:
    """How a command ended, on stderr."""
    note(f"meal-gpu: {text}")


def told(error: Exception) -> str:
    """What to say of it: a result that cannot be printed must not be taken for one that is not there."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    printing = any(frame.f_code is typer.echo.__code__ and not frame.f_locals["err"] for frame in frames)
    if printing and isinstance(error, OSError):
        return f"standard output: {error.strerror}; only the text is lost, files written before are whole"
    return str(error)


def settle() -> None:
    """Drop what cannot be printed: Python would try once more at its end, and exit with 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def out_of_memory(error: Exception) -> bool:
    """Whether memory is used up, the host's or a GPU's; torch is not imported to find out."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from meal_gpu.memory import is_out_of_memory

    return is_out_of_memory(error)
