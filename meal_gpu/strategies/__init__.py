"""Query strategies: one small file each, one dict of names."""

from meal_gpu.errors import ConfigError
from meal_gpu.strategies import entropy, meal, meal_ft, random
from meal_gpu.strategies.base import Pool, Selection, Strategy

__all__ = ["STRATEGIES", "Pool", "Selection", "Strategy", "get"]

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (random.STRATEGY, entropy.STRATEGY, meal.STRATEGY, meal_ft.STRATEGY)
}


def get(name: str) -> Strategy:
    """The strategy called `name`. Raises ConfigError listing the known ones."""
    if name not in STRATEGIES:
        raise ConfigError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
