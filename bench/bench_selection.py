"""The 200 unlabelled patches of highest entropy out of a pool: ours against a partial sort and pandas."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.ceiling import Work
from bench.harness import Case
from meal_gpu.strategies.base import highest

CANDIDATES = 200


def cases(device: torch.device) -> Iterator[Case]:
    for patches in (47_600, 1_000_000, *((10_000_000,) if device.type == "cuda" else ())):
        generator = torch.Generator().manual_seed(0)
        scores = torch.rand(patches, generator=generator).to(device)
        unlabelled = torch.randperm(patches, generator=generator)[: patches * 9 // 10].sort().values
        array, ids = scores.cpu().numpy(), unlabelled.numpy()
        frame = pd.DataFrame({"patch": ids, "score": array[ids]})
        unlabelled = unlabelled.to(device)

        def topk(scores: torch.Tensor = scores, unlabelled: torch.Tensor = unlabelled) -> torch.Tensor:
            return unlabelled[scores[unlabelled].topk(CANDIDATES).indices]

        def partition(array: Any = array, ids: Any = ids) -> Any:
            kept = array[ids]
            best = np.argpartition(-kept, CANDIDATES)[:CANDIDATES]
            return ids[best[np.argsort(-kept[best], kind="stable")]]

        contenders: dict[str, Callable[[], object]] = {
            "ours": lambda scores=scores, unlabelled=unlabelled: highest(scores, unlabelled, CANDIDATES),
            "torch.topk, any of equal scores": topk,
            "NumPy argpartition": partition,
            "pandas nlargest": lambda frame=frame: frame.nlargest(CANDIDATES, "score").patch.to_numpy(),
        }
        expected = set(partition().tolist())

        def quality(name: str, result: Any, expected: set[int] = expected) -> dict[str, Any]:
            return {"same patches": len(expected & set(result.tolist()))}

        yield Case(
            "selection",
            {"patches": patches, "candidates": CANDIDATES, "dtype": "float32"},
            contenders,
            Work(len(unlabelled) * (8 + 4) + 8 * CANDIDATES),
            quality=quality,
        )
