"""A first query of a whole pool, stage by stage: ours against pipelines that users would put together.

Cold starts from JPEG files, warm from images that lie on the device. What any of them compiles is compiled
before, on a few images. On a GPU the third pipeline is given each of our parts in turn, so that gains
can be told apart.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench import frames, pipelines, trained
from bench.harness import Case, without_tf32
from bench.pipelines import Given, Network, Outcome, Pipeline
from meal_gpu import ops, rng
from meal_gpu.acquisition import query
from meal_gpu.grid import Grid
from meal_gpu.images.headers import Size
from meal_gpu.images.opening import open_images
from meal_gpu.inference import default_precision
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold
from meal_gpu.models import Segmenter
from meal_gpu.passes import ImageSet, default_batch
from meal_gpu.pool import ScoredPool, Settings
from meal_gpu.scoring import score_pool
from meal_gpu.timing import Stages

SIZE = (512, 1024)
POOL, CPU_POOL = 2975, 20  # Cityscapes' training split; what a CPU can do several times over in a minute
WARM_UP = 16  # images at least, of which there are more patches than candidates


class Timed(ScoredPool):
    """Says which stage each part of a query belongs to."""

    def __init__(self, stages: Stages, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._stages = stages
        self.ops = _TimedOps(self.ops, stages)
        self._images.ops = self.ops

    def scores(self) -> torch.Tensor:
        with self._stages("network"):
            return super().scores()

    def candidates(self) -> torch.Tensor:
        self.scores()
        with self._stages("select"):
            return super().candidates()

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        with self._stages("features"):
            return super().features(patches)

    def manifold(self) -> Manifold | None:
        with self._stages("fit"):
            return super().manifold()


class _TimedOps:
    def __init__(self, inner: ops.Ops, stages: Stages) -> None:
        self._inner, self._stages = inner, stages

    def __getattr__(self, name: str) -> Any:
        function, stage = (
            getattr(self._inner, name),
            {"patch_entropy": "entropy", "kmeans_plusplus": "choose"},
        )
        if name not in stage:
            return function

        def timed(*arguments: Any, **settings: Any) -> Any:
            with self._stages(stage[name]):
                return function(*arguments, **settings)

        return timed


def ours(images: Given, model: Segmenter, device: torch.device, features: str, stages: Stages) -> Outcome:
    """The public backend, opened up for its stages; what is left of them is to transform."""
    with stages("load"):
        source, names = open_images(images if isinstance(images, torch.Tensor) else list(images), device)
    ledger = Ledger.create(Grid(4, 4, *source.size), names)
    pool = ImageSet(source, ops.select_for(device), precision=default_precision(device))
    with stages("transform"):
        settings = Settings(candidates=pipelines.CANDIDATES, features=features)
        chosen = query(Timed(stages, pool, model, ledger, pipelines.N, settings), "meal", ledger)
    assert chosen.candidates is not None
    return Outcome(chosen.patch_ids, *chosen.candidates)


@dataclass
class Contender:
    """A whole acquisition, and the seconds of its stages in each round."""

    acquire: Callable[[Given, Stages], Outcome]
    images: Given
    device: torch.device
    rounds: list[dict[str, float]] = field(default_factory=list)
    last: Outcome | None = None

    def __call__(self) -> Outcome:
        stages = Stages(self.device)
        self.last = self.acquire(self.images, stages)
        self.rounds.append(stages.seconds)
        return self.last

    def warm_up(self) -> Outcome:
        """The same with few images, the last batch as long as the pool's: other shapes compile anew."""
        few = WARM_UP + len(self.images) % default_batch(self.device)
        return self.acquire(self.images[:few], Stages(self.device))

    def medians(self) -> dict[str, float]:
        """By stage, of all rounds."""
        names = list(dict.fromkeys(name for each in self.rounds for name in each))
        return {name: statistics.median(each.get(name, 0.0) for each in self.rounds) for name in names}


def peers(
    model: Segmenter, size: Size, device: torch.device
) -> dict[str, Callable[[Given, Stages], Outcome]]:
    """By name, how each acquires; networks are compiled once for cold and warm."""
    grid = Grid(4, 4, *size)

    def bound(pipeline: Pipeline, network: Network | None = None) -> Callable[[Given, Stages], Outcome]:
        made = network or pipeline.network(model, device)
        return lambda images, stages: pipeline(images, grid, made, device, stages)

    found = {
        "DataLoader, Pillow, float32, seeded umap-learn": bound(pipelines.PLAIN),
        "OpenCV, bfloat16, unseeded umap-learn": bound(pipelines.SKILLED),
    }
    if device.type != "cuda":
        compiled = replace(
            pipelines.SKILLED,
            network=partial(pipelines.eager, "bfloat16", True),
            entropy=pipelines.compiled_entropy(),
        )
        return found | {"OpenCV, torch.compile, unseeded umap-learn": bound(compiled)}
    compiled = Pipeline(
        decode=pipelines.by_dali,
        network=partial(pipelines.eager, "bfloat16", True),
        entropy=pipelines.compiled_entropy(),
        fit=pipelines.cuml_umap if find_spec("cuml") else partial(pipelines.umap_learn, None),
        seed=pipelines.scikit_learn,
    )
    network = compiled.network(model, device)
    name = "DALI, torch.compile, cuML"
    return {
        name: bound(compiled, network),
        f"{name} + our network": bound(compiled, pipelines.ready(model, device)),
        f"{name} + our entropy": bound(replace(compiled, entropy=pipelines.our_entropy), network),
        f"{name} + our UMAP": bound(replace(compiled, fit=pipelines.our_umap), network),
        f"{name} + our seeding": bound(replace(compiled, seed=pipelines.our_seeding), network),
        **dict(reversed(found.items())),  # the slowest last, for whom time may run out
    }


def cases(device: torch.device, count: int | None = None, size: Size = SIZE) -> Iterator[Case]:
    on_gpu = device.type == "cuda"
    count = count or (POOL if on_gpu else CPU_POOL)
    model = trained.network(device)
    pixels = frames.frames(count, size, torch.device("cpu"))
    resident = pixels.to(device)
    best = float32_candidates(resident, model)
    ways: dict[str, Callable[[Given, Stages], Outcome]] = {
        "ours": lambda images, stages: ours(images, model, device, "crop", stages),
        "ours, shared features": lambda images, stages: ours(images, model, device, "shared", stages),
        **peers(model, size, device),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = frames.write(Path(folder), pixels)
        for start, images in (("warm", resident), ("cold", paths)):
            contenders = {name: Contender(way, images, device) for name, way in ways.items()}

            def extra(name: str, contenders: dict[str, Contender] = contenders) -> dict[str, Any]:
                outcome = contenders[name].last
                assert outcome is not None
                shared = len(best & set(outcome.candidates.tolist()))
                found: dict[str, Any] = {"stages": contenders[name].medians(), "float32 candidates": shared}
                if name.startswith("ours"):
                    found["chosen again"] = chosen_again(outcome)
                return found

            yield Case(
                "acquisition",
                {"start": start, "images": count, "height": size[0], "width": size[1]},
                contenders,
                extra=extra,
                warm_ups={name: contender.warm_up for name, contender in contenders.items()},
                seconds=10.0,
                least=1 if on_gpu else 3,
                most=5,
                memory=False,
            )


def float32_candidates(images: torch.Tensor, model: Segmenter) -> set[int]:
    """The patches of highest entropy, by the reference ops and the network in float32."""
    pool = ImageSet(images, ops.select("reference"), precision="float32")
    with without_tf32():
        scores = score_pool(pool, model, Grid(4, 4, *pool.size)).scores
    return set(scores.topk(pipelines.CANDIDATES).indices.tolist())


def chosen_again(outcome: Outcome) -> int:
    """How many of the 32 the reference ops choose too, in the same order, from the same embedding."""
    draws = rng.uniforms(0, 1, "kmeans_plusplus", pipelines.N)[:, None]
    rows = ops.select("reference").kmeans_plusplus(outcome.embedding, draws, None)
    return int((outcome.candidates[rows] == outcome.patches).sum())
