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
    pixels, truth = oracle.reveal(torch.tensor([6, 1]), model)
    assert truth is not None
    assert torch.equal(truth, torch.stack([labels[1, 16:, :16], labels[0, :16, 16:]]))
    crops = torch.stack([images[1, 16:, :16], images[0, :16, 16:]])
    assert torch.equal(pixels, reference.normalise(crops, model.mean, model.std))


def test_labels_and_images_must_agree() -> None:
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"\[2, 8, 9\].*\[2, 8, 8\]"):
        Oracle(
            Resident(images), torch.zeros(2, 8, 9, dtype=torch.uint8), Grid(2, 2, 8, 8), reference, void=255
        )
