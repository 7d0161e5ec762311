"""Scores → candidates → features → embedding → query: the acquisition backend.

Nothing here can reach a label.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from meal_gpu import atomic, rng, strategies
from meal_gpu.adapters import adapt
from meal_gpu.errors import InputError, RunError
from meal_gpu.grid import Grid
from meal_gpu.images.content import is_url
from meal_gpu.images.opening import SHARE, Given, open_images
from meal_gpu.inference import PRECISIONS, default_precision, device_named, require_place
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import LIMIT, Manifold
from meal_gpu.memory import current
from meal_gpu.models import IMAGENET_MEAN, IMAGENET_STD, Network
from meal_gpu.ops import select_for
from meal_gpu.ops.public import pair, real, whole
from meal_gpu.passes import ImageSet
from meal_gpu.pool import FEATURES, ScoredPool, Settings, candidates_for, require_passes, temperature_for
from meal_gpu.strategies.base import Selection


@dataclass(frozen=True)
class Query:
    """The chosen patches, in order of choice.

    Attributes:
        patch_ids: [n] int64, on the CPU.
        names: the image of each, as the ledger calls it.
        boxes: [n, 4] int64: left, top, right, bottom (exclusive), in pixels of the size that was scored: that
            of `acquire`'s `size` where files were brought to one.
        scores: [n] float32 what they were ranked by (entropy in nats), NaN where the strategy ranks nothing.
        embedding: [n, d] float32, NaN for what was drawn; None where the strategy has none.
        pool_scores: [P] float32 of the whole pool, or None.
        candidates: [M] int64 embedded patches and their [M, d] coordinates, or None.
        control: how many, at the end, were not chosen by the strategy but drawn uniformly.
        manifold: Φ, given to `acquire` or fitted there; None where there was neither.
    """

    patch_ids: torch.Tensor
    names: tuple[str, ...]
    boxes: torch.Tensor
    scores: torch.Tensor
    embedding: torch.Tensor | None = None
    pool_scores: torch.Tensor | None = None
    candidates: tuple[torch.Tensor, torch.Tensor] | None = None
    control: int = 0
    manifold: Manifold | None = None

    def __len__(self) -> int:
        return len(self.patch_ids)

    def to_frame(self) -> pd.DataFrame:
        """One row per chosen patch, in order of choice.

        Columns: patch, image, left, top, right, bottom, score; embedding_0, … where there is one; and arm,
        "strategy" or "control", where some were drawn.
        """
        left, top, right, bottom = self.boxes.numpy().T
        columns: dict[str, object] = {
            "patch": self.patch_ids.numpy(), "image": list(self.names),
            "left": left, "top": top, "right": right, "bottom": bottom, "score": self.scores.numpy(),
        }  # fmt: skip
        if self.embedding is not None:
            columns |= {f"embedding_{axis}": values for axis, values in enumerate(self.embedding.numpy().T)}
        if self.control:
            columns["arm"] = ["strategy"] * (len(self) - self.control) + ["control"] * self.control
        return pd.DataFrame(columns)

    def to_parquet(self, path: str | Path) -> None:
        """Write `to_frame` as Parquet, a file whole or not at all, or to a URL that fsspec opens.

        Raises:
            RunError: a file, which is named, cannot be written.
        """
        if is_url(str(path)):
            self.to_frame().to_parquet(path, index=False)
            return
        try:
            with atomic.writing(Path(path)) as aside:
                self.to_frame().to_parquet(aside, index=False)
        except OSError as error:
            raise RunError(f"{path}: the query could not be written: {error.strerror or error}") from error


def draw_control(ledger: Ledger, n: int, seed: int, step: int) -> torch.Tensor:
    """[n] patches drawn uniformly, before any strategy chooses: a fair sample of the unlabelled ones."""
    unlabelled = ledger.unlabelled()
    order = rng.uniforms(seed, step, "control", len(unlabelled)).argsort(stable=True)
    return unlabelled[order[:n].to(unlabelled.device, non_blocking=True)]


def query(pool: ScoredPool, strategy: str, ledger: Ledger, control: torch.Tensor | None = None) -> Query:
    """Let `strategy` choose from `pool`, and put the patches `control` [m] behind.

    Raises:
        MealGpuError: the model's output is not finite.
    """
    try:
        selection = strategies.get(strategy).select(pool)
    except Exception:
        pool.require_finite()  # the cause, perhaps
        raise
    pool.require_finite()
    if control is None or not len(control):
        return describe(selection, ledger)
    patches = torch.cat([selection.patches, control.to(selection.patches.device, non_blocking=True)])
    return replace(describe(replace(selection, patches=patches), ledger), control=len(control))


def describe(selection: Selection, ledger: Ledger) -> Query:
    """A selection with what a person needs to find the patches."""
    patches = selection.patches.cpu()
    image, _, _ = ledger.grid.locate(patches)
    embedding = candidates = None
    if selection.embedded is not None and selection.embedding is not None:
        candidates = (selection.embedded.cpu(), selection.embedding.cpu())
        ascending, order = candidates[0].sort()
        at = torch.searchsorted(ascending, patches).clamp(max=len(ascending) - 1)
        embedding = candidates[1][order[at]]
        embedding[ascending[at] != patches] = torch.nan  # drawn, not embedded
    scores = None if selection.scores is None else selection.scores.cpu()
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
    candidates: int | None = None,
    manifold_limit: int = LIMIT,
    features: str = "crop",
    layer: str | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
    pool_share: float = SHARE,
    device: str | torch.device | None = None,
    ops: str = "auto",
    measure: str = "entropy",
    members: Sequence[nn.Module] = (),
    passes: int = 8,
    temperature: float | None = None,
) -> Query:
    """Choose the n patches of a pool that a person should label next.

    Args:
        model: a trained network of segmentation_models_pytorch, torchvision or Hugging Face, any other
            `nn.Module` that returns logits, or a `meal_gpu.models.Network` (see `meal_gpu.adapters.adapt`).
        images: a folder, a list of files, a uint8 RGB tensor [N, H, W, 3], or a torch `Dataset`
            whose items are uint8 images (PIL, [H, W, 3] or [3, H, W]) or tuples that begin with one.
        n: how many patches; fewer are returned where fewer are unlabelled.
        strategy: a name in `meal_gpu.strategies.STRATEGIES`.
        ledger: says what is labelled already (and is left as it is); None: nothing.
        manifold: Φ for strategies that need it, such as an earlier query's; None: fitted here on the features
            of every patch, or of `manifold_limit` of them.
        seed: of all draws. One seed, and one ledger, give one query.
        grid: rows and columns of patches; the ledger's own where one is given.
        candidates: N_I, how many patches of highest entropy enter the second stage, of strategies that have
            one; None: 200, and for an n above 32 as many more (6.25 n). For one number of them a query begins
            any larger one.
        manifold_limit: patches that Φ is fitted on where it is fitted here; see docs/SCALE.md for what a
            share of the pool costs.
        features: "crop": of a patch's own pixels, as in the paper; "shared": of the pass that scores.
        layer: name of the submodule whose output [B, D, h, w] gives features; None: the encoder, where
            `adapt` knows it.
        mean, std: of the normalisation that the model was trained with, for RGB in 0..1.
        size: (height, width) that image files, and nothing else, are resized to; None: their own. The files
            have one size.
        batch_size: images in a forward pass; None: 8 on a GPU, 1 on the CPU, whose caches then hold the
            activations.
        precision: "float32", "bfloat16" or "float16" (autocast); "auto": bfloat16 where the hardware has it.
        pool_share: of the free memory, for the images; files that take more are decoded anew in every pass.
        device: where to compute, and where the model is; None: there. "auto" is a GPU where there is one.
        ops: "auto" (the fastest that works on `device`), "reference", "cpu" or "cuda".
        measure: a name in `meal_gpu.strategies.MEASURES` that proposes candidates.
        members: further networks of the ensemble, for the measure and strategy of that name.
        passes: with dropout, for mc-entropy, and for bald, which takes 2 or more.
        temperature: that logits are divided by before the softmax; None: 1, but for meal-calibrated.

    Raises:
        InputError: images, n or ledger that do not fit together, a model that cannot be adapted or is on
            another device, or logits that do not lie over the image.
        ConfigError: an unknown strategy, measure or device, something that the strategy does not take, or
            meal-calibrated without a temperature.
        DataError: an image file that cannot be used; it is named.
        UnavailableError: ops or a device that are not there.
        MealGpuError: the model fails, or its output is not finite: the image is named. Or the device's memory
            is used up by one image.
    """
    needs = strategies.needed(strategy, measure)
    if isinstance(members, nn.Module) or not isinstance(members, Iterable):
        raise InputError("members are further networks, in a list: members=[model]")
    members = tuple(members)
    strategies.require_taken(
        strategy, measure, candidates=candidates is not None, manifold=manifold is not None,
        members=bool(members),
    )  # fmt: skip
    n, passes, seed = whole("n", n, 1), whole("passes", passes, 1), whole("seed", seed, 0)
    manifold_limit = whole("manifold_limit", manifold_limit, 4)
    batch_size = None if batch_size is None else whole("batch_size", batch_size, 1)
    candidates = None if candidates is None else whole("candidates", candidates, 1)
    for what, given, kind, how in (
        ("ledger", ledger, Ledger, "read"), ("manifold", manifold, Manifold, "load"),
    ):  # fmt: skip
        if not isinstance(given, kind | None):
            raise InputError(
                f"{what} must be a meal_gpu.{kind.__name__}, got {type(given).__name__}; "
                f"{kind.__name__}.{how} makes one of a file"
            )
    require_passes(passes, strategy, measure)
    rows_columns = pair("grid", grid, "rows, columns")
    files = isinstance(images, str | Path | list | tuple)
    if size is not None:
        size = pair("size", size, "height, width")
        if not files:
            raise InputError("size is for image files, and a tensor or Dataset has its own: leave it out")
    if not 0 <= real("pool_share", pool_share) <= 1:
        raise InputError(f"pool_share must be between 0 and 1, got {pool_share}")
    temperature = temperature_for(temperature, strategy)
    if not 0 < real("temperature", temperature) < math.inf:
        raise InputError(f"temperature must be above 0, got {temperature}")
    for what, value, known in (
        ("features", features, FEATURES), ("precision", precision, ("auto", *PRECISIONS)),
    ):  # fmt: skip
        if value not in known:
            raise InputError(f"{what} is {value!r}; known: {', '.join(known)}")
    network = adapt(model, layer=layer, mean=mean, std=std)
    where = device_named(str(device)) if device is not None else _device_of(model, images)
    for one in (model, *members):
        if isinstance(one, nn.Module):
            require_place(one, where)
    source, names = open_images(images, where, size=size, share=pool_share)
    if ledger is None:
        ledger = Ledger.create(Grid(*rows_columns, *source.size), names)
    elif (len(ledger.names), ledger.grid.height, ledger.grid.width) != (len(source), *source.size):
        raise InputError(
            f"the ledger holds {len(ledger.names)} images of {ledger.grid.height}×{ledger.grid.width}, "
            f"but {len(source)} of {source.size[0]}×{source.size[1]} were given"
        )
    elif files and ledger.names != names:
        row = next(
            row for row, (one, other) in enumerate(zip(ledger.names, names, strict=True)) if one != other
        )
        raise InputError(
            f"image {row} is {ledger.names[row]!r} in the ledger, and {names[row]!r} among the images: a "
            "ledger keeps its images and their order (Ledger.extended adds others)"
        )
    settings = Settings(
        candidates=candidates_for(n, candidates, strategy), features=features, seed=seed,
        step=max(1, ledger.last_step() + 1), limit=manifold_limit, measure=measure, passes=passes,
        temperature=temperature,
    )  # fmt: skip
    image_set = ImageSet(
        source, select_for(where, ops),
        precision=default_precision(where) if precision == "auto" else precision, batch_size=batch_size,
        names=names,
    )  # fmt: skip
    # The caller's autocast is for his own work, and would round distances too
    alone = torch.autocast(where.type, enabled=False, cache_enabled=False)
    with current(where), alone:
        pool = ScoredPool(
            image_set, network, ledger, n, settings, manifold, needs=needs,
            members=[adapt(member, layer=layer, mean=mean, std=std) for member in members],
        )  # fmt: skip
        return replace(query(pool, strategy, ledger), manifold=manifold or pool.fitted)


def _device_of(model: object, images: object) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return images.device if isinstance(images, torch.Tensor) else torch.device("cpu")
