"""The CPU's kernels beyond what they share with the reference: equal bits, NaN, layouts, all class counts."""

import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ops import MEASURES, Ops, cpu, native, reference, why_not_cpu
from meal_gpu.ops.upsampling import interpolation

VOID = 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
if missing := why_not_cpu():
    pytest.skip(missing, allow_module_level=True)


@pytest.fixture
def threads() -> Iterator[None]:
    """Tests may set torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_logits(*shape: int, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, int], Grid, tuple[int, int], bool]:
    """Logits' size, a grid whose last patches may be ragged, padding, align_corners; wider than a vector."""
    low = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 90))
    rows, columns = draw(st.integers(1, height)), draw(st.integers(1, width))
    rows, columns = (-(-n // -(-n // k)) for n, k in ((height, rows), (width, columns)))
    padded = height + draw(st.integers(0, 9)), width + draw(st.integers(0, 40))
    return low, Grid(rows, columns, height, width), padded, draw(st.booleans())


def single(ops: Ops, logits: torch.Tensor, size: tuple[int, int], measure: str, **given: Any) -> torch.Tensor:
    """Every pixel by itself."""
    return ops.patch_entropy(logits, Grid(*size, *size), size, True, measure=measure, **given)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("classes", [2, 19, 256])
def test_no_pixel_is_much_worse_than_in_plain_float32(classes: int, scale: float, measure: str) -> None:
    logits = random_logits(1, classes, 12, 20, scale=scale)
    size = (48, 80)
    exact = single(reference, logits.double(), size, measure)
    error = (single(cpu, logits, size, measure) - exact).abs()
    tolerated = (single(reference, logits, size, measure) - exact).abs()
    # half a unit in the last place of the result is nobody's fault
    assert float(error.max()) <= 2 * float(tolerated.max()) + 2.0**-24 * max(1.0, float(exact.max()))
    assert float(error.mean()) <= 2 * float(tolerated.mean()) + 2.0**-26


@settings(deadline=None)
@given(geometries(), st.integers(1, 256), st.sampled_from(MEASURES), st.floats(0.3, 4), st.booleans())
def test_any_size_agrees_with_float64(
    geometry: tuple[tuple[int, int], Grid, tuple[int, int], bool],
    classes: int,
    measure: str,
    temperature: float,
    masked: bool,
) -> None:
    low, grid, padded, align_corners = geometry
    logits = random_logits(2, classes, *low, seed=classes)
    valid = None
    if masked:
        size = (grid.height, grid.width)
        valid = random_bytes(*size) % 3
    given = {"measure": measure, "temperature": temperature, "valid": valid}
    actual = cpu.patch_entropy(logits, grid, padded, align_corners, **given)
    expected = reference.patch_entropy(logits.double(), grid, padded, align_corners, **given)
    tolerated = reference.patch_entropy(logits, grid, padded, align_corners, **given) - expected
    assert actual.dtype == torch.float32
    assert float((actual - expected).abs().max()) <= 2 * float(tolerated.abs().max()) + 2e-6


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("measure", MEASURES)
def test_batch_threads_and_pieces_leave_every_bit(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, padded = Grid(3, 4, 53, 67), (56, 70)
    logits, members = random_logits(3, 7, 14, 18), random_logits(4, 3, 7, 14, 18)
    valid = torch.rand(53, 67, generator=torch.Generator().manual_seed(0)) < 0.9
    labels = random_bytes(3, 53, 67) % 7
    pixels = labels[..., None].expand(-1, -1, -1, 3).contiguous() * 30

    def everything(part: slice) -> tuple[torch.Tensor, ...]:
        return (
            cpu.patch_entropy(logits[part], grid, padded, True, measure=measure, valid=valid),
            cpu.confusion(logits[part], labels[part], padded, False, VOID)[None],
            *cpu.patch_classes(logits[part], grid, padded, True, valid=valid),
            torch.stack(cpu.patch_committee(members[:, part], grid, padded, True, valid=valid), dim=1),
            cpu.gather_patches(
                pixels[part], None, torch.arange(len(pixels[part]) * 12), grid, MEAN, STD, VOID
            ).pixels,
        )

    torch.set_num_threads(1)
    expected = everything(slice(None))
    monkeypatch.setattr(cpu, "THREAD_WORK", 1)
    for count, rows in itertools.product((1, 2, 5), ((1, 1), (3, 3), (16, 64), (999, 999))):
        torch.set_num_threads(count)
        monkeypatch.setattr(cpu, "BAND_ROWS", rows)
        parts = [
            torch.cat(part) for part in zip(*(everything(slice(i, i + 1)) for i in range(3)), strict=True)
        ]
        parts[1] = parts[1].sum(dim=0, keepdim=True)  # confusion is one matrix for all images
        for found in (parts, everything(slice(None))):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@settings(deadline=None)
@given(
    geometries(), st.integers(1, 6), st.sampled_from([math.nan, math.inf, -math.inf]),
    st.sampled_from(MEASURES), st.data(),
)  # fmt: skip
def test_what_is_not_finite_makes_nan_exactly_where_it_reaches(
    geometry: tuple[tuple[int, int], Grid, tuple[int, int], bool],
    classes: int,
    bad: float,
    measure: str,
    data: st.DataObject,
) -> None:
    (h, w), grid, padded, align_corners = geometry
    logits = random_logits(1, classes, h, w)
    before = cpu.patch_entropy(logits, grid, padded, align_corners, measure=measure)
    k, row, column = (data.draw(st.integers(0, n - 1)) for n in (classes, h, w))
    logits[0, k, row, column] = bad
    after = cpu.patch_entropy(logits, grid, padded, align_corners, measure=measure)
    y0, y1, _ = interpolation(h, padded[0], grid.height, align_corners)
    x0, x1, _ = interpolation(w, padded[1], grid.width, align_corners)
    reached = ((y0 == row) | (y1 == row))[:, None] & ((x0 == column) | (x1 == column))
    boxes = grid.boxes(range(grid.patches_per_image))
    expected = torch.tensor(
        [bool(reached[top:bottom, left:right].any()) for left, top, right, bottom in boxes]
    )
    assert torch.equal(after[0].isnan(), expected)
    assert torch.equal(after[0, ~expected], before[0, ~expected])
    # where no pixel of it counts, nothing of it is seen
    hidden = cpu.patch_entropy(logits, grid, padded, align_corners, measure=measure, valid=~reached)
    assert bool(hidden.isfinite().all())


@settings(deadline=None)
@given(geometries(), st.integers(1, 256), st.booleans())
def test_confusion_is_the_references_where_float32_can_tell(
    geometry: tuple[tuple[int, int], Grid, tuple[int, int], bool], classes: int, with_nan: bool
) -> None:
    low, grid, padded, align_corners = geometry
    logits = random_logits(2, classes, *low, seed=classes)
    labels = random_bytes(2, grid.height, grid.width)
    void = VOID if classes <= VOID else 3
    labels[labels >= classes] = void
    full = F.interpolate(logits.double(), size=padded, mode="bilinear", align_corners=align_corners)
    if classes > 1:
        first, second = full[..., : grid.height, : grid.width].topk(2, dim=1).values.unbind(1)
        labels[first - second < 1e-5] = void
    if with_nan:
        logits[1, classes // 2, low[0] // 2, low[1] // 2] = math.nan
        logits[1, classes // 3, low[0] // 2, low[1] // 3] = math.nan
    expected = reference.confusion(logits, labels, padded, align_corners, void)
    assert torch.equal(cpu.confusion(logits, labels, padded, align_corners, void), expected)


def test_ties_between_any_classes_go_to_the_lowest() -> None:
    labels = torch.zeros(1, 20, 40, dtype=torch.uint8)
    for tied in itertools.combinations(range(5), 2):
        logits = torch.zeros(1, 5, 5, 10)
        logits[:, list(tied)] = random_logits(1, 1, 5, 10).abs() + 1
        assert cpu.confusion(logits, labels, (20, 40), True, VOID)[0].nonzero().flatten().tolist() == [
            tied[0]
        ]


@settings(deadline=None)
@given(
    geometries(), st.lists(st.integers(0, 1000), max_size=9), st.integers(0, 20), st.integers(0, 20),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_gathered_patches_have_the_references_bits(
    geometry: tuple[tuple[int, int], Grid, tuple[int, int], bool],
    chosen: list[int],
    below: int,
    beside: int,
    dtype: torch.dtype,
    channels_last: bool,
    labelled: bool,
) -> None:
    grid = geometry[1]
    images = random_bytes(3, grid.height, grid.width, 3)
    labels = images[..., 0].clone() if labelled else None
    patches = torch.tensor(chosen, dtype=torch.int64) % (3 * grid.patches_per_image)
    padded = (grid.patch_height + below, grid.patch_width + beside)
    expected, actual = (
        ops.gather_patches(
            images, labels, patches, grid, MEAN, STD, 7,
            padded=padded, dtype=dtype, channels_last=channels_last,
        )
        for ops in (reference, cpu)
    )  # fmt: skip
    assert torch.equal(actual.pixels, expected.pixels)
    assert actual.pixels.dtype == dtype
    memory = torch.channels_last if channels_last else torch.contiguous_format
    assert actual.pixels.is_contiguous(memory_format=memory)
    assert (actual.labels is None) == (not labelled)
    if actual.labels is not None and expected.labels is not None:
        assert torch.equal(actual.labels, expected.labels)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2],
        lambda x: x[:, 1:5, 2:10],
        lambda x: x.flip(0),
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x[:1].expand(3, *x.shape[1:]),
    ],
    ids=["every second", "cut out", "flipped", "transposed", "expanded"],
)
def test_images_and_labels_may_be_views(view: Any) -> None:
    images = random_bytes(4, 6, 12, 3)
    pool, truth = view(images), view(images[..., 1].clone())
    grid = Grid(2, 3, *pool.shape[1:3])
    patches = torch.arange(len(pool) * 6)
    actual = cpu.gather_patches(pool, truth, patches, grid, MEAN, STD, VOID)
    expected = cpu.gather_patches(pool.contiguous(), truth.contiguous(), patches, grid, MEAN, STD, VOID)
    assert torch.equal(actual.pixels, expected.pixels)
    assert actual.labels is not None and expected.labels is not None
    assert torch.equal(actual.labels, expected.labels)


GRID = Grid(2, 2, 4, 4)
LOGITS, LABELS = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
IMAGES, IDS = torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("entry", "arguments", "told"),
    [
        ("patch_entropy", (LOGITS.to("meta"), GRID, (4, 4), True), "need arrays on the CPU, these are on m"),
        ("patch_classes", (LOGITS.to("meta"), GRID, (4, 4), True), "need arrays on the CPU"),
        ("patch_classes", (torch.zeros(1, 257, 4, 4), GRID, (4, 4), True), "257 classes, 1 to 256"),
        ("patch_committee", (LOGITS[None].to("meta"), GRID, (4, 4), True), "need arrays on the CPU"),
        ("patch_committee", (LOGITS, GRID, (4, 4), True), r"must be \[T, B, C, h, w\] .* got \[1, 2, 4, 4\]"),
        ("patch_committee", (torch.zeros(2, 1, 257, 4, 4), GRID, (4, 4), True), "257 classes, 1 to 256"),
        ("confusion", (LOGITS.to("meta"), LABELS, (4, 4), True, VOID), "need arrays on the CPU"),
        ("gather_patches", (IMAGES.to("meta"), None, IDS, GRID, MEAN, STD, VOID), "or use ops='auto'"),
        ("patch_entropy", (LOGITS[0], GRID, (4, 4), True), r"must be \[B, C, h, w\] .*got \[2, 4, 4\]"),
        ("patch_entropy", (torch.zeros(1, 257, 4, 4), GRID, (4, 4), True), "257 classes, 1 to 256"),
        ("confusion", (LOGITS, LABELS.long(), (4, 4), True, VOID), "labels must be .* torch.uint8"),
        ("confusion", (LOGITS, LABELS[:0], (4, 4), True, VOID), r"labels must be \[1, 4, 4\]"),
        ("confusion", (LOGITS, LABELS + 2, (4, 4), True, VOID), "a label is 2, neither one of the 2"),
        ("gather_patches", (IMAGES.float(), None, IDS, GRID, MEAN, STD, VOID), "must be .* torch.uint8"),
        ("gather_patches", (IMAGES[:, 1:], None, IDS, GRID, MEAN, STD, VOID), r"must be \[1, 4, 4, 3\]"),
        ("gather_patches", (IMAGES, LABELS[0], IDS, GRID, MEAN, STD, VOID), "labels must be"),
        ("gather_patches", (IMAGES, None, IDS.int(), GRID, MEAN, STD, VOID), r"must be \[M\] torch.int64"),
        ("gather_patches", (IMAGES, None, IDS + 4, GRID, MEAN, STD, VOID), "must be 0 to 3, got 4 to 4"),
        ("gather_patches", (IMAGES, None, IDS - 1, GRID, MEAN, STD, VOID), "must be 0 to 3, got -1"),
    ],
)  # fmt: skip
def test_what_the_kernels_cannot_read_is_named(entry: str, arguments: tuple[Any, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        getattr(cpu, entry)(*arguments)


@pytest.mark.parametrize("given", [{"padded": (1, 2)}, {"dtype": torch.float64}])
def test_patches_that_cannot_be_made_are_named(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"do not fit into 1×2|not torch.float64"):
        cpu.gather_patches(IMAGES, None, IDS, GRID, MEAN, STD, VOID, **given)


def test_nothing_in_gives_nothing_out() -> None:
    assert cpu.patch_entropy(LOGITS[:0], GRID, (4, 4), True).shape == (0, 4)
    assert torch.equal(cpu.confusion(LOGITS[:0], LABELS[:0], (4, 4), True, VOID), torch.zeros(2, 2).long())
    assert cpu.gather_patches(IMAGES, LABELS, IDS[:0], GRID, MEAN, STD, VOID).pixels.shape == (0, 3, 2, 2)


@pytest.mark.usefixtures("threads")
def test_many_may_call_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "THREAD_WORK", 1)
    torch.set_num_threads(3)
    logits = random_logits(2, 5, 16, 16)
    grid = Grid(4, 4, 64, 64)
    expected = cpu.patch_entropy(logits, grid, (64, 64), True)
    with ThreadPoolExecutor(4) as executor:
        calls = [executor.submit(cpu.patch_entropy, logits, grid, (64, 64), True) for _ in range(40)]
        assert all(torch.equal(call.result(), expected) for call in calls)


def test_a_forked_process_has_threads_of_its_own() -> None:
    code = """
import os, signal, torch
from meal_gpu.grid import Grid
from meal_gpu.ops import cpu
cpu.THREAD_WORK = 1
torch.set_num_threads(2)
ask = lambda: cpu.patch_entropy(torch.ones(1, 2, 4, 4), Grid(1, 1, 64, 64), (64, 64), True)
expected = ask()
if (child := os.fork()) == 0:
    signal.alarm(60)
    os._exit(0 if torch.equal(ask(), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_kernel_without_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: SimpleNamespace(patch_entropy=lambda *_: 1))
    with pytest.raises(MemoryError, match="patch_entropy got no memory"):
        cpu.patch_entropy(LOGITS, GRID, (4, 4), True)
