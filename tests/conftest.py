"""A tiny synthetic dataset and a tiny configuration that trains in seconds."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from meal_gpu import ops
from meal_gpu.config import Config, from_dict
from meal_gpu.ops import Ops, native, select, why_not_cpu

# `make test` says the same each time; HYPOTHESIS_PROFILE=default looks for new cases
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")


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


@pytest.fixture(scope="session", params=["reference", "cpu"])
def on_cpu(request: pytest.FixtureRequest) -> Ops:
    """The reference, and its compiled twin."""
    if request.param == "cpu" and (missing := why_not_cpu()):
        pytest.skip(missing)
    return select(request.param)


@pytest.fixture
def fresh_kernels() -> Iterator[Callable[[], None]]:
    """The CPU's kernels as in a new process: not tried so far. Call it to forget once more."""

    def forget() -> None:
        for function in (native.library, native.why_not, ops._warn_once):
            function.cache_clear()

    forget()
    yield forget
    forget()


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device on which `meal_gpu.ops.cuda` works: a GPU, or the CPU that executes the kernels' own source.

    Memory that a kernel should write is NaN, or the largest integer, until it does.
    """
    from cuda_on_cpu import harness

    from meal_gpu.ops import compile

    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "cpu":
            patch.setattr(compile, "launch", harness.launch)
        yield torch.device(request.param)
    torch.use_deterministic_algorithms(False)
