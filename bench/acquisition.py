"""One whole MEAL acquisition, stage by stage: `python -m bench.acquisition --images 2975 --size 512x1024`.

Cold starts from JPEG files, warm from images that lie where the pass computes. One JSON line each.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import frames
from meal_gpu import ops
from meal_gpu.acquisition import Query, ScoredPool, Settings, query
from meal_gpu.grid import Grid
from meal_gpu.images.opening import open_images
from meal_gpu.inference import default_precision
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold
from meal_gpu.models import Builder, Segmenter
from meal_gpu.record import environment
from meal_gpu.scoring import ImageSet
from meal_gpu.timing import Stages


class Timed(ScoredPool):
    """Says which stage each part of a query belongs to; what is left is to transform and to choose."""

    def __init__(self, stages: Stages, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._stages = stages

    def scores(self) -> torch.Tensor:
        with self._stages("score"):
            return super().scores()

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        with self._stages("features of the pool" if len(patches) == len(self.unlabelled) else "features"):
            return super().features(patches)

    def manifold(self) -> Manifold:
        with self._stages("fit"):
            return super().manifold()


def acquisition(
    images: list[Path] | torch.Tensor, model: Segmenter, device: torch.device, features: str
) -> tuple[Query, dict[str, float]]:
    """A first query of 32 patches among 200 candidates, and the seconds of its stages."""
    stages = Stages(device)
    start = time.perf_counter()
    with stages("load"):
        source, names = open_images(images, device)
    ledger = Ledger.create(Grid(4, 4, *source.size), names)
    pool = ImageSet(source, ops.select_for(device), precision=default_precision(device))
    with stages("transform and choose"):
        chosen = query(Timed(stages, pool, model, ledger, 32, Settings(features=features)), "meal", ledger)
    seconds = {name: round(value, 4) for name, value in stages.seconds.items()}
    return chosen, seconds | {"total": round(time.perf_counter() - start, 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.acquisition", description=__doc__)
    parser.add_argument("--images", type=int, default=2975)
    parser.add_argument("--size", default="512x1024", help="HEIGHTxWIDTH")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended")
    given = parser.parse_args(arguments)
    height, width = map(int, given.size.split("x"))
    device = torch.device(given.device)
    model = Builder("smp", 19, "none")(0).to(device)
    pixels = frames.frames(given.images, (height, width), device)
    with tempfile.TemporaryDirectory() as folder, given.out.open("a", encoding="utf-8") as out:
        paths = frames.write(Path(folder), pixels)
        for features in ("crop", "shared"):
            for start, images in (("cold", paths), ("warm, first", pixels), ("warm", pixels)):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                chosen, seconds = acquisition(images, model, device, features)
                row = {
                    "case": "acquisition", "contender": "ours", "start": start, "features": features,
                    "images": given.images, "size": [height, width], "classes": 19, "chosen": len(chosen),
                    "precision": default_precision(device), "seconds": seconds,
                    "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
                }  # fmt: skip
                out.write(json.dumps(row | environment(device)) + "\n")
                out.flush()
                print(f"{start:12} {features:7} {seconds}")


if __name__ == "__main__":
    main()
