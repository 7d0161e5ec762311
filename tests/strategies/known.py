"""A pool of which everything is known by hand, for strategies and measures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from meal_gpu import rng
from meal_gpu.manifold import Manifold
from meal_gpu.ops import Committee, Ops, PatchClasses, reference
from meal_gpu.strategies import Pool, Selection, get, get_measure
from meal_gpu.strategies.base import highest

# Draws of which there is one for every unlabelled patch
PER_PATCH = ("random", "power")


class Doubled(Manifold):
    """An embedding that is known: twice the features."""

    def __init__(self, embedding: torch.Tensor | None = None) -> None:
        if embedding is not None:
            self.embedding = embedding

    def transform(self, features: torch.Tensor, *, check: bool = True) -> torch.Tensor:
        return 2 * features


@dataclass
class Known:
    """A pool by hand; it records what it was asked for.

    `entropies` [P]; where nothing else is given patch p has the features (p, 0), and no classes, boundaries
    and committees, which then must not be asked for. `draws` by purpose, [P] of those in PER_PATCH, stand in
    for the numbers of `seed` and `step`. `committees` are (total [P], expected [P]).
    """

    entropies: Sequence[float]
    n: int
    limit: int = 200
    taken: tuple[int, ...] = ()
    seed: int = 0
    step: int = 1
    dimension: int = 2
    measure: str = "entropy"
    others: dict[str, Sequence[float]] = field(default_factory=dict)  # margin, least-confidence
    points: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    committees: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    draws: dict[str, torch.Tensor] = field(default_factory=dict)
    ops: Ops = reference
    asked: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entropies)

    @property
    def labelled(self) -> torch.Tensor:
        return torch.tensor(sorted(self.taken), dtype=torch.int64)

    @property
    def unlabelled(self) -> torch.Tensor:
        everything = torch.arange(len(self))
        return everything[~torch.isin(everything, self.labelled)]

    def uncertainty(self, measure: str) -> torch.Tensor:
        self.asked.append(measure)
        return torch.tensor(self.entropies if measure == "entropy" else self.others[measure])

    def classes(self) -> PatchClasses:
        self.asked.append("classes")
        assert self.counts is not None
        shares = self.counts / self.counts.sum(dim=1, keepdim=True)
        return PatchClasses(shares if self.probabilities is None else self.probabilities, self.counts)

    def boundary(self) -> torch.Tensor:
        self.asked.append("boundary")
        assert self.lengths is not None
        return self.lengths

    def committee(self, of: str) -> Committee:
        self.asked.append(of)
        return Committee(*self.committees[of])

    def scores(self) -> torch.Tensor:
        return get_measure(self.measure).values(self)

    def candidates(self) -> torch.Tensor:
        return highest(self.scores(), self.unlabelled, self.limit)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        self.asked.append(f"features of {len(patches)}")
        if self.points is not None:
            return self.points[patches]
        return torch.stack([patches.float(), torch.zeros(len(patches))], dim=1)

    def manifold(self) -> Manifold:
        self.asked.append("manifold")
        return Doubled()

    def fit_manifold(self, features: torch.Tensor) -> Manifold:
        self.asked.append(f"fit of {len(features)}")
        return Doubled(2 * features)

    def uniforms(self, purpose: str, n: int) -> torch.Tensor:
        if purpose in self.draws:
            drawn = self.draws[purpose].double()
            return drawn[self.unlabelled] if purpose in PER_PATCH else drawn[:n]
        return rng.uniforms(self.seed, self.step, purpose, n)


def select(name: str, pool: Known) -> Selection:
    checked: Pool = pool  # mypy holds the fake to the Protocol
    return get(name).select(checked)


def chosen(name: str, pool: Known) -> list[int]:
    return select(name, pool).patches.tolist()


def values(name: str, pool: Known) -> torch.Tensor:
    checked: Pool = pool
    return get_measure(name).values(checked)


def generic(
    patches: int, n: int, *, labelled: int = 0, limit: int = 200, classes: int = 4, seed: int = 0
) -> Known:
    """Random everything, so that no two values are equal; `labelled` patches, anywhere, are."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    def committee() -> tuple[torch.Tensor, torch.Tensor]:
        total = uniform(patches)
        return total, total * uniform(patches)

    # 997 pixels a patch in shares that differ
    probabilities = (uniform(patches, classes) * 3).softmax(dim=1)
    counts = (probabilities * 997).int()
    taken = torch.randperm(patches, generator=generator)[:labelled]
    return Known(
        uniform(patches).tolist(), n, limit, tuple(taken.tolist()), seed,
        others={name: uniform(patches).tolist() for name in ("margin", "least-confidence")},
        points=torch.randn(patches, 6, generator=generator), probabilities=probabilities, counts=counts,
        lengths=60 * uniform(patches),
        committees={of: committee() for of in ("dropout", "members", "mirrored")},
        draws={purpose: uniform(patches).double() for purpose in PER_PATCH},
    )  # fmt: skip


def permuted(pool: Known, to: torch.Tensor) -> Known:
    """The same patches under other ids: what was patch p is patch `to[p]`, to [P] a permutation."""
    back = to.argsort()

    def moved(values: Sequence[float]) -> list[float]:
        return torch.tensor(values)[back].tolist()

    def move(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values[back]

    return replace(
        pool, entropies=moved(pool.entropies), taken=tuple(to[list(pool.taken)].tolist()),
        others={name: moved(values) for name, values in pool.others.items()}, points=move(pool.points),
        probabilities=move(pool.probabilities), counts=move(pool.counts), lengths=move(pool.lengths),
        committees={of: (total[back], expected[back]) for of, (total, expected) in pool.committees.items()},
        draws={purpose: values[back] for purpose, values in pool.draws.items()}, asked=[],
    )  # fmt: skip
