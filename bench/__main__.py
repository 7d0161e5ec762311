"""The benchmarks' command line: `python -m bench`, or `meal-gpu bench`. The CASEs stand in bench_*.py."""

import ast
import math
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench import ceiling, harness, results

HERE = Path(__file__).parent
# In this order, what a whole acquisition is made of comes before it
ORDER = ("patch_entropy", "confusion", "gather", "kmeans_plusplus", "selection", "diversity", "decode",
         "forward", "neighbors", "umap", "scaling", "training", "acquisition", "scale")  # fmt: skip
LONG = ("scale",)  # run where they are named
WIDTH = 200

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def known() -> dict[str, str]:
    """Name and first line of every case."""
    found = {name: (HERE / f"bench_{name}.py").read_text(encoding="utf-8") for name in ORDER}
    return {
        name: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0] for name, text in found.items()
    }


@app.command()
def main(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE]...", help="All but scale, if none is named.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="JSON lines, written anew.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the rows (.svg or .png).")] = None,
    seconds: Annotated[float | None, typer.Option(help="Begin nothing after so many seconds.")] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help="Measure it alone, by its whole name; repeat it.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say what there is, and stop.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="Earlier rows; exit code 1 where these disagree, or none is there.")
    ] = None,
) -> None:
    """Measure ours beside what a user would pick instead, and against what the device can do."""
    console = Console(width=None if Console().is_terminal else WIDTH)
    if listed:
        for name, line in known().items():
            console.print(f"{name:16} {line}", highlight=False)
        return
    if unknown := [name for name in cases or () if name not in ORDER]:
        raise typer.BadParameter(f"unknown case {', '.join(unknown)}; known: {', '.join(ORDER)}")
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise typer.BadParameter(f"{plot}: .svg or .png", param_hint="--plot")
    try:
        where = torch.device(device)
        before = None if against is None else harness.read(against)
    except (RuntimeError, OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no NVIDIA GPU: use --device cpu", param_hint="--device")
    begun = time.monotonic()
    deadline = math.inf if seconds is None else begun + seconds
    limits = ceiling.measured(where)
    described = harness.described(where, limits)
    rows: results.Rows = []
    missing = []
    unmet = set(contender or ())
    there: dict[str, None] = {}
    with harness.recording(out) as write:
        for name in cases or [name for name in ORDER if name not in LONG]:
            if time.monotonic() > deadline:
                missing.append(name)
                continue
            for case in import_module(f"bench.bench_{name}").cases(where):
                there |= dict.fromkeys(case.contenders)
                if contender:
                    case = harness.narrowed(case, contender)
                    unmet -= {*case.contenders}
                found = [
                    vars(row) | described for row in harness.measure(case, where, limits, deadline=deadline)
                ]
                write(found)
                rows += found
                if found:
                    console.print(results.table(found))
                timed = {row["contender"] for row in found}
                missing += [f"{name} ({each})" for each in case.contenders if each not in timed]
        if unmet and not missing:
            raise typer.BadParameter(
                f"no case has {', '.join(sorted(unmet))}; there are {', '.join(there)}",
                param_hint="--contender",
            )
    for growth in results.growth(rows):
        memory = "" if growth.memory is None else f", memory with {growth.over}^{growth.memory:.2f}"
        console.print(f"{growth.case}: time grows with {growth.over}^{growth.time:.2f}{memory}")
    console.print(f"{len(rows)} rows in {time.monotonic() - begun:.0f} s")
    if missing:
        why = "not installed" if seconds is None else f"not installed, or no time within {seconds:.0f} s"
        console.print(f"{why}: {', '.join(missing)}", highlight=False)
    if plot is not None:
        from bench.plot import draw

        draw(rows, plot)
    if before is not None:
        found_again = results.compared(before, rows)
        apart = [each for each in found_again if not each.agree]
        for each in apart:
            console.print(f"{each.ratio:.2f} × the time before: {' · '.join(each.key)}", highlight=False)
        console.print(
            f"{len(apart)} of the {len(found_again)} rows that are in {against} too lie outside their "
            f"spread, {results.DRIFT:.0%} more allowed; {len(rows) - len(found_again)} are new"
        )
        raise typer.Exit(bool(apart) or not found_again)


if __name__ == "__main__":
    harness.told(lambda: app(prog_name="meal-gpu bench"))
