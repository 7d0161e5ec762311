"""The seeding kernels against their twin: on a GPU, or their source executed on the CPU."""

from typing import Any

import pytest
import torch
from cuda_on_cpu import harness
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kmeans_plusplus import CONDITIONED_DRAWS, DRAWS, LINE, NEARLY_1, blobs

from meal_gpu.errors import InputError
from meal_gpu.ops import compile, cuda, reference


def picks(
    kernels: torch.device,
    points: torch.Tensor,
    uniforms: torch.Tensor,
    chosen: torch.Tensor | None = None,
    *,
    warps: int = cuda.DRAWING_WARPS,
) -> torch.Tensor:
    """The rows that one block and many blocks pick; few warps make long tiles and segments of few rows."""
    arguments = [points.to(kernels), uniforms.to(kernels), None if chosen is None else chosen.to(kernels)]
    found = []
    for limit in (cuda.ONE_BLOCK_BYTES, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda, "ONE_BLOCK_BYTES", limit)
            patch.setattr(cuda, "DRAWING_WARPS", warps)
            found.append(cuda.kmeans_plusplus(*arguments).cpu())
    one, many = found
    assert torch.equal(one, many)
    return one


def column(*uniforms: float) -> torch.Tensor:
    return torch.tensor(uniforms, dtype=torch.float64)[:, None]


def random_uniforms(draws: int, trials: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(draws, trials, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("points", "uniforms", "expected"), DRAWS)
def test_draws_by_hand(
    points: torch.Tensor, uniforms: list[float], expected: list[int], kernels: torch.device
) -> None:
    assert picks(kernels, points, column(*uniforms)).tolist() == expected


@pytest.mark.parametrize(("chosen", "uniforms", "expected"), CONDITIONED_DRAWS)
def test_conditioned_draws_by_hand(
    chosen: list[list[float]], uniforms: list[float], expected: list[int], kernels: torch.device
) -> None:
    assert picks(kernels, LINE, column(*uniforms), torch.tensor(chosen)).tolist() == expected


def test_greedy_draws_by_hand(kernels: torch.device) -> None:
    # potentials of rows 0, 1, 2: 10, 5, 13
    assert picks(kernels, LINE, torch.tensor([[0.0, 0.5, 0.9]]).double()).tolist() == [1]
    # equal potentials: the earlier trial stays
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    assert picks(kernels, square, torch.tensor([[0.6, 0.1, 0.9]]).double()).tolist() == [2]


@pytest.mark.parametrize("seed", range(200))
def test_random_cases_are_as_the_twin_has_them(seed: int, kernels: torch.device) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    rows = draw(1, 150)
    draws, trials = draw(1, min(rows, 8)), draw(1, 3)
    points = blobs(rows, width=40 if seed % 10 == 0 else 2, seed=seed)
    if seed % 3 == 0:  # many coincide
        points = points[torch.randint(rows, (rows,), generator=generator) // 4]
    chosen = points[: draw(0, 4)] + (seed % 4 == 0) if seed % 2 else None
    uniforms = random_uniforms(draws, trials, seed)
    expected = reference.kmeans_plusplus(points, uniforms, chosen)
    actual = picks(kernels, points, uniforms, chosen, warps=(32, 3, 2, 1)[seed % 4])
    assert actual.dtype == torch.int64
    assert torch.equal(actual, expected)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=80),
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from([1, 32]),
    st.data(),
)
def test_exact_arithmetic_picks_the_same_rows(
    kernels: torch.device,
    rows: list[tuple[int, int]],
    trials: int,
    given_rows: int,
    warps: int,
    data: st.DataObject,
) -> None:
    points = torch.tensor(rows, dtype=torch.float32)
    draws = data.draw(st.integers(1, min(len(rows), 10)))
    edges = st.sampled_from([0.0, 0.5, NEARLY_1]) | st.floats(0, 1, exclude_max=True)
    numbers = data.draw(st.lists(edges, min_size=draws * trials, max_size=draws * trials))
    uniforms = torch.tensor(numbers, dtype=torch.float64).view(draws, trials)
    chosen = points[:given_rows] + 1 if given_rows else None
    expected = reference.kmeans_plusplus(points, uniforms, chosen)
    assert torch.equal(picks(kernels, points, uniforms, chosen, warps=warps), expected)


@pytest.mark.parametrize("trials", [1, 3])
def test_segments_of_many_tiles_of_many_rows(trials: int, kernels: torch.device) -> None:
    # One warp: tiles of 64 rows, 35 of them in the segment
    points, uniforms = blobs(2200), random_uniforms(5, trials)
    expected = reference.kmeans_plusplus(points, uniforms, points[:2])
    assert torch.equal(picks(kernels, points, uniforms, points[:2], warps=1), expected)


@pytest.mark.parametrize("trials", [1, 2])
@pytest.mark.parametrize("warps", [1, 32])
@pytest.mark.parametrize("kind", ["equal", "repeated", "apart"])
def test_all_rows_are_a_permutation(kind: str, warps: int, trials: int, kernels: torch.device) -> None:
    points = {"equal": torch.ones(70, 2), "repeated": blobs(7).repeat(10, 1), "apart": blobs(70)}[kind]
    uniforms = random_uniforms(70, trials)
    actual = picks(kernels, points, uniforms, warps=warps)
    assert sorted(actual.tolist()) == list(range(70))
    assert torch.equal(actual, reference.kmeans_plusplus(points, uniforms, None))


@pytest.mark.parametrize("seed", range(30))
def test_rounding_picks_no_row_without_weight(seed: int, kernels: torch.device) -> None:
    # Weights of every magnitude between rows that coincide with a centre; u * total may round to the total
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(150, 1, generator=generator).exp() * (torch.rand(150, 1, generator=generator) < 0.5)
    points[-20:] = 0
    last = int(points.nonzero()[-1, 0])
    for warps in (1, 2, 32):
        assert picks(kernels, points, column(NEARLY_1), torch.zeros(1, 1), warps=warps).tolist() == [last]
    uniforms = random_uniforms(5, seed=seed)
    row = picks(kernels, points, uniforms, torch.zeros(1, 1))
    assert bool((points[row] != 0).all())


def test_the_order_is_prefix_nested(kernels: torch.device) -> None:
    points, uniforms = blobs(90), random_uniforms(20, 2)
    longer = picks(kernels, points, uniforms)
    for draws in (1, 7, 19):
        assert torch.equal(picks(kernels, points, uniforms[:draws]), longer[:draws])


def test_layout_and_type_of_the_points_do_not_matter(kernels: torch.device) -> None:
    points, uniforms = blobs(90).round(), random_uniforms(12)  # small integers are exact in every type
    expected = reference.kmeans_plusplus(points, uniforms, points[:3] + 1)
    wide = blobs(180, width=4).round()
    wide[::2, 1:3] = points
    for given_points in (points.t().contiguous().t(), wide[::2, 1:3], points.half(), points.double()):
        for chosen in (points[:3] + 1, (points[:3] + 1).bfloat16(), (points[:3] + 1).double()):
            assert torch.equal(picks(kernels, given_points, uniforms, chosen), expected)


def test_float64_points_are_not_rounded(kernels: torch.device) -> None:
    points = 1 + 1e-12 * blobs(90).double()
    uniforms = random_uniforms(12)
    actual = picks(kernels, points, uniforms, points[:3].float())
    assert torch.equal(actual, reference.kmeans_plusplus(points, uniforms, points[:3].float()))
    assert len(points[actual].unique(dim=0)) == 12


def test_uniforms_may_lie_on_the_cpu(kernels: torch.device) -> None:
    points, uniforms = blobs(90).to(kernels), random_uniforms(12)
    assert torch.equal(
        cuda.kmeans_plusplus(points, uniforms, None), cuda.kmeans_plusplus(points, uniforms.to(kernels), None)
    )


@pytest.mark.parametrize("trials", [1, 3])
def test_the_schedule_does_not_matter(
    trials: int, kernels: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, uniforms = blobs(90), random_uniforms(12, trials)
    expected = picks(kernels, points, uniforms, warps=2)
    assert torch.equal(picks(kernels, points, uniforms, warps=2), expected)
    monkeypatch.setattr(harness, "reversed_order", True)
    assert torch.equal(picks(kernels, points, uniforms, warps=2), expected)


@pytest.mark.parametrize("limit", [0, cuda.ONE_BLOCK_BYTES])
def test_the_host_launches_and_never_waits(
    limit: int, kernels: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []
    launch = compile.launch

    def noted(file: str, entry: str, *arguments: Any, **options: Any) -> None:
        launched.append(entry)
        launch(file, entry, *arguments, **options)

    monkeypatch.setattr(compile, "launch", noted)
    monkeypatch.setattr(cuda, "ONE_BLOCK_BYTES", limit)
    points, uniforms = blobs(90).to(kernels), random_uniforms(4, 3)
    if kernels.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        cuda.kmeans_plusplus(points, uniforms, points[:2])
    finally:
        if kernels.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert launched == (["seed"] if limit else ["cover", "draw"] * 5)


@pytest.mark.parametrize(
    ("points", "uniforms", "chosen", "told"),
    [
        (torch.zeros(5, 2), torch.zeros(6, 1).double(), None, ("5", "6")),
        (torch.zeros(5, 2), torch.zeros(0, 1).double(), None, ("5", "0")),
        (torch.zeros(5), torch.zeros(1, 1).double(), None, ("points", "[5]")),
        (torch.zeros(5, 2).long(), torch.zeros(1, 1).double(), None, ("points", "torch.int64")),
        (torch.zeros(5, 2), torch.zeros(1).double(), None, ("uniforms", "[1]")),
        (torch.zeros(5, 2), torch.zeros(1, 0).double(), None, ("uniforms", "[1, 0]")),
        (torch.zeros(5, 2), torch.zeros(1, 1), None, ("uniforms", "torch.float32")),
        (torch.zeros(5, 2), torch.zeros(1, 1).double(), torch.zeros(1, 3), ("chosen", "[1, 2]", "[1, 3]")),
        (torch.zeros(5, 2), torch.zeros(1, 1).double(), torch.zeros(2), ("chosen", "[2]")),
        (
            torch.zeros(5, 2),
            torch.zeros(1, 1).double(),
            torch.zeros(1, 2, device="meta"),
            ("chosen", "cpu", "meta"),
        ),
        (torch.zeros(1, 0).expand(1 << 31, 0), torch.zeros(1, 1).double(), None, (str(1 << 31),)),
    ],
)
def test_wrong_input_is_named(
    points: torch.Tensor, uniforms: torch.Tensor, chosen: torch.Tensor | None, told: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as error:
        cuda.kmeans_plusplus(points, uniforms, chosen)
    assert all(part in str(error.value) for part in told)
