"""Run folders that were written by hand: nothing is trained."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import calibrated

from meal_gpu import data, models
from meal_gpu.config import Config
from meal_gpu.grid import Grid
from meal_gpu.ledger import Ledger
from meal_gpu.record import RunFolder

CLASSES = ("road", "<b>sky</b>")
SCORES = (0.25, 0.375, 0.5)
STAGES = {"acquire": 1.5, "train": 20.0, "validate": 2.25}


def make(path: Path, scores: tuple[float, ...] = SCORES, **changes: Any) -> Path:
    """Metrics alone: a complete step per score, without ledgers, queries and models."""
    folder = RunFolder.create(path, Config(strategy="entropy").replace(**changes), torch.device("cpu"))
    environment = {"device": "A CPU, 2 cores", "commit": "0123456789ab"}
    (path / "env.json").write_text(json.dumps(environment))  # the same on every machine
    for step, score in enumerate(scores):
        known = None if math.isnan(score) else score
        metrics = {
            "step": step, "labelled": 32 * (step + 1), "patches": 1600, "share": 32 * (step + 1) / 1600,
            "mean_iou": known, "class_iou": {CLASSES[0]: known, CLASSES[1]: None}, "epoch": step + 1,
            "history": [],
        }  # fmt: skip
        with folder.writing(folder.step(step)) as aside:
            (aside / "metrics.json").write_text(json.dumps(metrics))
    return path


def make_whole(
    path: Path, tree: Path, *, query: int = 20, steps: int = 2, candidates: int = 30, name: str | None = None,
    size: tuple[int, int] = (96, 192),
) -> Path:  # fmt: skip
    """A run with all that a run of MEAL leaves, over the scenes in `tree`; step k queries patches in order.

    The first image is labelled at step 0. Query k takes every second of the next patches that are unlabelled;
    candidates are those after it. `name`: what the ledger calls the images instead.
    """
    config = Config(
        dataset="cityscapes", root=str(tree), size=size, query_size=query, candidates=max(query, candidates),
        initial_images=1, encoder_weights="none",
    )  # fmt: skip
    folder = RunFolder.create(path, config, torch.device("cpu"))
    (path / "env.json").write_text(json.dumps({"device": "A CPU", "commit": None}))
    dataset = data.open_dataset("cityscapes", tree, size=size)
    grid = Grid(*config.grid, *size)
    names = dataset.train.names if name is None else tuple(f"{i}{name}" for i in range(len(dataset.train)))
    ledger = Ledger.create(grid, names)
    builder = models.Builder("smp", len(dataset.classes), "none")
    with folder.writing(path / "manifold") as aside:
        pool = Ledger.create(grid, names)
        pool.set_embedding(torch.arange(len(ledger)), place(torch.arange(len(ledger))))
        pool.frame.drop(columns=["step", "score"]).to_parquet(aside / "pool.parquet", index=False)
    lines = [{"event": "manifold", "seconds": {"fit": 3.0}}]
    for step in range(steps + 1):
        open_ = ledger.unlabelled()
        chosen = torch.arange(grid.patches_per_image) if step == 0 else open_[: 2 * query : 2]
        if step:
            ledger.set_scores(torch.linspace(0, 1, len(ledger)))
            embedded = open_[: 2 * query + candidates]
            ledger.set_embedding(embedded, place(embedded) + 0.01 * step)
        ledger.label(chosen, step)
        labelled = len(ledger.labelled())
        metrics = {
            "step": step, "labelled": labelled, "patches": len(ledger), "share": labelled / len(ledger),
            "mean_iou": 0.1 * (step + 1), "class_iou": dict.fromkeys(dataset.classes, 0.1 * step), "epoch": 1,
            "history": [],
        }  # fmt: skip
        with folder.writing(folder.step(step)) as aside:
            query_frame(chosen, ledger, step).to_parquet(aside / "query.parquet", index=False)
            ledger.write(aside / "ledger.parquet")
            models.save(calibrated(builder, step), aside / "model.safetensors")
            (aside / "metrics.json").write_text(json.dumps(metrics))
        lines.append({"event": "step", "step": step, "seconds": STAGES})
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def place(patches: torch.Tensor) -> torch.Tensor:
    """[M] -> [M, 2]: patches in rows of 10, a unit apart."""
    return torch.stack([patches % 10, patches // 10], dim=1).float()


def query_frame(chosen: torch.Tensor, ledger: Ledger, step: int) -> Any:
    """As `acquisition.Query.to_frame` has it."""
    import pandas as pd

    image, _, _ = ledger.grid.locate(chosen)
    frame = pd.DataFrame({"patch": chosen.numpy(), "image": [ledger.names[i] for i in image]})
    frame["score"] = np.float32(np.nan) if step == 0 else np.linspace(2, 1, len(chosen), dtype=np.float32)
    if step:
        frame[["embedding_0", "embedding_1"]] = place(chosen).numpy()
    return frame
