"""A query's stages over pools of a million patches and of ten, with features and points that are drawn."""

from collections.abc import Iterator

import torch

from bench.bench_neighbors import clusters
from bench.bench_scaling import ledger_cases
from bench.harness import Case
from meal_gpu.manifold import LIMIT, Manifold, subsample
from meal_gpu.ops import select_for
from meal_gpu.strategies.base import highest

PATCHES = (1_024_000, 3_072_000, 10_240_000)
CANDIDATES, CENTRES = 200, 1_000


def cases(device: torch.device) -> Iterator[Case]:
    ours = select_for(device)
    generator = torch.Generator().manual_seed(0)
    for patches in PATCHES:
        yield from ledger_cases("large pool, ledger", patches, least=1)
        scores = torch.rand(patches, generator=generator).to(device)
        everything = torch.arange(patches, device=device)
        yield Case(
            "large pool, candidates", {"patches": patches, "candidates": CANDIDATES},
            {"ours": lambda scores=scores, everything=everything: highest(scores, everything, CANDIDATES)},
            over="patches",
        )  # fmt: skip
        yield Case(
            "large pool, subsample", {"patches": patches, "rows": LIMIT},
            {"ours": lambda patches=patches: subsample(patches, LIMIT, seed=0)}, over="patches",
        )  # fmt: skip
        points = torch.randn(patches, 2, generator=generator).to(device)
        draws = torch.rand(CENTRES, 1, generator=generator, dtype=torch.float64).to(device)
        yield Case(
            "large pool, K-Means++", {"patches": patches, "n": CENTRES},
            {"ours": lambda points=points, draws=draws: ours.kmeans_plusplus(points, draws, None)},
            warm_ups={
                "ours": lambda points=points, draws=draws[:2]: ours.kmeans_plusplus(points, draws, None)
            },
            over="patches", least=1, seconds=0,
        )  # fmt: skip
    rows = clusters(LIMIT + CANDIDATES).to(device)
    fitted, candidates = rows[:LIMIT], rows[LIMIT:]
    made: list[Manifold] = []
    yield Case(
        "large pool, UMAP fit", {"rows": LIMIT, "columns": rows.shape[1]},
        {"ours": lambda: made.append(Manifold.fit(fitted, seed=0))},
        warm_ups={"ours": lambda: Manifold.fit(fitted[:2_000], seed=0)}, least=1, seconds=0, memory=False,
    )  # fmt: skip
    if made:
        yield Case(
            "large pool, UMAP transform", {"rows": CANDIDATES, "fitted": LIMIT},
            {"ours": lambda: made[-1].transform(candidates)}, least=3,
        )  # fmt: skip
