"""How much is asked: a budget in any unit, and an order of patches that answers every smaller budget."""

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meal_gpu.annotate.cost import LEAST_CLICKS, CostModel, Totals
from meal_gpu.errors import ConfigError

_UNITS = {"": "patches", "p": "patches", "patch": "patches", "patches": "patches", "%": "%",
          "click": "clicks", "clicks": "clicks", "h": "hours", "hour": "hours", "hours": "hours"}  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """`unit` is "patches", "%" (of all patches of the pool), "clicks" or "hours"."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Such as 32patches (or 32), 2%, 5000clicks, 6h. Raises ConfigError."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z%]*)\s*", text.lower())
        if not found or found[2] not in _UNITS:
            raise ConfigError(f"budget {text!r}: expected such as 32patches, 2%, 5000clicks or 6h")
        budget = cls(float(found[1]), _UNITS[found[2]])
        if not 0 < budget.amount < math.inf or (budget.unit == "%" and budget.amount > 100):
            raise ConfigError(f"budget {text!r} must be above 0{' and at most 100' * (budget.unit == '%')}")
        if budget.unit == "patches" and budget.amount != int(budget.amount):
            raise ConfigError(f"budget {text!r}: patches are whole")
        return budget

    def patches(self, pool: int) -> int | None:
        """How many patches of a pool of `pool`, at least one; None where that depends on what they cost."""
        if self.unit == "patches":
            return int(self.amount)
        return max(1, round(pool * self.amount / 100)) if self.unit == "%" else None

    def most(self, cost: CostModel) -> float:
        """More patches than clicks or hours pay for, even where each takes the least."""
        least = LEAST_CLICKS if self.unit == "clicks" else cost.seconds(LEAST_CLICKS) / 3600
        return self.amount / least + 1 if least else math.inf

    def cut(self, totals: Totals) -> int:
        """How many of the first items the budget pays for, given what these take."""
        spent = totals.clicks if self.unit == "clicks" else totals.hours
        return int(np.searchsorted(spent, self.amount * (1 + 1e-9), side="right"))


def packed(images: NDArray[np.int64], per_frame: int) -> NDArray[np.int64]:
    """Positions in a new order in which every frame that is opened gives up to `per_frame` patches in a row.

    A frame's patches form blocks of `per_frame` in the order given; blocks follow one another in the order of
    their first patch. The order stays prefix-nested, and with `per_frame` 1 it is the one given.

    Args:
        images: [M] the frame of each patch, in order of choice.
    """
    _, frame, counts = np.unique(images, return_inverse=True, return_counts=True)
    by_frame = np.argsort(frame, kind="stable")
    within = np.empty(len(images), dtype=np.int64)
    within[by_frame] = np.arange(len(images)) - np.repeat(np.cumsum(counts) - counts, counts)
    block = frame * len(images) + within // per_frame
    _, first, number = np.unique(block, return_index=True, return_inverse=True)
    return np.argsort(first[number], kind="stable")
