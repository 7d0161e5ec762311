"""Scores → candidates → features → embedding → query: the acquisition backend.

Nothing here can reach a label.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from meal_gpu import rng, strategies
from meal_gpu.adapters import adapt
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.images.opening import SHARE, Given, open_images
from meal_gpu.inference import PRECISIONS, default_precision
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold
from meal_gpu.models import Network
from meal_gpu.ops import select_for
from meal_gpu.scoring import Advance, ImageSet, Scored, patch_features, require_finite, score_pool
from meal_gpu.strategies.base import Selection

SHARED = "shared"
FEATURES = ("crop", SHARED)


@dataclass(frozen=True)
class Settings:
    """How a query is made; the manifold's are those of `Manifold.fit`.

    `features` are those of the patch's own pixels ("crop", as in the paper), or what the pass that scores the
    whole image says of the patch ("shared", one pass for both).
    """

    candidates: int = 200
    features: str = "crop"
    seed: int = 0
    step: int = 1
    neighbors: int = 15
    min_dist: float = 0.1
    dimension: int = 2
    build: str = "auto"
    deterministic: bool = True


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


def highest(scores: torch.Tensor, of: torch.Tensor, n: int) -> torch.Tensor:
    """The n patches of highest score among `of` [U] int64 ascending, by `scores` [P]; -> [min(n, U)].

    Equal scores: the lower id first. NaN comes before any number.
    """
    order = scores[of].argsort(descending=True, stable=True)
    return of[order[:n]]


class ScoredPool:
    """The pool as a strategy sees it (`strategies.base.Pool`): all is computed when first asked for.

    Patches in `excluded` [E] are not chosen. `scored` and `everything`, all patches' features [P, D],
    are not computed where they are given. Nothing here waits for the device where the images live on it;
    `require_finite` does, at the end.
    """

    def __init__(
        self, images: ImageSet, model: Network, ledger: Ledger, n: int, settings: Settings,
        manifold: Manifold | None = None, advance: Advance = lambda _: None,
        *, excluded: torch.Tensor | None = None, scored: Scored | None = None,
        everything: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self._images = images
        self._model = model
        self._grid = ledger.grid
        self._names = ledger.names
        self._settings = settings
        self._manifold = manifold
        self.fitted: Manifold | None = None  # Φ, where it was fitted here
        self._advance = advance
        unlabelled = ledger.unlabelled().to(images.device)
        if excluded is not None:
            unlabelled = unlabelled[~torch.isin(unlabelled, excluded.to(images.device))]
        self.unlabelled = unlabelled
        self.n = min(n, len(self.unlabelled))
        self.ops = images.ops
        self.scored = scored
        self._described: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._everything = everything  # the features of every patch, once they were asked for

    def scores(self) -> torch.Tensor:
        return self._scored().scores

    def _scored(self) -> Scored:
        if self.scored is None:
            shared = self._settings.features == SHARED
            self.scored = score_pool(
                self._images, self._model, self._grid, features=shared, advance=self._advance
            )
        return self.scored

    def candidates(self) -> torch.Tensor:
        return highest(self.scores(), self.unlabelled, self._settings.candidates)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        if self._settings.features == SHARED:
            shared = self._scored().features
            assert shared is not None
            features = shared[patches.to(shared.device)]
        elif self._everything is not None:
            return self._everything[patches.to(self._everything.device)]
        else:
            features = patch_features(self._images, patches, self._model, self._grid)
        self._described.append((features, patches))
        return features

    def require_finite(self) -> None:
        """Raises MealGpuError naming the image where a score or feature so far is not finite."""
        if self.scored is not None:
            require_finite(self.scored.scores, self._grid, self._names)
        for features, patches in self._described:
            require_finite(features.sum(dim=1), self._grid, self._names, patches)

    def manifold(self) -> Manifold:
        if self._manifold is None:
            everything = torch.arange(len(self._images) * self._grid.patches_per_image)
            features = self.features(everything)
            self._everything = features
            self.require_finite()
            seed = rng.integer(self._settings.seed, 0, "manifold")
            self._manifold = self.fitted = self._fit(features, seed)
        return self._manifold

    def fit_manifold(self, features: torch.Tensor) -> Manifold:
        return self._fit(features, rng.integer(self._settings.seed, self._settings.step, "manifold"))

    def _fit(self, features: torch.Tensor, seed: int) -> Manifold:
        s = self._settings
        return Manifold.fit(
            features, seed=seed, neighbors=s.neighbors, min_dist=s.min_dist, dimension=s.dimension,
            build=s.build, deterministic=s.deterministic, check=False, ops=self.ops,
        )  # fmt: skip

    def uniforms(self, purpose: str, n: int) -> torch.Tensor:
        return rng.uniforms(self._settings.seed, self._settings.step, purpose, n)


def query(pool: ScoredPool, strategy: str, ledger: Ledger) -> Query:
    """Let `strategy` choose from `pool`. Raises MealGpuError where the model's output is not finite."""
    try:
        selection = strategies.get(strategy).select(pool)
    except Exception:
        pool.require_finite()  # the cause, perhaps
        raise
    pool.require_finite()
    return describe(selection, ledger, pool.scored.scores if pool.scored else None)


def describe(selection: Selection, ledger: Ledger, scores: torch.Tensor | None) -> Query:
    """A selection with what a person needs to find the patches."""
    patches = selection.patches.cpu()
    image, _, _ = ledger.grid.locate(patches)
    embedding = candidates = None
    if selection.embedded is not None and selection.embedding is not None:
        candidates = (selection.embedded.cpu(), selection.embedding.cpu())
        ascending, order = candidates[0].sort()
        embedding = candidates[1][order[torch.searchsorted(ascending, patches)]]
    scores = None if scores is None else scores.cpu()
    return Query(
        patch_ids=patches,
        names=tuple(ledger.names[i] for i in image),
        boxes=torch.from_numpy(ledger.grid.boxes(patches)),
        scores=torch.full((len(patches),), np.nan) if scores is None else scores[patches],
        embedding=embedding,
        pool_scores=scores,
        candidates=candidates,
    )


def acquire(
    model: Network | nn.Module,
    images: Given,
    n: int,
    *,
    strategy: str = "meal",
    ledger: Ledger | None = None,
    manifold: Manifold | None = None,
    seed: int = 0,
    grid: tuple[int, int] = (4, 4),
    candidates: int = 200,
    features: str = "crop",
    layer: str | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
    pool_share: float = SHARE,
    device: str | torch.device | None = None,
    ops: str = "auto",
) -> Query:
    """Choose the n patches of a pool that a person should label next.

    Args:
        model: a trained network of segmentation_models_pytorch, torchvision or Hugging Face, any other
            `nn.Module` that returns logits, or a `meal_gpu.models.Network` (see `meal_gpu.adapters.adapt`).
        images: a folder, a list of files, a uint8 RGB tensor [N, H, W, 3], or a torch `Dataset` of such
            images.
        n: how many patches; fewer are returned where fewer are unlabelled.
        strategy: a name in `meal_gpu.strategies.STRATEGIES`.
        ledger: says what is labelled already (and is left as it is); None: nothing.
        manifold: Φ for strategies that need it; None: fitted here on the features of every patch.
        seed: of all draws. One seed, and one ledger, give one query.
        grid: rows and columns of patches; the ledger's own where one is given.
        candidates: N_I, how many patches of highest entropy enter the second stage.
        features: "crop": of a patch's own pixels, as in the paper; "shared": of the pass that scores.
        layer: name of the submodule whose output [B, D, h, w] gives features; None: the encoder, where
            `adapt` knows it.
        size: (height, width) that image files are resized to; None: that of the first.
        batch_size: images in a forward pass; None: 8 on a GPU, 1 on the CPU, whose caches then hold the
            activations.
        precision: "float32", "bfloat16" or "float16" (autocast); "auto": bfloat16 where the hardware has it.
        pool_share: of the free memory, for the images; files that take more are decoded anew in every pass.
        device: where to compute; None: where the model is.
        ops: "auto" (the fastest that works on `device`), "reference", "cpu" or "cuda".

    Raises:
        InputError: images, n or ledger that do not fit together, or a model that cannot be adapted.
        ConfigError: an unknown strategy.
        DataError: an image file that cannot be used; it is named.
        UnavailableError: ops or a device that are not there.
        MealGpuError: the model's output is not finite; the image is named.
    """
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    strategies.get(strategy)
    for what, value, known in (
        ("features", features, FEATURES), ("precision", precision, ("auto", *PRECISIONS)),
    ):  # fmt: skip
        if value not in known:
            raise InputError(f"{what} is {value!r}; known: {', '.join(known)}")
    network = adapt(model, layer=layer)
    where = torch.device(device) if device is not None else _device_of(model, images)
    source, names = open_images(images, where, size=size, share=pool_share)
    if ledger is None:
        ledger = Ledger.create(Grid(*grid, *source.size), names)
    elif (len(ledger.names), ledger.grid.height, ledger.grid.width) != (len(source), *source.size):
        raise InputError(
            f"the ledger holds {len(ledger.names)} images of {ledger.grid.height}×{ledger.grid.width}, "
            f"but {len(source)} of {source.size[0]}×{source.size[1]} were given"
        )
    settings = Settings(
        candidates=max(candidates, n), features=features, seed=seed, step=max(1, ledger.last_step() + 1)
    )
    image_set = ImageSet(
        source, select_for(where, ops),
        precision=default_precision(where) if precision == "auto" else precision, batch_size=batch_size,
    )  # fmt: skip
    pool = ScoredPool(image_set, network, ledger, n, settings, manifold)
    return query(pool, strategy, ledger)


def _device_of(model: object, images: object) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return images.device if isinstance(images, torch.Tensor) else torch.device("cpu")
