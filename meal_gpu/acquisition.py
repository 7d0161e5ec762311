"""Scores → candidates → features → embedding → query: the acquisition backend.

Nothing here can reach a label.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from meal_gpu import rng, strategies
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold
from meal_gpu.models import Network
from meal_gpu.ops import Ops
from meal_gpu.ops import select as select_ops
from meal_gpu.scoring import Advance, ImageSet, patch_features, require_finite, score_pool
from meal_gpu.strategies.base import Selection


@dataclass(frozen=True)
class Settings:
    """How a query is made; the manifold's are those of `Manifold.fit`."""

    candidates: int = 200
    seed: int = 0
    step: int = 1
    neighbors: int = 15
    min_dist: float = 0.1
    dimension: int = 2
    precision: str = "float32"


@dataclass(frozen=True)
class Query:
    """The chosen patches, in order of choice.

    Attributes:
        patch_ids: [n] int64, on the CPU.
        names: the image of each, as the ledger calls it.
        boxes: [n, 4] int64 pixels: left, top, right, bottom (exclusive).
        scores: [n] float32 entropy in nats, NaN where the strategy did not ask for it.
        embedding: [n, d] float32, or None where the strategy has none.
        pool_scores: [P] float32 of the whole pool, or None.
        candidates: [M] int64 embedded patches and their [M, d] coordinates, or None.
    """

    patch_ids: torch.Tensor
    names: tuple[str, ...]
    boxes: torch.Tensor
    scores: torch.Tensor
    embedding: torch.Tensor | None = None
    pool_scores: torch.Tensor | None = None
    candidates: tuple[torch.Tensor, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.patch_ids)

    def to_frame(self) -> pd.DataFrame:
        """One row per chosen patch, in order of choice."""
        left, top, right, bottom = self.boxes.numpy().T
        columns: dict[str, object] = {
            "patch": self.patch_ids.numpy(), "image": list(self.names),
            "left": left, "top": top, "right": right, "bottom": bottom, "score": self.scores.numpy(),
        }  # fmt: skip
        if self.embedding is not None:
            columns |= {f"embedding_{axis}": values for axis, values in enumerate(self.embedding.numpy().T)}
        return pd.DataFrame(columns)

    def to_parquet(self, path: str | Path) -> None:
        """Write `to_frame` as Parquet."""
        self.to_frame().to_parquet(path, index=False)


class ScoredPool:
    """The pool as a strategy sees it (`strategies.base.Pool`): all is computed when first asked for."""

    def __init__(
        self, images: ImageSet, model: Network, ledger: Ledger, n: int, ops: Ops, settings: Settings,
        manifold: Manifold | None = None, advance: Advance = lambda _: None,
    ) -> None:  # fmt: skip
        self._images = images
        self._model = model
        self._grid = ledger.grid
        self._names = ledger.names
        self._settings = settings
        self._manifold = manifold
        self._advance = advance
        self.unlabelled = ledger.unlabelled().to(images.images.device)
        self.n = min(n, len(self.unlabelled))
        self.ops = ops
        self.known_scores: torch.Tensor | None = None

    def scores(self) -> torch.Tensor:
        if self.known_scores is None:
            scores = score_pool(self._images, self._model, self._grid, self.ops, self._advance)
            require_finite(scores, self._grid, self._names)
            self.known_scores = scores
        return self.known_scores

    def candidates(self) -> torch.Tensor:
        open_scores = self.scores()[self.unlabelled]
        # stable: equal scores keep the ascending order of the ids
        order = open_scores.argsort(descending=True, stable=True)
        return self.unlabelled[order[: self._settings.candidates]]

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        return patch_features(
            self._images.images, patches, self._model, self._grid, self.ops,
            precision=self._settings.precision,
        )  # fmt: skip

    def manifold(self) -> Manifold:
        if self._manifold is None:
            raise InputError(
                "this strategy needs a manifold fitted on the pool: pass manifold=Manifold.fit(…)"
            )
        return self._manifold

    def fit_manifold(self, features: torch.Tensor) -> Manifold:
        s = self._settings
        return Manifold.fit(
            features, seed=rng.integer(s.seed, s.step, "manifold"), neighbors=s.neighbors,
            min_dist=s.min_dist, dimension=s.dimension, ops=self.ops,
        )  # fmt: skip

    def uniforms(self, purpose: str, n: int) -> torch.Tensor:
        return rng.uniforms(self._settings.seed, self._settings.step, purpose, n)


def query(pool: ScoredPool, strategy: str, ledger: Ledger) -> Query:
    """Let `strategy` choose from `pool`. Raises MealGpuError where the model's scores are not finite."""
    selection = strategies.get(strategy).select(pool)
    return describe(selection, ledger, pool.known_scores)


def describe(selection: Selection, ledger: Ledger, scores: torch.Tensor | None) -> Query:
    """A selection with what a person needs to find the patches."""
    patches = selection.patches.cpu()
    image, _, _ = ledger.grid.locate(patches)
    embedding = candidates = None
    if selection.embedded is not None and selection.embedding is not None:
        candidates = (selection.embedded.cpu(), selection.embedding.cpu())
        row_of = {int(patch): row for row, patch in enumerate(candidates[0])}
        embedding = candidates[1][[row_of[int(patch)] for patch in patches]]
    return Query(
        patch_ids=patches,
        names=tuple(ledger.names[i] for i in image),
        boxes=torch.from_numpy(ledger.grid.boxes(patches)),
        scores=torch.full((len(patches),), np.nan) if scores is None else scores.cpu()[patches],
        embedding=embedding,
        pool_scores=None if scores is None else scores.cpu(),
        candidates=candidates,
    )


def acquire(
    model: Network,
    images: torch.Tensor,
    n: int,
    *,
    strategy: str = "meal",
    ledger: Ledger | None = None,
    manifold: Manifold | None = None,
    seed: int = 0,
    grid: tuple[int, int] = (4, 4),
    candidates: int = 200,
    precision: str = "float32",
    ops: str = "auto",
) -> Query:
    """Choose the n patches of a pool that a person should label next.

    Args:
        model: a `meal_gpu.models.Network`, such as `meal_gpu.models.Builder("smp", classes, weights)(seed)`
            after training; on the device of `images`.
        images: uint8 [N, H, W, 3] RGB, on any device.
        n: how many patches; fewer are returned where fewer are unlabelled.
        strategy: a name in `meal_gpu.strategies.STRATEGIES`.
        ledger: says what is labelled already (and is left as it is); None: nothing.
        manifold: Φ for strategies that need it; None: fitted here on the features of every patch.
        seed: of all draws. One seed gives one query.
        grid: rows and columns of patches; the ledger's own where one is given.
        candidates: N_I, how many patches of highest entropy enter the second stage.
        precision: "float32" or "bfloat16" (autocast).
        ops: "auto", "reference" or "cuda".

    Raises:
        InputError: images, n or ledger that do not fit together.
        ConfigError: an unknown strategy.
        MealGpuError: the model's output is not finite; the image is named.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != torch.uint8 or not len(images):
        raise InputError(f"images must be uint8 [N, H, W, 3], N > 0, got {images.dtype} {list(images.shape)}")
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    height, width = int(images.shape[1]), int(images.shape[2])
    if ledger is None:
        names = tuple(str(index) for index in range(len(images)))
        ledger = Ledger.create(Grid(*grid, height, width), names)
    elif (len(ledger.names), ledger.grid.height, ledger.grid.width) != (len(images), height, width):
        raise InputError(
            f"the ledger holds {len(ledger.names)} images of {ledger.grid.height}×{ledger.grid.width}, "
            f"but {len(images)} of {height}×{width} were given"
        )
    chosen_ops = select_ops(ops)
    settings = Settings(candidates=max(candidates, n), seed=seed, precision=precision)
    if manifold is None and strategies.get(strategy).needs_manifold:
        everything = torch.arange(len(ledger))
        features = patch_features(images, everything, model, ledger.grid, chosen_ops, precision=precision)
        require_finite(features.sum(dim=1), ledger.grid, ledger.names)
        manifold = Manifold.fit(features, seed=rng.integer(seed, 0, "manifold"), ops=chosen_ops)
    pool = ScoredPool(
        ImageSet(images, chosen_ops, precision=precision), model, ledger, n, chosen_ops, settings, manifold
    )
    return query(pool, strategy, ledger)
