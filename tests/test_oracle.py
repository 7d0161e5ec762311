"""The oracle: labels of what was asked for, nothing else."""

import pytest
import torch

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.images.sources import Resident
from meal_gpu.models import Builder
from meal_gpu.ops import reference
from meal_gpu.oracle import Oracle


def test_it_reveals_the_pixels_and_labels_of_the_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 32, 32, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(4, (2, 32, 32), generator=generator, dtype=torch.uint8)
    model = Builder("smp", 4, "none")(0)
    oracle = Oracle(Resident(images), labels, Grid(2, 2, 32, 32), reference, void=255)
    asked = torch.tensor([6, 1])
    pixels, truth = oracle.pixels(asked, model), oracle.truth(asked)
    assert torch.equal(truth, torch.stack([labels[1, 16:, :16], labels[0, :16, 16:]]))
    crops = torch.stack([images[1, 16:, :16], images[0, :16, 16:]])
    assert torch.equal(pixels, reference.normalise(crops, model.mean, model.std))


def test_labels_and_images_must_agree() -> None:
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"\[2, 8, 9\].*\[2, 8, 8\]"):
        Oracle(
            Resident(images), torch.zeros(2, 8, 9, dtype=torch.uint8), Grid(2, 2, 8, 8), reference, void=255
        )


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("grid", [Grid(2, 2, 32, 32), Grid(3, 2, 32, 32)])
def test_of_a_patch_within_its_image_the_whole_image_is_shown_with_the_labels_of_the_patch(
    in_files: bool, grid: Grid
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 32, 32, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(4, (2, 32, 32), generator=generator, dtype=torch.uint8)
    model = Builder("smp", 4, "none")(0)
    source = Resident(images)
    if in_files:
        source.resident = None  # type: ignore[assignment]
    oracle = Oracle(source, labels, grid, reference, void=255, context="image")
    patches = torch.tensor([grid.patches_per_image + 3, 1, 2])
    assert oracle.sample_size == (32, 32)
    shown, within = oracle.shown(patches)
    assert (shown.tolist(), within.tolist()) == ([1, 0, 0], [3, 1, 2])
    whole = reference.normalise(images, model.mean, model.std)
    assert torch.equal(oracle.pixels(patches, model), whole[shown])
    expected = reference.gather_patches(images, labels, patches, grid, model.mean, model.std, 255).labels
    assert expected is not None
    assert torch.equal(oracle.truth(patches), expected)


def test_a_patch_alone_is_what_is_revealed() -> None:
    images = torch.arange(2 * 16 * 16 * 3, dtype=torch.int64).to(torch.uint8).view(2, 16, 16, 3)
    oracle = Oracle(Resident(images), images[..., 0] % 4, Grid(2, 2, 16, 16), reference, void=255)
    model = Builder("smp", 4, "none")(0)
    assert oracle.sample_size == (8, 8)
    asked = torch.tensor([5, 0])
    alone = oracle.pixels(asked, model), oracle.truth(asked)
    gathered = reference.gather_patches(
        images, oracle.labels, asked, oracle.grid, model.mean, model.std, oracle.void
    )
    for made, wanted in zip(alone, gathered, strict=True):
        assert wanted is not None
        assert torch.equal(made, wanted)
