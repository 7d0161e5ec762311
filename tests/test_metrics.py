"""IoU from one confusion matrix, as the Cityscapes benchmark computes it."""

import math
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu.errors import InputError
from meal_gpu.metrics import class_iou, mean_iou

NAN = float("nan")


@pytest.mark.parametrize(
    ("confusion", "expected", "mean"),
    [
        ([[5, 0], [0, 3]], [1.0, 1.0], 1.0),
        ([[0, 5], [3, 0]], [0.0, 0.0], 0.0),
        ([[3, 1], [2, 4]], [3 / 6, 4 / 7], (3 / 6 + 4 / 7) / 2),
        # a class that occurs nowhere is left out of the mean, not counted as 0 or 1
        ([[4, 0, 0], [0, 0, 0], [2, 0, 2]], [4 / 6, NAN, 2 / 4], (4 / 6 + 2 / 4) / 2),
        # predicted, but never the truth: 0, and it counts
        ([[4, 4], [0, 0]], [0.5, 0.0], 0.25),
        # the truth, but never predicted: 0, and it counts
        ([[4, 0], [4, 0]], [0.5, 0.0], 0.25),
        ([[0, 0], [0, 0]], [NAN, NAN], NAN),
        ([[7]], [1.0], 1.0),
    ],
)
def test_iou_by_hand(confusion: list[list[int]], expected: list[float], mean: float) -> None:
    counts = torch.tensor(confusion)
    assert class_iou(counts).dtype == torch.float64
    torch.testing.assert_close(
        class_iou(counts), torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=1e-15, atol=0
    )
    assert mean_iou(counts) == pytest.approx(mean, nan_ok=True, rel=1e-15)


def test_pixels_of_a_whole_split_are_exact() -> None:
    # 500 images of 2048×1024 pixels pass 2**30; float32 would lose the last digits
    count = 2**30 + 1
    assert mean_iou(torch.tensor([[count, 1], [0, count]])) == count / (count + 1)


def test_one_matrix_over_the_split_is_not_the_mean_over_images() -> None:
    images = torch.tensor([[[90, 10], [0, 0]], [[0, 0], [1, 9]]])
    per_image = sum(mean_iou(image) for image in images) / 2
    whole = mean_iou(images.sum(0))
    assert whole == pytest.approx((90 / 101 + 9 / 20) / 2)
    assert abs(whole - per_image) > 0.05


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 2), ()])
def test_a_matrix_must_be_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="square"):
        class_iou(torch.zeros(shape))


matrices = st.integers(1, 8).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 50), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(matrices, st.randoms(use_true_random=False))
def test_iou_properties(confusion: list[list[int]], random: Random) -> None:
    counts = torch.tensor(confusion)
    iou = class_iou(counts)
    union_is_empty = (counts.sum(0) + counts.sum(1)) == 0
    assert torch.equal(iou.isnan(), union_is_empty)
    assert bool(((iou >= 0) & (iou <= 1))[~union_is_empty].all())
    # truth and prediction may trade places, classes may be renamed
    torch.testing.assert_close(class_iou(counts.t()), iou, equal_nan=True)
    order = list(range(len(confusion)))
    random.shuffle(order)
    torch.testing.assert_close(class_iou(counts[order][:, order]), iou[order], equal_nan=True)


def test_equality_with_cityscapesscripts() -> None:
    evaluation = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    id_of = {label.trainId: label.id for label in labels if 0 <= label.trainId < 19}
    generator = torch.Generator().manual_seed(0)
    ours = torch.randint(1000, (19, 19), generator=generator)
    ours[7], ours[:, 7] = 0, 0  # a class that occurs nowhere
    args = SimpleNamespace()
    theirs = evaluation.generateMatrix(args)
    ids = [id_of[c] for c in range(19)]
    theirs[np.ix_(ids, ids)] = ours.numpy()
    # pixels whose truth is void: predictions on them count nowhere, in both
    theirs[0, ids] = 12345
    scores = {c: evaluation.getIouScoreForLabel(id_of[c], theirs, args) for c in range(19)}
    torch.testing.assert_close(
        class_iou(ours), torch.tensor(list(scores.values()), dtype=torch.float64), equal_nan=True
    )
    assert math.isnan(scores[7])
    assert mean_iou(ours) == pytest.approx(evaluation.getScoreAverage(scores, args), rel=1e-12)
