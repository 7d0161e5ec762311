"""Images that something is wrong with are named before anything slow; what only looks wrong is read."""

import os
from pathlib import Path

import numpy as np
import pytest
from bad_files import NAMED, READ, SIZE, Maker, scene
from PIL import Image, ImageOps
from typer.testing import CliRunner

from meal_gpu import cli, data
from meal_gpu.errors import DataError, MealGpuError
from meal_gpu.images.listing import list_images
from meal_gpu.images.loader import JPEG_TOLERANCE, Loader
from meal_gpu.images.probing import probe

fault = pytest.mark.fault


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good images of a folder dataset."""
    images = tmp_path / "images" / "train"
    images.mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    for number in range(3):
        scene(number).save(images / f"good{number}.png")
    return images


def named(name: str) -> list[object]:
    outcome = "named with the fix; `--on-bad skip` leaves it out"
    if NAMED[name][3]:
        outcome = "named when it is decoded, by `data check --deep`; `--on-bad skip` leaves it out"
    return [pytest.param(*NAMED[name], id=name, marks=fault("data", name, outcome))]


@pytest.mark.parametrize(("name", "make", "message", "deep"), [p for name in NAMED for p in named(name)])
def test_a_bad_image_is_named(
    name: str, make: Maker, message: str, deep: bool, folder: Path
) -> None:  # fmt: skip
    path = folder / name
    make(path)
    opened = data.open_dataset("folder", folder.parents[1], size=SIZE)
    assert len(opened.train) == 4
    shallow, whole = data.check(opened), data.check(opened, deep=True)
    assert [p.path for p in whole] == [path]
    assert [p.path for p in shallow] == ([] if deep else [path])
    for problem in (*shallow, *whole):
        assert problem.message.startswith(str(path))
    with pytest.raises(DataError, match=message):
        raise DataError(whole[0].message)
    left = data.without(opened, whole)
    assert [p.name for p in left.train.images] == ["good0.png", "good1.png", "good2.png"]


def acquire(folder: Path, where: Path, *options: str) -> str:
    result = CliRunner().invoke(
        cli.app,
        ["acquire", "--images", str(folder), "--model", "meal_gpu.models:segmenter",
         "--model-arg", "classes=3",
         "--strategy", "entropy", "-n", "4patches",
         "--grid", "2x2", "--ledger", str(where / "pool.parquet"),
         "--out", str(where / "query"), *options],
    )  # fmt: skip
    if isinstance(result.exception, MealGpuError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", [name for name, case in NAMED.items() if not case[3]])
def test_acquire_stops_before_it_scores(name: str, folder: Path, tmp_path: Path) -> None:
    file, make, message, _ = NAMED[name]
    make(folder / file)
    with pytest.raises(DataError, match=message) as refused:
        acquire(folder, tmp_path)
    assert "--on-bad skip goes on without them" in str(refused.value)
    assert not (tmp_path / "pool.parquet").exists()


@pytest.mark.parametrize(
    ("name", "make"),
    [pytest.param(*case, id=name, marks=fault("data", name, "read, with the pixels that Pillow gives"))
     for name, case in READ.items()],
)  # fmt: skip
def test_what_only_looks_wrong_is_read(name: str, make: Maker, folder: Path) -> None:
    path = folder / name
    make(path)
    assert probe([path], SIZE, deep=True) == []
    assert name in list_images(str(folder)).names
    ours = next(iter(Loader([path], SIZE, batch_size=1)))[0].numpy().astype(int)
    with Image.open(path) as image:
        theirs = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    assert ours.shape == theirs.shape == (*SIZE, 3)
    assert np.abs(ours - theirs).max() <= (JPEG_TOLERANCE if path.suffix == ".jpg" else 0)


@fault("data", "a folder called x.png", "searched like any other folder")
def test_a_folder_with_the_name_of_an_image(folder: Path) -> None:
    (folder / "x.png").mkdir()
    scene().save(folder / "x.png" / "inside.png")
    opened = data.open_dataset("folder", folder.parents[1], size=SIZE)
    assert data.check(opened, deep=True) == []
    assert "images/train/x.png/inside.png" in opened.train.names


@fault("data", "a name that is no UTF-8", "named, with the fix")
def test_a_name_that_is_no_text(folder: Path) -> None:
    scene().save(folder / "x.png")
    (folder / "x.png").rename(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png"))
    with pytest.raises(DataError, match="is not valid UTF-8; rename the file"):
        list_images(str(folder))


@fault("data", "a.jpg beside a.png", "named: what is written for them would collide")
def test_two_files_of_one_name(folder: Path) -> None:
    scene().save(folder / "good0.jpg")
    with pytest.raises(DataError, match=r"'good0\.jpg' and 'good0\.png' differ only by their suffix"):
        list_images(str(folder))


@fault("data", "a folder without any image that can be used", "named; nothing is written")
def test_nothing_but_bad_images(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 3 frames can be used"):
        acquire(folder, tmp_path, "--on-bad", "skip")
    assert not (tmp_path / "pool.parquet").exists()
