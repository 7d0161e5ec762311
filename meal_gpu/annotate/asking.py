"""From frames, a trained model and a budget to a query folder that a person can work on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from meal_gpu import atomic, lock, strategies
from meal_gpu.acquisition import Query, describe, query
from meal_gpu.annotate.asked import PATCH_LABEL, Asked, Box, Item
from meal_gpu.annotate.budget import packed
from meal_gpu.annotate.cost import Totals
from meal_gpu.annotate.kept import Kept, Shards
from meal_gpu.annotate.labels import LabelStore
from meal_gpu.annotate.pictures import Pixels, read_mask
from meal_gpu.annotate.plan import Plan
from meal_gpu.annotate.plot import coverage, plot
from meal_gpu.annotate.pool import (
    Stage,
    feature_space,
    open_ledger,
    say,
    usable,
    validity,
    wanted,
    write_quarantine,
)
from meal_gpu.annotate.shards import Applied, Cluster, Pass, columns_of, scored_pool
from meal_gpu.checkpoint import fingerprint
from meal_gpu.errors import ConfigError, InputError
from meal_gpu.grid import Grid
from meal_gpu.images.content import anywhere, digests
from meal_gpu.images.headers import Size
from meal_gpu.images.listing import Listing, list_images
from meal_gpu.images.opening import open_listing
from meal_gpu.images.probing import ON_BAD, Problem
from meal_gpu.images.sources import Images, Part
from meal_gpu.inference import PRECISIONS, default_precision, device_named
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import LIMIT
from meal_gpu.memory import current
from meal_gpu.models import Network
from meal_gpu.ops import select_for
from meal_gpu.passes import ImageSet
from meal_gpu.pool import SHARED, ScoredPool, Settings, require_passes, temperature_for
from meal_gpu.prediction import class_count, patch_predictions
from meal_gpu.strategies import Selection

_AT_ONCE = 32  # patches whose cost is estimated together
# Strategies and measures of several predictions of each image
_HERE = {"mc-entropy", "bald", "ensemble", "equal"}


@dataclass(frozen=True)
class Report:
    """What was asked, how many frames were new and how many were scored, the patches of the pool; what the
    first 1 … n items take, and their coverage [n], or None; whether more candidates would give more patches.
    """

    asked: Asked
    added: int
    scored: int
    pool: int
    totals: Totals
    coverage: np.ndarray | None
    limited: bool


def ask(
    images: str, model: Network | torch.nn.Module, ledger_path: Path, out: Path, plan: Plan, stage: Stage,
    members: Sequence[torch.nn.Module] = (), cluster: Cluster | None = None,
) -> Report:  # fmt: skip
    """Score what is new, choose within the budget, write the ledger, then the query folder `out`.

    `members` are further networks of an ensemble. With a `cluster` its processes score; `model` is what they
    build, and chooses here.

    Raises:
        MealGpuError: as `acquisition.acquire`; and a RunError where `out` is not empty, or another process
            works on the ledger.
    """
    device = device_named(plan.device)
    with lock.of_ledger(ledger_path), lock.alone(out), current(device):
        return _ask(images, model, ledger_path, out, plan, stage, device, members, cluster)


def _ask(
    images: str, model: Network | torch.nn.Module, ledger_path: Path, out: Path, plan: Plan, stage: Stage,
    device: torch.device, members: Sequence[torch.nn.Module], cluster: Cluster | None,
) -> Report:  # fmt: skip
    atomic.require_new(out)
    needs = strategies.needed(plan.strategy, plan.measure)
    strategies.require_taken(
        plan.strategy, plan.measure, candidates=plan.candidates is not None, refit=plan.refit,
        members=bool(members),
    )  # fmt: skip
    temperature = temperature_for(plan.temperature, plan.strategy)
    require_passes(plan.passes, plan.strategy, plan.measure)
    if plan.budget.unit in ("clicks", "hours") and not strategies.get(plan.strategy).nested:
        raise ConfigError(
            f"strategy {plan.strategy!r} chooses all patches of a query together, so that a budget of "
            f"{plan.budget.unit} cannot end it: give it as patches or %"
        )
    if strategies.takes_members(plan.strategy, plan.measure) and not members:
        raise ConfigError("an ensemble has members: give the other networks' weights as --member, once each")
    if cluster is not None and (local := {plan.strategy, plan.measure} & _HERE):
        raise ConfigError(
            f"{sorted(local)[0]!r} takes passes that a cluster does not do yet; leave out --cluster, or name "
            "another strategy or measure"
        )
    if plan.on_bad not in ON_BAD:
        raise ConfigError(f"on_bad is {plan.on_bad!r}; known: {', '.join(ON_BAD)}")
    if plan.precision not in ("auto", *PRECISIONS):
        raise ConfigError(f"precision is {plan.precision!r}; known: auto, {', '.join(PRECISIONS)}")
    store = LabelStore.of(ledger_path)
    if plan.classes is not None:
        if PATCH_LABEL in plan.classes:
            raise ConfigError(
                f"class {PATCH_LABEL!r}: so is the rectangle called that shows annotators what is asked of a "
                "crop, of which no label is read; rename the class"
            )
        store.require(plan.classes)  # before anything slow
    listing, problems = usable(list_images(images), ledger_path, plan.on_bad, stage)
    write_quarantine(ledger_path, problems, stage)
    begun = ledger_path.exists()
    ledger, listing, added = open_ledger(ledger_path, listing, plan)
    assert ledger.origin is not None
    native = ledger.origin.size
    store.require_size(native)
    working = (ledger.grid.height, ledger.grid.width)

    applied = Applied(plan.layer, working, plan.window, plan.overlap, plan.mean, plan.std)
    network, *others = (applied.network(one, device) for one in (model, *members))
    # On a cluster only the frames of candidates and of the query are decoded here
    share = plan.pool_share if cluster is None else 0
    source = open_listing(listing, device, size=working, share=share)
    valid, invalid = validity(plan.valid, ledger.grid, native, len(listing.names))
    excluded, step = _excluded(plan.exclude, ledger, ledger_path, invalid)
    wanted(plan, ledger, excluded)  # mistakes are said before anything slow
    ops = select_for(device, plan.ops)
    work = Pass(
        ledger.grid, native, columns_of(plan.features == SHARED, needs),
        default_precision(device) if plan.precision == "auto" else plan.precision,
        ops.name, temperature,
        None if plan.classes is None else len(plan.classes), valid,
    )  # fmt: skip
    described = (
        working, plan.grid, plan.window, plan.overlap, plan.layer, plan.features,
        network.mean, network.std, network.align_corners, *plan.made_by,
    )  # fmt: skip
    mask = None if valid is None else valid.numpy().tobytes()
    scaled = () if work.temperature == 1 else (work.temperature,)
    fingerprinted = (*described, work.precision, work.ops, mask, *scaled)
    key = fingerprint(model, *fingerprinted)
    space = described if plan.manifold_limit == LIMIT else (*described, plan.manifold_limit)
    kept = Kept(ledger_path, feature_space(model, space))
    manifold = kept.manifold(device, ops) if begun and not plan.refit else None
    shards = Shards(plan.cache or str(kept.folder), key, ledger.origin.digest)
    scored, fresh, failed = scored_pool(
        work,
        listing,
        source,
        network,
        shards,
        applied,
        key,
        fingerprinted,
        plan.on_bad,
        stage,
        plan.shard,
        cluster,
    )
    if failed:
        problems += [Problem(listing.files[row], why) for row, why in sorted(failed.items())]
        write_quarantine(ledger_path, problems, stage)
    absent = torch.from_numpy(ledger.grid.patches_of(sorted(failed)))
    excluded = torch.cat([excluded, absent])
    count, left, n, candidates = wanted(plan, ledger, excluded)
    settings = Settings(
        candidates, plan.features, plan.seed, step, limit=plan.manifold_limit,
        measure=plan.measure, passes=plan.passes, temperature=work.temperature,
    )  # fmt: skip
    pool = ScoredPool(
        work.image_set(source, listing.names), network, ledger, n, settings, manifold, excluded=excluded,
        scored=scored, absent=absent, needs=needs, valid=valid, members=others,
    )  # fmt: skip
    with stage("choose", 1) as advance:
        chosen = query(pool, plan.strategy, ledger)
        if count is None and n == left - 1:
            chosen = _with_rest(chosen, pool.unlabelled.cpu(), ledger)
        advance(1)
    if manifold is None and pool.fitted is not None:
        if kept.begun and not plan.refit:
            say("the manifold is fitted anew: those that were kept are of other features or limits", stage)
        kept.write_manifold(pool.fitted)
    frames = chosen.patch_ids.numpy() // ledger.grid.patches_per_image
    starts = range(0, len(frames), candidates)  # an open frame gives no patch of far lower rank
    order = np.concatenate([start + packed(frames[start:][:candidates], plan.pack) for start in starts])
    if count is not None:
        order = order[:count]
    items: list[Item] = []
    masks: list[Pixels] = []
    number = 0
    while number == len(items) < len(order):  # what lies beyond the budget need not be predicted
        part = order[len(items) :][: len(order) if count is not None else max(_AT_ONCE, len(items))]
        more = _items(chosen, part, ledger, listing, native, source, work.image_set, network, plan, stage)
        items, masks = items + more[0], masks + more[1]
        totals = plan.cost.totals(items)
        number = len(items) if count is not None else plan.budget.cut(totals)
    if not number:
        raise InputError(
            f"the budget pays for no patch: the first takes {totals.clicks[0]:.0f} clicks and "
            f"{totals.hours[0]:.2f} h with its frame"
        )
    classes = plan.classes
    if classes is None:
        first = torch.tensor([items[0].patch // ledger.grid.patches_per_image])
        classes = store.named(class_count(work.image_set(Part(source, first)), network))
    asked = Asked(
        out, step, plan.strategy, plan.seed, classes, native, plan.grid,
        tuple(items[:number]), _notes(plan, totals, number, key, ledger.origin.digest),
    )  # fmt: skip
    report = Report(
        asked, added, fresh, len(ledger), plan.cost.totals(items[:number]),
        _coverage(chosen, order[:number]), count is None and number == len(order) < left,
    )  # fmt: skip
    scores = scored.scores.clone()
    scores[absent] = torch.nan
    ledger.set_scores(scores)
    if chosen.candidates is not None:
        ledger.set_embedding(*chosen.candidates)
    ledger.write(ledger_path)  # first: a query whose ledger does not have its frames could not come back
    _write(report, masks[:number], out)
    return report


def _excluded(
    queries: Sequence[Path], ledger: Ledger, ledger_path: Path, invalid: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Patches that may not be chosen, and the number of this query."""
    step = max(1, ledger.last_step() + 1)
    ids = [invalid]
    for path in queries:
        other = Asked.read(path)
        other.require_of(ledger, ledger_path)
        step = max(step, other.step + 1)
        ids.append(torch.tensor([item.patch for item in other.items], dtype=torch.int64))
    return torch.cat(ids), step


def _with_rest(chosen: Query, free: torch.Tensor, ledger: Ledger) -> Query:
    """With the one patch of `free` [L] behind that was not chosen, because all would come by their score."""
    patches = torch.cat([chosen.patch_ids, free[~torch.isin(free, chosen.patch_ids)]])
    return describe(Selection(patches, chosen.pool_scores, *(chosen.candidates or ())), ledger)


def _items(
    chosen: Query, order: np.ndarray, ledger: Ledger, listing: Listing, native: Size, source: Images,
    image_set: Callable[[Images], ImageSet], network: Network, plan: Plan, stage: Stage,
) -> tuple[list[Item], list[Pixels]]:  # fmt: skip
    patches = chosen.patch_ids.numpy()[order]
    grid = Grid(ledger.grid.rows, ledger.grid.columns, *native)
    boxes = [Box(*map(int, box)) for box in grid.boxes(patches)]
    images = patches // grid.patches_per_image
    with stage("predict patches", len(np.unique(images))) as advance:
        masks = patch_predictions(source, image_set, network, images, boxes, native, advance)
    if plan.valid is not None:
        everywhere = read_mask(plan.valid, native) > 0
        for row, box in enumerate(boxes):
            masks[row] = np.where(
                everywhere[box.top : box.bottom, box.left : box.right], masks[row], 255
            ).astype(np.uint8)
    files = [listing.files[image] for image in images]
    taken = digests(files)
    items = []
    for row, patch in enumerate(patches):
        clicks = plan.cost.clicks(masks[row])
        items.append(
            Item(
                int(patch),
                ledger.names[images[row]],
                anywhere(files[row]),
                boxes[row],
                float(chosen.scores[order[row]]),
                clicks,
                plan.cost.seconds(clicks),
                taken[row],
            )
        )
    return items, masks


def _notes(plan: Plan, totals: Totals, number: int, key: str, pool: str) -> dict[str, object]:
    last = number - 1
    return {
        "model": key,
        "pool": pool,
        "budget": f"{plan.budget.amount:g} {plan.budget.unit}",
        "cost": vars(plan.cost),
        "context": plan.context,
        "estimate": {
            "patches": number, "clicks": round(float(totals.clicks[last]), 1),
            "hours": round(float(totals.hours[last]), 3), "frames": int(totals.frames[last]),
        },
    }  # fmt: skip


def _coverage(chosen: Query, order: np.ndarray) -> np.ndarray | None:
    if chosen.candidates is None:
        return None
    ids, embedding = (part.numpy() for part in chosen.candidates)
    row = {int(patch): i for i, patch in enumerate(ids)}
    return coverage(
        embedding.astype(np.float64), np.array([row[int(p)] for p in chosen.patch_ids.numpy()[order]])
    )


def _write(report: Report, masks: list[Pixels], out: Path) -> None:
    scores = np.array([item.score for item in report.asked.items])
    totals = report.totals
    with atomic.filled(out) as aside:
        report.asked.write_into(aside, masks)
        if strategies.get(report.asked.strategy).nested:
            picture = plot(totals.clicks, totals.hours, totals.frames, scores, report.coverage)
            (aside / "budget.svg").write_bytes(picture)
