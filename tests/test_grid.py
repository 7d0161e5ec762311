"""Patch ids, (image, row, column) and boxes are three spellings of one thing."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu.errors import InputError
from meal_gpu.grid import Grid

CAMVID = Grid(4, 4, 360, 480)
RAGGED = Grid(2, 3, 5, 7)  # patches of 3×3; the last row has 2 pixels, the last column 1


@pytest.mark.parametrize(
    ("grid", "patch", "image", "row", "column", "box"),
    [
        (CAMVID, 0, 0, 0, 0, (0, 0, 120, 90)),
        (CAMVID, 3, 0, 0, 3, (360, 0, 480, 90)),
        (CAMVID, 4, 0, 1, 0, (0, 90, 120, 180)),
        (CAMVID, 15, 0, 3, 3, (360, 270, 480, 360)),
        (CAMVID, 5871, 366, 3, 3, (360, 270, 480, 360)),
        (Grid(4, 4, 512, 1024), 16, 1, 0, 0, (0, 0, 256, 128)),
        (RAGGED, 2, 0, 0, 2, (6, 0, 7, 3)),
        (RAGGED, 4, 0, 1, 1, (3, 3, 6, 5)),
        (RAGGED, 11, 1, 1, 2, (6, 3, 7, 5)),
        (Grid(1, 1, 1, 1), 9, 9, 0, 0, (0, 0, 1, 1)),
    ],
)
def test_known_patches(
    grid: Grid, patch: int, image: int, row: int, column: int, box: tuple[int, int, int, int]
) -> None:
    assert [int(part) for part in grid.locate(patch)] == [image, row, column]
    assert int(grid.patch_id(image, row, column)) == patch
    assert grid.boxes([patch]).tolist() == [list(box)]


def test_all_patches_of_some_images() -> None:
    grid = Grid(2, 2, 8, 8)
    assert grid.patches_of([3, 1]).tolist() == [12, 13, 14, 15, 4, 5, 6, 7]
    assert grid.patches_of([]).tolist() == []


def test_patch_size_is_rounded_up() -> None:
    assert (CAMVID.patch_height, CAMVID.patch_width, CAMVID.patches_per_image) == (90, 120, 16)
    assert (RAGGED.patch_height, RAGGED.patch_width, RAGGED.patches_per_image) == (3, 3, 6)


def test_shapes_and_dtypes() -> None:
    ids = np.arange(12, dtype=np.int16).reshape(3, 4)
    for part in RAGGED.locate(ids):
        assert part.shape == (3, 4)
        assert part.dtype == np.int64
    boxes = RAGGED.boxes(np.arange(5))
    assert (boxes.shape, boxes.dtype) == ((5, 4), np.int64)
    assert RAGGED.boxes(np.arange(0)).shape == (0, 4)
    # 10M frames: ids pass 2**31 and must not wrap
    assert int(CAMVID.patch_id(np.int32(2**30), 0, 1)) == 2**34 + 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((0, 4, 8, 8), ("0 rows", "8 pixels")),
        ((4, -1, 8, 8), ("-1 columns", "8 pixels")),
        ((1, 1, 0, 8), ("1 rows", "0 pixels")),
        ((9, 1, 8, 8), ("9 rows", "8 pixels", "use 8 rows")),
        ((1, 4, 8, 9), ("4 columns", "9 pixels", "use 3 columns")),
        ((1, 5, 8, 6), ("5 columns", "6 pixels", "use 3 columns")),
    ],
)
def test_impossible_grids_name_both_numbers_and_the_fix(
    arguments: tuple[int, int, int, int], told: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as error:
        Grid(*arguments)
    assert all(part in str(error.value) for part in told)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Grid(4.0, 4, 8, 8), "rows must be a whole number, got 4.0"),  # type: ignore[arg-type]
        (lambda: CAMVID.boxes([1.7]), "patches must be whole numbers, got float64"),
        (lambda: CAMVID.locate(np.array([True])), "patches must be whole numbers, got bool"),
        (lambda: CAMVID.patches_of(np.array([0.5])), "images must be whole numbers, got float64"),
        (lambda: CAMVID.patch_id(1, 5, 3), "row goes from 0 to 3; got 5 to 5"),
        (lambda: CAMVID.patch_id(1, [0, 1], [3, -1]), "column goes from 0 to 3; got -1 to 3"),
    ],
)
def test_what_would_be_rounded_or_lies_outside_is_refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        call()


def test_of_no_patches_there_are_no_boxes() -> None:
    assert CAMVID.boxes([]).shape == (0, 4)
    assert CAMVID.patch_id([], [], []).shape == CAMVID.patches_of([]).shape == (0,)


def test_a_grid_is_a_value() -> None:
    assert Grid(4, 4, 360, 480) == CAMVID
    assert hash(Grid(4, 4, 360, 480)) == hash(CAMVID)
    with pytest.raises(dataclasses.FrozenInstanceError):
        CAMVID.rows = 5  # type: ignore[misc]


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any grid that `Grid` accepts, most of them ragged."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rows, columns = draw(st.integers(1, height)), draw(st.integers(1, width))
    # The advice of the error message: as many parts as patches of the rounded-up size
    fit_rows, fit_columns = (-(-n // -(-n // k)) for n, k in ((height, rows), (width, columns)))
    return Grid(fit_rows, fit_columns, height, width)


@given(grids())
def test_boxes_tile_the_image_exactly(grid: Grid) -> None:
    covered = np.zeros((grid.height, grid.width), dtype=int)
    for left, top, right, bottom in grid.boxes(np.arange(grid.patches_per_image)):
        assert left < right
        assert top < bottom
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


@given(grids(), st.integers(1, 5))
def test_locate_and_patch_id_are_inverse(grid: Grid, images: int) -> None:
    ids = np.arange(images * grid.patches_per_image)
    image, row, column = grid.locate(ids)
    assert (grid.patch_id(image, row, column) == ids).all()
    assert image.max() == images - 1
    assert (row.max(), column.max()) == (grid.rows - 1, grid.columns - 1)


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_grid_is_refused_exactly_when_a_patch_would_be_empty(parts: int, length: int) -> None:
    patch = -(-length // parts)
    if (parts - 1) * patch < length:
        assert Grid(parts, 1, length, 1).rows == parts
    else:
        with pytest.raises(InputError, match=r"use \d+ rows"):
            Grid(parts, 1, length, 1)
