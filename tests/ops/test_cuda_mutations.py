"""No barrier and no guard of the kernels is superfluous: without it, the harness or the result says so."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cuda_on_cpu import harness
from cuda_on_cpu.harness import KernelError
from test_patch_entropy import random_logits

from meal_gpu.grid import Grid
from meal_gpu.ops import compile, cuda, reference

BARRIER = "__syncthreads();"


def entropy(scale: float = 3.0, patches: int = 1) -> float:
    """The largest error for logits whose winners change from node to node, and whose patches are square."""
    logits = random_logits(1, 5, 20, 20, scale=1).sign() * scale
    grid = Grid(patches, patches, 80, 80)
    scores = cuda.patch_entropy(logits, grid, (80, 80), False)
    return float((scores - reference.patch_entropy(logits.double(), grid, (80, 80), False)).abs().max())


def confusion() -> None:
    labels = torch.zeros(1, 80, 80, dtype=torch.uint8)
    cuda.confusion(random_logits(1, 5, 20, 20), labels, (80, 80), True, 255)


def far_and_hidden(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits far from 0, some of them further apart than powers of 2 reach; what is not valid is NaN."""
    logits = random_logits(*shape, 5, 20, 20) + 300
    logits[..., 0, :, 16:] -= 200
    logits[..., :10] = torch.nan
    valid = torch.zeros(80, 80, dtype=torch.bool)
    valid[:, 44:] = True
    return logits, valid


def classes() -> float:
    """The largest error; two blocks of several warps share a patch."""
    logits, valid = far_and_hidden(1)
    geometry = (Grid(1, 1, 80, 80), (80, 80), False)
    found = cuda.patch_classes(logits, *geometry, valid=valid)
    exact = reference.patch_classes(logits.double(), *geometry, valid=valid)
    assert torch.equal(found.counts, exact.counts)
    return float((found.probabilities - exact.probabilities).abs().max())


def committee() -> float:
    logits, valid = far_and_hidden(3, 1)
    geometry = (Grid(1, 1, 80, 80), (80, 80), False)
    found = torch.stack(cuda.patch_committee(logits, *geometry, valid=valid))
    exact = torch.stack(reference.patch_committee(logits.double(), *geometry, valid=valid))
    return float((found - exact).abs().max())


def gather() -> None:
    images = torch.zeros(1, 80, 80, 3, dtype=torch.uint8)
    grid = Grid(2, 2, 80, 80)
    cuda.gather_patches(images, images[..., 0].contiguous(), torch.arange(4), grid, (0, 0, 0), (1, 1, 1), 255)


def seeding() -> None:
    uniforms = torch.rand(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for points in (random_logits(70, 2), torch.zeros(70, 2)):
        for trials in (1, 2):
            cuda.kmeans_plusplus(points, uniforms[:, :trials], None)


CALLS: dict[str, Callable[[], object]] = {
    "patch_entropy.cu": entropy,
    "patch_means.cu": partial(entropy, patches=1),
    "patch_classes.cu": classes,
    "patch_committee.cu": committee,
    "confusion.cu": confusion,
    "gather_patches.cu": gather,
    "kmeans_plusplus.cu": seeding,
}
BARRIERS = [
    (file, index)
    for file in CALLS
    for index in range((compile.folder() / file).read_text(encoding="utf-8").count(BARRIER))
]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "launch", harness.launch)
    # few warps meet one another's tiles also where there are few rows
    monkeypatch.setattr(cuda, "DRAWING_WARPS", 2)


def without(index: int) -> Callable[[str], str]:
    """Source without its barrier of that number."""

    def edited(source: str) -> str:
        at = [match.start() for match in re.finditer(re.escape(BARRIER), source)][index]
        return source[:at] + ";" + source[at + len(BARRIER) :]

    return edited


@pytest.mark.parametrize("file", CALLS)
def test_the_kernels_themselves_pass(file: str) -> None:
    CALLS[file]()


@pytest.mark.parametrize(("file", "index"), BARRIERS)
def test_a_missing_barrier_is_found(file: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "edit", without(index))
    with pytest.raises(KernelError):
        CALLS[file]()


@pytest.mark.parametrize(
    ("guard", "replaced", "scale", "patches", "tolerance"),
    [
        ("return z_sum >= LEAST_SUM;", "return true;", 30.0, 80, 3e-6),
        ("lowest >= LEAST_Z && ", "", 58.0, 1, 1e-6),
    ],
)
def test_entropy_is_wrong_without_its_guards(
    guard: str, replaced: str, scale: float, patches: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert entropy(scale, patches) <= tolerance
    assert guard in compile.source("patch_entropy.cu")
    monkeypatch.setattr(harness, "edit", lambda source: source.replace(guard, replaced))
    assert not entropy(scale, patches) <= 1.5 * tolerance


@pytest.mark.parametrize(
    ("file", "guard", "replaced"),
    [
        ("patch_classes.cu", " - largest[j][i]", ""),
        ("patch_classes.cu", "? power * inverse[j][i] : 0.0f", "? power * inverse[j][i] : 0 * power"),
        ("patch_classes.cu", "first + threadIdx.x < cells && ", ""),
        ("patch_committee.cu", " - largest[i]", ""),
        ("patch_committee.cu", " - own.x", ""),
        ("patch_committee.cu", "fmaxf(p[i], LEAST)", "p[i]"),
        ("patch_committee.cu", "counted[i] ? total[i] : 0.0f", "total[i]"),
    ],
)
def test_a_missing_guard_is_noticed(
    file: str, guard: str, replaced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = {"patch_classes.cu": classes, "patch_committee.cu": committee}[file]
    assert error() <= 1e-5
    assert guard in compile.source(file)
    monkeypatch.setattr(harness, "edit", lambda source: source.replace(guard, replaced))
    try:
        wrong = not error() <= 1e-4
    except AssertionError:  # of the counts
        wrong = True
    assert wrong
