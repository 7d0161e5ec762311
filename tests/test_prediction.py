"""Predicted classes of patches equal those of whole, upsampled frames."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meal_gpu.adapters import adapt
from meal_gpu.models import Builder
from meal_gpu.ops import select
from meal_gpu.passes import ImageSet
from meal_gpu.prediction import predictions


class Coarse(nn.Module):
    """Logits at a quarter of the size, without any context."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = F.avg_pool2d(images, 4)
        return torch.cat([pooled, -pooled.sum(1, keepdim=True)], dim=1)


@pytest.mark.parametrize("corners", [False, True])
def test_boxes_hold_what_the_whole_frame_has(corners: bool) -> None:
    images = torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    network = Builder("smp", 5, "none")(0) if corners else adapt(Coarse())
    pool = ImageSet(images, select("reference"))
    boxes = [[(0, 0, 48, 32), (13, 5, 20, 32)], [(40, 30, 48, 32)]]
    found = list(predictions(pool, network, boxes, (32, 48)))
    for (_, output), of_image, wanted in zip(pool.outputs(network), found, boxes, strict=True):
        padded = network.padded_size((32, 48))
        full = F.interpolate(output.logits.double(), padded, mode="bilinear", align_corners=corners)
        two = full[0].topk(2, dim=0).values
        clear = (two[0] - two[1] > 1e-4 * full.abs().max()).numpy()
        whole = full[0, :, :32, :48].argmax(0).numpy()
        for (left, top, right, bottom), mask in zip(wanted, of_image, strict=True):
            part = slice(top, bottom), slice(left, right)
            assert mask.shape == (bottom - top, right - left)
            assert ((mask == whole[part]) | ~clear[:32, :48][part]).all()
            assert clear[:32, :48][part].mean() > 0.9


def test_larger_frames_are_those_of_nearest_centres() -> None:
    # a vertical edge at column 24 of 48 lies at column 96 of 192
    images = torch.zeros(1, 32, 48, 3, dtype=torch.uint8)
    images[:, :, 24:] = 255
    (found,) = predictions(
        ImageSet(images, select("reference")), adapt(Coarse()), [[(0, 0, 192, 128)]], (128, 192)
    )
    assert (found[0][:, :88] == 3).all()
    assert (found[0][:, 104:] != 3).all()
