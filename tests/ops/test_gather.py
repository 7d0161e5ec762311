"""Patches cut from resident images, normalised."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meal_gpu.grid import Grid
from meal_gpu.ops import Patches, reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VOID = 255


def scene(images: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, height, width, 3), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(19, (images, height, width), generator=generator, dtype=torch.uint8)


def by_slicing(images: torch.Tensor, labels: torch.Tensor, patch: int, grid: Grid) -> tuple[np.ndarray, ...]:
    """One patch in float64 numpy, padded as the Protocol says."""
    image = int(grid.locate(patch)[0])
    left, top, right, bottom = grid.boxes([patch])[0]
    pixels = np.zeros((3, grid.patch_height, grid.patch_width))
    ids = np.full((grid.patch_height, grid.patch_width), VOID)
    scaled = (images[image, top:bottom, left:right].numpy() / 255 - np.array(MEAN)) / np.array(STD)
    pixels[:, : bottom - top, : right - left] = scaled.transpose(2, 0, 1)
    ids[: bottom - top, : right - left] = labels[image, top:bottom, left:right].numpy()
    return pixels, ids


def gather(images: torch.Tensor, labels: torch.Tensor | None, patches: torch.Tensor, grid: Grid) -> Patches:
    return reference.gather_patches(images, labels, patches, grid, MEAN, STD, VOID)


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
def test_every_patch_equals_its_slice(grid: Grid) -> None:
    images, labels = scene(3, grid.height, grid.width)
    ids = torch.arange(3 * grid.patches_per_image)
    pixels, truth = gather(images, labels, ids, grid)
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
def test_any_order_with_repeats_selects_rows(patches: list[int]) -> None:
    grid = Grid(2, 3, 5, 7)
    images, labels = scene(3, 5, 7)
    ids = torch.tensor(patches, dtype=torch.int64)
    every = gather(images, labels, torch.arange(18), grid)
    some = gather(images, labels, ids, grid)
    assert torch.equal(some.pixels, every.pixels[ids])
    assert some.labels is not None
    assert every.labels is not None
    assert torch.equal(some.labels, every.labels[ids])


def test_black_padding_is_0_after_normalisation_and_void_in_the_labels() -> None:
    grid = Grid(2, 3, 5, 7)
    pixels, labels = gather(torch.full((1, 5, 7, 3), 255, dtype=torch.uint8),
                            torch.zeros(1, 5, 7, dtype=torch.uint8), torch.tensor([5]), grid)  # fmt: skip
    assert labels is not None
    assert labels[0].tolist() == [[0, 255, 255], [0, 255, 255], [255, 255, 255]]
    assert ((pixels[0] != 0) == (labels[0] != 255)).all()


def test_without_labels_there_are_none() -> None:
    images, _ = scene(1, 6, 8)
    assert gather(images, None, torch.tensor([0]), Grid(2, 2, 6, 8)).labels is None


def test_sources_are_left_alone() -> None:
    images, labels = scene(1, 6, 8)
    before = images.clone(), labels.clone()
    patches = gather(images, labels, torch.tensor([0, 3]), Grid(2, 2, 6, 8))
    patches.pixels.zero_()
    assert patches.labels is not None
    patches.labels.zero_()
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_pixels_are_channels_last_as_convolutions_like_them() -> None:
    images, labels = scene(2, 6, 8)
    pixels, _ = gather(images, labels, torch.arange(8), Grid(2, 2, 6, 8))
    assert pixels.is_contiguous(memory_format=torch.channels_last)
