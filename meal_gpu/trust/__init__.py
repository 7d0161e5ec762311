"""Trust in a query: made again from the run folder, explained, and shaken by what should not matter.

Names are imported when first used, so that the commands' --help stays quick.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meal_gpu.trust.explaining import Explanation, explain
    from meal_gpu.trust.no_peeking import NoPeek, no_peek
    from meal_gpu.trust.perturbing import Stability, examine, stability, stability_lines
    from meal_gpu.trust.replaying import Replayed, replay

__all__ = [
    "Explanation",
    "NoPeek",
    "Replayed",
    "Stability",
    "examine",
    "explain",
    "no_peek",
    "replay",
    "stability",
    "stability_lines",
]

_HOMES = {
    "Explanation": "meal_gpu.trust.explaining",
    "explain": "meal_gpu.trust.explaining",
    "NoPeek": "meal_gpu.trust.no_peeking",
    "no_peek": "meal_gpu.trust.no_peeking",
    "Stability": "meal_gpu.trust.perturbing",
    "examine": "meal_gpu.trust.perturbing",
    "stability": "meal_gpu.trust.perturbing",
    "stability_lines": "meal_gpu.trust.perturbing",
    "Replayed": "meal_gpu.trust.replaying",
    "replay": "meal_gpu.trust.replaying",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'meal_gpu.trust' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
