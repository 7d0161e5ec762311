"""What a run will hold in host memory, before anything slow begins."""

import math

import torch

from meal_gpu import strategies
from meal_gpu.config import Config
from meal_gpu.data.dataset import Dataset
from meal_gpu.errors import ConfigError
from meal_gpu.memory import free_bytes

_HOST = torch.device("cpu")
# Channels of the encoder's last stage, at stride 16, and of its third, at stride 4
_DEEP = {"smp": 1280, "paper": 320}
_HIGH = 24
_LEDGER_ROW = 64  # bytes
_NEIGHBOR = 4 * 12  # bytes of one edge of UMAP's graph: an index, a weight, and what it is sorted by


def host_bytes(config: Config, dataset: Dataset) -> dict[str, int]:
    """What takes how many bytes of host memory, by what a user would call it.

    Images count where they will be held, which `pool_share` of the free memory decides; weights, the batch at
    hand and Python itself do not count. On a GPU the rest is in its memory.

    Args:
        config: with a device, not "auto".
    """
    device = torch.device(config.device)
    held: dict[str, int] = {}
    for what, split in (("pool", dataset.train), ("validation", dataset.val)):
        pixels = len(split) * math.prod(dataset.size)
        if split.packed is not None:
            continue  # mapped: the system takes it back when it needs memory
        on_device = device.type != "cpu" and _fits(3 * pixels, config, device)
        if not on_device:
            held[f"labels of the {what}"] = pixels
            if _fits(3 * pixels, config, _HOST):
                held[f"images of the {what}"] = 3 * pixels
    patches = len(dataset.train) * math.prod(config.grid)
    held["ledger"] = patches * _LEDGER_ROW
    if device.type == "cpu":
        held |= _computed(config, dataset, patches)
    return held


def _computed(config: Config, dataset: Dataset, patches: int) -> dict[str, int]:
    row = 4 * _DEEP[config.architecture]
    held = {}
    if not config.is_supervised and strategies.get(config.strategy).manifold:
        fitted = min(patches, config.manifold_limit)
        # Parts and their concatenation; the manifold's own copy and UMAP's
        held["features of the pool"] = 2 * patches * row
        held["manifold"] = 2 * fitted * row + fitted * config.manifold_neighbors * _NEIGHBOR
    third = config.cache_gib * 2**30 / 3
    if config.finetune:
        if not _fits(3 * len(dataset.train) * math.prod(dataset.size), config, _HOST):
            pixels = _shown(config, dataset, patches) * math.prod(dataset.size) * 3 * 4
            held["pixels of the labelled patches"] = int(min(third, pixels))
    else:
        image = math.prod(dataset.size) * (_HIGH / 4**2 + _DEEP[config.architecture] / 16**2) * 4
        held["outputs of the frozen encoder"] = int(
            sum(min(third, len(split) * image) for split in (dataset.train, dataset.val))
        )
        held["outputs for the labelled patches"] = int(min(third, _shown(config, dataset, patches) * image))
    return held


def _shown(config: Config, dataset: Dataset, patches: int) -> float:
    """How many images' worth the last step trains on."""
    if config.is_supervised:
        return len(dataset.train)
    initial = config.initial_images * math.prod(config.grid)
    labelled = min(patches, initial + config.number_of_steps(patches, initial) * config.query_size)
    if config.context == "image":
        return min(len(dataset.train), labelled)
    return labelled / math.prod(config.grid)


def _fits(size: int, config: Config, device: torch.device) -> bool:
    return size <= config.pool_share * free_bytes(device)


def require_host_memory(config: Config, dataset: Dataset) -> None:
    """Raises ConfigError, with both numbers and what to lower, where a run's host memory is not there."""
    held, free = host_bytes(config, dataset), free_bytes(_HOST)
    needed = sum(held.values())
    if needed <= free:
        return
    parts = ", ".join(
        f"{what} {size / 2**30:.2f} GiB" for what, size in sorted(held.items(), key=lambda part: -part[1])
    )
    raise ConfigError(
        f"the run would hold {needed / 2**30:.2f} GiB in host memory, and {free / 2**30:.2f} GiB are free: "
        f"{parts}. Lower cache_gib, size, pool_share or manifold_limit, pack the dataset (meal-gpu "
        "data pack), take fewer images, or end other programs"
    )
