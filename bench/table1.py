"""Table 1 of the paper on CamVid, a sweep per row: `python -m bench.table1 ROW... --encoder-weights FILE`.

A second call goes on where the first was stopped, and adds strategies and seeds. `meal-gpu compare` compares
the strategies of a row; `python -m bench.readme` sets the committed rows beside the paper's. What the paper
left open is a row with something changed: `frozen+candidates=800 --strategy meal --folder runs/beyond`.
"""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from meal_gpu.sweep.request import FILE

FOLDER = Path("runs") / "table1"
BEYOND = Path("runs") / "beyond"
FRESH = Path("runs") / "fresh"
STRATEGIES = ("random", "entropy", "meal", "meal-ft")


# The final validation mIoU in the paper's Table 1, by whether the encoder is fine-tuned
PAPER = {
    False: {"random": 0.509, "entropy": 0.516, "meal": 0.558, "meal-ft": 0.573, "supervised": 0.635},
    True: {"random": 0.520, "entropy": 0.528, "meal": 0.540, "meal-ft": 0.596, "supervised": 0.730},
}
_SMP = ("--architecture", "smp")
_PATCH = ("--set", "context=patch")
# A validation takes as long as 4 epochs; and one precision, whatever the processor has
_TWO_CORES = ("--set", "validate_every=5", "--set", "precision=float32")
# What `meal-gpu run` is given
ROWS: dict[str, tuple[str, ...]] = {
    "frozen": ("--preset", "camvid"),
    "finetuned": ("--preset", "camvid-finetune"),
    "frozen-smp": ("--preset", "camvid", *_SMP),
    "finetuned-smp": ("--preset", "camvid-finetune", *_SMP),
    "frozen-patch": ("--preset", "camvid", *_PATCH),
    "finetuned-patch": ("--preset", "camvid-finetune", *_PATCH),
    # What two cores do in about two hours
    "frozen-smp-cpu": ("--preset", "camvid", *_SMP, *_TWO_CORES),
    "frozen-smp-patch-cpu": ("--preset", "camvid", *_SMP, *_PATCH, *_TWO_CORES),
}


def command(
    row: str, *, strategies: str, seeds: str, jobs: int, weights: str, root: Path | None, folder: Path
) -> list[str]:
    """The one command that runs a row, or goes on with it."""
    out = folder / row
    name, *changes = row.split("+")
    given = [*ROWS[name], *(word for change in changes for word in ("--set", change))]
    return [
        "run", *given, "--strategy", strategies, "--seeds", seeds, "--jobs", str(jobs),
        "--encoder-weights", weights, *([] if root is None else ["--root", str(root)]), "--out", str(out),
        *(["--resume"] if (out / FILE).is_file() else []),
    ]  # fmt: skip


def main(
    rows: Annotated[
        list[str],
        typer.Argument(metavar="ROW...", help=f"Of {', '.join(ROWS)}; each may be followed by +KEY=VALUE."),
    ],
    encoder_weights: Annotated[str, typer.Option(help="imagenet, or a .safetensors file.")] = "imagenet",
    strategy: Annotated[str, typer.Option(help="As `meal-gpu run`.")] = ",".join(STRATEGIES),
    seeds: Annotated[str, typer.Option(help="As `meal-gpu run`.")] = "0..4",
    jobs: Annotated[int, typer.Option(help="Runs at once; on one GPU 4 to 6.")] = 1,
    root: Annotated[Path | None, typer.Option(help="CamVid's folder.", show_default="as downloaded")] = None,
    folder: Annotated[Path, typer.Option(help="Where the rows are kept.")] = FOLDER,
) -> None:
    """Run rows of the paper's Table 1 on CamVid."""
    if unknown := [row for row in rows if row.split("+")[0] not in ROWS]:
        raise typer.BadParameter(f"unknown row {', '.join(unknown)}; known: {', '.join(ROWS)}")
    for row in rows:
        arguments = command(
            row,
            strategies=strategy,
            seeds=seeds,
            jobs=jobs,
            weights=encoder_weights,
            root=root,
            folder=folder,
        )
        print("meal-gpu", shlex.join(arguments), flush=True)
        if code := subprocess.run([sys.executable, "-m", "meal_gpu", *arguments], check=False).returncode:
            raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
