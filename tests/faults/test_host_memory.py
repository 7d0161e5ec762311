"""What a run will hold in host memory is known before it starts, and is what it then holds."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from meal_gpu import data, experiment, footprint
from meal_gpu.config import Config
from meal_gpu.errors import ConfigError
from meal_gpu.preparation import Silent, load, resolve
from meal_gpu.scoring import patch_features


@pytest.mark.fault(
    "resource", "a run would not fit into the host's memory",
    "an error before anything is read: both numbers, what takes how much, and what to lower",
)  # fmt: skip
def test_host_memory_is_asked_for_before_the_start(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = data.open_dataset(tiny.dataset, tiny.root, size=tiny.size)
    needed = sum(footprint.host_bytes(resolve(tiny), dataset).values())
    monkeypatch.setattr(data, "check", None)  # slow, so that it comes later
    monkeypatch.setattr(footprint, "free_bytes", lambda _: needed // 2)
    with pytest.raises(ConfigError, match=r"would hold .* GiB .*, and .* free: .*encoder .*cache_gib"):
        experiment.run(tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(footprint, "free_bytes", lambda _: needed)
    with pytest.raises(TypeError):  # it goes on to the check
        experiment.run(tiny, tmp_path / "run")


def test_what_a_run_holds_is_what_was_estimated(tiny: Config) -> None:
    config = resolve(tiny)
    held = load(config, Silent())
    estimate = footprint.host_bytes(config, held.dataset)
    assert held.pool.images.resident is not None and held.validation.images.resident is not None
    real = {
        "images of the pool": held.pool.images.resident.nbytes,
        "labels of the pool": held.oracle.labels.nbytes,
        "images of the validation": held.validation.images.resident.nbytes,
        "labels of the validation": held.validation_labels.nbytes,
    }
    assert {name: estimate[name] for name in real} == real
    model = held.builder(0)
    model.freeze_encoder()
    for split in (held.pool, held.validation):
        list(split.outputs(model))
    kept = sum(
        part.nbytes for split in (held.pool, held.validation) for each in split._encoded for part in each
    )
    assert estimate["outputs of the frozen encoder"] == kept
    features = patch_features(held.pool, torch.arange(96), model, held.grid)
    assert estimate["features of the pool"] == 2 * features.nbytes
    assert sum(estimate.values()) < 10 * (sum(real.values()) + kept + features.nbytes)


@pytest.mark.parametrize(
    ("change", "part", "factor"),
    [
        ({"cache_gib": 0.0}, "outputs of the frozen encoder", 0.0),
        ({"cache_gib": 0.0}, "outputs for the labelled patches", 0.0),
        ({"architecture": "paper"}, "features of the pool", 0.25),
        ({"grid": (8, 8)}, "ledger", 4.0),
        ({"pool_share": 0.0}, "labels of the pool", 1.0),
        ({"pool_share": 0.0}, "images of the pool", 0.0),
        ({"strategy": "entropy"}, "manifold", 0.0),
        ({"finetune": True}, "outputs of the frozen encoder", 0.0),
    ],
)
def test_what_can_be_lowered_lowers_the_estimate(
    tiny: Config, change: dict[str, Any], part: str, factor: float
) -> None:
    dataset = data.open_dataset(tiny.dataset, tiny.root, size=tiny.size)
    before = footprint.host_bytes(resolve(tiny), dataset)[part]
    after = footprint.host_bytes(resolve(tiny.replace(**change)), dataset).get(part, 0)
    assert math.isclose(after, factor * before)
