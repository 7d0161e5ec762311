import io
import re
import struct
import zlib
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
ASKED = Asked(
    Path("query"), 1, "meal", 0, ("road", "car", "sky"), (12, 16), (2, 2), ITEMS, {"context": CONTEXT}
)
PATCH = np.array([[0, 1, 2, 255, 0, 1, 2, 255]] * 6, np.uint8)
CROP = np.pad(PATCH, ((0, CONTEXT), (CONTEXT, 0)), constant_values=255)


def png(mask: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(mask)
    if mode == "P":
        image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(buffer, kind)
    return buffer.getvalue()


def packed(mask: np.ndarray, bits: int) -> bytes:
    """A grey PNG of so many bits a pixel, which Pillow does not write."""
    rows = np.unpackbits(mask.astype(np.uint8)[..., None], axis=2)[..., -bits:].reshape(len(mask), -1)
    lines = b"".join(b"\0" + row.tobytes() for row in np.packbits(rows, axis=1))
    head = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], bits, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in parts
    )


def only(name: str, content: bytes) -> Answer:
    (answer,) = masks.read({name: content, "notes.txt": b"done"}, ASKED)
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
        {f"{folder}a__l8_t0_r16_b6.png": png(PATCH) for folder in ("seq/", "", "other/")}, ASKED
    )
    names = [answer.name for answer in found]  # the same patch twice is for the caller to see
    assert names == ["seq/a__l8_t0_r16_b6", "a__l8_t0_r16_b6", "a__l8_t0_r16_b6"]


WRONG = {
    "size": (png(PATCH[:5]), r"^5×8 pixels \(height × width\) found, 8×10 \(with context\) or 6×8 expected$"),
    "class": (png(np.where(PATCH == 2, 77, PATCH)), "unknown class id 77; known: 0 to 2, 255"),
    "colours": (png(np.zeros((6, 8, 3), np.uint8)), "an 8-bit RGB PNG found"),
    "16 bit": (png(np.zeros((6, 8), np.uint16)), "a 16-bit grey PNG found"),
    # which Pillow would stretch: id 1 of 4 bits comes as 17
    "4 bit": (packed(PATCH, 4), "a 4-bit grey PNG found"),
    "2 bit": (packed(PATCH, 2), "a 2-bit grey PNG found"),
    "1 bit": (packed(PATCH > 0, 1), "a 1-bit grey PNG found"),
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
