"""Query strategies and the measures they rank by: one small file each, one dict of names."""

from meal_gpu.errors import ConfigError
from meal_gpu.strategies import (
    badge,
    bald,
    cereals,
    clasp_pe,
    class_balanced,
    class_random,
    core_set,
    ensemble,
    entropy,
    equal,
    kmeans,
    least_confidence,
    margin,
    mc_entropy,
    meal,
    meal_calibrated,
    meal_ft,
    meal_pca,
    meal_raw,
    power,
    random,
    ripu,
    suggestive,
    typiclust,
)
from meal_gpu.strategies.base import Measure, Pool, Selection, Strategy

__all__ = [
    "MEASURES",
    "STRATEGIES",
    "WAITING",
    "Measure",
    "Pool",
    "Selection",
    "Strategy",
    "get",
    "get_measure",
    "needed",
    "require_taken",
    "takes_members",
]

WAITING = ("typiclust", "meal-pca")
"""Strategies for which the host waits for a GPU, where sizes, or whether a search converged, are known."""

_RANKED = (
    entropy, margin, least_confidence, mc_entropy, bald, ensemble, equal, ripu, class_balanced, power,
    cereals,
)  # fmt: skip
_CHOOSING = (
    random, class_random, clasp_pe, core_set, kmeans, typiclust, badge, suggestive, meal, meal_ft, meal_pca,
    meal_raw, meal_calibrated,
)  # fmt: skip
MEASURES: dict[str, Measure] = {module.MEASURE.name: module.MEASURE for module in _RANKED}
STRATEGIES: dict[str, Strategy] = {module.STRATEGY.name: module.STRATEGY for module in (*_RANKED, *_CHOOSING)}


def get(name: str) -> Strategy:
    """The strategy called `name`. Raises ConfigError listing the known ones."""
    if name not in tuple(STRATEGIES):  # a list is in no dict
        raise ConfigError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def get_measure(name: str) -> Measure:
    """The measure called `name`. Raises ConfigError listing the known ones."""
    if name not in tuple(MEASURES):
        raise ConfigError(f"unknown measure {name!r}; known: {', '.join(MEASURES)}")
    return MEASURES[name]


def needed(strategy: str, measure: str) -> tuple[str, ...]:
    """What a pass over the pool must find for both.

    Raises:
        ConfigError: an unknown name, or a measure that the strategy would not look at.
    """
    chosen, proposing = get(strategy), get_measure(measure)
    if measure != entropy.MEASURE.name and not chosen.measured:
        takers = ", ".join(name for name, known in STRATEGIES.items() if known.measured)
        raise ConfigError(
            f"measure is {measure!r}, but strategy {strategy!r} takes none: leave it out, or choose one of "
            f"{takers}"
        )
    return chosen.needs + (proposing.needs if chosen.measured else ())


def require_taken(strategy: str, measure: str, **given: bool) -> None:
    """Raises ConfigError where one of candidates, manifold, refit and members is given in vain."""
    chosen = get(strategy)
    taken = {
        "candidates": chosen.measured, "manifold": chosen.manifold, "refit": chosen.manifold,
        "members": takes_members(strategy, measure),
    }  # fmt: skip
    for what in given:
        if given[what] and not taken[what]:
            raise ConfigError(f"{what} was given, but strategy {strategy!r} takes none: leave it out")


def takes_members(strategy: str, measure: str) -> bool:
    """Whether an ensemble must be trained. Raises ConfigError for an unknown name."""
    chosen, proposing = get(strategy), get_measure(measure)
    return chosen.members or (chosen.measured and proposing.members)
