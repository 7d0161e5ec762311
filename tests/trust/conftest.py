"""Tiny runs, one per strategy, made once for all tests of this folder."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from meal_gpu import experiment
from meal_gpu.config import Config
from meal_gpu.preparation import Silent, resolve
from meal_gpu.record import RunFolder
from meal_gpu.trust.opening import Past, open_past, open_run


@pytest.fixture(scope="session")
def run_of(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of a strategy, to be read only: MEAL's two steps, two patches of each drawn uniformly,
    or another strategy's first."""
    base = tmp_path_factory.mktemp("trust")

    @cache
    def made(strategy: str) -> Path:
        out, short = base / strategy, tiny.replace(strategy=strategy, final_epochs=1)
        if strategy == "meal":
            return experiment.run(short.replace(control_share=0.34), out).path
        # Step 0 is the same for all of them: trained once
        folder = RunFolder.create(out, resolve(short.replace(steps=1)), torch.device("cpu"))
        shutil.copytree(made("meal") / "steps/000", folder.step(0))
        return experiment.run(folder.config, out, resume=True).path

    return made


@pytest.fixture(scope="session")
def past(run_of: Callable[[str], Path]) -> Past:
    """What MEAL's first query was made from."""
    folder = open_run(run_of("meal"), 1)
    return open_past(folder, 1, folder.config, Silent())
