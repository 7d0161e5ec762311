"""The researcher's commands: parse → call → print. Imports of the engine stand inside the commands."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write tables (.md, .csv, .tex) and curves (.svg) here.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="STRATEGY", help="Test against this one alone: fewer tests.")
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence of the intervals.")] = 0.95,
) -> None:
    """Compare strategies over seeds: intervals, paired tests, and what they allow to say."""
    from meal_gpu import compare as comparing

    comparison = comparing.compare(comparing.gather(runs), baseline=baseline, level=level)
    typer.echo(comparing.markdown(comparison), nl=False)
    if out:
        written = comparing.write(comparison, out)
        typer.echo(f"\nwritten: {', '.join(map(str, written))}")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(compare)
