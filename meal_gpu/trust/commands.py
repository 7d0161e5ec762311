"""The commands on trust: replay, explain, stability, verify. Thin: parse → call → print."""

from pathlib import Path
from typing import Annotated

import typer

verify = typer.Typer(help="Prove what is promised of a run.", no_args_is_help=True)

Run = Annotated[Path, typer.Argument(help="Run folder.")]
Step = Annotated[int, typer.Option(help="The step whose query it is.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default="the recorded one")]
Root = Annotated[Path | None, typer.Option(help="Where the dataset is now.", show_default="as recorded")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def replay(run: Run, step: Step, device: Device = None, root: Root = None) -> None:
    """Make a past query again: exit code 0 where it is the same byte for byte, else 1."""
    from meal_gpu.progress import Terminal
    from meal_gpu.trust.replaying import replay as again

    replayed = again(run, step, device=device, root=root, monitor=Terminal())
    typer.echo(replayed.text())
    if not replayed.same:
        raise typer.Exit(1)


def explain(
    run: Run,
    step: Step,
    patch: Annotated[int, typer.Option(help="Its id, as in query.parquet.", show_default=False)],
    as_json: Json = False,
    device: Device = None,
    root: Root = None,
) -> None:
    """Say why a query has a patch, or has it not."""
    import json

    from meal_gpu.progress import Terminal
    from meal_gpu.trust.explaining import explain as why

    found = why(run, step, patch, device=device, root=root, monitor=Terminal())
    typer.echo(json.dumps(found.as_dict(), indent=1, allow_nan=False) if as_json else found.text())


def stability(
    run: Run,
    step: Step,
    seeds: Annotated[int, typer.Option(min=1, help="Of each change that has one.")] = 5,
    as_json: Json = False,
    device: Device = None,
    root: Root = None,
) -> None:
    """Say how much a query depends on UMAP's seed, the precision and the draws."""
    import json
    from dataclasses import asdict

    from meal_gpu.progress import Terminal
    from meal_gpu.trust.perturbing import stability as shake

    found = shake(run, step, seeds=seeds, device=device, root=root, monitor=Terminal())
    typer.echo(json.dumps(asdict(found), indent=1, allow_nan=False) if as_json else found.text())


@verify.command("no-peek")
def no_peek(
    run: Run,
    step: Annotated[int | None, typer.Option(help="Of the query.", show_default="the newest")] = None,
    train: Annotated[bool, typer.Option("--train", help="Train the model before it anew, too.")] = False,
    device: Device = None,
    root: Root = None,
) -> None:
    """Make a query again with labels shuffled and absent: exit code 0 where no byte of it changes, else 1."""
    from meal_gpu.progress import Terminal
    from meal_gpu.trust.no_peeking import no_peek as look

    looked = look(run, step, train=train, device=device, root=root, monitor=Terminal())
    typer.echo(looked.text())
    if looked.found:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    for command in (replay, explain, stability):
        app.command()(command)
    app.add_typer(verify, name="verify")
