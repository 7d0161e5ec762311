"""What a query loses where Φ is fitted on a part of the pool: `python -m bench.subsample --root CAMVID`.

All patches of CamVid's training split, described by the ImageNet encoder as in MEAL's step 0. Φ is fitted on
shares of them by the rule of large pools (`manifold.subsample`); 32 of 200 patches drawn at random are then
chosen by K-Means++ in the embedding, with the same random numbers, and judged by the features themselves.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from bench import harness
from meal_gpu import config as configs
from meal_gpu import rng
from meal_gpu.learner import new_model
from meal_gpu.manifold import Manifold, subsample
from meal_gpu.ops import Ops
from meal_gpu.preparation import Silent, load, resolve
from meal_gpu.record import environment
from meal_gpu.scoring import patch_features

SHARES = (2, 4, 8, 16)  # one patch of so many
SMALLER = 4
CANDIDATES, N = 200, 32


def described(root: Path, weights: str) -> tuple[torch.Tensor, Ops]:
    """[P, D] float32 features of the pool's patches on the CPU, and what computes on the device."""
    base = configs.PRESETS["camvid"].replace(
        root=str(root), encoder_weights=weights, architecture="smp", device="auto"
    )
    experiment = load(resolve(base), Silent())
    grid = experiment.oracle.grid
    patches = torch.arange(len(experiment.pool) * grid.patches_per_image)
    features = patch_features(experiment.pool, patches, new_model(experiment, 0), grid)
    return features.cpu(), experiment.pool.ops


def chosen(manifold: Manifold, candidates: torch.Tensor, seed: int, ops: Ops) -> torch.Tensor:
    """[N] rows of `candidates` [M, D], as MEAL chooses them."""
    draws = rng.uniforms(seed, 1, "bench/subsample", N).view(N, 1)
    return ops.kmeans_plusplus(manifold.transform(candidates), draws, None).cpu()


def error(points: torch.Tensor, rows: torch.Tensor) -> float:
    """Mean squared distance of `points` [M, D] to the nearest of the chosen `rows`."""
    distances = torch.cdist(points.double(), points[rows].double())
    return float(distances.amin(dim=1).square().mean())


def measured(features: torch.Tensor, seed: int, ops: Ops) -> list[dict[str, Any]]:
    """A row for each share, and for the whole pool: with another seed of UMAP, and without the candidates.

    Each says how many of the chosen are those of the whole pool (`shared`), and how far candidates lie from
    the nearest chosen, in parts of what patches chosen at random give: among the features, and in the
    embedding by the whole pool.
    """
    draws = rng.stream(seed, 0, "bench/subsample")
    candidates = torch.from_numpy(draws.choice(len(features), CANDIDATES, replace=False))
    drawn = features[candidates]
    random = [torch.from_numpy(draws.permutation(CANDIDATES)[:N]) for _ in range(100)]

    def fitted(limit: int, by: int) -> Manifold:
        return Manifold.fit(features[subsample(len(features), limit, by)], seed=by, ops=ops)

    whole = fitted(len(features), seed)
    queries = {"all": chosen(whole, drawn, seed, ops)}
    queries["all, another seed of UMAP"] = chosen(fitted(len(features), seed + 1000), drawn, seed, ops)
    others = torch.ones(len(features), dtype=torch.bool).index_fill_(0, candidates, False)
    unseen = Manifold.fit(features[others], seed=seed, ops=ops)
    queries["all but the 200"] = chosen(unseen, drawn, seed, ops)
    for share in SHARES:
        queries[f"1 of {share}"] = chosen(fitted(len(features) // share, seed), drawn, seed, ops)
    spaces = {"features": drawn, "embedding": whole.transform(drawn).cpu()}
    chance = {
        name: float(np.mean([error(points, rows) for rows in random])) for name, points in spaces.items()
    }
    return [
        {
            "fitted on": case, "seed": seed, "patches": len(features),
            "shared": len({*rows.tolist()} & {*queries["all"].tolist()}),
            **{name: error(points, rows) / chance[name] for name, points in spaces.items()},
        }
        for case, rows in queries.items()
    ]  # fmt: skip


def main(
    root: Annotated[Path, typer.Option()],
    encoder_weights: Annotated[str, typer.Option()] = "imagenet",
    seeds: Annotated[int, typer.Option()] = 5,
    out: Annotated[Path | None, typer.Option(help="JSON lines, written anew.")] = None,
) -> None:
    features, ops = described(root, encoder_weights)
    known = environment(torch.device("cpu")) | {"command": ["python", "-m", "bench.subsample"]}
    # A smaller pool too: is it the share that counts, or the number of patches that Φ is fitted on?
    smaller = features[subsample(len(features), len(features) // SMALLER, 0)]
    with harness.recording(out) as write:
        for pool in (features, smaller):
            for seed in range(seeds):
                rows = measured(pool, seed, ops)
                print(json.dumps(rows), flush=True)
                write([row | known for row in rows])


if __name__ == "__main__":
    harness.told(lambda: typer.run(main))
