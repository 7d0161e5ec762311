"""Passes over a pool in shards of some frames: here, or in the processes of a cluster.

A shard is opened, batched and written the same way wherever that happens, so that a query's bytes say nothing
of the number of processes, nor of which was done first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import nn

from meal_gpu import checkpoint
from meal_gpu.adapters import Normalisation, adapt
from meal_gpu.annotate.kept import Shards, Tensors
from meal_gpu.cluster import Run
from meal_gpu.errors import ConfigError, DataError, InputError, MealGpuError, RunError, UnavailableError
from meal_gpu.grid import Grid
from meal_gpu.images.content import anywhere
from meal_gpu.images.headers import Size
from meal_gpu.images.listing import Listing
from meal_gpu.images.opening import open_listing
from meal_gpu.images.sources import Images, Part
from meal_gpu.inference import for_inference, require_values
from meal_gpu.memory import current
from meal_gpu.models import IMAGENET_MEAN, IMAGENET_STD, Network
from meal_gpu.ops import MEASURES, PatchClasses, select_for
from meal_gpu.passes import ImageSet
from meal_gpu.scoring import Advance, Scored, require_finite, score_pool
from meal_gpu.windowed import windowed

_OURS = (ConfigError, DataError, InputError, UnavailableError)  # say nothing of the model with a frame
Failed = dict[int, str]
"""Frames that the model cannot be applied to, and why."""


@dataclass(frozen=True)
class Pass:
    """What is asked of every frame, in any process. `columns` are of "scores" (the entropy), "features"
    (shared), "probabilities", "counts", "boundary" and other measures; `native` is the size of the files.
    """

    grid: Grid
    native: Size
    columns: tuple[str, ...]
    precision: str
    ops: str
    temperature: float = 1.0
    classes: int | None = None
    valid: torch.Tensor | None = None

    def image_set(self, images: Images, names: tuple[str, ...] | None = None) -> ImageSet:
        chosen = select_for(images.device, self.ops)
        return ImageSet(images, chosen, precision=self.precision, names=names, classes=self.classes)

    def over(
        self, images: Images, names: tuple[str, ...], network: Network, advance: Advance = lambda _: None
    ) -> Tensors:
        """-> [N, P, ...] on the CPU for each of the columns. Raises MealGpuError, naming an image."""
        found = score_pool(
            self.image_set(images, names), network, self.grid,
            others=[name for name in self.columns if name in MEASURES], temperature=self.temperature,
            features="features" in self.columns, classes="counts" in self.columns,
            boundary="boundary" in self.columns, advance=advance,
            valid=None if self.valid is None else self.valid.to(images.device),
        )  # fmt: skip
        require_finite(found.scores, self.grid, names)
        if found.features is not None:
            require_finite(found.features.sum(dim=1), self.grid, names)
        counted = {} if found.classes is None else found.classes._asdict()
        values = {**found._asdict(), **counted, **found.others}
        return {name: values[name].unflatten(0, (len(names), -1)).cpu() for name in self.columns}

    def each(
        self, images: Images, names: tuple[str, ...], network: Network
    ) -> tuple[list[int], Tensors, Failed]:
        """As `over`; where that fails, frame by frame: those with which it does not, what it finds of these,
        and why it fails with the others.

        Raises:
            MealGpuError: it fails with every one of several frames.
        """
        everything = list(range(len(names)))
        try:
            return everything, self.over(images, names, network), {}
        except _OURS:
            raise
        except MealGpuError as error:
            first = error
        parts: dict[int, Tensors] = {}
        failed: Failed = {}
        for row in everything:
            try:
                one = Part(images, torch.tensor([row]))
                parts[row] = self.over(one, names[row : row + 1], network)
            except _OURS:
                raise
            except MealGpuError as error:
                failed[row] = str(error)
        if not parts and len(names) > 1:
            raise MealGpuError(f"{first}; and with every other of {len(names)} frames")
        found = {name: torch.cat([part[name] for part in parts.values()]) for name in self.columns if parts}
        return list(parts), found, failed


def columns_of(shared: bool, needs: tuple[str, ...]) -> tuple[str, ...]:
    """What a strategy's `needs` are called in a table."""
    classes = ("probabilities", "counts") if "classes" in needs else ()
    others = sorted({*needs} - {"classes", "entropy"})
    return ("scores", *(("features",) if shared else ()), *classes, *others)


@dataclass(frozen=True)
class Applied:
    """How: `layer` gives features, a `window` slides over frames of `size` with `overlap`; `mean` and `std`
    are those that the model was trained with.
    """

    layer: str | None
    size: Size
    window: Size | None
    overlap: float
    mean: Normalisation = IMAGENET_MEAN
    std: Normalisation = IMAGENET_STD

    def network(self, model: Network | nn.Module, device: torch.device) -> Network:
        if isinstance(model, nn.Module):
            require_values(model)  # which torch could not move
            model = model.to(device)
        found = adapt(model, layer=self.layer, mean=self.mean, std=self.std)
        return found if self.window is None else windowed(found, self.size, self.window, self.overlap)


@dataclass(frozen=True)
class Cluster:
    """Processes that score: `run` gives them shards, and `model`, `arguments` and `weights`, as `acquire`
    takes them, say how each builds the network.
    """

    run: Run[Listing, Failed | MealGpuError]
    model: str
    arguments: Mapping[str, Any]
    weights: Path | None


@dataclass(frozen=True)
class _Recipe:
    """A pass that another process can do."""

    model: str
    arguments: Mapping[str, Any]
    weights: Path | None
    applied: Applied
    work: Pass
    device: str
    place: str
    pool: str
    key: str
    fingerprinted: tuple[object, ...]
    on_bad: str
    threads: int


_built: dict[str, Network] = {}  # of this process: the model of the cluster's work at hand
_ALONE = Lock()  # a worker may have several threads; a network's hooks, and captures, are for one at a time


def _network(recipe: _Recipe) -> Network:
    if recipe.key not in _built:
        _built.clear()
        torch.set_num_threads(recipe.threads)  # sums are split by it, and so are rounded by it
        model = checkpoint.build(recipe.model, recipe.arguments, recipe.weights)
        if checkpoint.fingerprint(model, *recipe.fingerprinted) != recipe.key:
            raise RunError(
                f"{recipe.model}: a worker builds another network than this process: other weights in "
                f"{recipe.weights}, other code, or a factory that draws without a seed"
            )
        device = torch.device(recipe.device)
        _built[recipe.key] = for_inference(
            recipe.applied.network(model, device), recipe.work.precision, device
        )
    return _built[recipe.key]


def _there(recipe: _Recipe, shard: Listing) -> Failed | MealGpuError:
    """Score a shard and write it, in a process of a cluster; our errors are given back, not logged there."""
    try:
        with _ALONE, current(torch.device(recipe.device)):
            return _scored_there(recipe, shard)
    except MealGpuError as error:
        return error


def _scored_there(recipe: _Recipe, shard: Listing) -> Failed:
    network = _network(recipe)
    images = open_listing(shard, torch.device(recipe.device), size=recipe.applied.size, share=0)
    native = getattr(images, "native", recipe.work.native)
    if native != recipe.work.native:
        raise DataError(
            f"{shard.names[0]}: {native[0]}×{native[1]} pixels found, the pool's frames have "
            f"{recipe.work.native[0]}×{recipe.work.native[1]}"
        )
    shards = Shards(recipe.place, recipe.key, recipe.pool)
    return _scored(recipe.work, images, shard, network, shards, recipe.on_bad)


def _scored(
    work: Pass, images: Images, shard: Listing, network: Network, shards: Shards, on_bad: str,
    advance: Advance = lambda _: None,
) -> Failed:  # fmt: skip
    if on_bad == "stop":
        shards.write(shard, work.over(images, shard.names, network, advance))
        return {}
    rows, found, failed = work.each(images, shard.names, network)
    if rows:
        shards.write(shard.take(rows), found)
    advance(len(shard.names))
    return failed


class Outcome(NamedTuple):
    """What is known of all frames, how many were scored now, and those that the model fails with."""

    scored: Scored
    fresh: int
    failed: Failed


def scored_pool(
    work: Pass, listing: Listing, images: Images, network: Network, shards: Shards, applied: Applied,
    key: str, fingerprinted: tuple[object, ...], on_bad: str, stage: Callable[[str, int], Any], size: int,
    cluster: Cluster | None = None,
) -> Outcome:  # fmt: skip
    """Score the frames that `shards` does not know, `size` at a time, into it; those that fail are 0.

    Raises:
        MealGpuError: the model fails with a frame, which is named, and `on_bad` is "stop"; or with all.
        RunError: the shards cannot be written, or were written where they cannot be read.
    """
    known, tensors = shards.read(listing, work.columns)
    new = (~known).nonzero().flatten()
    failed: Failed = {}
    if len(new):
        parts = [part.tolist() for part in torch.split(new, size)]
        listed = [listing.take(part) for part in parts]
        with stage("score frames", len(new)) as advance:
            if cluster is None:
                ready = for_inference(network, work.precision, images.device)
                for part, shard in zip(parts, listed, strict=True):
                    source = Part(images, torch.tensor(part))
                    found = _scored(work, source, shard, ready, shards, on_bad, advance)
                    failed |= {part[row]: why for row, why in found.items()}
            else:
                # A worker may have another working directory
                listed = [part._replace(files=tuple(map(anywhere, part.files))) for part in listed]
                recipe = _Recipe(
                    cluster.model, cluster.arguments, cluster.weights and cluster.weights.absolute(), applied,
                    work, str(images.device), anywhere(shards.place), shards.pool, key, fingerprinted, on_bad,
                    torch.get_num_threads(),
                )  # fmt: skip
                for number, there in cluster.run(partial(_there, recipe), listed):
                    if isinstance(there, MealGpuError):
                        raise there
                    failed |= {parts[number][row]: why for row, why in there.items()}
                    advance(len(parts[number]))
        known, tensors = shards.read(listing, work.columns)
        lost = [row for row in (~known).nonzero().flatten().tolist() if row not in failed]
        if lost:
            raise RunError(
                f"{listing.names[lost[0]]}: scored by a worker, but not found in {shards.place} ({len(lost)} "
                "such frames); --cache must name a place that all machines reach"
            )
        if not tensors:
            raise MealGpuError(f"none of {len(known)} frames can be scored, first: {failed[min(failed)]}")
    shards.clean()

    def column(name: str) -> torch.Tensor | None:
        if name not in tensors:
            return None
        whole = tensors[name]
        if failed:
            whole = torch.zeros((len(known), *tensors[name].shape[1:]), dtype=tensors[name].dtype)
            whole[known] = tensors[name]
        return whole.flatten(0, 1).to(images.device)

    scores, probabilities, counts = column("scores"), column("probabilities"), column("counts")
    assert scores is not None
    classes = None if probabilities is None or counts is None else PatchClasses(probabilities, counts)
    others = {name: values for name in MEASURES if (values := column(name)) is not None}
    return Outcome(Scored(scores, column("features"), classes, column("boundary"), others), len(new), failed)
