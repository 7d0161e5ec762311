"""Exact means exact: whatever the product's precision, the order is that of distances in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from meal_gpu.errors import InputError
from meal_gpu.ops import neighbors
from meal_gpu.ops.neighbors import nearest_neighbors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def by_hand(
    features: torch.Tensor, k: int, queries: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort every distance in float64; a row of the features comes first of its own neighbours."""
    rows = features if queries is None else queries
    exact = torch.cdist(rows.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if queries is None:
        exact.fill_diagonal_(-1)
    order = exact.sort(dim=1, stable=True)
    return order.indices[:, :k], order.values[:, :k].clamp(min=0).float()


def clouds() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(300, 24, generator=g)
    return {
        "normal": normal,
        "one column": torch.randn(300, 1, generator=g),
        "wide": torch.randn(120, 1280, generator=g),
        "far from the origin": normal + 1e3,
        "tiny": normal * 1e-20,
        "huge": normal * 1e15,
        "two scales": torch.cat([normal[:150], normal[150:] * 1e-4]),
        "duplicates": normal[:60].repeat(5, 1),
        "all alike": torch.ones(100, 7),
        "on a grid": torch.cartesian_prod(*[torch.arange(7.0)] * 3),
        "close pairs": torch.cat([normal, normal + 1e-4 * torch.randn(300, 24, generator=g)]),
        "float64": torch.randn(200, 12, generator=g, dtype=torch.float64) + 1e6,
        "half": normal.half(),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", clouds())
def test_any_product_gives_the_order_of_float64(name: str, dtype: torch.dtype) -> None:
    features = clouds()[name]
    for k in (1, 15, len(features)):
        indices, distances = nearest_neighbors(features, k, dtype=dtype)
        expected = by_hand(features, k)
        assert (indices.dtype, distances.dtype) == (torch.int64, torch.float32)
        assert torch.equal(indices, expected[0])
        assert torch.equal(distances, expected[1])
        assert torch.equal(indices[:, 0], torch.arange(len(features)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_rows_are_looked_up_too(dtype: torch.dtype) -> None:
    features, queries = clouds()["normal"], clouds()["close pairs"][:150]
    found, expected = (
        nearest_neighbors(features, 9, queries=queries, dtype=dtype),
        by_hand(features, 9, queries),
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60), columns=st.integers(1, 9), k=st.integers(1, 60), levels=st.integers(1, 30),
    offset=st.sampled_from([0.0, 1.0, 1e4]), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99),
)  # fmt: skip
def test_ties_and_lattices(
    rows: int, columns: int, k: int, levels: int, offset: float, dtype: torch.dtype, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    features = torch.randint(levels, (rows, columns), generator=g).float() / 3 + offset
    k = min(k, rows)
    found, expected = nearest_neighbors(features, k, dtype=dtype), by_hand(features, k)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_parity_with_scikit_learn() -> None:
    features = clouds()["wide"]
    theirs = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(features.double().numpy())
    distances, indices = theirs.kneighbors()
    found = nearest_neighbors(features, 11)
    assert torch.equal(found[0][:, 1:], torch.from_numpy(indices))
    torch.testing.assert_close(found[1][:, 1:].double(), torch.from_numpy(distances), rtol=1e-6, atol=0)


def test_the_bound_decides_what_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    again: list[int] = []
    measure = neighbors._measure_all

    def counted(features, rows, itself, failed, *found):  # type: ignore[no-untyped-def]
        again.append(len(failed))
        measure(features, rows, itself, failed, *found)

    monkeypatch.setattr(neighbors, "_measure_all", counted)
    nearest_neighbors(clouds()["normal"], 15)
    nearest_neighbors(clouds()["close pairs"], 15, dtype=torch.bfloat16)
    nearest_neighbors(clouds()["two scales"], 15, dtype=torch.bfloat16)
    assert again[0] == 0  # float32 proves a plain cloud at once
    assert again[2] >= 150  # bfloat16 cannot tell the small half apart


def test_without_the_redo_it_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clouds()["two scales"]
    monkeypatch.setattr(neighbors, "_measure_all", lambda *_: None)
    found = nearest_neighbors(features, 15, dtype=torch.bfloat16)
    assert not torch.equal(found[0], by_hand(features, 15)[0])


def test_chunks_change_nothing_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clouds()["close pairs"]
    whole = nearest_neighbors(features, 15, dtype=torch.bfloat16)
    monkeypatch.setattr(neighbors, "CHUNK_BYTES", 40_000)
    products: list[int] = []
    multiply = neighbors._product

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        products.append(4 * len(a) * len(b))
        return multiply(a, b)

    monkeypatch.setattr(neighbors, "_product", watched)
    parts = nearest_neighbors(features, 15, dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))
    assert len(products) > 10
    assert max(products) <= 40_000


@pytest.mark.parametrize(
    ("features", "k", "queries", "told"),
    [
        (torch.zeros(3, 2), 0, None, "between 1 and the number of rows, 3; got 0"),
        (torch.zeros(3, 2), 4, None, "got 4"),
        (torch.zeros(3), 1, None, r"features must be \[M, D\] floating point, got \[3\]"),
        (torch.zeros(3, 2, dtype=torch.int64), 1, None, "torch.int64"),
        (torch.zeros(3, 2), 1, torch.zeros(3, 4), r"queries must be .* got \[3, 4\]"),
    ],
)
def test_wrong_input_is_named(
    features: torch.Tensor, k: int, queries: torch.Tensor | None, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        nearest_neighbors(features, k, queries=queries)


@pytest.mark.gpu
@pytest.mark.parametrize("name", clouds())
def test_tensor_cores_give_the_cpus_neighbours(name: str) -> None:
    features = clouds()[name]
    expected = by_hand(features, 15)
    found = nearest_neighbors(features.cuda(), 15)
    assert torch.equal(found[0].cpu(), expected[0])
    torch.testing.assert_close(found[1].cpu(), expected[1], rtol=1e-6, atol=0)
