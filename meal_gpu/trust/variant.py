"""A scored pool with one thing changed, which shares everything that was computed already."""

from collections.abc import Callable

import torch

from meal_gpu import rng, strategies
from meal_gpu.manifold import Manifold
from meal_gpu.ops import Committee
from meal_gpu.pool import ScoredPool
from meal_gpu.strategies.base import Selection


class Variant(ScoredPool):
    """As `pool`, and it remembers what the strategy asked for.

    Args:
        draws: other draws than the query's, by number; None: the query's own.
        manifold: in place of Φ.
        refit: seed of the UMAPs that are fitted for this query alone; None: the query's own.
        scores: [P] float32 that are known, so that no image passes through the model for them.

    Attributes:
        drew: whether the strategy drew.
        umap: what it embedded with, where it used one.
    """

    def __init__(
        self, pool: ScoredPool, *, draws: int | None = None, manifold: Manifold | None = None,
        refit: int | None = None, scores: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        vars(self).update(vars(pool))
        self._draws = draws
        self._refit = refit
        self._manifold = manifold or self._manifold
        self.drew = False
        self.umap: Manifold | None = None
        if draws is not None:
            self._scores = None  # a measure may draw, too
            self._committees = {of: found for of, found in self._committees.items() if of != "dropout"}
        if scores is not None:
            self._scores = scores.to(self.unlabelled.device)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        for features, known in self._described:
            if torch.equal(known.to(patches.device), patches):
                return features
        return super().features(patches)

    def manifold(self) -> Manifold | None:
        self.umap = super().manifold()
        return self.umap

    def fit_manifold(self, features: torch.Tensor) -> Manifold | None:
        if self._refit is None:
            self.umap = super().fit_manifold(features)
        else:
            self.umap = self._fit(features, self._refit)
        return self.umap

    def uniforms(self, purpose: str, n: int) -> torch.Tensor:
        self.drew = True
        if self._draws is None:
            return super().uniforms(purpose, n)
        settings = self._settings
        return rng.uniforms(settings.seed, settings.step, f"{purpose}, again {self._draws}", n)

    def committee(self, of: str) -> Committee:
        self.drew = self.drew or of == "dropout"
        return super().committee(of)

    def _dropout_seed(self) -> int:
        if self._draws is None:
            return super()._dropout_seed()
        settings = self._settings
        return rng.integer(settings.seed, settings.step, f"committee, again {self._draws}")

    def chosen(self, strategy: str) -> Selection:
        """What `strategy` chooses from it. Raises MealGpuError for a model whose output is not finite."""
        selection = strategies.get(strategy).select(self)
        self.require_finite()
        return selection

    def embedder(self, selection: Selection) -> Callable[[torch.Tensor], torch.Tensor]:
        """[K] patch ids -> [K, d] float64, in the embedding of `selection`, which this pool gave.

        By the UMAP that was used. Without one the embedding is a linear map of the features (principal
        components), which is recovered by least squares.
        """
        assert selection.embedded is not None and selection.embedding is not None
        umap = self.umap
        if umap is not None:
            return lambda patches: umap.transform(self.features(patches)).double()
        features, embedding = self.features(selection.embedded).double(), selection.embedding.double()
        mean, centre = features.mean(dim=0), embedding.mean(dim=0)
        linear = torch.linalg.lstsq((features - mean).cpu(), (embedding - centre).cpu(), driver="gelsd")
        matrix = linear.solution.to(features.device)
        return lambda patches: (self.features(patches).double() - mean) @ matrix + centre
