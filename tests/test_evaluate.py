"""Validation of a whole split."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import calibrated

from meal_gpu.evaluate import Evaluation, evaluate
from meal_gpu.metrics import mean_iou
from meal_gpu.models import Builder
from meal_gpu.ops import reference
from meal_gpu.passes import ImageSet

VOID = 255


@pytest.mark.parametrize(("size", "batch_size"), [((32, 48), 1), ((30, 41), 2), ((30, 41), 8)])
def test_evaluation_equals_the_pipeline_by_hand(size: tuple[int, int], batch_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, *size, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(5, (3, *size), generator=generator, dtype=torch.uint8)
    labels[labels == 4] = VOID
    model = calibrated(Builder("smp", 4, "none"), 0)
    pool = ImageSet(images, reference, batch_size=batch_size)
    evaluation = evaluate(pool, labels, model, VOID)
    counts = torch.zeros(4, 4, dtype=torch.int64)
    for start in range(0, 3, batch_size):
        part = slice(start, start + batch_size)
        with torch.inference_mode():
            logits = model(reference.normalise(images[part], model.mean, model.std)).logits
        full = F.interpolate(logits, size=model.padded_size(size), mode="bilinear", align_corners=True)
        predicted, truth = full[..., : size[0], : size[1]].argmax(1), labels[part].long()
        known = truth != VOID
        counts += torch.bincount(4 * truth[known] + predicted[known], minlength=16).view(4, 4)
    assert int((counts.sum(0) > 0).sum()) > 1  # more than one class is predicted
    # bilinear in another order of operations may move pixels that two classes share
    assert int((evaluation.confusion - counts).abs().sum()) <= 4
    assert int(evaluation.confusion.sum()) == int((labels != VOID).sum())
    assert not model.training


def test_an_evaluation_has_the_scores_of_its_matrix() -> None:
    evaluation = Evaluation(torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert evaluation.class_iou[:2] == pytest.approx([3 / 6, 4 / 7])
    assert math.isnan(evaluation.class_iou[2])
    assert evaluation.mean_iou == mean_iou(evaluation.confusion) == pytest.approx((3 / 6 + 4 / 7) / 2)
