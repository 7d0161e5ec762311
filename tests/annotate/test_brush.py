"""Brush masks and polygons: there and back, every way to be damaged, and Label Studio's own converter."""

import json
from pathlib import Path
from time import perf_counter

import numpy as np
import peer
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from meal_gpu.annotate import brush
from meal_gpu.errors import DataError

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


def bits(*numbers: tuple[int, int]) -> list[int]:
    """Bytes of (number, width) pairs, filled up with zeros."""
    text = "".join(f"{number:0{width}b}" for number, width in numbers)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def header(values: int, width: int = 8, sizes: tuple[int, ...] = (3, 4, 8, 16)) -> list[tuple[int, int]]:
    return [(values, 32), (width - 1, 5), *((size - 1, 4) for size in sizes)]


@given(MASKS)
def test_a_mask_comes_back(mask: np.ndarray) -> None:
    rle = brush.encode(mask)
    assert all(type(byte) is int and 0 <= byte < 256 for byte in rle)
    assert np.array_equal(brush.decode(rle, mask.shape), mask)


@pytest.mark.parametrize("size", [(1, 1), (128, 128), (128, 129), (300, 400), (1, 16385)])
@pytest.mark.parametrize("value", [False, True])
def test_runs_longer_than_a_block_come_back(size: tuple[int, int], value: bool) -> None:
    mask = np.full(size, value)
    assert np.array_equal(brush.decode(brush.encode(mask), size), mask)
    mask[-1, -1] ^= True
    assert np.array_equal(brush.decode(brush.encode(mask), size), mask)


def test_known_bytes() -> None:
    mask = np.array([[False, False, True]])
    assert brush.encode(mask) == bits(*header(12), (0b100, 3), (7, 3), (0, 8), (0b100, 3), (3, 3), (255, 8))


@pytest.mark.parametrize("width", [1, 5, 8, 13, 32])
def test_values_may_be_given_one_by_one_and_only_alpha_counts(width: int) -> None:
    pixels = [(1, 1, 1, 0), (0, 0, 0, 1), (1, 0, 1, 0)]
    values = [(value, width) for pixel in pixels for value in pixel]
    rle = bits(*header(12, width), (0b001, 3), (11, 4), *values)
    assert brush.decode(rle, (1, 3)).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ([], "truncated"),
        ([0, 0, 0, 12], "truncated"),
        (bits(*header(16), (0b100, 3), (7, 3), (0, 8)), "16 values, 12 expected: 4 of each of 1×3 pixels"),
        (bits(*header(2**32 - 1)), "4294967295 values, 12 expected"),
        (bits(*header(12), (0b100, 3), (7, 3), (0, 8)), "truncated: its 9 bytes end after 8 of 12 values"),
        (bits(*header(12), (0b001, 3), (11, 4), (0, 8)), "truncated"),
        (bits(*header(12), (0b101, 3), (12, 4), (0, 8)), "more than the 12 values"),
        (bits(*header(12, 9), (0b101, 3), (11, 4), (256, 9)), "value of 256"),
        (bits(*header(12, 9), (0b001, 3), (11, 4), *[(256, 9)] * 12), "above 255"),
        ([0, 0, 0, 256], "from 0 to 255"),
        ([0, 0, 0, -1], "from 0 to 255"),
        ([0, 0, 0, 1.5], "from 0 to 255"),
        ("0000", "list of bytes, str found"),
        (7, "list of bytes, int found"),
        (None, "list of bytes"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_said(rle: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        brush.decode(rle, (1, 3))


@given(MASKS, st.data())
def test_any_damage_is_an_error_or_a_mask(mask: np.ndarray, data: st.DataObject) -> None:
    rle = brush.encode(mask)
    for _ in range(data.draw(st.integers(1, 3))):
        rle[data.draw(st.integers(0, len(rle) - 1))] = data.draw(st.integers(0, 255))
    rle = rle[: data.draw(st.integers(0, len(rle)))]
    try:
        assert brush.decode(rle, mask.shape).shape == mask.shape
    except DataError as error:
        assert "\n" not in str(error)


def test_a_crop_takes_well_below_a_second() -> None:
    mask = np.random.default_rng(0).random((360, 480)) < 0.5
    start = perf_counter()
    assert np.array_equal(brush.decode(brush.encode(mask), mask.shape), mask)
    assert perf_counter() - start < 2.0  # noise, the worst there is, on a busy machine


@given(st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=9))
def test_a_polygon_holds_the_pixels_whose_centre_is_within(points: list[tuple[float, float]]) -> None:
    table = np.array(points)
    y, x = np.mgrid[0:20, 0:20] + 0.5
    expected = np.zeros((20, 20), bool)
    near = np.zeros((20, 20), bool)
    for (x0, y0), (x1, y1) in zip(table, np.roll(table, -1, axis=0), strict=True):
        if y0 != y1:
            crossing = x0 + (y - y0) * ((x1 - x0) / (y1 - y0))
            spans = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1))
            expected ^= spans & (crossing <= x)
            near |= spans & (np.abs(crossing - x) < 1e-6)
    assert not ((brush.filled(table, (20, 20)) != expected) & ~near).any()


def test_polygons_beside_one_another_share_no_pixel() -> None:
    left = brush.filled(np.array([(0, 0), (2.5, 0), (2.5, 3), (0, 3)], float), (3, 5))
    right = brush.filled(np.array([(2.5, 0), (5, 0), (5, 3), (2.5, 3)], float), (3, 5))
    assert (left ^ right).all()
    assert not (left & right).any()


@pytest.mark.parametrize(
    "points", [[(0, 0), (1, 1)], [(0, 0), (1, np.nan), (2, 2)], [(0, 0), (1, 1e300), (2, 2)]]
)
def test_what_is_no_polygon_is_said(points: list[tuple[float, float]]) -> None:
    with pytest.raises(DataError, match="at least three points"):
        brush.filled(np.array(points, float), (3, 3))


@peer.needs_peers
def test_label_studios_converter_reads_our_masks_and_we_read_its(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    masks = [rng.random((7, 11)) < share for share in (0, 0.1, 0.5, 0.9, 1)]
    masks += [np.ones((130, 131), bool), np.kron(rng.random((9, 8)) < 0.5, np.ones((12, 13), bool)) > 0]
    ours = [{"size": mask.shape, "rle": brush.encode(mask)} for mask in masks]
    (tmp_path / "ours.json").write_text(json.dumps(ours))
    np.savez(tmp_path / "masks.npz", *masks)
    peer.run("read_label_studio", "brush", tmp_path)
    theirs = np.load(tmp_path / "decoded.npz")
    for i, mask in enumerate(masks):
        assert np.array_equal(theirs[f"arr_{i}"], mask)
    for mask, rle in zip(masks, json.loads((tmp_path / "theirs.json").read_text()), strict=True):
        assert np.array_equal(brush.decode(rle["ones"], mask.shape), mask)
        assert np.array_equal(brush.decode(rle["color"], mask.shape), mask)
