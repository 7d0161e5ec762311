"""A whole query, and the confusion matrix of a split, by the CPU kernels, against the reference."""

import pytest
import torch
from networks import blocks, calibrated

from meal_gpu.acquisition import acquire
from meal_gpu.evaluate import evaluate
from meal_gpu.models import Builder, Segmenter
from meal_gpu.ops import reference, select, why_not_cpu
from meal_gpu.passes import ImageSet

if missing := why_not_cpu():
    pytest.skip(missing, allow_module_level=True)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return calibrated(Builder("smp", 3, "none"), 0)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return blocks()


@pytest.mark.parametrize("strategy", ["entropy", "meal"])
def test_a_query_is_the_references(strategy: str, model: Segmenter, images: torch.Tensor) -> None:
    candidates = 24 if strategy == "meal" else None
    expected, actual = (
        acquire(model, images, 8, strategy=strategy, grid=(2, 4), candidates=candidates, ops=name)
        for name in ("reference", "cpu")
    )
    assert actual.pool_scores is not None and expected.pool_scores is not None
    torch.testing.assert_close(actual.pool_scores, expected.pool_scores, rtol=0, atol=1e-6)
    # patches have the same bits, and so has what UMAP makes of them
    assert torch.equal(actual.patch_ids, expected.patch_ids)


def test_an_evaluation_is_the_references(model: Segmenter, images: torch.Tensor) -> None:
    labels = torch.randint(4, images.shape[:3], generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    expected, actual = (
        evaluate(ImageSet(images, ops, batch_size=4), labels, model, void=3)
        for ops in (reference, select("cpu"))
    )
    # but for pixels between two classes, where the last digit decides
    assert int(actual.confusion.sum()) == int(expected.confusion.sum()) == int((labels != 3).sum())
    assert int((actual.confusion - expected.confusion).abs().sum()) <= 2e-3 * labels.numel()
