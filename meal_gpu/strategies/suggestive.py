"""Suggestive annotation: of the most uncertain patches those that are most like the rest of the pool."""

import torch
import torch.nn.functional as F

from meal_gpu.strategies.base import Pool, Selection, Strategy


def max_cover(similarity: torch.Tensor, n: int) -> torch.Tensor:
    """n <= K rows of [K, U], greedily, that raise the sum over U of the highest similarity most."""
    cover = similarity.new_full((similarity.shape[1],), -1.0)  # the least cosine
    taken = similarity.new_zeros(len(similarity))
    picks = []
    for _ in range(n):
        gains = (similarity - cover).clamp_(min=0).sum(dim=1) - taken
        row = gains.argmax(dim=0, keepdim=True)
        cover = torch.maximum(cover, similarity[row][0])
        taken.index_fill_(0, row, torch.inf)
        picks.append(row)
    return torch.cat(picks)


def select(pool: Pool) -> Selection:
    candidates = pool.candidates()
    if len(candidates) <= pool.n:
        return Selection(candidates, pool.scores())
    chosen = F.normalize(pool.features(candidates))
    rest = F.normalize(pool.features(pool.unlabelled))
    return Selection(candidates[max_cover(chosen @ rest.T, pool.n)], pool.scores())


STRATEGY = Strategy(
    name="suggestive",
    summary="of the candidates those that cover the pool best by cosine similarity",
    source="Yang et al. 2017, Algorithm 1, with the pool's measure for the uncertainty",
    choice=select,
    measured=True,
)
