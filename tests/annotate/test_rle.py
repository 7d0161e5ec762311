"""Run lengths: properties, and what is refused before anything is allocated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu.annotate.rle import mask_of, runs
from meal_gpu.errors import DataError


@given(st.lists(st.booleans()))
def test_runs_stand_for_their_mask(mask: list[bool]) -> None:
    flat = np.asarray(mask, bool)
    lengths = runs(flat)
    assert lengths.dtype == np.int64
    assert lengths.sum() == flat.size
    assert (lengths[1:] > 0).all()
    assert np.array_equal(mask_of(lengths, flat.size), flat)


@pytest.mark.parametrize(
    ("mask", "wanted"), [("", [0]), ("0", [1]), ("1", [0, 1]), ("00110", [2, 2, 1]), ("101", [0, 1, 1, 1])]
)
def test_runs_begin_with_false(mask: str, wanted: list[int]) -> None:
    assert runs(np.array([c == "1" for c in mask], bool)).tolist() == wanted


@given(st.lists(st.integers(0, 9), max_size=20))
def test_runs_of_no_pixels_are_taken(lengths: list[int]) -> None:
    mask = mask_of(np.asarray(lengths, np.int64), sum(lengths))
    assert mask.sum() == sum(lengths[1::2])


@pytest.mark.parametrize(
    "lengths", [[3], [5], [-1, 5], [], [2**40], [2**62] * 4, [2**63 - 1, 2**63 - 1, 6], [4, -4, 4]]
)
def test_what_does_not_add_up_is_an_error(lengths: list[int]) -> None:
    with pytest.raises(DataError, match="run lengths"):
        mask_of(np.asarray(lengths, np.int64), 4)
