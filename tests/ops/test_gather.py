"""Patches cut from resident images, normalised: by the reference, and by its CPU twin."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meal_gpu.grid import Grid
from meal_gpu.ops import Ops, Patches

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VOID = 255


def scene(images: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, height, width, 3), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(19, (images, height, width), generator=generator, dtype=torch.uint8)


def by_slicing(
    images: torch.Tensor,
    labels: torch.Tensor,
    patch: int,
    grid: Grid,
    padded: tuple[int, int] | None = None,
    void: int = VOID,
) -> tuple[np.ndarray, ...]:
    """One patch in float64 numpy, padded as the Protocol says."""
    image = int(grid.locate(patch)[0])
    left, top, right, bottom = grid.boxes([patch])[0]
    height, width = padded or (grid.patch_height, grid.patch_width)
    pixels = np.zeros((3, height, width))
    ids = np.full((height, width), void)
    scaled = (images[image, top:bottom, left:right].numpy() / 255 - np.array(MEAN)) / np.array(STD)
    pixels[:, : bottom - top, : right - left] = scaled.transpose(2, 0, 1)
    ids[: bottom - top, : right - left] = labels[image, top:bottom, left:right].numpy()
    return pixels, ids


def assert_rounded_once(actual: torch.Tensor, expected: np.ndarray, error: float) -> None:
    """Wrong by `error`, relative above 1, and half types by half a unit in the last place more."""
    allowed = error * np.maximum(1, np.abs(expected))
    if actual.dtype != torch.float32:
        allowed += torch.finfo(actual.dtype).eps / 2 * 2.0 ** (np.frexp(expected)[1] - 1)
    assert (np.abs(actual.double().numpy() - expected) <= allowed).all()


def gather(
    on_cpu: Ops, images: torch.Tensor, labels: torch.Tensor | None, patches: torch.Tensor, grid: Grid
) -> Patches:
    return on_cpu.gather_patches(images, labels, patches, grid, MEAN, STD, VOID)


@pytest.mark.parametrize(
    "grid",
    [
        Grid(1, 1, 6, 8),
        Grid(2, 2, 6, 8),
        Grid(6, 8, 6, 8),
        Grid(2, 3, 5, 7),
        Grid(4, 1, 7, 3),
        Grid(1, 5, 2, 9),
    ],
    ids=str,
)
def test_every_patch_equals_its_slice(grid: Grid, on_cpu: Ops) -> None:
    images, labels = scene(3, grid.height, grid.width)
    ids = torch.arange(3 * grid.patches_per_image)
    pixels, truth = gather(on_cpu, images, labels, ids, grid)
    assert truth is not None
    assert (pixels.dtype, truth.dtype) == (torch.float32, torch.uint8)
    assert pixels.shape == (len(ids), 3, grid.patch_height, grid.patch_width)
    for patch in ids.tolist():
        expected, expected_truth = by_slicing(images, labels, patch, grid)
        # three roundings of float32 at values up to 2.7
        np.testing.assert_allclose(pixels[patch], expected, rtol=0, atol=1e-6)
        assert (truth[patch].numpy() == expected_truth).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 17), max_size=12))
def test_any_order_with_repeats_selects_rows(on_cpu: Ops, patches: list[int]) -> None:
    grid = Grid(2, 3, 5, 7)
    images, labels = scene(3, 5, 7)
    ids = torch.tensor(patches, dtype=torch.int64)
    every = gather(on_cpu, images, labels, torch.arange(18), grid)
    some = gather(on_cpu, images, labels, ids, grid)
    assert torch.equal(some.pixels, every.pixels[ids])
    assert some.labels is not None
    assert every.labels is not None
    assert torch.equal(some.labels, every.labels[ids])


def test_black_padding_is_0_after_normalisation_and_void_in_the_labels(on_cpu: Ops) -> None:
    grid = Grid(2, 3, 5, 7)
    pixels, labels = gather(on_cpu, torch.full((1, 5, 7, 3), 255, dtype=torch.uint8),
                            torch.zeros(1, 5, 7, dtype=torch.uint8), torch.tensor([5]), grid)  # fmt: skip
    assert labels is not None
    assert labels[0].tolist() == [[0, 255, 255], [0, 255, 255], [255, 255, 255]]
    assert ((pixels[0] != 0) == (labels[0] != 255)).all()


def test_without_labels_there_are_none(on_cpu: Ops) -> None:
    images, _ = scene(1, 6, 8)
    assert gather(on_cpu, images, None, torch.tensor([0]), Grid(2, 2, 6, 8)).labels is None


def test_sources_are_left_alone(on_cpu: Ops) -> None:
    images, labels = scene(1, 6, 8)
    before = images.clone(), labels.clone()
    patches = gather(on_cpu, images, labels, torch.tensor([0, 3]), Grid(2, 2, 6, 8))
    patches.pixels.zero_()
    assert patches.labels is not None
    patches.labels.zero_()
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_pixels_are_channels_last_as_convolutions_like_them(on_cpu: Ops) -> None:
    images, labels = scene(2, 6, 8)
    pixels, _ = gather(on_cpu, images, labels, torch.arange(8), Grid(2, 2, 6, 8))
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("padded", [None, (3, 3), (3, 4), (5, 3), (16, 16)], ids=str)
def test_padding_type_and_layout(
    padded: tuple[int, int] | None, dtype: torch.dtype, channels_last: bool, on_cpu: Ops
) -> None:
    grid = Grid(2, 3, 5, 7)
    images, labels = scene(2, 5, 7)
    pixels, truth = on_cpu.gather_patches(
        images, labels, torch.arange(12), grid, MEAN, STD, VOID,
        padded=padded, dtype=dtype, channels_last=channels_last,
    )  # fmt: skip
    assert truth is not None
    assert pixels.dtype == dtype
    assert pixels.shape == (12, 3, *(padded or (3, 3)))
    assert truth.shape == (12, *(padded or (3, 3)))
    memory = torch.channels_last if channels_last else torch.contiguous_format
    assert pixels.is_contiguous(memory_format=memory)
    for patch in range(12):
        expected, expected_truth = by_slicing(images, labels, patch, grid, padded)
        assert_rounded_once(pixels[patch], expected, 1e-6)
        assert (truth[patch].numpy() == expected_truth).all()
        assert not pixels[patch][:, expected_truth == VOID].any()


def test_padding_holds_nothing_of_the_neighbouring_patch(on_cpu: Ops) -> None:
    images = torch.full((1, 4, 6, 3), 255, dtype=torch.uint8)
    labels = torch.zeros(1, 4, 6, dtype=torch.uint8)
    pixels, truth = on_cpu.gather_patches(
        images, labels, torch.tensor([0]), Grid(2, 2, 4, 6), MEAN, STD, VOID, padded=(3, 5)
    )
    assert truth is not None
    assert truth[0].tolist() == [[0, 0, 0, 255, 255], [0, 0, 0, 255, 255], [255] * 5]
    assert ((pixels[0] != 0) == (truth[0] != 255)).all()


def test_every_type_is_the_rounded_float32(on_cpu: Ops) -> None:
    images, _ = scene(1, 16, 16)
    exact = gather(on_cpu, images, None, torch.tensor([0]), Grid(1, 1, 16, 16)).pixels
    for dtype in (torch.float16, torch.bfloat16):
        pixels, _ = on_cpu.gather_patches(
            images, None, torch.tensor([0]), Grid(1, 1, 16, 16), MEAN, STD, VOID, dtype=dtype
        )
        assert torch.equal(pixels, exact.to(dtype))
