"""Runs made by hand, in memory and as folders."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meal_gpu.compare.runs import Curve
from meal_gpu.config import SUPERVISED, Config
from meal_gpu.record import RunFolder

CLASSES = ("road", "sky")
PATCHES = 1600
IMAGES = 100  # a patch each to a supervised run


def curve(
    strategy: str, seed: int, scores: Sequence[float], labelled: Sequence[int] | None = None, **changes: Any
) -> Curve:
    """A run in memory; road has the mIoU + 0.1, sky - 0.1, and the last epoch 0.02 less."""
    score = np.array(scores, dtype=np.float64)
    return Curve(
        name=f"{strategy}-{seed}", config=Config().replace(strategy=strategy, seed=seed, **changes),
        labelled=tuple(labelled or (32 * (k + 1) for k in range(len(scores)))), score=score,
        last_epoch=score - 0.02, patches=IMAGES if strategy == SUPERVISED else PATCHES,
        class_iou=np.stack([score + 0.1, score - 0.1], axis=1), classes=CLASSES,
        devices=("A CPU, 2 cores",) * len(score), commits=("0123456789ab",) * len(score),
    )  # fmt: skip


def folder(
    path: Path, strategy: str, seed: int, scores: Sequence[float], *, commit: str = "0123456789ab",
    classes: Sequence[str] = CLASSES, patches: int = PATCHES, **changes: Any,
) -> Path:  # fmt: skip
    """A run folder with a complete step per score."""
    config = Config().replace(strategy=strategy, seed=seed, **changes)
    if strategy == SUPERVISED:  # of which an image is one patch
        patches //= math.prod(config.grid)
    run = RunFolder.create(path, config, torch.device("cpu"))
    (path / "env.json").write_text(json.dumps({"device": "A CPU, 2 cores", "commit": commit}))
    for step, score in enumerate(scores):
        labelled = 32 * (step + 1)
        figure = None if np.isnan(score) else score
        metrics = {
            "step": step, "labelled": labelled, "patches": patches, "share": labelled / patches,
            "mean_iou": figure, "class_iou": dict.fromkeys(classes, figure), "epoch": 1,
            "history": [{"epoch": 1.0, "loss": 1.0, "mean_iou": figure}],
        }  # fmt: skip
        with run.writing(run.step(step)) as aside:
            (aside / "metrics.json").write_text(json.dumps(metrics))
    return path
