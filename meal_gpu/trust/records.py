"""What a run folder alone says of one patch in one query: rank, draw, neighbours among the candidates."""

from dataclasses import dataclass

import torch

from meal_gpu import frame as frames
from meal_gpu import strategies
from meal_gpu.errors import RunError
from meal_gpu.grid import Grid
from meal_gpu.ledger import Ledger
from meal_gpu.record import RunFolder
from meal_gpu.strategies.base import highest
from meal_gpu.trust.opening import recorded
from meal_gpu.trust.seeding import seeding

RUNNING = 3  # neighbours that are named


@dataclass(frozen=True)
class Ranking:
    """Where a patch stood among the `open` ones, which the strategy could choose from; ranks start at 1.

    Attributes:
        measure: what `score` is, the pool's measure or the strategy's own; it is that of the step's model,
            and of "entropy" in nats.
        candidates: how many there were; None where the strategy proposes none.
        margin: of a strategy that takes the highest: the score less that of the first patch not taken, or
            of the last one taken where this patch was not (then at most 0); None where there is none.
    """

    measure: str
    score: float
    rank: int
    open: int
    candidates: int | None
    margin: float | None

    @property
    def candidate(self) -> bool:
        return self.candidates is not None and self.rank <= self.candidates


@dataclass(frozen=True)
class Draw:
    """What K-Means++ seeding made of a candidate; potentials are sums of squared distances, in float64.

    Attributes:
        chance: with which probability it was taken by its draw; where it was not taken, with which one of
            all the draws would have, each given those before it.
        equal: the same for draws without regard to distances.
        coincident: how many other candidates lie in the very same place.
        before, after: the potential around its draw; None before the first, which knows no distance, and
            where it was not taken.
        removed: the share of `before` that went with it.
        removed_rank: its place by `removed` among the draws from the second on.
    """

    chance: float
    equal: float
    coincident: int
    before: float | None = None
    after: float | None = None
    removed: float | None = None
    removed_rank: int | None = None


@dataclass(frozen=True)
class Near:
    """Another patch, and how far it is, or how alike (cosine)."""

    patch: int
    value: float


class Records:
    """The records of step `step`, on the CPU.

    Attributes:
        chosen: ids that the strategy chose, in order of choice.
        control: ids that were drawn for the control arm.
        open: [U] ids, ascending, that the strategy could choose from.
        scores: [P] float32, or None where the strategy ranks nothing.
        candidates: [M] ids by falling score, or None.
        points: [M, d] float32 the candidates' embedding; None where they were not seeded over.
    """

    def __init__(self, folder: RunFolder, step: int) -> None:
        strategy = strategies.get(folder.config.strategy)
        self._path = folder.step(step) / "query.parquet"
        self._ranked = strategy.name in strategies.MEASURES
        self.measure = folder.config.measure if strategy.measured else strategy.name
        query = recorded(folder, step)
        arms = query["arm"].tolist() if "arm" in query else ["strategy"] * len(query)
        arms_of = dict(zip(query["patch"].tolist(), arms, strict=True))
        self.chosen = [patch for patch, arm in arms_of.items() if arm != "control"]
        self.control = [patch for patch, arm in arms_of.items() if arm == "control"]
        before = Ledger.read(folder.step(step - 1) / "ledger.parquet")
        self.grid: Grid = before.grid
        self.names = before.names
        self.since = frames.tensor(before.frame["step"])
        unlabelled = before.unlabelled()
        self.open = unlabelled[~torch.isin(unlabelled, torch.tensor(self.control, dtype=torch.int64))]
        after = Ledger.read(folder.step(step) / "ledger.parquet").frame
        scores = frames.tensor(after["score"])
        self.scores = None if bool(scores.isnan().all()) else scores
        self.candidates: torch.Tensor | None = None
        self.points: torch.Tensor | None = None
        if strategy.measured and self.scores is not None:
            self.candidates = highest(self.scores, self.open, folder.config.candidates)
            self._read_embedding(after)

    def _read_embedding(self, after: frames.Frame) -> None:
        assert self.candidates is not None
        axes = [name for name in after.columns if str(name).startswith("embedding_")]
        if not axes:
            return
        points = torch.stack([frames.tensor(after[name]) for name in axes], dim=1)
        known = (~points.isnan().any(dim=1)).nonzero().flatten()
        # Where all candidates were taken nothing was embedded, and an earlier step's embedding stands there
        if 0 < len(self.chosen) < len(self.candidates) and torch.equal(known, self.candidates.sort().values):
            self.points = points[self.candidates]

    def ranking(self, patch: int) -> Ranking | None:
        """None where the strategy ranks nothing, or the patch was not open. A control patch: as if it was."""
        if self.scores is None or int(self.since[patch]) >= 0:
            return None
        among = self.open
        if patch in self.control:
            among = torch.cat([among, torch.tensor([patch])]).sort().values
        order = highest(self.scores, among, len(among))
        rank = int((order == patch).nonzero()[0]) + 1
        margin = None
        n = len(self.chosen)
        if self._ranked and n and patch not in self.control:
            if rank > n:
                margin = float(self.scores[patch] - self.scores[order[n - 1]])
            elif n < len(order):
                margin = float(self.scores[patch] - self.scores[order[n]])
        candidates = None if self.candidates is None else len(self.candidates)
        return Ranking(self.measure, float(self.scores[patch]), rank, len(among), candidates, margin)

    def draw(self, patch: int) -> Draw | None:
        """None where nothing was seeded, or the patch was no candidate."""
        row = self._row(patch)
        if self.points is None or row is None:
            return None
        found = seeding(self.points, torch.tensor(self._chosen_rows()))
        m, n = len(self.points), len(self.chosen)
        coincident = int((self.points == self.points[row]).all(dim=1).sum()) - 1
        if patch not in self.chosen:
            # A product of the chances to be left out; log1p keeps small ones
            left_out = torch.log1p(-found.chances[:, row]).sum()
            return Draw(float(-torch.expm1(left_out)), n / m, coincident)
        at = self.chosen.index(patch)
        chance, equal, after = float(found.chances[at, row]), 1 / (m - at), float(found.potential[at + 1])
        if at == 0:
            return Draw(chance, equal, coincident, after=after)
        share = found.removed[1:]
        return Draw(
            chance, equal, coincident, float(found.potential[at]), after, removed=float(share[at - 1]),
            removed_rank=1 + int((share > share[at - 1]).sum()),
        )  # fmt: skip

    def running(self, patch: int, *, chosen: bool) -> tuple[Near, ...]:
        """The candidates nearest to `patch` in the embedding: of those chosen, or of those that were not."""
        row = self._row(patch)
        if self.points is None or self.candidates is None or row is None:
            return ()
        apart = (self.points.double() - self.points[row].double()).square().sum(dim=1).sqrt()
        wanted = torch.isin(self.candidates, torch.tensor(self.chosen)) == chosen
        wanted[row] = False
        rows = wanted.nonzero().flatten()
        rows = rows[apart[rows].argsort(stable=True)[:RUNNING]]
        return tuple(Near(int(self.candidates[i]), float(apart[i])) for i in rows)

    def point(self, patch: int) -> torch.Tensor | None:
        """[d] float32 of a candidate that was embedded."""
        row = self._row(patch)
        return None if self.points is None or row is None else self.points[row]

    def _row(self, patch: int) -> int | None:
        if self.candidates is None:
            return None
        found = (self.candidates == patch).nonzero()
        return int(found[0]) if len(found) else None

    def _chosen_rows(self) -> list[int]:
        rows = []
        for patch in self.chosen:
            row = self._row(patch)
            if row is None:
                raise RunError(
                    f"{self._path}: patch {patch} was no candidate by the ledger beside it: one of the two "
                    "files was changed"
                )
            rows.append(row)
        return rows
