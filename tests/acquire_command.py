"""`meal-gpu acquire` with the networks of `shard_networks`, as the tests of clusters and stores call it."""

import re
from pathlib import Path

from typer.testing import CliRunner

from meal_gpu import cli


def options(images: str | Path, out: Path, *more: object, **arguments: object) -> list[str]:
    given: list[object] = [
        "acquire", "--images", images, "--model", "shard_networks:troubled", "--shard", 40, "-n", "20patches",
        "--strategy", "entropy", "--ledger", out / "pool.parquet", "--out", out / "query", "--device", "cpu",
        *more,
    ]  # fmt: skip
    for key, value in arguments.items():
        given += ["--model-arg", f"{key}={value}"]
    return [str(a) for a in given]


def acquire(*given: object, **arguments: object) -> str:
    result = CliRunner().invoke(cli.app, options(*given, **arguments))  # type: ignore[arg-type]
    if result.exit_code:
        raise result.exception or RuntimeError(result.output)
    return re.sub(r"\s+", " ", result.output)
