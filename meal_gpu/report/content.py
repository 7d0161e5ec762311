"""All that the page says, as plain data: numbers, names and pictures, and what is missing and why."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch

from meal_gpu.errors import MealGpuError, RunError
from meal_gpu.ledger import Ledger
from meal_gpu.report import curves, points
from meal_gpu.report.scenes import Picture, Scenes
from meal_gpu.report.table import HEADER, Run, rows, title

T = TypeVar("T")

PICTURES = 192
"""Thumbnails of queried patches in a page, over all runs and steps: some 3 MB."""
PER_STEP = 16
OTHERS = 48
"""Small thumbnails of patches that were not queried, over all runs."""


def gather(runs: Sequence[Run], *, images: bool = True) -> dict[str, Any]:
    """What there is to say of some runs, JSON without NaN.

    A part that cannot be made, for want of the dataset or of a file, is None or empty, and `missing` of its
    run says why. Without `images` neither dataset nor models are opened.
    """
    steps = sum(len(run.steps) for run in runs)
    most = min(PER_STEP, PICTURES // steps)
    found = {
        "curves": [dataclasses.asdict(curve) | {"label": curve.label} for curve in curves.gather(runs)],
        "runs": [_Content(run, len(runs), most).gather(images) for run in runs],
    }
    plain: dict[str, Any] = _plain(found)
    return plain


class _Content:
    """One run of `runs`, with at most `most` pictures of a step, which may be none."""

    def __init__(self, run: Run, runs: int, most: int) -> None:
        self._run = run
        self._runs = runs
        self._most = most
        self._missing: list[str] = []

    def gather(self, images: bool) -> dict[str, Any]:
        run = self._run
        found: dict[str, Any] = {
            "name": run.name, "title": title(run), "header": HEADER, "rows": rows(run),
            "steps": [step["step"] for step in run.steps], "iou": _class_iou(run), "budget": _budget(run),
            "timings": self._timings(), "queries": [], "embedding": None, "shares": None, "palette": [],
            "details": {},
        }  # fmt: skip
        ledger = self._try(
            "queried patches, embedding, thumbnails and class shares",
            lambda: Ledger.read(self._newest() / "ledger.parquet"),
        )
        if ledger is None:
            return found | {"missing": self._missing}
        for step in found["steps"]:
            if query := self._try(f"queried patches of step {step}", partial(self._query, step)):
                found["queries"].append(query)
        found["embedding"] = self._try("embedding", lambda: self._embedding(ledger))
        if images:
            self._images(found, ledger)
        else:
            self._missing.append("thumbnails and class shares: images were not asked for")
        return found | {"missing": self._missing}

    def _newest(self) -> Path:
        return self._run.folder.step(len(self._run.steps) - 1)

    def _embedding(self, ledger: Ledger) -> dict[str, Any]:
        limit = points.MOST // self._runs
        if (found := points.embedding(self._run, ledger.grid, ledger.names, limit)) is None:
            raise RunError(f"the strategy {self._run.config.strategy} made none")
        return found

    def _images(self, found: dict[str, Any], ledger: Ledger) -> None:
        run = self._run
        scenes = self._try("thumbnails and class shares", lambda: Scenes.open(run, ledger.grid, ledger.names))
        if scenes is None:
            return
        found["palette"] = scenes.palette
        if any(len(query["items"]) > self._most for query in found["queries"]):
            self._missing.append(
                f"thumbnails of the queried patches after the first {self._most} of a step: a page has "
                f"{PICTURES} in all; report fewer runs to see more"
            )
        for query in found["queries"] if self._most else ():
            self._try(f"thumbnails of step {query['step']}", partial(self._illustrate, query, scenes))
        if found["embedding"] is not None:
            details = self._try("thumbnails of other patches", lambda: self._details(ledger, scenes))
            found["details"] = details or {}
        found["shares"] = self._try("class shares", lambda: self._shares(ledger, scenes))

    def _details(self, ledger: Ledger, scenes: Scenes) -> dict[str, str]:
        """Small pictures of patches that nobody asked for, evenly from the pool, by patch."""
        others = ledger.unlabelled()
        even = torch.linspace(0, len(others) - 1, min(OTHERS // self._runs, len(others))).round().long()
        patches = others[even].tolist()
        return dict(zip(map(str, patches), scenes.details(patches), strict=True))

    def _shares(self, ledger: Ledger, scenes: Scenes) -> dict[str, Any]:
        """Of the labelled pixels, the share of each class after each step."""
        since = torch.from_numpy(ledger.frame["step"].to_numpy(copy=True)).long()
        counts = scenes.class_pixels(since, len(self._run.steps) - 1).double()
        shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
        most = float(shares.max())  # how long the longest bar is
        return {"classes": scenes.dataset.classes, "most": most or 1.0, "steps": shares.tolist()}

    def _query(self, step: int) -> dict[str, Any]:
        frame = pd.read_parquet(self._run.folder.step(step) / "query.parquet")
        items = [
            {"rank": rank, "patch": int(patch), "image": str(image), "score": float(score), "picture": None}
            for rank, (patch, image, score) in enumerate(
                zip(frame["patch"], frame["image"], frame["score"], strict=True), 1
            )
        ]
        drawn = int((frame["arm"] == "control").sum()) if "arm" in frame else 0
        return {
            "step": step, "of": len(items), "drawn": drawn, "items": items[:PER_STEP],
            "control": self._run.steps[step].get("control"),
        }  # fmt: skip

    def _illustrate(self, query: dict[str, Any], scenes: Scenes) -> None:
        """Add the pictures, with what the model of the step before, which asked, made of them."""
        items, step = query["items"][: self._most], query["step"]
        model = None
        if step:
            what = f"entropy and prediction of step {step}"
            model = self._try(what, lambda: scenes.model(self._run, step - 1))
        pictures: list[Picture] = scenes.pictures([item["patch"] for item in items], model)
        for item, picture in zip(items, pictures, strict=True):
            item["picture"] = picture._asdict()

    def _timings(self) -> list[dict[str, Any]]:
        """Seconds per stage, of each step that log.jsonl knows and of what precedes them."""
        lines = self._try("stage timings", (self._run.folder.path / "log.jsonl").read_bytes)
        if lines is None:
            return []
        found: dict[str, dict[str, float]] = {}
        bad, unknown = 0, {step["step"] for step in self._run.steps}
        for line in lines.splitlines():
            try:
                row = json.loads(line)
                seconds = {str(stage): float(value) for stage, value in row.get("seconds", {}).items()}
                name = str(row["event"])
                if name == "step":
                    unknown.discard(step := int(row["step"]))
                    name = f"step {step}, resumed" if row.get("midway") else f"step {step}"
                found[name] = seconds
            except (ValueError, TypeError, KeyError, AttributeError):
                bad += 1
        if bad:
            self._missing.append(f"stage timings: {bad} of log.jsonl's lines cannot be read")
        if unknown:
            of = len(self._run.steps)
            self._missing.append(f"stage timings: log.jsonl has no entry of {len(unknown)} of {of} steps")
        return [{"name": name, "seconds": seconds} for name, seconds in found.items() if seconds]

    def _try(self, name: str, make: Callable[[], T]) -> T | None:
        """What `make` gives. Where it fails the part is left out and named: the run is over and recorded."""
        try:
            return make()
        except Exception as error:
            what = str(error) if isinstance(error, MealGpuError | OSError) else repr(error)
            self._missing.append(f"{name}: {what}")
            return None


def _class_iou(run: Run) -> dict[str, list[float | None]]:
    """IoU of each class after each step."""
    classes = list(run.steps[-1]["class_iou"])
    return {name: [step["class_iou"].get(name) for step in run.steps] for name in classes}


def _budget(run: Run) -> list[dict[str, Any]]:
    before = [0, *(step["labelled"] for step in run.steps)]
    return [
        {"step": step["step"], "before": earlier, "new": step["labelled"] - earlier, "share": step["share"]}
        for step, earlier in zip(run.steps, before, strict=False)
    ]


def _plain(value: Any) -> Any:
    """Tuples as lists and what is not finite as None: JSON has neither."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
