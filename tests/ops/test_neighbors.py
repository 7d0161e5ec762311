"""Exact nearest neighbours: the order of float64 distances, whatever the product that proposes is worth."""

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch.utils._python_dispatch import TorchDispatchMode

from meal_gpu.errors import InputError
from meal_gpu.ops import neighbors
from meal_gpu.ops.neighbors import nearest_neighbors

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def sample(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def brute_force(features: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One row at a time in float64: the row itself, then by distance, then by index."""
    points = features.double().numpy()
    indices, distances = [], []
    for row, point in enumerate(points):
        squared = np.square(points - point).sum(axis=1)
        squared[row] = -1
        order = np.lexsort((np.arange(len(points)), squared))[:k]
        indices.append(order)
        distances.append(np.sqrt(squared[order].clip(min=0)))
    return torch.from_numpy(np.stack(indices)), torch.from_numpy(np.stack(distances)).float()


def redone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of each call had to be measured against all features."""
    counts: list[int] = []
    measure_all = neighbors._measure_all

    def spy(features: Any, rows: Any, itself: bool, failed: torch.Tensor, *found: torch.Tensor) -> None:
        counts.append(len(failed))
        measure_all(features, rows, itself, failed, *found)

    monkeypatch.setattr(neighbors, "_measure_all", spy)
    return counts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("points", "k", "indices", "distances"),
    [
        ([[5.0]], 1, [[0]], [[0]]),
        ([[0.0], [3.0], [1.0]], 1, [[0], [1], [2]], [[0], [0], [0]]),
        ([[0.0], [3.0], [1.0]], 3, [[0, 2, 1], [1, 2, 0], [2, 0, 1]], [[0, 1, 3], [0, 2, 3], [0, 1, 2]]),
        # the row itself before its lower-numbered duplicates, those before all else
        ([[1.0], [1.0], [1.0]], 3, [[0, 1, 2], [1, 0, 2], [2, 0, 1]], [[0] * 3] * 3),
        # equally far: the lower index
        (
            [[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, -2.0]],
            2,
            [[0, 1], [1, 0], [2, 0], [3, 0]],
            [[0, 2]] * 4,
        ),
        ([[3.0, 4.0], [0.0, 0.0]], 2, [[0, 1], [1, 0]], [[0, 5], [0, 5]]),
        # beyond float32's squares
        ([[1e30], [3e30], [1.5e30]], 2, [[0, 2], [1, 2], [2, 0]], [[0, 5e29], [0, 1.5e30], [0, 5e29]]),
        ([[1e-30], [3e-30], [1.5e-30]], 2, [[0, 2], [1, 2], [2, 0]], [[0, 5e-31], [0, 1.5e-30], [0, 5e-31]]),
    ],
)
def test_neighbors_of_a_few_points(
    points: list[list[float]],
    k: int,
    indices: list[list[int]],
    distances: list[list[float]],
    dtype: torch.dtype,
) -> None:
    actual = nearest_neighbors(torch.tensor(points), k, dtype=dtype)
    assert (actual[0].dtype, actual[1].dtype) == (torch.int64, torch.float32)
    assert actual[0].tolist() == indices
    torch.testing.assert_close(actual[1], torch.tensor(distances, dtype=torch.float32), rtol=1e-6, atol=0)


def duplicated() -> torch.Tensor:
    """Rows of which one has more duplicates than are ever candidates."""
    features = sample(200, 8)
    features[10:90] = features[150]
    return features


def outlier() -> torch.Tensor:
    features = sample(150, 24)
    features[7] *= 1e12
    return features


CASES: dict[str, torch.Tensor] = {
    "plain": sample(300, 32),
    "one column": sample(200, 1),
    "network width": sample(120, 1280),
    "far from the origin": sample(200, 16) + 1e3,
    "very far, few digits left": sample(200, 16) * 1e-2 + 1e4,
    "huge": sample(150, 16) * 1e30,
    "tiny": sample(150, 16) * 1e-30,
    "columns of many scales": sample(150, 30) * torch.logspace(-15, 15, 30),
    "one outlier": outlier(),
    "duplicates": duplicated(),
    "all coincide": torch.full((60, 5), 3.25),
    "two tight clusters": torch.cat([sample(80, 12), sample(80, 12, 1) + 1e6]),
    "integers with ties": torch.randint(3, (200, 4), generator=torch.Generator().manual_seed(0)).float(),
    "half precision": sample(100, 20).half(),
    "double precision": sample(100, 20).double(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_every_row_is_that_of_a_brute_force_in_float64(case: str, dtype: torch.dtype) -> None:
    features = CASES[case]
    for k in (2, 15, len(features)):
        expected, distances = brute_force(features, k)
        actual = nearest_neighbors(features, k, dtype=dtype)
        assert torch.equal(actual[0], expected), k
        torch.testing.assert_close(actual[1], distances, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "case", ["plain", "network width", "far from the origin", "duplicates", "half precision"]
)
def test_distances_are_scikit_learns(case: str) -> None:
    # Centred for it: its own product cancels far from the origin, in float64 too
    features = CASES[case].double()
    peer = NearestNeighbors(n_neighbors=10, algorithm="brute").fit((features - features.mean(0)).numpy())
    expected = torch.from_numpy(peer.kneighbors()[0])[:, :9]
    _, actual = nearest_neighbors(CASES[case], 10)
    torch.testing.assert_close(actual[:, 1:].double(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_small_set_with_many_ties(data: st.DataObject) -> None:
    rows, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 5))
    seed, k = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, rows))
    values = torch.randint(4, (rows, width), generator=torch.Generator().manual_seed(seed)).float()
    # all of it exact in float32: what is equally far is so to the last digit
    features = (values + data.draw(st.sampled_from([0, 1000]))) * 2.0 ** data.draw(st.integers(-60, 60))
    dtype = data.draw(st.sampled_from(DTYPES))
    indices, distances = nearest_neighbors(features, k, dtype=dtype)
    assert torch.equal(indices, brute_force(features, k)[0])
    assert torch.equal(indices[:, 0], torch.arange(rows))
    assert bool((distances.diff(dim=1) >= 0).all())
    # the fewer are the beginning of the more
    assert torch.equal(nearest_neighbors(features, (k + 1) // 2, dtype=dtype)[0], indices[:, : (k + 1) // 2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_are_no_neighbors_of_themselves(dtype: torch.dtype) -> None:
    features, queries = sample(200, 16), sample(30, 16, 1)
    queries[3], queries[4] = features[11], 1e9  # one that is there, and one far outside
    indices, distances = nearest_neighbors(features, 7, queries=queries, dtype=dtype)
    expected = torch.cdist(queries.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    order = expected.sort(dim=1, stable=True)
    assert torch.equal(indices, order.indices[:, :7])
    assert torch.equal(distances, order.values[:, :7].float())
    assert (int(indices[3, 0]), float(distances[3, 0])) == (11, 0)
    assert nearest_neighbors(features, 200, queries=queries, dtype=dtype)[0].shape == (30, 200)
    assert nearest_neighbors(features, 3, queries=queries[:0], dtype=dtype)[0].shape == (0, 3)


def hard() -> torch.Tensor:
    """Clusters so much tighter than they are far apart that bfloat16 cannot tell their rows apart."""
    return torch.cat([sample(60, 12), sample(60, 12, 1) + 1e3])


def test_rows_that_the_product_cannot_order_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = redone(monkeypatch)
    expected, _ = brute_force(hard(), 5)
    assert torch.equal(nearest_neighbors(hard(), 5, dtype=torch.bfloat16)[0], expected)
    assert counts == [120]
    # and it is this that makes them right
    monkeypatch.setattr(neighbors, "_measure_all", lambda *_: None)
    assert not torch.equal(nearest_neighbors(hard(), 5, dtype=torch.bfloat16)[0], expected)


def test_the_bound_counts_what_rounding_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without it wrong rows are taken for proven
    rounded = neighbors._rounded

    def unmoved(*arguments: Any) -> Any:
        return rounded(*arguments)._replace(moved=torch.zeros(len(arguments[0]), dtype=torch.float64))

    monkeypatch.setattr(neighbors, "SLACK", 1)
    features = torch.cat([0.03 * sample(200, 3) - 1, 0.03 * sample(200, 3, 1) + 1])
    expected, _ = brute_force(features, 15)
    assert torch.equal(nearest_neighbors(features, 15, dtype=torch.bfloat16)[0], expected)
    monkeypatch.setattr(neighbors, "_rounded", unmoved)
    assert not torch.equal(nearest_neighbors(features, 15, dtype=torch.bfloat16)[0], expected)


def test_ordinary_features_need_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = redone(monkeypatch)
    features = (sample(600, 16) @ sample(16, 320, 1) + 0.3 * sample(600, 320, 2)).relu()
    results = [nearest_neighbors(features, 15, dtype=dtype) for dtype in DTYPES]
    assert counts == [0, 0, 0]
    assert all(torch.equal(indices, results[0][0]) for indices, _ in results)


def test_neither_chunks_nor_threads_nor_repetition_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.cat([duplicated(), sample(100, 8, 5)])
    call = functools.partial(nearest_neighbors, features, 12, dtype=torch.bfloat16)
    expected = call()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 + threads % 2)
        assert all(torch.equal(a, e) for a, e in zip(call(), expected, strict=True))
    finally:
        torch.set_num_threads(threads)
    for chunk in (1, 20_000):
        monkeypatch.setattr(neighbors, "CHUNK_BYTES", chunk)
        assert all(torch.equal(a, e) for a, e in zip(call(), expected, strict=True))


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation returned."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return out


@pytest.mark.parametrize("case", ["all proven", "none proven"])
def test_memory_is_bounded_by_the_chunk_and_the_features(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = sample(3000, 16) if case == "all proven" else torch.ones(3000, 4)
    monkeypatch.setattr(neighbors, "CHUNK_BYTES", 1 << 20)
    counts = redone(monkeypatch)
    with Largest() as largest:
        nearest_neighbors(features, 5)
    assert counts == [0 if case == "all proven" else 3000]
    # the whole product would be 36 MB
    assert largest.bytes <= (1 << 20) + 2 * features.nbytes


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_torch_told_to_multiply_in_shorter_formats(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    product = neighbors._product

    def short(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return product(a.bfloat16().float(), b.bfloat16().float())

    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(neighbors, "_product", short)
    try:
        torch.set_float32_matmul_precision(precision)
        for case in ("plain", "two tight clusters"):
            actual, _ = nearest_neighbors(CASES[case], 9)
            assert torch.equal(actual, brute_force(CASES[case], 9)[0])
    finally:
        torch.set_float32_matmul_precision(before)


def test_torch_told_to_sum_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is one of sums in float32, which cuBLAS then makes of bfloat16 alone."""
    rounded, to = neighbors._rounded, []

    def noted(*arguments: Any) -> Any:
        to.append(arguments[-1])
        return rounded(*arguments)

    monkeypatch.setattr(neighbors, "_rounded", noted)
    for told in (False, True):
        try:
            torch.backends.cuda.matmul.allow_fp16_accumulation = told
            nearest_neighbors(CASES["plain"], 9, dtype=torch.float16)
        finally:
            torch.backends.cuda.matmul.allow_fp16_accumulation = False
    assert to == [torch.float16, torch.bfloat16]


@pytest.mark.parametrize(
    ("features", "k", "queries", "told"),
    [
        (torch.zeros(4), 1, None, ("features", "[4]")),
        (torch.zeros(4, 2, dtype=torch.int64), 1, None, ("floating point", "torch.int64")),
        (torch.zeros(4, 2), 0, None, ("1 and the number of rows, 4", "got 0")),
        (torch.zeros(4, 2), 5, None, ("rows, 4", "got 5")),
        (torch.zeros(4, 2), 1, torch.zeros(3, 3), ("queries", "[3, 3]")),
    ],
)
def test_what_cannot_be_searched(
    features: torch.Tensor, k: int, queries: torch.Tensor | None, told: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as error:
        nearest_neighbors(features, k, queries=queries)
    assert all(part in str(error.value) for part in told)


def test_values_that_are_not_finite_end_too() -> None:
    features = sample(40, 4)
    features[3, 1], features[9, 0] = math.nan, math.inf
    indices, _ = nearest_neighbors(features, 5)
    assert bool(((indices >= 0) & (indices < 40)).all())


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_gives_what_the_cpu_gives(case: str) -> None:
    features = CASES[case]
    expected, distances = brute_force(features, 15)
    for dtype in (None, *DTYPES):
        actual = nearest_neighbors(features.cuda(), 15, dtype=dtype)
        assert torch.equal(actual[0].cpu(), expected)
        torch.testing.assert_close(actual[1].cpu(), distances, rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_a_gpu_repeats_itself() -> None:
    features = (sample(20_000, 16) @ sample(16, 320, 1) + 0.3 * sample(20_000, 320, 2)).relu().cuda()
    first, again = (nearest_neighbors(features, 15) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], nearest_neighbors(features, 15, dtype=torch.float32)[0])


@pytest.mark.parametrize("seed", range(8))
def test_the_bound_counts_how_far_the_row_itself_was_moved(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "SLACK", 1)
    features = torch.cat([0.1 * sample(120, 3, seed) - 1, 0.1 * sample(120, 3, seed + 100) + 1])
    for k in (2, 5, 9, 14):
        found = nearest_neighbors(features, k, dtype=torch.bfloat16)[0]
        assert torch.equal(found, brute_force(features, k)[0])
