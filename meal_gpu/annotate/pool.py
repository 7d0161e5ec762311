"""The pool behind a query: its ledger and frames in one order, what is valid of them, and their scores."""

import hashlib
import posixpath
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from meal_gpu import atomic, strategies
from meal_gpu.annotate.pictures import read_frame, read_mask
from meal_gpu.annotate.plan import Plan
from meal_gpu.errors import ConfigError, DataError, InputError, RunError
from meal_gpu.grid import Grid
from meal_gpu.images.content import digests, is_url
from meal_gpu.images.headers import Size
from meal_gpu.images.listing import Listing
from meal_gpu.images.probing import Problem, looks, probe, quarantine, refusal
from meal_gpu.ledger import Ledger, Origin
from meal_gpu.pool import candidates_for
from meal_gpu.scoring import Advance

_LONGEST = 220  # bytes of a frame's name: a file system takes 255, and a crop's has its box in it

Stage = Callable[[str, int], AbstractContextManager[Advance]]


def feature_space(model: object, applied: object) -> str:
    """Names the space that the features lie in: Φ of one space says nothing of another."""
    state = model.state_dict() if isinstance(model, torch.nn.Module) else {}
    shapes = [(name, tuple(values.shape)) for name, values in state.items()]
    return hashlib.sha256(repr((type(model).__qualname__, shapes, applied)).encode()).hexdigest()


def frame_size(file: str) -> Size:
    """(height, width) of a frame as decoded. Raises DataError."""
    return read_frame(file, None).shape[:2]


def usable(listing: Listing, ledger: Path, on_bad: str, stage: Stage) -> tuple[Listing, list[Problem]]:
    """The listing without new frames that cannot be used, and these; see `write_quarantine`.

    They do not enter the ledger, and are looked at again in every query. Frames of the ledger are not looked
    at: without one of them the patches' numbers would be others. Frames behind URLs are looked at with "skip"
    alone, as they are fetched for it.

    Raises:
        DataError: with "stop", there are such frames; with "skip", no others.
        RunError: the list cannot be written.
    """
    begun = Ledger.read(ledger) if ledger.exists() else None
    known = set(begun.names) if begun else set()
    size = begun.origin.size if begun and begun.origin else None
    skip = on_bad == "skip"
    seen = [i for i, file in enumerate(listing.files) if skip or not is_url(file)]
    new = [listing.files[i] for i in seen if listing.names[i] not in known]
    with stage("check frames", len(new)) as advance:
        if new and not size:  # a ledger of before 2026-12
            # One at a time: nearly always the first has a size
            before = looks([listing.files[i] for i in seen if listing.names[i] in known], together=1)
            size = next((look.size for look in before if look.size), None)
        problems = probe(new, size, deep=skip, progress=advance)
    problems += [
        Problem(
            file,
            f"{file}: its name has {length} bytes, and may have {_LONGEST}, as crops are called by it and "
            "their box; rename it, or have a manifest name it",
        )
        for file, name in zip(listing.files, listing.names, strict=True)
        if name not in known and (length := len(posixpath.basename(name).encode())) > _LONGEST
    ]
    if not problems:
        return listing, []
    if on_bad == "stop":
        raise refusal(problems, "--on-bad skip goes on without them")
    bad = {problem.file for problem in problems}
    kept = [i for i, file in enumerate(listing.files) if file not in bad]
    if not kept:
        raise refusal(problems, f"none of the {len(listing.files)} frames can be used")
    return listing.take(kept), problems


def write_quarantine(ledger: Path, problems: Sequence[Problem], stage: Stage) -> None:
    """List frames that are left out in `pool.quarantine.csv`; without any there is no such file.

    Raises:
        RunError: it cannot be written.
    """
    target = ledger.with_suffix(".quarantine.csv")
    if not problems:
        if target.exists():
            target.unlink()
        return
    try:
        atomic.write(target, quarantine(problems))
    except OSError as error:
        raise RunError(f"{target}: could not be written: {atomic.reason(error)}") from error
    say(f"left out: {len(problems)} frames, see {target}", stage)


def say(text: str, stage: Stage) -> None:
    """Where the stages are shown."""
    with stage(text, 1) as advance:
        advance(1)


def open_ledger(path: Path, listing: Listing, plan: Plan) -> tuple[Ledger, Listing, int]:
    """The pool's ledger with the frames of the listing, these in its order, and how many are new.

    Raises:
        ConfigError: the plan has another grid than the ledger, or one that does not fit a new pool.
        DataError: a frame of the ledger is not in the listing, or its first has another size now.
    """
    if not path.exists():
        native = frame_size(listing.files[0])
        size = plan.size or native
        require_fit(plan.grid, size, native)
        (digest,) = digests(listing.files[:1])
        ledger = Ledger.create(Grid(*plan.grid, *size), listing.names, origin=Origin(digest, native))
        return ledger, listing, len(listing.names)
    ledger = Ledger.read(path)
    has, wanted = (ledger.grid.rows, ledger.grid.columns), plan.grid
    over = "" if plan.size is None else f" over {plan.size[0]}×{plan.size[1]}"
    if has != wanted or plan.size not in (None, (ledger.grid.height, ledger.grid.width)):
        raise ConfigError(
            f"{path} has a grid of {has[0]}×{has[1]} over {ledger.grid.height}×{ledger.grid.width} pixels, "
            f"but {wanted[0]}×{wanted[1]}{over} was asked for; "
            "a pool keeps its grid: pass it, or name another --ledger"
        )
    there = set(listing.names)
    if gone := [name for name in ledger.names if name not in there]:
        raise DataError(
            f"{gone[0]}: a frame of {path} that is no longer among the images ({len(gone)} of "
            f"{len(ledger.names)} are missing); bring it back, or begin another ledger"
        )
    extended = ledger.extended(listing.names)
    listing = in_order(listing, extended.names)
    native = frame_size(listing.files[0])
    origin = ledger.origin or Origin("", native)
    if native != origin.size:
        raise DataError(
            f"{listing.files[0]}: {native[0]}×{native[1]} pixels (height × width) found, the frames of "
            f"{path} have {origin.size[0]}×{origin.size[1]}; restore the file, or begin another --ledger"
        )
    extended.origin = origin
    return extended, listing, len(extended.names) - len(ledger.names)


def require_fit(grid: tuple[int, int], working: Size, native: Size) -> None:
    """Raises ConfigError where what is scored, of frames of `working` size, is not what is labelled in those
    of `native` size: patches of both are whole pixels, and lie apart by more than one of either and than a
    fiftieth of a patch.
    """
    fits = [
        max(n for n in range(1, parts + 1) if _apart(n, w, h) <= max(1, h / w, h / n / 50))
        for parts, w, h in zip(grid, working, native, strict=True)
    ]
    apart = max(map(_apart, grid, working, native))
    if fits != list(grid):
        raise ConfigError(
            f"--grid {grid[0]}x{grid[1]}: patches of {working[0]}×{working[1]} pixels, which are scored, lie "
            f"up to {apart:.0f} pixels beside those of {native[0]}×{native[1]}, which are labelled; "
            f"{fits[0]}x{fits[1]} fits, and any grid that divides both"
        )


def _apart(parts: int, working: int, native: int) -> float:
    """How far the last edge between patches lies from where it should, in pixels of the native size."""
    return (parts - 1) * abs(-(-working // parts) * native / working - -(-native // parts))


def in_order(listing: Listing, names: Sequence[str]) -> Listing:
    """The images of these names, which are all there, in the order of the names."""
    row = {name: i for i, name in enumerate(listing.names)}
    return listing.take(row[name] for name in names)


class Wanted(NamedTuple):
    """`paid` patches, or what clicks or hours pay for (None), of `left` that may be chosen. For that the
    strategy puts `n` in order, of so many candidates.
    """

    paid: int | None
    left: int
    n: int
    candidates: int


def wanted(plan: Plan, ledger: Ledger, excluded: torch.Tensor) -> Wanted:
    """How many patches the plan asks for. Raises InputError where none is left."""
    left = int((~torch.isin(ledger.unlabelled(), excluded)).sum())
    if not left:
        raise InputError("no patch is left to ask: all are labelled, excluded or invalid")
    strategy, count = strategies.get(plan.strategy), plan.budget.patches(len(ledger))
    if count is not None:
        count = min(count, left)
    given = None if count == left else plan.candidates  # then all are taken
    candidates = candidates_for(count or 1, given, plan.strategy)
    if count is not None and (plan.pack == 1 or not strategy.nested):
        return Wanted(count, left, count, candidates)
    n = min(left, candidates)
    if strategy.measured:  # all candidates would come in the order of their score
        n = max(1, n - 1, count or 0)
    elif count is None:
        while n < min(left, plan.budget.most(plan.cost)):
            n = min(left, n + candidates)
    return Wanted(count, left, n, candidates)


def validity(
    path: Path | None, grid: Grid, native: Size, images: int
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """[H, W] bool where pixels count, and the patches [E] of which less than half does."""
    if path is None:
        return None, torch.empty(0, dtype=torch.int64)
    try:
        mask = read_mask(path, native)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    resized = Image.fromarray((mask > 0).astype(np.uint8)).resize(
        (grid.width, grid.height), Image.Resampling.NEAREST
    )
    valid = torch.from_numpy(np.array(resized) > 0)
    boxes = grid.boxes(np.arange(grid.patches_per_image))
    share = np.array([valid[t:b, le:r].float().mean() for le, t, r, b in boxes])
    bad = np.flatnonzero(share < 0.5)
    if len(bad) == len(boxes):
        raise DataError(f"{path}: less than half of every patch is valid (above 0); nothing could be asked")
    base = np.arange(images)[:, None] * grid.patches_per_image
    return valid, torch.from_numpy((base + bad).ravel())
