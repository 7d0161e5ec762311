"""Features of every patch from the pass that scores it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import blocks, calibrated

from meal_gpu.acquisition import acquire
from meal_gpu.errors import InputError
from meal_gpu.grid import Grid
from meal_gpu.models import Builder, Segmenter
from meal_gpu.ops import reference
from meal_gpu.passes import ImageSet
from meal_gpu.scoring import pool_patches, score_pool, shared_features

GRID = Grid(2, 4, 32, 64)


@pytest.mark.parametrize(
    ("grid", "cells", "expected"),
    [
        # one cell per patch
        (Grid(1, 2, 8, 16), [[1.0, 2.0]], [1.0, 2.0]),
        # two patches of three pixels over cells of two: a cell and a half each
        (Grid(1, 2, 1, 6), [[0.0, 3.0, 9.0]], [1.0, 7.0]),
        # 5 pixels in 2 columns: 3 and 2; the padding, from pixel 5 on, counts nowhere
        (Grid(1, 2, 1, 5), [[6.0, 0.0, 100.0]], [4.0, 50.0]),
    ],
)
def test_cells_count_by_area(grid: Grid, cells: list[list[float]], expected: list[float]) -> None:
    padded = (grid.height, 6 if grid.width == 5 else grid.width)
    maps = torch.tensor(cells).view(1, 1, 1, -1)
    torch.testing.assert_close(pool_patches(maps, grid, padded)[0, :, 0], torch.tensor(expected))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4), columns=st.integers(1, 4), stride=st.sampled_from([1, 2, 4, 8]),
    h=st.integers(1, 6), w=st.integers(1, 6), cut=st.integers(0, 7),
)  # fmt: skip
def test_the_average_over_pixels_of_nearest_cells(
    rows: int, columns: int, stride: int, h: int, w: int, cut: int
) -> None:
    height, width = max(h * stride - cut, 1), max(w * stride - cut, 1)
    try:
        grid = Grid(rows, columns, height, width)
    except InputError:
        return
    maps = torch.rand(2, 3, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(maps, scale_factor=stride, mode="nearest")
    found = pool_patches(maps, grid, (h * stride, w * stride))
    for patch, (left, top, right, bottom) in enumerate(grid.boxes(range(rows * columns))):
        expected = pixels[:, :, top:bottom, left:right].mean(dim=(2, 3))
        torch.testing.assert_close(found[:, patch].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return calibrated(Builder("smp", 3, "none"), 0)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return blocks()


@pytest.fixture(scope="module")
def frozen() -> Segmenter:
    model = calibrated(Builder("smp", 3, "none"), 0)
    model.freeze_encoder()
    return model


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("which", ["model", "frozen"])
def test_one_pass_scores_and_describes(
    which: str, precision: str, images: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(which)
    pool = ImageSet(images, reference, batch_size=4, cache_bytes=1 << 30, precision=precision)
    alone = score_pool(pool, model, GRID)
    both = score_pool(pool, model, GRID, features=True)
    assert alone.features is None
    assert both.features is not None
    assert torch.equal(both.scores, alone.scores)
    assert (both.features.shape, both.features.dtype) == ((48, 1280), torch.float32)
    assert torch.equal(both.features, shared_features(pool, model, GRID))


def test_what_is_made_of_a_frozen_networks_outputs_is_not_rounded(
    model: Segmenter, frozen: Segmenter, images: torch.Tensor
) -> None:
    """Mixed precision is the network's alone: all is equal to that of one that is not frozen."""
    found = [
        score_pool(
            ImageSet(images, reference, batch_size=4, precision="bfloat16"), network, GRID, features=True,
            boundary=True,
        )
        for network in (model, frozen)
    ]  # fmt: skip
    for name in ("scores", "features", "boundary"):
        first, second = (getattr(scored, name) for scored in found)
        assert second.dtype == torch.float32
        assert torch.equal(first, second), name
    for strategy in ("core-set", "kmeans", "typiclust"):
        chosen = [
            acquire(
                network, images, 8, strategy=strategy, grid=(2, 4), features="shared", precision="bfloat16",
                ops="reference",
            ).patch_ids
            for network in (model, frozen)
        ]  # fmt: skip
        assert torch.equal(*chosen), strategy


def test_a_query_on_shared_features_runs_the_encoder_once_per_image(
    model: Segmenter, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    encode = Segmenter.encode

    def counted(self: Segmenter, batch: torch.Tensor) -> object:
        passed.append(len(batch))
        return encode(self, batch)

    monkeypatch.setattr(Segmenter, "encode", counted)
    given = {"grid": (2, 4), "candidates": 20, "features": "shared", "precision": "float32"}
    query = acquire(model, images, 5, **given)  # type: ignore[arg-type]
    assert sum(passed) == 6  # manifold, scores and features of the candidates, all from one pass
    assert len(query) == 5
    again = acquire(model, images, 5, **given)  # type: ignore[arg-type]
    assert torch.equal(query.patch_ids, again.patch_ids)


def test_unknown_features_and_precisions_are_named(model: Segmenter, images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="features is 'both'; known: crop, shared"):
        acquire(model, images, 5, features="both")
    with pytest.raises(InputError, match="precision is 'half'; known: auto, float32, bfloat16, float16"):
        acquire(model, images, 5, precision="half")
