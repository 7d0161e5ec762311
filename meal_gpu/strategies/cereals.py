"""Entropy per effort: what a patch tells, over what labelling it is estimated to take."""

import math

import torch

from meal_gpu.strategies.base import Measure, ranking

# Assumptions, as those of `annotate.cost`: a vertex every 12 pixels of an outline, which is π/4 as long as
# the steps of its pixels, and as much time to look at a patch as for 3 clicks and a third
PIXELS_A_CLICK = 12.0
LOOKING = 10 / 3


def clicks(boundary: torch.Tensor) -> torch.Tensor:
    """[P] pixels of predicted boundary -> [P] estimated effort, in clicks."""
    return LOOKING + boundary * (math.pi / 4 / PIXELS_A_CLICK)


MEASURE = Measure(
    name="cereals",
    summary="entropy per click, estimated by the predicted boundaries",
    source="after Mackowiak et al. 2018, with a given cost model for a learned one",
    values=lambda pool: pool.uncertainty("entropy") / clicks(pool.boundary()),
    needs=("boundary",),
)
STRATEGY = ranking(MEASURE)
