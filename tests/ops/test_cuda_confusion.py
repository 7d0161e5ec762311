"""The confusion kernel against float64: on a GPU, or its source executed on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from cuda_on_cpu import harness
from hypothesis import given, settings
from hypothesis import strategies as st

from meal_gpu.errors import InputError
from meal_gpu.ops import cuda, reference

VOID = 255
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def random_case(
    images: int,
    classes: int,
    low: tuple[int, int],
    size: tuple[int, int],
    padded: tuple[int, int],
    align_corners: bool,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels that are void where the two best classes are too close to call in float32."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(images, classes, *low, generator=generator)).to(dtype)
    labels = torch.randint(classes, (images, *size), generator=generator, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = VOID
    full = F.interpolate(logits.double(), size=padded, mode="bilinear", align_corners=align_corners)
    if classes > 1:
        first, second = full[..., : size[0], : size[1]].topk(2, dim=1).values.unbind(1)
        labels[first - second < 1e-5] = VOID
    return logits, labels


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("low", "size", "padded", "dtype"),
    [
        ((8, 16), (32, 64), (32, 64), torch.float32),
        ((8, 16), (32, 64), (32, 64), torch.float16),
        ((6, 8), (18, 29), (24, 32), torch.bfloat16),
        ((5, 5), (5, 5), (5, 5), torch.float32),
        ((1, 1), (4, 4), (4, 4), torch.float32),
        ((4, 10), (9, 50), (9, 50), torch.float32),
    ],
)
def test_float64_is_met(
    low: tuple[int, int],
    size: tuple[int, int],
    padded: tuple[int, int],
    dtype: torch.dtype,
    align_corners: bool,
    channels_last: bool,
    kernels: torch.device,
) -> None:
    logits, labels = random_case(3, 11, low, size, padded, align_corners, dtype)
    given = logits.to(memory_format=torch.channels_last) if channels_last else logits
    actual = cuda.confusion(given.to(kernels), labels.to(kernels), padded, align_corners, VOID).cpu()
    assert actual.dtype == torch.int64
    assert torch.equal(actual, reference.confusion(logits.double(), labels, padded, align_corners, VOID))
    assert int(actual.sum()) == int((labels != VOID).sum()) > 0


# the counts of more than 110 do not fit in a block's memory
@pytest.mark.parametrize("classes", [1, 110, 111, 256])
def test_any_number_of_classes(classes: int, kernels: torch.device) -> None:
    logits, labels = random_case(2, classes, (6, 40), (24, 160), (24, 160), True)
    actual = cuda.confusion(logits.to(kernels), labels.to(kernels), (24, 160), True, VOID).cpu()
    assert torch.equal(actual, reference.confusion(logits.double(), labels, (24, 160), True, VOID))


@pytest.mark.parametrize("void", [255, 11, 0])
def test_void_counts_nowhere(void: int, kernels: torch.device) -> None:
    logits, labels = random_case(2, 12, (4, 5), (16, 20), (16, 20), True)
    labels[labels == VOID] = void
    actual = cuda.confusion(logits.to(kernels), labels.to(kernels), (16, 20), True, void).cpu()
    assert torch.equal(actual, reference.confusion(logits.double(), labels, (16, 20), True, void))
    everything_void = torch.full_like(labels, void).to(kernels)
    assert int(cuda.confusion(logits.to(kernels), everything_void, (16, 20), True, void).sum()) == 0


def test_the_lowest_of_equal_classes_wins(kernels: torch.device) -> None:
    logits = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(0)).expand(1, 5, 6, 8).clone()
    logits[:, 0] -= 1
    labels = torch.full((1, 24, 32), 3, dtype=torch.uint8)
    matrix = cuda.confusion(logits.to(kernels), labels.to(kernels), (24, 32), True, VOID).cpu()
    assert int(matrix[3, 1]) == int(matrix.sum()) == 24 * 32


def test_a_label_of_no_class_counts_nowhere(kernels: torch.device) -> None:
    logits, labels = random_case(1, 3, (4, 4), (16, 16), (16, 16), True)
    expected = reference.confusion(logits, labels, (16, 16), True, VOID)
    labels[labels == VOID] = 3
    actual = cuda.confusion(logits.to(kernels), labels.to(kernels), (16, 16), True, VOID).cpu()
    assert torch.equal(actual, expected)


def test_results_do_not_depend_on_the_order_of_the_threads(
    monkeypatch: pytest.MonkeyPatch, kernels: torch.device
) -> None:
    if kernels.type != "cpu":
        pytest.skip("only the CPU's threads can be reversed")
    logits, labels = random_case(2, 11, (6, 8), (24, 32), (24, 32), True)
    expected = cuda.confusion(logits, labels, (24, 32), True, VOID)
    monkeypatch.setattr(harness, "reversed_order", True)
    assert torch.equal(cuda.confusion(logits, labels, (24, 32), True, VOID), expected)


def test_no_image_no_counts(kernels: torch.device) -> None:
    logits, labels = random_case(1, 3, (4, 4), (16, 16), (16, 16), True)
    empty = cuda.confusion(logits[:0].to(kernels), labels[:0].to(kernels), (16, 16), True, VOID)
    assert empty.tolist() == [[0] * 3] * 3


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.zeros(1, 16, 16, dtype=torch.int64), r"labels must be .* torch.uint8 .* got .* torch.int64"),
        (torch.zeros(2, 16, 16, dtype=torch.uint8), r"labels must be \[1, 16, 16\] .* got \[2, 16, 16\]"),
    ],
)
def test_wrong_labels_are_named(labels: torch.Tensor, told: str, kernels: torch.device) -> None:
    with pytest.raises(InputError, match=told):
        cuda.confusion(torch.zeros(1, 3, 4, 4, device=kernels), labels.to(kernels), (16, 16), True, VOID)


@settings(deadline=None, max_examples=30)
@given(
    low=st.tuples(st.integers(1, 6), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 30), st.integers(1, 40)),
    pad=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    align_corners=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_any_shape_agrees_with_float64(
    low: tuple[int, int],
    size: tuple[int, int],
    pad: tuple[int, int],
    align_corners: bool,
    dtype: torch.dtype,
    seed: int,
    kernels: torch.device,
) -> None:
    padded = size[0] + pad[0], size[1] + pad[1]
    logits, labels = random_case(2, 7, low, size, padded, align_corners, dtype, seed)
    actual = cuda.confusion(logits.to(kernels), labels.to(kernels), padded, align_corners, VOID).cpu()
    assert torch.equal(actual, reference.confusion(logits.double(), labels, padded, align_corners, VOID))
