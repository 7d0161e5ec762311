"""Where what this package makes or downloads once is kept: datasets, compiled CPU kernels."""

import os
from pathlib import Path


def cache_root() -> Path:
    """`$MEAL_GPU_CACHE`, else `$XDG_CACHE_HOME/meal-gpu`, else `~/.cache/meal-gpu`; it may not exist yet."""
    if own := os.environ.get("MEAL_GPU_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "meal-gpu"
    return Path.home() / ".cache" / "meal-gpu"
