"""How much a query depends on what should not matter: UMAP's seed, precision; and, as a scale, its draws."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from meal_gpu import rng, strategies
from meal_gpu.errors import MealGpuError
from meal_gpu.learner import Learner, fit_manifold
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold
from meal_gpu.ops.public import whole
from meal_gpu.passes import ImageSet
from meal_gpu.preparation import Experiment, Monitor, Silent
from meal_gpu.strategies.base import Selection
from meal_gpu.trust.opening import Past, here, open_past, open_run, recorded, scored_pool
from meal_gpu.trust.variant import Variant

RANDOM_CHOICES = 20


@dataclass(frozen=True)
class Outcome:
    """A query beside the one as made; None where the strategy has no candidates or no embedding.

    Attributes:
        chosen: overlap of the chosen patches, |A ∩ B| / |A ∪ B|.
        candidates: overlap of the candidates.
        coverage: mean distance of the base's candidates to the nearest chosen patch, in the base's embedding,
            over that of the base: 1 covers them as well, above 1 worse.
        random: the same over the mean of `RANDOM_CHOICES` uniform choices of candidates.
    """

    chosen: float
    candidates: float | None
    coverage: float | None
    random: float | None


@dataclass(frozen=True)
class Change:
    """One thing that was changed, once per seed; without `outcomes`, `problem` says why it could not be."""

    name: str
    outcomes: tuple[Outcome, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Stability:
    """The query of a step and its changes, the first of which changes nothing.

    Attributes:
        candidates, places: how many candidates were embedded, and in how many different places they lie: few
            of them, and K-Means++ has little to tell candidates apart by. None without an embedding.
        as_recorded: whether the query as made here is the recorded one; None where none is recorded.
    """

    step: int
    strategy: str
    changes: tuple[Change, ...]
    candidates: int | None = None
    places: int | None = None
    as_recorded: bool | None = None

    def text(self) -> str:
        """A table: means, and the range over seeds."""
        lines = [f"step {self.step} ({self.strategy}): the query when something else changes"]
        header = ("", "chosen", "candidates", "coverage", "of random")
        rows = [header, *(_cells(change) for change in self.changes if change.outcomes)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [f"  {change.name}: {change.problem}" for change in self.changes if change.problem]
        lines.append(
            "  chosen, candidates: overlap, 1 is the same; coverage: mean distance of candidates to the "
            "chosen over that of this query, and of random choices"
        )
        if self.places is not None:
            lines.append(f"  embedding: {self.candidates} candidates in {self.places} different places")
        if self.as_recorded is False:
            lines.append("  the query as made here is not the recorded one: see `meal-gpu replay`")
        return "\n".join(lines)


def stability(
    run: Path, step: int, *, seeds: int = 5, device: str | None = None, root: Path | None = None,
    monitor: Monitor | None = None,
) -> Stability:  # fmt: skip
    """Make the query of step `step` of a run again, and with one thing changed at a time; see `examine`.

    Raises:
        InputError: `seeds` below 1.
        RunError, DataError, UnavailableError: as `replay`.
    """
    whole("seeds", seeds, 1)
    monitor = monitor or Silent()
    folder = open_run(run, step, least=1)
    frame = recorded(folder, step)
    past = open_past(folder, step, here(folder.config, device, root), monitor)
    found = [] if "arm" not in frame else (frame["arm"] == "control").tolist()
    patches = [p for p, drawn in zip(frame["patch"], found or [False] * len(frame), strict=True) if not drawn]
    return _examine(past, seeds, monitor, patches)


def examine(
    experiment: Experiment, learner: Learner, manifold: Manifold | None, ledger: Ledger, step: int, *,
    seeds: int = 5, monitor: Monitor | None = None,
) -> Stability:  # fmt: skip
    """The stability of a query that is made from these, as `experiment.acquire` takes them.

    Each change is made alone: other seeds for UMAP, where the strategy embeds by one (Φ is fitted anew on the
    features it was fitted on); the other precision of the forward passes, bfloat16 or float32, with Φ as it
    is; other draws, where it draws, as a scale for the rest. Patches of the control arm are left out. It
    costs two passes over the pool, and `seeds` fits; nothing given is changed.

    Raises:
        InputError: `seeds` below 1.
    """
    whole("seeds", seeds, 1)
    return _examine(Past(experiment, learner, manifold, ledger, step), seeds, monitor or Silent(), None)


def stability_lines(
    experiment: Experiment, learner: Learner, manifold: Manifold | None, ledger: Ledger, step: int, *,
    seeds: int = 5, monitor: Monitor | None = None,
) -> list[str]:  # fmt: skip
    """`examine` as lines to print beside a query, before its patches are labelled."""
    return (
        examine(experiment, learner, manifold, ledger, step, seeds=seeds, monitor=monitor).text().split("\n")
    )


def coverage(points: torch.Tensor, centres: torch.Tensor) -> float:
    """[M, d], [n, d] -> the mean distance of the points to their nearest centre, in float64."""
    apart = torch.cdist(points.double(), centres.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return float(apart.min(dim=1).values.mean())


def _examine(past: Past, seeds: int, monitor: Monitor, known: list[int] | None) -> Stability:
    config = past.experiment.config
    base = Variant(scored_pool(past))
    with monitor.stage(f"step {past.step}: stability", 1) as advance:
        selection = base.chosen(config.strategy)
        judge = _Judge(past, base, selection)
        changes = (Change("nothing", (judge(base, selection),)), *_changes(past, base, judge, seeds))
        advance(1)
    same = None if known is None else selection.patches.tolist() == known
    places = candidates = None
    if selection.embedding is not None:
        candidates, places = len(selection.embedding), len(torch.unique(selection.embedding, dim=0))
    return Stability(past.step, config.strategy, changes, candidates, places, same)


def _changes(past: Past, base: Variant, judge: "_Judge", seeds: int) -> Iterator[Change]:
    config, pool = past.experiment.config, past.experiment.pool

    def outcome(variant: Variant) -> Outcome:
        return judge(variant, variant.chosen(config.strategy))

    if base.umap is not None:
        yield Change("UMAP's seed", tuple(outcome(v) for v in _other_umaps(past, base, seeds)))
    other = "bfloat16" if config.precision == "float32" else "float32"
    try:
        images = ImageSet(pool.images, pool.ops, precision=other)
        yield Change(f"{config.precision} → {other}", (outcome(Variant(scored_pool(past, images))),))
    except (RuntimeError, MealGpuError) as error:  # torch has no such operation here, or values overflow
        yield Change(f"{config.precision} → {other}", problem=str(error).split("\n", 1)[0])
    if base.drew:
        yield Change("the draws", tuple(outcome(Variant(base, draws=number)) for number in range(seeds)))


def _other_umaps(past: Past, base: Variant, seeds: int) -> Iterator[Variant]:
    config = past.experiment.config
    for number in range(seeds):
        seed = rng.integer(config.seed, past.step, f"manifold, again {number}")
        if past.manifold is None:
            yield Variant(base, refit=seed)
            continue
        yield Variant(base, manifold=fit_manifold(past.experiment, past.manifold.features, seed))


class _Judge:
    """Compares selections with the base's."""

    def __init__(self, past: Past, base: Variant, selection: Selection) -> None:
        config = past.experiment.config
        self._measured = strategies.get(config.strategy).measured
        self._patches = selection.patches
        self._candidates = base.candidates() if self._measured else None
        self._points: torch.Tensor | None = None
        self._embed: Callable[[torch.Tensor], torch.Tensor] | None = None
        if selection.embedded is None or selection.embedding is None:
            return
        self._points = selection.embedding.double()
        self._embedded = selection.embedded
        self._embed = base.embedder(selection)
        self._base = coverage(self._points, self._places(selection.patches))
        draws = rng.stream(config.seed, past.step, "stability")
        n, m = len(selection.patches), len(self._points)
        choices = [torch.from_numpy(draws.permutation(m)[:n]) for _ in range(RANDOM_CHOICES)]
        points = self._points
        self._random = float(np.mean([coverage(points, points[rows.to(points.device)]) for rows in choices]))

    def __call__(self, variant: Variant, selection: Selection) -> Outcome:
        candidates = None
        if self._candidates is not None:
            candidates = _overlap(variant.candidates(), self._candidates)
        over_base = over_random = None
        if self._points is not None:
            here_ = coverage(self._points, self._places(selection.patches))
            over_base, over_random = _ratio(here_, self._base), _ratio(here_, self._random)
        return Outcome(_overlap(selection.patches, self._patches), candidates, over_base, over_random)

    def _places(self, patches: torch.Tensor) -> torch.Tensor:
        """[n, d] in the base's embedding; of patches that were none of its candidates, embedded now."""
        assert self._points is not None and self._embed is not None
        patches = patches.to(self._embedded.device)
        inside = torch.isin(patches, self._embedded)
        ascending, order = self._embedded.sort()
        places = [self._points[order[torch.searchsorted(ascending, patches[inside])].to(self._points.device)]]
        if len(outside := patches[~inside]):
            places.append(self._embed(outside))
        return torch.cat(places)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    first, second = set(a.tolist()), set(b.tolist())
    return len(first & second) / max(1, len(first | second))


def _ratio(value: float, scale: float) -> float | None:
    """None where the candidates all coincide with chosen ones on one side alone."""
    if scale:
        return value / scale
    return None if value else 1.0


def _cells(change: Change) -> tuple[str, ...]:
    columns = zip(*((o.chosen, o.candidates, o.coverage, o.random) for o in change.outcomes), strict=True)
    return (change.name, *(_cell([value for value in column if value is not None]) for column in columns))


def _cell(values: list[float]) -> str:
    if not values:
        return "–"
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"
