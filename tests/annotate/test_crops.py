"""What all tools' formats share: the crop that a name means, and the pieces of a prediction."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_coco import asked_of, full

from meal_gpu.annotate.asked import VOID, Asked
from meal_gpu.annotate.crops import matching, pieces


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return asked_of(tmp_path)


def of_two_folders(asked: Asked) -> Asked:
    """The first and the second patch have crops of one name in two folders."""
    second = asked.items[1]
    return replace(asked, items=(replace(second, patch=7, image="seq 2/ä.b.png"), *asked.items[1:]))


@pytest.mark.parametrize(
    ("called", "patch"),
    [
        ("ä.b__l16_t0_r32_b12.png", 1),  # as CVAT calls a single file
        ("images/ä.b__l16_t0_r32_b12.png", 1),
        ("images/0a1b2c3d-ä.b__l16_t0_r32_b12.png", 1),  # as Label Studio calls what is uploaded
        ("/data/upload/3/0a1b2c3d-ä.b__l16_t0_r32_b12.jpg", 1),
        ("0a1b2c3d-c__l0_t12_r16_b24.png", 6),
        ("0A1B2C3D-c__l0_t12_r16_b24.png", None),
        ("a\u0308.b__l16_t0_r32_b12.png", 1),  # as a Mac spells it
        ("seq 3/ä.b__l16_t0_r32_b12.png", None),  # another frame
        ("b__l16_t0_r32_b12.png", None),
    ],
)
def test_names_that_tools_change_are_known(asked: Asked, called: str, patch: int | None) -> None:
    item = asked.by_name.get(matching(called, asked))
    assert (None if item is None else item.patch) == patch


def test_a_backslash_may_be_part_of_a_name(asked: Asked) -> None:
    own = replace(asked, items=(replace(asked.items[0], image="a\\b.png"), *asked.items[1:]))
    name = own.items[0].name
    assert "\\" in name
    assert matching(f"{name}.png", own) == name
    first = asked.items[0].name
    assert matching(f"images/{first}.png".replace("/", "\\"), asked) == first


def test_a_name_that_two_crops_may_have_is_refused(asked: Asked) -> None:
    two = of_two_folders(asked)
    for called in ("ä.b__l16_t0_r32_b12", "images/0a1b2c3d-ä.b__l16_t0_r32_b12"):
        assert matching(f"{called}.png", two) == called
        assert called not in two.by_name
    assert matching("seq 2/ä.b__l16_t0_r32_b12.png", two) == two.items[0].name


def test_the_pieces_of_a_prediction_make_it_up_and_their_boxes_are_tight(asked: Asked) -> None:
    for item in asked.items:
        crop = asked.crop(item)
        labels = np.full((crop.height, crop.width), VOID, np.uint8)
        for train_id, box, mask in pieces(item, asked):
            inside = mask[box.within(crop)]
            assert inside.shape == (box.height, box.width) and inside.sum() == mask.sum()
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            labels[mask] = train_id
        assert np.array_equal(labels, full(asked, item))
