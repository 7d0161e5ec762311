"""The golden files are committed; MEAL_GPU_WRITE_GOLDEN=1 writes them anew."""

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from meal_gpu.annotate import masks, received, tables
from meal_gpu.annotate.asked import Asked, Box, Item
from meal_gpu.errors import DataError

GOLDEN = Path(__file__).parent / "golden" / "tables"
CONTEXT = 2
GUESSES = [np.full((6, 8), 1, np.uint8), np.full((5, 8), 2, np.uint8), np.full((6, 8), 0, np.uint8)]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Three patches of two frames; files are relative, so that the tables are the same everywhere."""
    monkeypatch.chdir(tmp_path)
    ramp = np.arange(11 * 16 * 3, dtype=np.uint16).reshape(11, 16, 3).astype(np.uint8)
    Path("seq").mkdir()
    Image.fromarray(ramp).save("seq/a, b.png")
    Image.fromarray(ramp[::-1]).save("ü.png")
    items = (
        Item(5, "ü.png", "ü.png", Box(8, 0, 16, 6), 0.25, 12.0, 20.5),
        Item(2, "seq/a, b.png", "seq/a, b.png", Box(0, 6, 8, 11), math.nan, 3.0, 5.125),
        Item(4, "ü.png", "ü.png", Box(0, 0, 8, 6), 0.125, 8.0, 10.0),
    )
    made = Asked(
        Path("query"), 1, "meal", 0, ("road", "car", "sky"), (11, 16), (2, 2), items, {"context": CONTEXT}
    )
    made.path.mkdir()
    made.write_into(made.path, GUESSES)
    return made


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_tables_are_byte_for_byte_the_golden_ones(form: str, asked: Asked) -> None:
    written = tables.write(asked, Path("out"), form=form)
    assert written[-1] == Path("out") / f"query.{form}"
    golden = GOLDEN / f"query.{form}"
    if os.environ.get("MEAL_GPU_WRITE_GOLDEN"):
        golden.write_bytes(written[-1].read_bytes())
    assert written[-1].read_bytes() == golden.read_bytes()


def test_parquet_says_the_same_as_csv_and_is_deterministic(asked: Asked) -> None:
    first, second = (tables.write(asked, Path(out), form="parquet")[-1] for out in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    table, golden = pd.read_parquet(first), pd.read_csv(GOLDEN / "query.csv")
    assert tuple(table) == tables.COLUMNS
    assert table["score"].dtype == np.float64
    pd.testing.assert_frame_equal(table, golden, check_dtype=False)


def test_paths_of_the_table_hold_crops_and_prelabels(asked: Asked) -> None:
    written = tables.write(asked, Path("out"), form="csv")
    assert set(written) == {path for path in Path("out").rglob("*") if path.is_file()}
    table = pd.read_csv("out/query.csv")
    for row, item, guess in zip(table.itertuples(), asked.items, GUESSES, strict=True):
        crop = asked.crop(item)
        assert (row.crop_left, row.crop_top, row.crop_right, row.crop_bottom) == crop
        frame = np.asarray(Image.open(item.file))
        shown = np.asarray(Image.open(Path("out") / row.crop))
        assert np.array_equal(shown, frame[crop.top : crop.bottom, crop.left : crop.right])
        labels = np.asarray(Image.open(Path("out") / row.prelabel))
        assert labels.shape == shown.shape[:2]
        inside = item.box.within(crop)
        assert np.array_equal(labels[inside], guess)
        assert (labels == 255).sum() == labels.size - guess.size
    assert Path("out/classes.txt").read_text() == "0: road\n1: car\n2: sky\n"


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_the_whole_folder_can_be_handed_in(form: str, asked: Asked) -> None:
    tables.write(asked, Path("out"), form=form)

    def handed_in() -> list[str]:
        found = masks.read(received.files(Path("out"), limit=1 << 20), asked)
        return [answer.name for answer in found if answer.problem is None]

    with pytest.raises(DataError, match="no file in masks/; finished masks go there"):
        handed_in()
    mask = Path("out") / pd.read_csv(GOLDEN / "query.csv")["mask"][1]
    mask.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(GUESSES[1]).save(mask)
    assert handed_in() == [asked.items[1].name]
