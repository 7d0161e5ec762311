"""A tiny synthetic dataset and a tiny configuration that trains in seconds."""

from pathlib import Path

import pytest

from meal_gpu.config import Config, from_dict


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six street scenes for the pool and two for validation, 96×192, in Cityscapes' layout."""
    from meal_gpu.data import synthetic

    root = tmp_path_factory.mktemp("scenes") / "tree"
    synthetic.write(root, train=6, val=2, size=(96, 192), seed=0)
    return root


@pytest.fixture(scope="session")
def tiny(scenes: Path) -> Config:
    """Two acquisition steps of MEAL over 96 patches, one epoch each."""
    return from_dict(
        {
            "dataset": "cityscapes", "root": str(scenes), "size": [96, 192], "encoder_weights": "none",
            "initial_images": 1, "query_size": 6, "candidates": 20, "steps": 2, "epochs": 1,
            "final_epochs": 2, "precision": "float32", "device": "cpu",
        }
    )  # fmt: skip
