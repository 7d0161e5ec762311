"""What options of several commands mean, whose values are read from text."""

from pathlib import Path
from typing import Annotated, Any

import typer

from meal_gpu import __version__
from meal_gpu.errors import ConfigError, DataError


def pair(text: str | None, what: str) -> tuple[int, int] | None:
    """HxW -> (H, W). Raises ConfigError."""
    if text is None:
        return None
    first, cross, second = text.lower().partition("x")
    if not (cross and first.isdecimal() and second.isdecimal() and int(first) and int(second)):
        raise ConfigError(f"{what} {text!r}: expected two numbers above 0, such as 512x1024")
    return int(first), int(second)


def triple(text: str | None, what: str) -> tuple[float, float, float] | None:
    """ "0.5,0.5,0.5" -> its numbers. Raises ConfigError, which names `what`."""
    if text is None:
        return None
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise ConfigError(f"{what} {text!r}: expected three numbers, such as 0.5,0.5,0.5") from None
    return red, green, blue


def class_names(path: Path) -> tuple[str, ...]:
    """Those of a classes.txt by train id. Raises DataError, also where its ids are those of other masks."""
    from meal_gpu.data.dataset import UNKNOWN, VOID
    from meal_gpu.data.folder import read_classes

    names, lookup = read_classes(path)
    found = {label_id: train_id for label_id, train_id in enumerate(lookup) if train_id != UNKNOWN}
    expected = {train_id: train_id for train_id in range(len(names))}
    if found not in (expected, expected | {255: VOID}):
        raise DataError(
            f"{path}: ids other than 0 to {len(names) - 1} in this order, or a void other than 255: a query "
            "has the ids of the model's outputs; write one name per line, in their order, and no ids"
        )
    return names


def key_values(option: str, items: list[str]) -> dict[str, Any]:
    """KEY=VALUE with YAML values: 3, 1e-3, true, [4, 4], null. Raises ConfigError, which names the option."""
    import yaml

    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"{option} {item!r}: expected KEY=VALUE")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{option} {item!r}: {' '.join(str(error).split())}") from error
    return values


def other_keys(items: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Keys of the config that --set gives, beside those `given` by options of their own.

    Raises:
        ConfigError: a key that both give, or the dataset, which has settings of its own.
    """
    found = {key.replace("-", "_"): value for key, value in key_values("--set", items).items()}
    if "dataset" in found:
        raise ConfigError("--set dataset: use --dataset, which takes the settings of that dataset too")
    twice = [key for key in found if key in given and key != "final_epochs"]  # of --epochs the lesser half
    if twice:
        raise ConfigError(f"{', '.join(twice)}: given by its own option and by --set; leave one out")
    return found


def ledger(path: Path | None) -> Path | None:
    """As given, but the file where it is a link: cache, labels and lock lie beside the file."""
    if path is None:
        return None
    if path.suffix != ".parquet":
        raise ConfigError(
            f"--ledger {path}: must end in .parquet, for its cache, labels and lock are named by what comes "
            f"before; say {path.name}.parquet"
        )
    return path.resolve() if path.is_symlink() else path


def version() -> str:
    return f"meal-gpu {__version__}"


def register(app: typer.Typer) -> None:
    """Add what stands before every command."""

    def say(wanted: bool) -> None:
        if wanted:
            typer.echo(version())
            raise typer.Exit

    @app.callback()
    def everywhere(
        _: Annotated[
            bool, typer.Option("--version", callback=say, is_eager=True, help="Say the version.")
        ] = False,
    ) -> None:
        pass
