"""The gathering kernel against float64 and its twin: on a GPU, or its source executed on the CPU."""

from typing import Any

import pytest
import torch
from cuda_on_cpu import harness
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gather import MEAN, STD, assert_rounded_once, by_slicing, scene

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.ops import Patches, compile, cuda, reference

# Not what the fixture `kernels` leaves in labels that nobody wrote
VOID = 200
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# By the width in bytes of the loads: a grid, its last row or column ragged, and a padded size that is stored
# as widely as the patches themselves, so that the kernel is compiled once for both
GRIDS = {
    16: (Grid(2, 2, 7, 64), (5, 48)),
    8: (Grid(2, 9, 7, 136), (6, 32)),
    4: (Grid(2, 5, 5, 56), (3, 20)),
    2: (Grid(1, 3, 3, 28), (4, 14)),
    1: (Grid(3, 4, 7, 26), (3, 9)),
}


def gather(
    images: torch.Tensor,
    labels: torch.Tensor | None,
    patches: torch.Tensor,
    grid: Grid,
    kernels: torch.device,
    **options: Any,
) -> Patches:
    there = None if labels is None else labels.to(kernels)
    gathered = cuda.gather_patches(
        images.to(kernels), there, patches.to(kernels), grid, MEAN, STD, VOID, **options
    )
    return Patches(gathered.pixels.cpu(), None if gathered.labels is None else gathered.labels.cpu())


def check(
    images: torch.Tensor,
    labels: torch.Tensor,
    patches: torch.Tensor,
    grid: Grid,
    kernels: torch.device,
    padded: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> None:
    options: dict[str, Any] = {"padded": padded, "dtype": dtype, "channels_last": channels_last}
    actual = gather(images, labels, patches, grid, kernels, **options)
    twin = reference.gather_patches(images, labels, patches, grid, MEAN, STD, VOID, **options)
    assert actual.labels is not None
    assert twin.labels is not None
    assert torch.equal(actual.labels, twin.labels)
    assert (actual.pixels.dtype, actual.pixels.shape) == (dtype, twin.pixels.shape)
    assert actual.pixels.stride() == twin.pixels.stride()
    torch.testing.assert_close(actual.pixels, twin.pixels, rtol=torch.finfo(dtype).eps, atol=1e-6)
    for i, patch in enumerate(patches.tolist()):
        expected, truth = by_slicing(images, labels, patch, grid, padded, VOID)
        # Two roundings, of the scale and of the sum: relative errors of 2^-24 each
        assert_rounded_once(actual.pixels[i], expected, 2.0**-22)
        assert (actual.labels[i].numpy() == truth).all()
        assert not actual.pixels[i][:, truth == VOID].any()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", GRIDS)
def test_every_patch_of_a_pool(
    width: int, dtype: torch.dtype, channels_last: bool, kernels: torch.device
) -> None:
    grid, padded = GRIDS[width]
    images, labels = scene(2, grid.height, grid.width)
    patches = torch.arange(2 * grid.patches_per_image)
    for size in (None, padded):
        check(images, labels, patches, grid, kernels, size, dtype, channels_last)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("width", [16, 1])
def test_without_labels_there_are_none(width: int, channels_last: bool, kernels: torch.device) -> None:
    grid, padded = GRIDS[width]
    images, labels = scene(2, grid.height, grid.width)
    patches = torch.arange(2 * grid.patches_per_image)
    options: dict[str, Any] = {"padded": padded, "dtype": torch.float16, "channels_last": channels_last}
    some = gather(images, None, patches, grid, kernels, **options)
    assert some.labels is None
    assert torch.equal(some.pixels, gather(images, labels, patches, grid, kernels, **options).pixels)


@pytest.mark.parametrize("patches", [[], [7], [5, 0, 5, 7, 7, 2]], ids=str)
def test_any_order_with_repeats(patches: list[int], kernels: torch.device) -> None:
    grid, padded = GRIDS[16]
    images, labels = scene(2, grid.height, grid.width)
    check(images, labels, torch.tensor(patches, dtype=torch.int64), grid, kernels, padded)


def test_ids_that_the_host_holds(kernels: torch.device) -> None:
    grid, _ = GRIDS[16]
    images, labels = scene(2, grid.height, grid.width)
    gathered = cuda.gather_patches(
        images.to(kernels), labels.to(kernels), torch.tensor([3, 1, 2, 3])[::2], grid, MEAN, STD, VOID
    )
    expected = reference.gather_patches(images, labels, torch.tensor([3, 2]), grid, MEAN, STD, VOID)
    assert gathered.pixels.device.type == kernels.type
    assert gathered.labels is not None
    assert torch.equal(gathered.labels.cpu(), torch.as_tensor(expected.labels))


@pytest.mark.parametrize("offset", [1, 4, 8])
def test_a_pool_that_begins_anywhere(offset: int, kernels: torch.device) -> None:
    grid, padded = GRIDS[16]
    images, labels = scene(2, grid.height, grid.width)
    for whose in ("images", "labels"):
        pool: dict[str, Any] = {"images": images.to(kernels), "labels": labels.to(kernels)}
        moved = torch.empty(pool[whose].numel() + offset, dtype=torch.uint8, device=kernels)[offset:]
        pool[whose] = moved.copy_(pool[whose].flatten()).view(pool[whose].shape)
        gathered = cuda.gather_patches(
            **pool, patches=torch.arange(8, device=kernels), grid=grid, mean=MEAN, std=STD, void=VOID,
            padded=padded, dtype=torch.float16,
        )  # fmt: skip
        expected = gather(images, labels, torch.arange(8), grid, kernels, padded=padded, dtype=torch.float16)
        assert gathered.labels is not None
        assert torch.equal(gathered.pixels.cpu(), expected.pixels)
        assert torch.equal(gathered.labels.cpu(), torch.as_tensor(expected.labels))


@pytest.mark.parametrize(
    ("grid", "padded", "dtype", "offset", "widths"),
    [
        # Cityscapes; CamVid, by patches and whole
        (Grid(4, 4, 512, 1024), (128, 256), torch.float16, (0, 0), (16, 16, 16)),
        (Grid(4, 4, 360, 480), (90, 120), torch.bfloat16, (0, 0), (8, 16, 8)),
        (Grid(1, 1, 360, 480), (368, 480), torch.float32, (0, 0), (16, 16, 16)),
        (Grid(1, 3, 2, 21), (2, 7), torch.float32, (0, 0), (1, 4, 1)),
        (Grid(1, 3, 2, 21), (2, 7), torch.float16, (0, 0), (1, 2, 1)),
        (Grid(1, 3, 2, 24), (2, 8), torch.float16, (0, 0), (8, 16, 8)),
        (Grid(1, 3, 2, 24), (2, 9), torch.float16, (0, 0), (8, 2, 1)),
        (Grid(1, 2, 2, 64), (2, 32), torch.float16, (4, 0), (4, 16, 4)),
        (Grid(1, 2, 2, 64), (2, 32), torch.float16, (0, 8), (8, 16, 8)),
    ],
)
def test_accesses_are_as_wide_as_the_addresses_allow(
    grid: Grid,
    padded: tuple[int, int],
    dtype: torch.dtype,
    offset: tuple[int, int],
    widths: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = {}
    monkeypatch.setattr(compile, "launch", lambda *_, defines, **__: chosen.update(defines))
    area = grid.height * grid.width
    images = torch.zeros(3 * area + offset[0], dtype=torch.uint8)[offset[0] :]
    labels = torch.zeros(area + offset[1], dtype=torch.uint8)[offset[1] :]
    cuda.gather_patches(
        images.view(1, grid.height, grid.width, 3), labels.view(1, grid.height, grid.width),
        torch.tensor([0]), grid, MEAN, STD, VOID, padded=padded, dtype=dtype,
    )  # fmt: skip
    assert (chosen["LOAD"], chosen["STORE"], chosen["LABELS"]) == widths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels_last", [True, False])
def test_every_byte_moves_once(
    channels_last: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, kernels: torch.device
) -> None:
    if kernels.type != "cpu":
        pytest.skip("only the CPU counts bytes")
    monkeypatch.setattr(harness, "traffic", {})
    grid = Grid(2, 2, 64, 256)
    images, labels = scene(2, 64, 256)
    patches = torch.arange(8)
    pixels, picked = gather(images, labels, patches, grid, kernels, dtype=dtype, channels_last=channels_last)
    assert picked is not None
    read, written = (sum(bytes) for bytes in zip(*harness.traffic["gather_patches"], strict=True))
    assert written == pixels.nbytes + picked.nbytes
    assert read == images.nbytes + labels.nbytes + patches.nbytes


# A block makes so few pixels that it takes several to a patch: several rows, one row, part of a row
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("pixels", [96, 32, 16])
def test_patches_in_parts(
    pixels: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch, kernels: torch.device
) -> None:
    monkeypatch.setattr(cuda, "PART_PIXELS", pixels)
    for width in (16, 1):
        grid, padded = GRIDS[width]
        images, labels = scene(2, grid.height, grid.width)
        patches = torch.arange(2 * grid.patches_per_image)
        check(images, labels, patches, grid, kernels, padded, torch.float16, channels_last)


def test_a_row_of_more_than_one_block(kernels: torch.device) -> None:
    images, labels = scene(1, 2, cuda.PART_PIXELS + 40)
    grid = Grid(1, 1, 2, cuda.PART_PIXELS + 40)
    check(images, labels, torch.tensor([0]), grid, kernels, dtype=torch.float16)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0, 0.5, 1.0), (1.0, 0.5, 2.0)),
        ((-1.5, 3.0, 0.1), (0.01, 100.0, 1 / 255)),
    ],
)
def test_any_mean_and_deviation(
    mean: tuple[float, float, float], std: tuple[float, float, float], kernels: torch.device
) -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 1, 256, 3).contiguous()
    pixels, _ = cuda.gather_patches(
        every_byte.to(kernels), None, torch.tensor([0], device=kernels), Grid(1, 1, 1, 256), mean, std, VOID,
    )  # fmt: skip
    expected = (every_byte[0].double().numpy() / 255 - mean) / std
    assert_rounded_once(pixels[0].cpu(), expected.transpose(2, 0, 1), 2.0**-22)


def test_results_do_not_depend_on_the_order_of_the_threads(
    monkeypatch: pytest.MonkeyPatch, kernels: torch.device
) -> None:
    if kernels.type != "cpu":
        pytest.skip("only the CPU's threads can be reversed")
    monkeypatch.setattr(harness, "reversed_order", True)
    grid, padded = GRIDS[1]
    images, labels = scene(2, grid.height, grid.width)
    check(images, labels, torch.arange(24), grid, kernels, padded, torch.float16)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 6),
    patch=st.tuples(st.integers(1, 9), st.integers(1, 20)),
    lacking=st.tuples(st.integers(0, 19), st.integers(0, 19)),
    pad=st.tuples(st.integers(0, 5), st.integers(0, 12)),
    channels_last=st.booleans(),
    part=st.sampled_from([16, 64, 4096]),
    data=st.data(),
)
def test_any_size(
    rows: int,
    columns: int,
    patch: tuple[int, int],
    lacking: tuple[int, int],
    pad: tuple[int, int],
    channels_last: bool,
    part: int,
    data: st.DataObject,
    kernels: torch.device,
) -> None:
    # Fewer lacking pixels than patches leave the last patch a pixel or more, and the others their size
    height = rows * patch[0] - min(lacking[0], rows - 1, patch[0] - 1)
    width = columns * patch[1] - min(lacking[1], columns - 1, patch[1] - 1)
    grid = Grid(rows, columns, height, width)
    # One kernel for all: loads of a byte, as the pool begins where no others are possible, and full stores
    padded = patch[0] + pad[0], (patch[1] + pad[1] + 7) // 8 * 8
    images, labels = scene(2, height, width)
    images = torch.cat([torch.zeros(1, dtype=torch.uint8), images.flatten()])[1:].view(images.shape)
    patches = data.draw(st.lists(st.integers(0, 2 * rows * columns - 1), max_size=5))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cuda, "PART_PIXELS", part)
        check(
            images, labels, torch.tensor(patches, dtype=torch.int64), grid, kernels, padded, torch.float16,
            channels_last,
        )  # fmt: skip


def test_a_pool_of_more_than_4_gib(kernels: torch.device) -> None:
    if kernels.type == "cpu":
        pytest.skip("a pool for GPUs")
    grid = Grid(4, 4, 1024, 2048)
    count = (1 << 32) // (3 * 1024 * 2048) + 2
    images = torch.zeros((count, 1024, 2048, 3), dtype=torch.uint8, device=kernels)
    labels = torch.zeros((count, 1024, 2048), dtype=torch.uint8, device=kernels)
    last, last_labels = scene(1, 1024, 2048)
    images[-1], labels[-1] = last[0].to(kernels), last_labels[0].to(kernels)
    patches = 16 * (count - 1) + torch.arange(16, device=kernels)
    pixels, picked = cuda.gather_patches(images, labels, patches, grid, MEAN, STD, VOID)
    expected = reference.gather_patches(last, last_labels, torch.arange(16), grid, MEAN, STD, VOID)
    assert picked is not None
    assert torch.equal(picked.cpu(), torch.as_tensor(expected.labels))
    torch.testing.assert_close(pixels.cpu(), expected.pixels, rtol=2.0**-20, atol=1e-6)


def test_the_host_never_waits(kernels: torch.device) -> None:
    if kernels.type == "cpu":
        pytest.skip("there is nobody to wait for")
    grid, padded = GRIDS[16]
    images, labels = (array.to(kernels) for array in scene(2, grid.height, grid.width))
    held = [torch.arange(8, device=kernels), torch.arange(8)]
    cuda.gather_patches(images, labels, held[0], grid, MEAN, STD, VOID, padded=padded)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for patches in held:
            cuda.gather_patches(images, labels, patches, grid, MEAN, STD, VOID, padded=padded)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"images": torch.zeros(1, 4, 6, 3)}, r"images must be .* torch.uint8 .* got .* torch.float32"),
        ({"images": torch.zeros(1, 4, 8, 3, dtype=torch.uint8)}, r"\[1, 4, 6, 3\] .* got \[1, 4, 8, 3\]"),
        ({"images": torch.zeros(1, 3, 4, 6, dtype=torch.uint8)}, r"\[1, 4, 6, 3\] .* got \[1, 3, 4, 6\]"),
        (
            {"images": lambda images: torch.cat([images, images], -1)[..., :3]},
            r"images must be contiguous, got strides \(144, 36, 6, 1\)",
        ),
        ({"labels": torch.zeros(1, 4, 6, dtype=torch.int64)}, r"labels must be .* got .* torch.int64"),
        ({"labels": torch.zeros(2, 4, 6, dtype=torch.uint8)}, r"labels must be \[1, 4, 6\] .* \[2, 4, 6\]"),
        (
            {"labels": lambda labels: labels.mT.contiguous().mT},
            r"labels must be contiguous, got strides \(24, 1, 4\)",
        ),
        ({"patches": torch.zeros(1, dtype=torch.int32)}, r"patches must be \[M\] .* got \[1\] torch.int32"),
        ({"patches": torch.zeros(1, 1, dtype=torch.int64)}, r"\[M\] torch.int64, got \[1, 1\]"),
        ({"dtype": torch.float64}, r"float16, bfloat16 or float32, not torch.float64"),
        ({"padded": (2, 2)}, r"patches of 2×3 pixels do not fit into 2×2"),
        ({"padded": (1, 3)}, r"patches of 2×3 pixels do not fit into 1×3"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(wrong: dict[str, Any], told: str, kernels: torch.device) -> None:
    right = {
        "images": torch.zeros(1, 4, 6, 3, dtype=torch.uint8),
        "labels": torch.zeros(1, 4, 6, dtype=torch.uint8),
        "patches": torch.tensor([0]),
    }
    given: dict[str, Any] = {what: value.to(kernels) for what, value in right.items()}
    for what, value in wrong.items():
        if callable(value):  # of the right one, there: strides do not travel
            given[what] = value(given[what])
        else:
            given[what] = value.to(kernels) if isinstance(value, torch.Tensor) else value
    with pytest.raises(InputError, match=told):
        cuda.gather_patches(**given, grid=Grid(2, 2, 4, 6), mean=MEAN, std=STD, void=VOID)
