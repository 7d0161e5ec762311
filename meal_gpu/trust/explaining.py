"""Why a query has this patch, or has it not."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from meal_gpu import strategies
from meal_gpu.errors import InputError, MealGpuError
from meal_gpu.images.sources import Part
from meal_gpu.passes import ImageSet
from meal_gpu.preparation import Monitor, Silent
from meal_gpu.record import RunFolder
from meal_gpu.scoring import score_pool
from meal_gpu.trust.opening import Past, here, open_past, open_run, scored_pool
from meal_gpu.trust.records import Draw, Near, Ranking, Records
from meal_gpu.trust.variant import Variant

_CLASSES = 3


@dataclass(frozen=True)
class Seen:
    """What the model that asked makes of a patch.

    Attributes:
        classes: the most frequent predicted classes, with their shares of the pixels.
        nearest: the labelled patch nearest in the embedding; None where it has no place there.
        alike: the labelled patch of most similar features, by the cosine; None for a labelled one.
    """

    classes: tuple[tuple[str, float], ...]
    nearest: Near | None
    alike: Near | None


@dataclass(frozen=True)
class Explanation:
    """One patch and one query.

    Attributes:
        image, box: where it is; left, top, right, bottom in pixels, the last two exclusive.
        outcome: "chosen", "control", "labelled", "candidate" (not drawn), "open" (neither).
        reason: the outcome in words.
        order: its place in the order of choice, from 1 on, of `of`.
        not_chosen: the candidates nearest in the embedding that were not chosen.
        chosen: the candidates nearest in the embedding that were chosen.
        seen: None where the model or the dataset could not be opened; `missing` says why.
    """

    step: int
    strategy: str
    patch: int
    image: str
    box: tuple[int, int, int, int]
    outcome: str
    reason: str
    order: int | None
    of: int
    ranking: Ranking | None
    draw: Draw | None
    not_chosen: tuple[Near, ...] = ()
    chosen: tuple[Near, ...] = ()
    seen: Seen | None = None
    missing: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """A few lines to read."""
        left, top, right, bottom = self.box
        lines = [
            f"patch {self.patch}, step {self.step} ({self.strategy}): {self.reason}",
            f"  image      {self.image}, x {left} to {right}, y {top} to {bottom}",
        ]
        if (ranking := self.ranking) is not None:
            line = (
                f"  score      {ranking.score:.4f} ({ranking.measure}), rank {ranking.rank} of {ranking.open}"
            )
            if ranking.candidates is not None:
                line += f", of which {ranking.candidates} were candidates"
            if ranking.margin is not None:
                than = "the first not taken" if ranking.margin >= 0 and self.order else "the last taken"
                line += f", {ranking.margin:+.4f} to {than}"
            lines.append(line)
        lines += [*self._drawn(), *self._around()]
        return "\n".join(lines)

    def _drawn(self) -> list[str]:
        if (draw := self.draw) is None:
            return []
        when = "in its draw" if self.order else f"in all {self.of} draws"
        lines = [f"  chance     {draw.chance:.3f} {when} (equal chances: {draw.equal:.3f})"]
        if draw.before is not None:
            lines.append(
                f"  potential  {draw.before:.4g} → {draw.after:.4g}: it removed {draw.removed:.1%}, "
                f"rank {draw.removed_rank} of {self.of - 1}"
            )
        elif self.order:
            lines.append(f"  potential  {draw.after:.4g} after it; the first draw is without distances")
        if draw.coincident:
            lines.append(f"  embedding  {draw.coincident} other candidates lie in the very same place")
        return lines

    def _around(self) -> list[str]:
        lines = []
        if self.seen is not None:
            mix = ", ".join(f"{name} {share:.0%}" for name, share in self.seen.classes)
            lines.append(f"  predicted  {mix}")
            near = []
            if self.seen.nearest is not None:
                near.append(f"{_near(self.seen.nearest)} away in the embedding")
            if self.seen.alike is not None:
                near.append(f"{_near(self.seen.alike)} by cosine of features")
            if near:
                lines.append(f"  labelled   nearest is {'; '.join(near)}")
        if self.chosen:
            lines.append(f"  chosen     nearby: {', '.join(map(_near, self.chosen))}")
        if self.not_chosen:
            lines.append(f"  not chosen nearby: {', '.join(map(_near, self.not_chosen))}")
        if self.missing is not None:
            lines.append(f"  missing    what the model sees: {self.missing}")
        return lines


def explain(
    run: Path, step: int, patch: int, *, device: str | None = None, root: Path | None = None,
    monitor: Monitor | None = None,
) -> Explanation:  # fmt: skip
    """Why the query of step `step` has `patch`, or has it not.

    Ranks, chances and potentials come from the recorded scores and embedding; what the model predicts and
    which labelled patches are near comes from the model of the step before, and needs the dataset.

    Args:
        patch: its id, as in the ledger and in query.parquet.
        device, root: as for `replay`.

    Raises:
        RunError: no such run or step, or a file of it that cannot be read; it is named.
        InputError: no such patch.
    """
    folder = open_run(run, step, least=1)
    records = Records(folder, step)
    if not 0 <= patch < len(records.since):
        raise InputError(f"{run} has no patch {patch}: ids go from 0 to {len(records.since) - 1}")
    ranking, draw = records.ranking(patch), records.draw(patch)
    outcome, reason = _outcome(folder, records, patch, ranking)
    image, _, _ = records.grid.locate(patch)
    left, top, right, bottom = map(int, records.grid.boxes(patch))
    seen = missing = None
    try:
        past = open_past(folder, step, here(folder.config, device, root), monitor or Silent())
        seen = _look(past, records, patch)
    except (MealGpuError, OSError) as error:
        missing = str(error)
    return Explanation(
        step=step, strategy=folder.config.strategy, patch=patch, image=records.names[int(image)],
        box=(left, top, right, bottom), outcome=outcome, reason=reason,
        order=records.chosen.index(patch) + 1 if patch in records.chosen else None, of=len(records.chosen),
        ranking=ranking, draw=draw, not_chosen=records.running(patch, chosen=False),
        chosen=records.running(patch, chosen=True), seen=seen, missing=missing,
    )  # fmt: skip


def _outcome(folder: RunFolder, records: Records, patch: int, ranking: Ranking | None) -> tuple[str, str]:
    strategy, n = strategies.get(folder.config.strategy), len(records.chosen)
    since = int(records.since[patch])
    if since >= 0:
        return "labelled", f"labelled already, since step {since}"
    if patch in records.control:
        return "control", f"drawn at random: one of the {len(records.control)} of the control arm"
    if patch in records.chosen:
        order = records.chosen.index(patch) + 1
        if records.points is not None:
            return "chosen", f"draw {order} of {n}, by K-Means++ over {len(records.points)} candidates"
        if records.candidates is not None and len(records.candidates) <= n:
            return "chosen", f"one of {len(records.candidates)} candidates, all of which were taken"
        return "chosen", f"choice {order} of {n}: {strategy.summary}"
    if ranking is not None and ranking.candidates is not None:
        if not ranking.candidate:
            return "open", (
                f"no candidate: rank {ranking.rank} by {ranking.measure}, and the {ranking.candidates} "
                "highest are candidates"
            )
        return "candidate", f"a candidate, but not drawn: {strategy.summary}"
    if ranking is not None and strategy.name in strategies.MEASURES:
        return "open", f"not chosen: rank {ranking.rank} by {ranking.measure}, and the {n} highest are taken"
    return "open", f"not chosen: {strategy.summary}"


def _look(past: Past, records: Records, patch: int) -> Seen:
    images, grid = past.experiment.pool, past.experiment.grid
    image, cell = divmod(patch, grid.patches_per_image)
    one = ImageSet(Part(images.images, torch.tensor([image])), images.ops, precision=images.precision)
    scored = score_pool(one, past.learner.model, grid, temperature=past.learner.temperature, classes=True)
    assert scored.classes is not None
    counts = scored.classes.counts[cell].double()
    shares = counts / counts.sum().clamp(min=1)
    top = shares.argsort(descending=True, stable=True)[:_CLASSES]
    names = past.experiment.dataset.classes
    classes = tuple((names[int(c)], float(shares[c])) for c in top if shares[c] > 0)
    if int(records.since[patch]) >= 0:
        return Seen(classes, None, None)
    # With the recorded scores nothing passes through the decoder again
    pool = Variant(scored_pool(past), scores=records.scores)
    labelled = pool.labelled
    itself = torch.tensor([patch], device=labelled.device)
    cosines = _unit(pool.features(labelled)) @ _unit(pool.features(itself)).T
    best = int(cosines.argmax())
    nearest = None
    if (point := records.point(patch)) is not None:
        embed = pool.embedder(pool.chosen(past.experiment.config.strategy))
        apart = (embed(labelled) - point.to(labelled.device).double()).square().sum(dim=1).sqrt()
        row = int(apart.argmin())
        nearest = Near(int(labelled[row]), float(apart[row]))
    return Seen(classes, nearest, Near(int(labelled[best]), float(cosines[best])))


def _unit(features: torch.Tensor) -> torch.Tensor:
    # torch's own eps would shorten features as small as those of an encoder without pretrained weights
    return F.normalize(features.double(), eps=torch.finfo(torch.float64).tiny)


def _near(near: Near) -> str:
    return f"patch {near.patch} ({near.value:.3g})" if math.isfinite(near.value) else f"patch {near.patch}"
