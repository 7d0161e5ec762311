"""What a strategy sees and returns. There are no labels in it: acquisition cannot peek."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from meal_gpu.manifold import Manifold
from meal_gpu.ops import Ops


class Pool(Protocol):
    """The scored pool. Costly parts are methods: a strategy pays for what it calls."""

    @property
    def n(self) -> int:
        """How many patches to choose: at most the number of unlabelled ones."""
        ...

    @property
    def unlabelled(self) -> torch.Tensor:
        """[U] int64 patch ids, ascending."""
        ...

    @property
    def ops(self) -> Ops: ...

    def scores(self) -> torch.Tensor:
        """[P] float32: the entropy of every patch of the pool, by patch id."""
        ...

    def candidates(self) -> torch.Tensor:
        """[min(N_I, U)] int64: the unlabelled patches of highest score; ties go to the lower id."""
        ...

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        """[M] ids -> [M, D] float32 from the trained encoder."""
        ...

    def manifold(self) -> Manifold:
        """Φ, fitted on the whole pool before the first step."""
        ...

    def fit_manifold(self, features: torch.Tensor) -> Manifold:
        """A UMAP of this step's own, fitted on `features` [M, D]."""
        ...

    def uniforms(self, purpose: str, n: int) -> torch.Tensor:
        """[n] float64 in [0, 1): the draws of this step for `purpose`."""
        ...


@dataclass(frozen=True)
class Selection:
    """`patches` [n] int64 in order of choice; `embedding` [M, d] of `embedded` [M] where there is one."""

    patches: torch.Tensor
    embedded: torch.Tensor | None = None
    embedding: torch.Tensor | None = None


@dataclass(frozen=True)
class Strategy:
    """A name, one line on what it does, its source, whether it needs Φ, and the choice itself."""

    name: str
    summary: str
    source: str
    select: Callable[[Pool], Selection]
    needs_manifold: bool = False


def seed_over(pool: Pool, embed: Callable[[torch.Tensor], torch.Tensor]) -> Selection:
    """K-Means++ seeding over the candidates, [M] ids of which `embed` gives the [M, d] embedding."""
    candidates = pool.candidates()
    if len(candidates) <= pool.n:
        return Selection(candidates)  # all are taken; too few, perhaps, for a UMAP
    embedding = embed(candidates)
    draws = pool.uniforms("kmeans_plusplus", pool.n)[:, None]
    rows = pool.ops.kmeans_plusplus(embedding, draws, None)
    return Selection(candidates.to(rows.device)[rows], candidates, embedding)
