"""A whole query, and the confusion matrix of a split, with the kernels behind them, against the reference."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import calibrated

from meal_gpu import memory, ops
from meal_gpu.acquisition import Query, acquire
from meal_gpu.evaluate import evaluate
from meal_gpu.frame import nearest
from meal_gpu.grid import Grid
from meal_gpu.ledger import Ledger
from meal_gpu.models import Builder, Segmenter
from meal_gpu.ops import cuda, reference
from meal_gpu.passes import ImageSet


@pytest.fixture(scope="module")
def model(kernels: torch.device) -> Segmenter:
    return calibrated(Builder("smp", 3, "none"), 0).to(kernels)


@pytest.fixture(scope="module")
def images(kernels: torch.device) -> torch.Tensor:
    """Six images of blocks, so that patches differ."""
    blocks = torch.randint(256, (6, 8, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return blocks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2).to(kernels)


@pytest.mark.parametrize("strategy", ["entropy", "meal"])
def test_the_kernels_answer_a_query(
    strategy: str, model: Segmenter, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "why_not_cuda", lambda: None)
    monkeypatch.setattr(memory, "share_allocator", lambda *_: None)
    candidates = 24 if strategy == "meal" else None
    expected, actual = (
        acquire(model, images, 8, strategy=strategy, grid=(2, 4), candidates=candidates, ops=name)
        for name in ("reference", "cuda")
    )
    assert actual.pool_scores is not None and expected.pool_scores is not None
    torch.testing.assert_close(actual.pool_scores, expected.pool_scores, rtol=0, atol=1e-5)
    if strategy == "entropy":
        assert torch.equal(actual.patch_ids, expected.patch_ids)
    else:
        # UMAP is chaotic: pixels that differ in the last digit give another choice, from the same candidates
        assert actual.candidates is not None and expected.candidates is not None
        assert torch.equal(actual.candidates[0], expected.candidates[0])
        assert len(set(actual.patch_ids.tolist()) & set(expected.candidates[0].tolist())) == 8


def test_the_kernels_count_what_the_reference_counts(model: Segmenter, images: torch.Tensor) -> None:
    labels = torch.randint(4, images.shape[:3], generator=torch.Generator().manual_seed(1)).to(images)
    expected, actual = (
        evaluate(ImageSet(images, implementation, batch_size=4), labels, model, void=3)
        for implementation in (reference, cuda)
    )
    # but for pixels between two classes, where the last digit decides
    assert int(actual.confusion.sum()) == int(expected.confusion.sum()) == int((labels != 3).sum())
    assert int((actual.confusion - expected.confusion).abs().sum()) <= 2e-3 * labels.numel()


@pytest.mark.gpu
@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs a second GPU")
@pytest.mark.parametrize("strategy", ["meal", "mc-entropy"])
def test_a_gpu_that_is_not_the_current_one_answers_alike(strategy: str) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (96, 8, 16, 3), generator=generator, dtype=torch.uint8)  # enough for a graph
    images = blocks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    grid, names = Grid(2, 4, 32, 64), [f"{number}" for number in range(96)]

    def ask(device: torch.device) -> Query:
        model = calibrated(Builder("smp", 3, "none"), 0).to(device)
        ledger = Ledger.create(grid, names, device=nearest(device))
        return acquire(model, images.to(device), 8, strategy=strategy, ledger=ledger)

    asked = []
    for device in (torch.device("cuda:0"), torch.device("cuda:1")):  # cuML works on one GPU in a thread
        with ThreadPoolExecutor(1) as thread:
            asked.append(thread.submit(ask, device).result())
    first, second = (query.pool_scores.cpu() for query in asked if query.pool_scores is not None)
    torch.testing.assert_close(second, first)
    assert second.std() > 0
    assert torch.equal(asked[0].patch_ids, asked[1].patch_ids)
    assert torch.cuda.current_device() == 0
