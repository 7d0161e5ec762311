"""The pool between the model and a strategy: what is asked of it is computed once, and never a label."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from meal_gpu import committee as committees
from meal_gpu import rng, strategies
from meal_gpu.errors import ConfigError, InputError
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import LIMIT, Manifold, least_rows, subsample
from meal_gpu.memory import beside
from meal_gpu.models import Network
from meal_gpu.ops import MEASURES, Committee, PatchClasses
from meal_gpu.passes import ImageSet
from meal_gpu.scoring import Advance, Scored, patch_features, require_finite, score_pool
from meal_gpu.strategies import bald
from meal_gpu.strategies.base import highest

SHARED = "shared"
FEATURES = ("crop", SHARED)
CANDIDATES = 200  # N_I of the paper, for its N of 32
_QUERY_SIZE = 32


def candidates_for(n: int, given: int | None, strategy: str) -> int:
    """How many candidates n patches are chosen from: as many as given, else the paper's 200, and of more
    than its 32 patches as many for each. Of n candidates all would be taken, by their score alone.

    Raises:
        InputError: fewer are given than are to be chosen, and the strategy takes candidates.
        ConfigError: an unknown strategy.
    """
    if given is None or not strategies.get(strategy).measured:
        return max(CANDIDATES, -(-CANDIDATES * n // _QUERY_SIZE))
    if given < n:
        raise InputError(f"candidates is {given}, below the {n} patches to choose: raise it, or leave it out")
    return given


def temperature_for(given: float | None, strategy: str) -> float:
    """What logits are divided by: the temperature given, else 1.

    Raises:
        ConfigError: none is given, and the strategy needs one; or the strategy is unknown.
    """
    if given is None and strategies.get(strategy).calibrated:
        raise ConfigError(
            f"strategy {strategy!r} needs --temperature (temperature= in Python), fitted on images that the "
            "model was not trained on (meal_gpu.calibration.fit_temperature; a run records its own)"
        )
    return 1.0 if given is None else given


def require_passes(passes: int, strategy: str, measure: str) -> None:
    """Raises InputError for BALD by one pass, of which only rounding is left."""
    if passes < 2 and bald.MEASURE.name in (strategy, measure):
        raise InputError(
            f"passes is {passes}, and one has a mutual information of 0 everywhere: bald takes 2 or more"
        )


@dataclass(frozen=True)
class Settings:
    """How a query is made; the manifold's are those of `Manifold.fit`.

    `features` are those of the patch's own pixels ("crop", as in the paper), or what the pass that scores the
    whole image says of the patch ("shared", one pass for both). `measure` proposes candidates; `passes` are
    those with dropout; logits are divided by `temperature`.
    """

    candidates: int = CANDIDATES
    features: str = "crop"
    seed: int = 0
    step: int = 1
    neighbors: int = 15
    min_dist: float = 0.1
    dimension: int = 2
    build: str = "auto"
    deterministic: bool = True
    limit: int = LIMIT
    measure: str = "entropy"
    passes: int = 8
    temperature: float = 1.0


class ScoredPool:
    """The pool as a strategy sees it (`strategies.base.Pool`): all is computed when first asked for.

    Patches in `excluded` [E] are not chosen, and to those in `absent` [A], all of some images, the model is
    not applied either. What `scored`, by entropy, holds is not computed. `needs` is what a pass over the pool
    finds besides scores; `members` are the ensemble's; of images only the pixels in `valid` [H, W] bool
    count. Where the images live on the device nothing here waits for it but `require_finite`, at the end and
    before Φ is fitted, the capture of a CUDA graph, once for a pass, a look at the first logits of an adapted
    network, and an ensemble, to compare encoders.
    """

    def __init__(
        self, images: ImageSet, model: Network, ledger: Ledger, n: int, settings: Settings,
        manifold: Manifold | None = None, advance: Advance = lambda _: None,
        *, excluded: torch.Tensor | None = None, scored: Scored | None = None,
        absent: torch.Tensor | None = None, needs: Sequence[str] = (), members: Sequence[Network] = (),
        valid: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        self._images = images
        self._model = model
        self._grid = ledger.grid
        self._names = ledger.names
        self._settings = settings
        self._manifold = manifold
        self.fitted: Manifold | None = None  # Φ, where it was fitted here
        self._advance = advance
        self._needs = set(needs)
        self._members = members
        self._valid = valid
        unlabelled = ledger.unlabelled().to(images.device)
        if excluded is not None:
            unlabelled = unlabelled[~torch.isin(unlabelled, excluded.to(images.device))]
        self.unlabelled = unlabelled
        self.labelled = ledger.labelled().to(images.device)
        self.n = min(n, len(self.unlabelled))
        self.step = settings.step
        self.dimension = settings.dimension
        self.ops = images.ops
        self._passes: dict[str, Scored] = {}
        if scored is not None:
            self._keep("entropy", scored)
        self._committees: dict[str, Committee] = {}
        self._scores: torch.Tensor | None = None
        self._described: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._whole: torch.Tensor | None = None  # features of every patch, where Φ was fitted to them here
        self._absent = absent

    def uncertainty(self, measure: str) -> torch.Tensor:
        return self._pass(measure).scores

    def classes(self) -> PatchClasses:
        found = self._pass(with_="classes").classes
        assert found is not None
        return found

    def boundary(self) -> torch.Tensor:
        found = self._pass(with_="boundary").boundary
        assert found is not None
        return found

    def _pass(self, measure: str | None = None, with_: str | None = None) -> Scored:
        """The pass that found `measure` and `with_`; a first one finds all that is needed."""
        for name, scored in self._passes.items():
            if measure in (None, name) and (with_ is None or getattr(scored, with_) is not None):
                return scored
        measure = measure or "entropy"
        if with_ is not None:
            self._needs.add(with_)
        scored = score_pool(
            self._images, self._model, self._grid, measure=measure,
            others=sorted(self._needs & {*MEASURES} - {measure, *self._passes}),
            temperature=self._settings.temperature, features=self._settings.features == SHARED,
            classes="classes" in self._needs, boundary="boundary" in self._needs, valid=self._valid,
            advance=self._advance,
        )  # fmt: skip
        self._keep(measure, scored)
        return scored

    def _keep(self, measure: str, scored: Scored) -> None:
        self._passes[measure] = scored
        self._passes |= {name: Scored(values) for name, values in scored.others.items()}

    def committee(self, of: str) -> Committee:
        if of not in self._committees:
            self._committees[of] = self._predicted(of)
        return self._committees[of]

    def _predicted(self, of: str) -> Committee:
        if self._absent is None:
            return self._predicted_for(self._images, of)
        present, each_image = self._present(), self._grid.patches_per_image
        found = self._predicted_for(self._images.part(present[::each_image] // each_image), of)
        patches, here = len(self._images) * each_image, present.to(self._images.device)
        return Committee(*(each.new_zeros(patches).index_copy(0, here, each) for each in found))

    def _predicted_for(self, images: ImageSet, of: str) -> Committee:
        settings = self._settings
        if of == "dropout":
            predictions = committees.dropout(images, self._model, settings.passes, self._dropout_seed())
        elif of == "members":
            predictions = committees.members(images, (self._model, *self._members))
        else:
            predictions = committees.mirrored(images, self._model)
        return committees.score_committee(
            images, predictions, self._model, self._grid, temperature=settings.temperature,
            valid=self._valid, advance=self._advance,
        )  # fmt: skip

    def _dropout_seed(self) -> int:
        return rng.integer(self._settings.seed, self._settings.step, "committee")

    def _present(self) -> torch.Tensor:
        """[P - A] int64 on the CPU, ascending: the patches of images that the model is applied to."""
        patches = torch.arange(len(self._images) * self._grid.patches_per_image)
        return patches if self._absent is None else patches[~torch.isin(patches, self._absent)]

    def scores(self) -> torch.Tensor:
        if self._scores is None:
            self._scores = strategies.get_measure(self._settings.measure).values(self)
        return self._scores

    def candidates(self) -> torch.Tensor:
        return highest(self.scores(), self.unlabelled, self._settings.candidates)

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        if self._settings.features == SHARED:
            shared = self._pass(with_="features").features
            assert shared is not None
            features = shared[patches.to(shared.device)]
        elif self._whole is not None:
            features = self._whole[beside(patches, self._whole.device)]
        else:
            features = patch_features(self._images, patches, self._model, self._grid)
        self._described.append((features, patches))
        return features

    def require_finite(self) -> None:
        """Raises MealGpuError naming the image where a score or feature so far is not finite."""
        for scored in self._passes.values():
            require_finite(scored.scores, self._grid, self._names)
        for committee in self._committees.values():
            require_finite(committee.total, self._grid, self._names)
        for features, patches in self._described:
            require_finite(features.sum(dim=1), self._grid, self._names, patches)

    def manifold(self) -> Manifold | None:
        if self._manifold is None:
            seed = rng.integer(self._settings.seed, 0, "manifold")
            patches = self._present()
            features = self.features(patches[subsample(len(patches), self._settings.limit, seed)])
            self.require_finite()
            if len(features) == len(self._images) * self._grid.patches_per_image:
                self._whole = features
            self._manifold = self.fitted = self._fit(features, seed)
        return self._manifold

    def fit_manifold(self, features: torch.Tensor) -> Manifold | None:
        return self._fit(features, rng.integer(self._settings.seed, self._settings.step, "manifold"))

    def _fit(self, features: torch.Tensor, seed: int) -> Manifold | None:
        s = self._settings
        if len(features) < least_rows(s.dimension):
            return None
        return Manifold.fit(
            features, seed=seed, neighbors=s.neighbors, min_dist=s.min_dist, dimension=s.dimension,
            limit=len(features), build=s.build, deterministic=s.deterministic, check=False, ops=self.ops,
        )  # fmt: skip

    def uniforms(self, purpose: str, n: int) -> torch.Tensor:
        return rng.uniforms(self._settings.seed, self._settings.step, purpose, n)
