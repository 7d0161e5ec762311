"""What measures and strategies see and return. There are no labels in it: acquisition cannot peek."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from meal_gpu.manifold import Manifold
from meal_gpu.ops import Committee, Ops, PatchClasses


class Pool(Protocol):
    """The scored pool. Costly parts are methods: who calls them pays, once.

    P is the number of all patches, by id; U that of the unlabelled ones.
    """

    @property
    def n(self) -> int:
        """How many patches to choose: at most the number of unlabelled ones."""
        ...

    @property
    def step(self) -> int:
        """k, from 1 on."""
        ...

    @property
    def dimension(self) -> int:
        """d, of embeddings."""
        ...

    @property
    def unlabelled(self) -> torch.Tensor:
        """[U] int64 patch ids, ascending."""
        ...

    @property
    def labelled(self) -> torch.Tensor:
        """[L] int64 patch ids, ascending."""
        ...

    @property
    def ops(self) -> Ops: ...

    def uncertainty(self, measure: str) -> torch.Tensor:
        """[P] float32: a patch's mean of one of `ops.MEASURES`."""
        ...

    def classes(self) -> PatchClasses:
        """[P, C] each: mean probabilities, and how many pixels are predicted to be of each class."""
        ...

    def boundary(self) -> torch.Tensor:
        """[P] float32: the length of the predicted boundaries, in pixels."""
        ...

    def committee(self, of: str) -> Committee:
        """[P] each, for passes with "dropout", the "members" of an ensemble, or "mirrored" images."""
        ...

    def scores(self) -> torch.Tensor:
        """[P] float32: the pool's measure, the entropy where no other was chosen."""
        ...

    def candidates(self) -> torch.Tensor:
        """[min(N_I, U)] int64: the unlabelled patches of highest score; ties go to the lower id."""
        ...

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        """[M] ids -> [M, D] float32 from the trained encoder."""
        ...

    def manifold(self) -> Manifold | None:
        """Φ, fitted on the whole pool before the first step; None: the pool is too small for a UMAP."""
        ...

    def fit_manifold(self, features: torch.Tensor) -> Manifold | None:
        """A UMAP of this step's own, fitted on `features` [M, D]; None: M is too small for one."""
        ...

    def uniforms(self, purpose: str, n: int) -> torch.Tensor:
        """[n] float64 in [0, 1) on the CPU: the draws of this step for `purpose`."""
        ...


@dataclass(frozen=True)
class Selection:
    """`patches` [n] int64 in order of choice; what ranked them and where they lie, where there is such.

    `scores` [P]; `embedding` [M, d] of the patches `embedded` [M].
    """

    patches: torch.Tensor
    scores: torch.Tensor | None = None
    embedded: torch.Tensor | None = None
    embedding: torch.Tensor | None = None


@dataclass(frozen=True)
class Measure:
    """What a patch is ranked by: `values` gives [P] float32, higher is more informative.

    `needs` names what it reads besides the entropy, so that one pass over the pool gives all: "classes",
    "boundary" and others of `ops.MEASURES`.
    """

    name: str
    summary: str
    source: str
    values: Callable[[Pool], torch.Tensor]
    needs: tuple[str, ...] = ()
    members: bool = False  # of an ensemble, which must be trained


@dataclass(frozen=True)
class Strategy:
    """A name, one line on what it does, its source, and the choice itself.

    `choice` is asked for one patch or more. `needs` and `members` as in `Measure`; `manifold`: it needs Φ;
    `measured`: by the pool's measure, whatever that is; `calibrated`: logits are divided by a temperature
    that was fitted on images which the network was not trained on, or is given; `nested`: the first k of the
    n patches are those of a query of k, but where n takes all candidates.
    """

    name: str
    summary: str
    source: str
    choice: Callable[[Pool], Selection]
    needs: tuple[str, ...] = ()
    members: bool = False
    manifold: bool = False
    measured: bool = False
    calibrated: bool = False
    nested: bool = True

    def select(self, pool: Pool) -> Selection:
        """The `pool.n` patches to label next, distinct and unlabelled."""
        return self.choice(pool) if pool.n else Selection(pool.unlabelled[:0])


def highest(values: torch.Tensor, of: torch.Tensor, n: int) -> torch.Tensor:
    """The n patches of highest value among `of` [U] int64 ascending, by `values` [P]; -> [min(n, U)].

    Equal values: the lower id first. NaN counts as infinite. `n` is at least 1. The device is not waited for.
    """
    among = values[of].nan_to_num(torch.inf, torch.inf, -torch.inf)
    if n < len(of):
        least = among.topk(n).values[-1]
        above, equal = among > least, among == least
        taken = above | equal & (equal.cumsum(0) <= n - above.sum())
        places = torch.nonzero_static(taken, size=n)[:, 0]
        of, among = of[places], among[places]
    return of[among.argsort(descending=True, stable=True)]


def ranking(measure: Measure) -> Strategy:
    """The strategy that takes the patches of highest value."""

    def select(pool: Pool) -> Selection:
        values = measure.values(pool)
        return Selection(highest(values, pool.unlabelled, pool.n), values)

    return Strategy(
        measure.name, measure.summary, measure.source, select, needs=measure.needs, members=measure.members
    )


def seed_over(pool: Pool, embed: Callable[[torch.Tensor], torch.Tensor | None]) -> Selection:
    """K-Means++ seeding over the candidates, [M] ids of which `embed` gives the [M, d] embedding.

    Where nothing is left to spread, because all candidates are taken or they are too few for a UMAP (None),
    those of highest score are chosen.
    """
    candidates = pool.candidates()
    embedding = embed(candidates) if len(candidates) > pool.n else None
    if embedding is None:
        return Selection(candidates[: pool.n], pool.scores())
    draws = pool.uniforms("kmeans_plusplus", pool.n)[:, None]
    rows = pool.ops.kmeans_plusplus(embedding, draws, None)
    return Selection(candidates.to(rows.device)[rows], pool.scores(), candidates, embedding)
