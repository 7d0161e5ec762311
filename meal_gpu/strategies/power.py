"""Entropy with noise: the patches are drawn, without replacement, with chances in proportion to it."""

import torch

from meal_gpu.strategies.base import Measure, Pool, ranking

_LEAST = 1e-12  # log 0


def noised(scores: torch.Tensor, pool: Pool, coldness: float = 1.0) -> torch.Tensor:
    """[P] scores >= 0 -> [P] float32: coldness · log score + Gumbel(0, 1), a draw for every unlabelled patch.

    The n highest are n draws without replacement with weights score^coldness (Kool et al. 2019).
    """
    draws = pool.uniforms("power", len(pool.unlabelled)).clamp(min=_LEAST)
    gumbel = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    gumbel[pool.unlabelled] = -(-draws.log()).log().to(scores.device, non_blocking=True)
    return (coldness * scores.double().clamp(min=_LEAST).log() + gumbel).float()


MEASURE = Measure(
    name="power",
    summary="drawn with chances in proportion to the entropy (Gumbel noise on its logarithm)",
    source="Kirsch et al. 2023, power acquisition, beta = 1",
    values=lambda pool: noised(pool.uncertainty("entropy"), pool),
)
STRATEGY = ranking(MEASURE)
