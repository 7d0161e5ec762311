"""The researcher's commands: parse → call → print. Imports of the engine stand inside the commands."""

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
