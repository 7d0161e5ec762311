"""What a run holds in memory: configuration resolved for this machine, images, labels, the oracle."""

import contextlib
import dataclasses
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from meal_gpu import data, ops, rng
from meal_gpu.config import Config
from meal_gpu.errors import ConfigError, DataError
from meal_gpu.footprint import require_host_memory
from meal_gpu.grid import Grid
from meal_gpu.images.probing import first_size, refusal
from meal_gpu.inference import default_precision, device_named
from meal_gpu.models import Builder
from meal_gpu.oracle import Oracle
from meal_gpu.passes import ImageSet
from meal_gpu.scoring import Advance


class Monitor(Protocol):
    """Where a run shows how far it is."""

    def stage(self, text: str, total: int) -> AbstractContextManager[Advance]:
        """Enter a stage of `total` units; the yielded function takes how many more are done."""
        ...

    def line(self, text: str) -> None: ...


class Silent:
    """A monitor that shows nothing."""

    def stage(self, text: str, total: int) -> AbstractContextManager[Advance]:
        return contextlib.nullcontext(lambda _: None)

    def line(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Experiment:
    """Everything a run holds in memory."""

    config: Config
    dataset: data.Dataset
    grid: Grid
    pool: ImageSet
    validation: ImageSet
    validation_labels: torch.Tensor
    oracle: Oracle
    builder: Builder
    quarantined: tuple[data.Problem, ...] = ()


def resolve(config: Config) -> Config:
    """Replace every "auto" by what this machine has, so that the run's record says what was used."""
    device = device_named(config.device)
    precision = default_precision(device) if config.precision == "auto" else config.precision
    name = ops.select_for(device, config.ops).name
    return dataclasses.replace(config, device=str(device), precision=precision, ops=name)


def open_dataset(config: Config) -> data.Dataset:
    return data.open_dataset(config.dataset, config.root, size=config.size)


def load(config: Config, monitor: Monitor, dataset: data.Dataset | None = None) -> Experiment:
    """Check the dataset, that of `config` unless it is opened already, then open both splits."""
    dataset = dataset or open_dataset(config)
    for split, what in ((dataset.train, "train"), (dataset.val, "val")):
        if not len(split) or split.labels is None:
            raise DataError(
                f"{dataset.root}: a run needs labelled images in both splits, and {what} has none; "
                "to query images without labels use meal_gpu.acquire"
            )
    require_host_memory(config, dataset)
    skips = config.on_bad == "skip"
    with monitor.stage("check files", len(dataset.train) + len(dataset.val)) as advance:
        problems = data.check(dataset, deep=skips, progress=advance)
    if problems and not skips:
        raise refusal(problems, "see all: meal-gpu data check; --on-bad skip goes on without them")
    if problems:
        before = len(dataset.train) + len(dataset.val)
        dataset = data.without(dataset, problems)
        left = len(dataset.train) + len(dataset.val)
        if config.size is None and data.DATASETS[config.dataset].size is None:  # it was that of the first
            dataset = dataclasses.replace(dataset, size=first_size(dataset.train.images) or dataset.size)
        monitor.line(f"left out: {before - left} of {before} images, see quarantine.csv")
    device = torch.device(config.device)
    implementation = ops.select(config.ops)
    grid = Grid(1, 1, *dataset.size) if config.is_supervised else Grid(*config.grid, *dataset.size)
    if initial_images(config, dataset) > len(dataset.train):
        raise ConfigError(
            f"initial_images is {config.initial_images}, but the pool has {len(dataset.train)} images"
        )
    if initial_images(config, dataset) * grid.patches_per_image < 2:
        raise ConfigError("one patch is too few to train on: raise initial_images, or take a finer grid")
    # Before the slow part: the weights may not be there
    builder = Builder(
        config.architecture, len(dataset.classes), config.encoder_weights,
        seed=rng.integer(config.seed, 0, "encoder"),
    )  # fmt: skip

    def read(split: data.Split, what: str) -> tuple[ImageSet, torch.Tensor]:
        with monitor.stage(f"load {what}", 2 * len(split)) as advance:
            images = data.open_images(split, dataset.size, device, share=config.pool_share, progress=advance)
            where = "cpu" if images.resident is None else device
            labels = data.load_labels(split, dataset, device=where, progress=advance)
        image_set = ImageSet(
            images, implementation, precision=config.precision, cache_bytes=cache_bytes(config),
            names=split.names, classes=len(dataset.classes),
        )  # fmt: skip
        return image_set, labels

    pool, labels = read(dataset.train, "pool")
    validation, validation_labels = read(dataset.val, "validation")
    oracle = Oracle(pool.images, labels, grid, implementation, data.VOID, config.context)
    return Experiment(
        config, dataset, grid, pool, validation, validation_labels, oracle, builder, tuple(problems)
    )  # fmt: skip


def cache_bytes(config: Config) -> int:
    """A third each for the pool, the validation images and the labelled patches."""
    return int(config.cache_gib * 2**30 / 3)


def initial_images(config: Config, dataset: data.Dataset) -> int:
    return len(dataset.train) if config.is_supervised else config.initial_images
