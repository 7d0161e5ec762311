"""Where what this package makes or downloads once is kept: datasets, compiled CPU kernels."""

import os
from pathlib import Path

from meal_gpu.errors import UnavailableError


def cache_root() -> Path:
    """`$MEAL_GPU_CACHE`, else `$XDG_CACHE_HOME/meal-gpu`, else `~/.cache/meal-gpu`; it may not exist yet.

    Raises:
        UnavailableError: there is no home directory either.
    """
    if own := os.environ.get("MEAL_GPU_CACHE"):
        return expanded(own).absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return expanded(xdg).absolute() / "meal-gpu"
    try:
        return Path.home() / ".cache" / "meal-gpu"
    except RuntimeError as error:  # of a container's user, say
        raise UnavailableError(f"there is no cache folder: {error} Set MEAL_GPU_CACHE to one") from error


def expanded(path: str | Path) -> Path:
    """A path with `~` as the home directory. Raises UnavailableError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UnavailableError(f"{path}: there is no such home directory; write the path in full") from error
