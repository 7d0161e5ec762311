"""Run folders gathered, checked to be comparable, and grouped by everything but the seed."""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from meal_gpu.config import Config
from meal_gpu.errors import ConfigError, RunError
from meal_gpu.report.table import SAMPLE, configuration, elsewhere, find, load, skips
from meal_gpu.statistics import Array

_SAME = ("dataset", "size", "grid")
# A supervised run is the reference of runs that train the same network in the same way
_NETWORK = ("architecture", "encoder_weights", "finetune")
_HOW = ("context", "precision", "keep", "validate_every")
# What the model of step 0 depends on
_START = (
    *_NETWORK, *_HOW, "initial_images", "epochs", "batch_size", "learning_rate", "decay_every",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Curve:
    """One run: `labelled` [K] patches of `patches`, `score` [K] the validation mIoU of the epoch that was
    kept, `last_epoch` [K] that of the last one, `class_iou` [K, C].
    """

    name: str
    config: Config
    labelled: tuple[int, ...]
    patches: int
    score: Array
    last_epoch: Array
    class_iou: Array
    classes: tuple[str, ...]
    devices: tuple[str, ...]  # [K]
    commits: tuple[str, ...]  # [K]

    @property
    def images(self) -> int:
        """Of the pool. A supervised run takes each whole, as one patch."""
        cells = 1 if self.config.is_supervised else math.prod(self.config.grid)
        return self.patches // cells

    @property
    def share(self) -> Array:
        """[K], of the pool's patches."""
        return np.asarray(self.labelled, dtype=np.float64) / self.patches


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in the seed alone, and have equally many steps, by ascending seed."""

    label: str
    curves: tuple[Curve, ...]

    @property
    def strategy(self) -> str:
        return self.curves[0].config.strategy

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(curve.config.seed for curve in self.curves)

    @property
    def steps(self) -> int:
        """How many steps each of its runs has."""
        return len(self.curves[0].labelled)

    def scores(self, steps: int) -> Array:
        """[n, steps], one row per seed."""
        return np.stack([curve.score[:steps] for curve in self.curves])


@dataclass(frozen=True, eq=False)
class Gathered:
    """Groups by label, the supervised runs apart, and what must be said of them."""

    groups: tuple[Group, ...]
    supervised: tuple[Group, ...]
    notes: tuple[str, ...]

    @property
    def curves(self) -> tuple[Curve, ...]:
        return tuple(curve for group in (*self.groups, *self.supervised) for curve in group.curves)

    def reference(self, group: Group) -> Group | None:
        """The supervised runs of the same network, if there are any."""
        wanted = network(group)
        return next((other for other in self.supervised if network(other) == wanted), None)


def network(group: Group) -> tuple[Any, ...]:
    """What is trained, and whether all of it."""
    return tuple(getattr(group.curves[0].config, key) for key in _NETWORK)


def trained_apart(group: Group, reference: Group) -> list[str]:
    """The keys in which a supervised run differs, but for those that it must have of its own."""
    one, other = group.curves[0].config, reference.curves[0].config
    return [name for name in _HOW if getattr(one, name) != getattr(other, name)]


def gather(paths: Sequence[str | Path]) -> Gathered:
    """Read run folders, or folders of run folders. What is left out is said in the notes: a run in such a
    folder without a complete step, and one that has fewer steps than other seeds of its strategy.

    Raises:
        RunError: a folder without runs or with damaged records; two runs of one configuration and seed; pools
            or classes that differ.
        ConfigError: another dataset, size or grid.
    """
    found, skipped = find(paths)
    gathered = group([read(path) for path in found])
    return dataclasses.replace(gathered, notes=(*filter(None, [skips(skipped)]), *gathered.notes))


def read(path: Path) -> Curve:
    """A run folder as arrays. Raises RunError naming it."""
    try:
        run = load(path)
        classes = tuple(run.steps[0]["class_iou"])
        iou = [[step["class_iou"][name] for name in classes] for step in run.steps]
        curve = Curve(
            name=str(path), config=run.config, classes=classes,
            labelled=tuple(int(step["labelled"]) for step in run.steps),
            patches=int(run.steps[0]["patches"]),
            score=np.array([step["mean_iou"] for step in run.steps], dtype=np.float64),
            last_epoch=np.array([_last_epoch(step["history"]) for step in run.steps], dtype=np.float64),
            class_iou=np.array(iou, dtype=np.float64),  # None becomes NaN: the class did not occur
            devices=tuple(run.devices), commits=tuple(run.commits),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: the run's records cannot be read: {error!r}") from error
    if not all(a < b for a, b in pairwise(curve.labelled)):
        raise RunError(f"{path}: labelled patches do not increase from step to step: {curve.labelled}")
    return curve


def group(curves: Sequence[Curve]) -> Gathered:
    """Check that runs can be compared, and group them. Raises as `gather` does."""
    _require_same(curves)
    by_configuration: dict[Hashable, list[Curve]] = defaultdict(list)
    for curve in curves:
        by_configuration[configuration(curve.config)].append(curve)
    members = [sorted(found, key=lambda curve: curve.config.seed) for found in by_configuration.values()]
    for found in members:
        for one, two in pairwise(found):
            if one.config.seed == two.config.seed:
                raise RunError(
                    f"{one.name} and {two.name} have the same configuration and seed {one.config.seed}: "
                    "a run that is repeated is no new sample, leave one out"
                )
            steps = min(len(one.labelled), len(two.labelled))
            if one.labelled[:steps] != two.labelled[:steps]:
                raise RunError(
                    f"{one.name} labelled {one.labelled[:steps]} patches step by step, {two.name} "
                    f"{two.labelled[:steps]}: runs that differ in the seed alone label equally many"
                )
    whole = [_longest(found) for found in members]
    kept = [curve for found in whole for curve in found]
    short = [curve for curve in curves if curve not in kept]
    learned, usual = _labelled([found for found in whole if not found[0].config.is_supervised])
    supervised, _ = _labelled([found for found in whole if found[0].config.is_supervised])
    if not learned:
        raise RunError("only supervised runs were given: nothing to compare with them")
    for this, other in pairwise(supervised):
        if network(this) == network(other):
            raise ConfigError(
                f"{this.curves[0].name} and {other.curves[0].name} are supervised runs of one network "
                f"({this.label}; {other.label}): only one of them can be the reference, leave one out"
            )
    notes = [*_notes(kept, usual), *_shortened(short), *_training(learned)]
    for made in (*learned, *supervised):
        notes += elsewhere(made.label, [curve.config for curve in made.curves])
    return Gathered(learned, supervised, (*notes, *_starts(learned)))


def _last_epoch(history: Sequence[dict[str, float]]) -> float | None:
    return history[-1].get("mean_iou") if history else None


def _longest(curves: Sequence[Curve]) -> list[Curve]:
    """Those with the most steps: seeds of one strategy have equally many once they are complete."""
    most = max(len(curve.labelled) for curve in curves)
    return [curve for curve in curves if len(curve.labelled) == most]


def _require_same(curves: Sequence[Curve]) -> None:
    first = curves[0]
    for other in curves[1:]:
        for key in _SAME:
            a, b = getattr(first.config, key), getattr(other.config, key)
            if a != b:
                raise ConfigError(
                    f"{first.name} has {key} {a!r} and {other.name} {b!r}: compare runs of one {key}"
                )
        if first.classes != other.classes:
            a, b = (", ".join(curve.classes) for curve in (first, other))
            raise RunError(f"{first.name} has the classes {a} and {other.name} {b}: these cannot be compared")
        if first.images != other.images:
            raise RunError(
                f"{first.name} has a pool of {first.images} images and {other.name} of {other.images}: "
                "compare runs on one pool"
            )


def _labelled(members: Sequence[list[Curve]]) -> tuple[tuple[Group, ...], dict[str, Any]]:
    """By the strategy and whatever else sets a group apart from most; and what most have."""
    configs = [found[0].config for found in members]
    usual: dict[str, Any] = {}
    differing: list[str] = []
    for field in dataclasses.fields(Config):
        values = Counter(getattr(config, field.name) for config in configs)
        if len(values) > 1 and field.name not in ("strategy", *SAMPLE):
            differing.append(field.name)
            ((value, count),) = values.most_common(1)
            if 2 * count > len(configs):
                usual[field.name] = value
    groups = []
    for found, config in zip(members, configs, strict=True):
        own = {key: getattr(config, key) for key in differing}
        more = ", ".join(f"{key}={value}" for key, value in own.items() if (key, value) not in usual.items())
        groups.append(Group(config.strategy + f" ({more})" * bool(more), tuple(found)))
    return tuple(sorted(groups, key=lambda group: group.label)), usual


def _starts(groups: Sequence[Group]) -> Iterator[str]:
    """Whether the strategies of a seed start from one model, as they would from one commit on one machine."""
    found: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for curve in (curve for group in groups for curve in group.curves if len(curve.labelled) > 1):
        key = (curve.config.seed, *(getattr(curve.config, name) for name in _START))
        found[key].append(float(curve.score[0]))
    apart = [
        (key[0], max(scores) - min(scores)) for key, scores in found.items() if max(scores) > min(scores)
    ]
    if apart:
        seeds = ", ".join(map(str, sorted({seed for seed, _ in apart})))
        yield (
            "At step 0 the strategies of a seed are trained on the same patches, yet their mIoU differs "
            f"(seed {seeds}; by {max(by for _, by in apart):.4f} at most): the commit or the machine was not "
            "one, or training does not repeat itself there. A pair compares that, too."
        )


def _training(groups: Sequence[Group]) -> Iterator[str]:
    """What training depends on, and is not the same for all."""
    configs = [group.curves[0].config for group in groups]
    differing = [name for name in _START if len({getattr(config, name) for config in configs}) > 1]
    if differing:
        keys = ", ".join(differing)
        yield f"Not the choice of patches alone differs, training does ({keys}): pairs compare that, too."


def _shortened(short: Sequence[Curve]) -> Iterator[str]:
    if short:
        each = "; ".join(f"{c.name}, {len(c.labelled)} step{'s' * (len(c.labelled) > 1)}" for c in short)
        yield f"Left out, since other seeds of the same strategy have more steps: {each}."


def _notes(curves: Sequence[Curve], usual: dict[str, Any]) -> tuple[str, ...]:
    notes = []
    if usual:
        said = ", ".join(f"{key}={value}" for key, value in usual.items())
        notes.append(f"Where a strategy's name does not say otherwise: {said}.")
    roots = sorted({str(curve.config.root) for curve in curves})
    if len(roots) > 1:
        notes.append(
            f"The dataset was read from several places ({', '.join(roots)}); pool size and classes agree, "
            "and it is taken to be the same."
        )
    return tuple(notes)
