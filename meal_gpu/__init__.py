"""Region-based active learning for semantic segmentation on the GPU, after MEAL.

Names are imported when first used, so that `import meal_gpu` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meal_gpu.acquisition import Query, acquire
    from meal_gpu.errors import MealGpuError
    from meal_gpu.grid import Grid
    from meal_gpu.ledger import Ledger
    from meal_gpu.manifold import Manifold
    from meal_gpu.ops.public import kmeans_plusplus, patch_entropy

__version__ = "0.1.0"
__all__ = [
    "Grid",
    "Ledger",
    "Manifold",
    "MealGpuError",
    "Query",
    "acquire",
    "kmeans_plusplus",
    "patch_entropy",
]

_HOMES = {
    "Grid": "meal_gpu.grid",
    "Ledger": "meal_gpu.ledger",
    "Manifold": "meal_gpu.manifold",
    "MealGpuError": "meal_gpu.errors",
    "Query": "meal_gpu.acquisition",
    "acquire": "meal_gpu.acquisition",
    "kmeans_plusplus": "meal_gpu.ops.public",
    "patch_entropy": "meal_gpu.ops.public",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'meal_gpu' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
