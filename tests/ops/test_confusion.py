"""The confusion matrix of upsampled logits against a plain pipeline: the reference, and its CPU twin."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from meal_gpu.errors import InputError
from meal_gpu.ops import Ops, reference

VOID = 255


def random_case(
    images: int, classes: int, low: tuple[int, int], size: tuple[int, int], seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels of which some pixels are void."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, *low, generator=generator)
    labels = torch.randint(classes, (images, *size), generator=generator, dtype=torch.uint8)
    return logits, labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.2, VOID)


def count(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Pixel by pixel."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (truth[truth != VOID], predicted[truth != VOID]), 1)
    return counts


def test_counts_by_hand(on_cpu: Ops) -> None:
    # 2×2 pixels without upsampling; classes by pixel: 0, 1, 1, 2
    logits = F.one_hot(torch.tensor([[[0, 1], [1, 2]]]), 3).permute(0, 3, 1, 2).float()
    labels = torch.tensor([[[0, 1], [2, VOID]]], dtype=torch.uint8)
    matrix = on_cpu.confusion(logits, labels, (2, 2), True, VOID)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("void", [255, 11, 0])
def test_void_counts_nowhere(void: int, on_cpu: Ops) -> None:
    logits, labels = random_case(2, 12, (4, 5), (16, 20))
    everything_void = torch.full_like(labels, void)
    assert int(on_cpu.confusion(logits, everything_void, (16, 20), True, void).sum()) == 0
    labels[labels == VOID] = void
    matrix = on_cpu.confusion(logits, labels, (16, 20), True, void)
    assert int(matrix.sum()) == int((labels != void).sum())
    if void < 12:
        assert int(matrix[void].sum()) == 0


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("low", "size", "padded"),
    [
        ((8, 16), (32, 64), (32, 64)),
        ((6, 8), (18, 29), (24, 32)),
        ((5, 5), (5, 5), (5, 5)),
        ((1, 1), (4, 4), (4, 4)),
    ],
)
@pytest.mark.parametrize("classes", [2, 11, 19])
def test_parity_with_interpolate_and_argmax(
    low: tuple[int, int],
    size: tuple[int, int],
    padded: tuple[int, int],
    classes: int,
    align_corners: bool,
    on_cpu: Ops,
) -> None:
    logits, labels = random_case(3, classes, low, size)
    # float64 on both sides: no pixel is decided by rounding
    full = F.interpolate(logits.double(), size=padded, mode="bilinear", align_corners=align_corners)
    predicted = full[..., : size[0], : size[1]].argmax(dim=1)
    expected = count(labels.numpy(), predicted.numpy(), classes)
    actual = on_cpu.confusion(logits.double(), labels, padded, align_corners, VOID)
    assert (actual.numpy() == expected).all()
    # in float32 only pixels whose two best classes are within rounding may move
    single = on_cpu.confusion(logits, labels, padded, align_corners, VOID)
    best = full[..., : size[0], : size[1]].topk(2, dim=1).values
    close = int((best[:, 0] - best[:, 1] < 1e-5).sum())
    assert int((single - actual).abs().sum()) <= 2 * close


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upsampled_in_float32(dtype: torch.dtype, on_cpu: Ops) -> None:
    logits, labels = random_case(2, 11, (6, 8), (24, 32))
    rounded = logits.to(dtype)
    assert torch.equal(
        on_cpu.confusion(rounded, labels, (24, 32), True, VOID),
        on_cpu.confusion(rounded.float(), labels, (24, 32), True, VOID),
    )


def test_ties_go_to_the_lower_class(on_cpu: Ops) -> None:
    labels = torch.full((1, 4, 4), 1, dtype=torch.uint8)
    matrix = on_cpu.confusion(torch.zeros(1, 3, 2, 2), labels, (4, 4), True, VOID)
    assert matrix.tolist() == [[0, 0, 0], [16, 0, 0], [0, 0, 0]]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(0, 1000))
def test_batches_add_up_and_rows_are_the_ground_truth(
    on_cpu: Ops, images: int, classes: int, seed: int
) -> None:
    logits, labels = random_case(images, classes, (3, 4), (9, 10), seed)
    whole = on_cpu.confusion(logits, labels, (9, 10), True, VOID)
    parts = [
        on_cpu.confusion(logits[i : i + 1], labels[i : i + 1], (9, 10), True, VOID) for i in range(images)
    ]
    assert torch.equal(torch.stack(parts).sum(0), whole)
    assert whole.sum(1).tolist() == [int((labels == c).sum()) for c in range(classes)]


def test_a_band_is_as_good_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = random_case(2, 11, (6, 8), (24, 32))
    whole = reference.confusion(logits.double(), labels, (24, 32), True, VOID)
    monkeypatch.setattr(reference, "BAND_BYTES", 1)
    assert torch.equal(reference.confusion(logits.double(), labels, (24, 32), True, VOID), whole)


def test_an_id_beyond_the_classes_is_not_swallowed(on_cpu: Ops) -> None:
    labels = torch.full((1, 2, 2), 3, dtype=torch.uint8)
    # torch's own error, or one that names the label
    with pytest.raises(
        (RuntimeError, InputError), match=r"must match the size|a label is 3, neither one of the 3 classes"
    ):
        on_cpu.confusion(torch.zeros(1, 3, 2, 2), labels, (2, 2), True, VOID)
