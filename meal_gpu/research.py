"""The researcher's commands: parse → call → print. Imports of the engine stand inside the commands."""

from pathlib import Path
from typing import Annotated

import typer

from meal_gpu.trust import commands as trusting


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


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="HTML file.", show_default="report.html in the first")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also write the learning curves (.svg, .png or .pdf).")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Show patches, which takes the dataset.")
    ] = True,
) -> None:
    """Tabulate runs, and show them in one self-contained page."""
    from meal_gpu import report as reports

    if plot:
        reports.plot_format(plot)
    found, skipped = reports.find(runs)
    page = reports.write(found, out or runs[0] / "report.html", images=images)
    if plot:
        reports.plot(found, plot)
    typer.echo(reports.text(found))
    if said := reports.skips(skipped):
        typer.echo(said)
    typer.echo(f"report: {page}")


def strategies() -> None:
    """List the query strategies with their sources; those with * are measures too."""
    from meal_gpu.strategies import MEASURES, STRATEGIES

    width = max(map(len, STRATEGIES)) + 1
    for name, strategy in STRATEGIES.items():
        marked = name + "*" * (name in MEASURES)
        typer.echo(f"{marked:{width}} {strategy.summary} [{strategy.source}]")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (report, compare, strategies):
        app.command()(command)
    trusting.register(app)
