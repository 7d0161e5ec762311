import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meal_gpu.annotate import masks
from meal_gpu.annotate.asked import Answer, Asked, Box, Item

CONTEXT = 2
ITEMS = (
    Item(1, "seq/a.png", "a.png", Box(8, 0, 16, 6), 0.5, 1.0, 1.0),
    Item(2, "a.png", "b.png", Box(8, 0, 16, 6), 0.5, 1.0, 1.0),
)
ASKED = Asked(Path("query"), 1, "meal", 0, ("road", "car", "sky"), (12, 16), (2, 2), ITEMS, {})
PATCH = np.array([[0, 1, 2, 255, 0, 1, 2, 255]] * 6, np.uint8)
CROP = np.pad(PATCH, ((0, CONTEXT), (CONTEXT, 0)), constant_values=255)


def png(mask: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(mask)
    if mode == "P":
        image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(buffer, kind)
    return buffer.getvalue()


def only(name: str, content: bytes) -> Answer:
    (answer,) = masks.read({name: content, "notes.txt": b"done"}, ASKED, context=CONTEXT)
    return answer


@pytest.mark.parametrize("mask", [PATCH, CROP], ids=["patch", "crop"])
@pytest.mark.parametrize("mode", ["L", "P"])
@pytest.mark.parametrize("folder", ["", "masks/", "deep/masks/"])
def test_masks_of_either_size_below_any_folders(mask: np.ndarray, mode: str, folder: str) -> None:
    answer = only(f"{folder}seq/a__l8_t0_r16_b6.PNG", png(mask, mode=mode))
    assert (answer.name, answer.problem) == ("seq/a__l8_t0_r16_b6", None)
    assert answer.labels is not None and answer.labels.dtype == np.uint8
    assert np.array_equal(answer.labels, mask)


def test_the_longest_name_that_is_asked_for_counts() -> None:
    found = masks.read(
        {f"{folder}a__l8_t0_r16_b6.png": png(PATCH) for folder in ("seq/", "", "other/")},
        ASKED,
        context=CONTEXT,
    )
    names = [answer.name for answer in found]  # the same patch twice is for the caller to see
    assert names == ["seq/a__l8_t0_r16_b6", "a__l8_t0_r16_b6", "a__l8_t0_r16_b6"]


WRONG = {
    "size": (png(PATCH[:5]), r"^5×8 pixels \(height × width\) found, 8×10 \(with context\) or 6×8 expected$"),
    "class": (png(np.where(PATCH == 2, 77, PATCH)), "unknown class id 77; known: 0 to 2, 255"),
    "colours": (png(np.zeros((6, 8, 3), np.uint8)), "a RGB PNG found"),
    "16 bit": (png(np.zeros((6, 8), np.uint16)), "I;16 PNG found"),
    "cut": (png(np.random.default_rng(0).integers(0, 3, (6, 8), np.uint8))[:55], "truncated or damaged"),
    "header": (png(PATCH)[:20], "truncated, damaged or no PNG"),
    "jpeg": (png(PATCH, "JPEG"), "truncated, damaged or no PNG"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_mask_says_why(wrong: str) -> None:
    content, problem = WRONG[wrong]
    answer = only("seq/a__l8_t0_r16_b6.png", content)
    assert answer.name == "seq/a__l8_t0_r16_b6" and answer.labels is None and answer.problem is not None
    assert re.search(problem, answer.problem), answer.problem


def test_other_images_and_names() -> None:
    answer = only("seq/a__l8_t0_r16_b6.jpg", png(PATCH, "JPEG"))
    assert (answer.name, answer.labels) == ("seq/a__l8_t0_r16_b6", None)
    assert answer.problem == "a .jpg image; masks are 8-bit grey or palette PNG files of ids"
    assert only("masks/b.png", png(PATCH)) == Answer("masks/b", None, "not asked for in this query")
