"""What labelling costs, estimated from the model's own prediction before anything is paid.

The model is linear: a patch takes `patch` seconds to look at, every polygon vertex `click` seconds, and every
frame that must be opened `frame` seconds once. A patch takes one vertex per `vertex` pixels of predicted
boundary, and at least three for every region. The defaults are assumptions to be replaced by figures of your
own team (`--cost click=1.1,frame=8`): what holds is the order in which patches compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from meal_gpu.annotate.asked import VOID, Item
from meal_gpu.annotate.pictures import Pixels
from meal_gpu.errors import ConfigError

_ISOTROPIC = (
    np.pi / 4
)  # the length of a curve over that of the pixel edges along it, averaged over directions

LEAST_CLICKS = 3.0
"""Of a region."""


@dataclass(frozen=True)
class CostModel:
    """Seconds per patch, click and frame; `vertex` pixels of boundary for each click."""

    patch: float = 5.0
    click: float = 1.5
    frame: float = 20.0
    vertex: float = 12.0

    @classmethod
    def parse(cls, text: str) -> "CostModel":
        """Such as "click=1.1,frame=8"; what is not named keeps its default. Raises ConfigError."""
        known = [field.name for field in fields(cls)]
        values: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            key, _, number = (piece.strip() for piece in part.partition("="))
            try:
                values[key] = float(number)
            except ValueError:
                raise ConfigError(f"cost {part!r}: expected NAME=SECONDS, such as click=1.1") from None
            if key not in known:
                raise ConfigError(f"cost {key!r} is unknown; known: {', '.join(known)}")
            if not (0 <= values[key] < np.inf) or (key == "vertex" and not values[key]):
                raise ConfigError(
                    f"cost {key} is {number}; it must be {'above' if key == 'vertex' else 'at least'} 0"
                )
        return replace(cls(), **values)

    def clicks(self, mask: Pixels) -> float:
        """Polygon vertices for a predicted mask [h, w] uint8, a boundary between two regions counted once."""
        known = mask != VOID
        across = (mask[:, 1:] != mask[:, :-1]) & known[:, 1:] & known[:, :-1]
        down = (mask[1:] != mask[:-1]) & known[1:] & known[:-1]
        length = _ISOTROPIC * (int(across.sum()) + int(down.sum()))
        return max(length / self.vertex, LEAST_CLICKS * regions(mask))

    def seconds(self, clicks: float) -> float:
        """For a patch whose frame is open."""
        return self.patch + self.click * clicks

    def totals(self, items: Sequence[Item]) -> "Totals":
        """What the first 1, 2, … items take."""
        opened: set[str] = set()
        first = np.zeros(len(items))
        for i, item in enumerate(items):
            first[i] = item.image not in opened
            opened.add(item.image)
        seconds = np.array([item.seconds for item in items]) + self.frame * first
        return Totals(
            np.cumsum([item.clicks for item in items]),
            np.cumsum(seconds) / 3600,
            np.cumsum(first).astype(int),
        )


@dataclass(frozen=True)
class Totals:
    """Of the first 1, 2, …, n items: [n] clicks, hours and frames to open."""

    clicks: NDArray[np.float64]
    hours: NDArray[np.float64]
    frames: NDArray[np.int64]


def regions(mask: Pixels) -> int:
    """How many 4-connected regions of one class a mask [h, w] has, void left out."""
    from scipy import ndimage

    return sum(int(ndimage.label(mask == train_id)[1]) for train_id in np.unique(mask[mask != VOID]))
