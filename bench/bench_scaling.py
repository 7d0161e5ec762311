"""Cost against the size of the pool and of the images, for what grows with them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.harness import Case
from meal_gpu.grid import Grid
from meal_gpu.ledger import Ledger
from meal_gpu.ops import select_for
from meal_gpu.strategies.base import highest

PATCHES = (1_024, 10_240, 102_400, 1_024_000)
MORE_PATCHES = 10_240_000
HEIGHTS = (128, 256, 512, 1024)
CLASSES, N = 19, 32


def cases(device: torch.device) -> Iterator[Case]:
    ours = select_for(device)
    generator = torch.Generator().manual_seed(0)
    for patches in (*PATCHES, MORE_PATCHES) if device.type == "cuda" else PATCHES:
        scores = torch.rand(patches, generator=generator).to(device)
        everything = torch.arange(patches, device=device)
        yield Case(
            "scaling, selection", {"patches": patches},
            {"ours": lambda scores=scores, everything=everything: highest(scores, everything, 200)},
            over="patches",
        )  # fmt: skip
        points = torch.randn(patches, 2, generator=generator).to(device)
        draws = torch.rand(N, 1, generator=generator, dtype=torch.float64).to(device)
        yield Case(
            "scaling, K-Means++", {"patches": patches, "n": N},
            {"ours": lambda points=points, draws=draws: ours.kmeans_plusplus(points, draws, None)},
            over="patches",
        )  # fmt: skip
        yield from ledger_cases("scaling, ledger", patches, least=3)
    for height in HEIGHTS:
        grid = Grid(4, 4, height, 2 * height)
        logits = torch.randn(2, CLASSES, height // 4, height // 2, generator=generator)
        logits = logits.to(device, memory_format=torch.channels_last)
        yield Case(
            "scaling, patch entropy", {"pixels": 2 * height * 2 * height, "images": 2, "classes": CLASSES},
            {
                "ours": lambda logits=logits, grid=grid: ours.patch_entropy(
                    logits, grid, (grid.height, grid.width), True
                )
            },
            over="pixels",
        )  # fmt: skip


def ledger_cases(name: str, patches: int, *, least: int) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as folder:
        yield Case(
            name, {"patches": patches}, {"ours": lambda: _ledger(Path(folder), patches // 16)},
            over="patches", least=least,
        )  # fmt: skip


def _ledger(folder: Path, images: int) -> None:
    """A new pool, a step labelled, what is left asked for, written and read again."""
    ledger = Ledger.create(Grid(4, 4, 512, 1024), [f"frame{i:07d}" for i in range(images)])
    ledger.label(torch.arange(N), 1)
    ledger.unlabelled()
    ledger.write(folder / "ledger.parquet")
    Ledger.read(folder / "ledger.parquet")
