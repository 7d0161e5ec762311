"""Images that something is wrong with are named before anything slow; what only looks wrong is read."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bad_files import NAMED, READ, SIZE, Maker, cut, scene
from PIL import Image, ImageOps
from typer.testing import CliRunner

from meal_gpu import cli, data
from meal_gpu.errors import DataError, MealGpuError
from meal_gpu.images.listing import list_images
from meal_gpu.images.loader import JPEG_TOLERANCE, Loader
from meal_gpu.images.probing import probe, quarantine, quarantined

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
    assert [p.file for p in whole] == [str(path)]
    assert [p.file for p in shallow] == ([] if deep else [str(path)])
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
    assert probe([str(path)], SIZE, deep=True) == []
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


@fault("data", "a folder that is a link to another", "its images are found")
def test_a_linked_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    scene(9).save(tmp_path / "elsewhere" / "far.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    names = ("good0.png", "good1.png", "good2.png", "link/far.png")
    assert list_images(str(folder)).names == names
    opened = data.open_dataset("folder", folder.parents[1])
    assert opened.train.names == tuple(f"images/train/{name}" for name in names)


@fault("data", "a folder that links back to one above it", "its images are found once")
def test_folders_in_a_circle(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    scene(8).save(folder / "a" / "b" / "x.png")
    (folder / "a" / "b" / "back").symlink_to(folder)
    (folder / "a" / "here").symlink_to(folder / "a")
    names = ("a/b/x.png", "good0.png", "good1.png", "good2.png")
    assert list_images(str(folder)).names == names


@fault("data", "a folder that may not be read", "named: its images would be missed")
def test_a_folder_that_may_not_be_read(nobody: Path) -> None:
    with pytest.raises(DataError, match="sub: Permission denied; make the folder readable"):
        list_images(str(nobody))


@fault("data", "a name that is no UTF-8", "named, with the fix")
def test_a_name_that_is_no_text(folder: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png"))
    scene().save(path, format="PNG")
    with pytest.raises(DataError, match="is not valid UTF-8; rename the file"):
        list_images(str(folder))
    problems = data.check(data.open_dataset("folder", folder.parents[1]))
    assert [p.file for p in problems] == [str(path)] and "not valid UTF-8" in problems[0].message
    (file,) = quarantined(quarantine(problems))
    assert file.endswith("\\udcff\\udcfe.png")


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder of an image and a folder that this process may not read, be it root's or not."""
    with tempfile.TemporaryDirectory() as where:
        Path(where).chmod(0o755)
        scene().save(Path(where) / "x.png")
        (Path(where) / "x.png").chmod(0)
        (Path(where) / "sub").mkdir(mode=0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield Path(where)
        finally:
            if root:
                os.seteuid(0)


@fault("data", "a file that may not be read", "named, with the fix; `--on-bad skip` leaves it out")
def test_a_file_that_may_not_be_read(nobody: Path) -> None:
    (problem,) = probe([str(nobody / "x.png")], None)
    assert problem.message == f"{nobody / 'x.png'}: Permission denied; make it readable or remove it"


@fault("data", "a first image of another size than all others", "it is named, not the others")
def test_an_odd_first_image_is_the_bad_one(folder: Path, tmp_path: Path) -> None:
    odd = folder / "a.png"
    Image.new("RGB", (6, 4)).save(odd)
    (problem,) = data.check(data.open_dataset("folder", folder.parents[1]))
    assert problem.file == str(odd)
    assert "4×6 pixels (height × width) found, most images of the split have 24×32" in problem.message
    (tmp_path / "pool").mkdir()
    assert "pool: 12 patches, 3 new frames" in acquire(folder, tmp_path / "pool", "--on-bad", "skip")
    Image.new("RGB", (6, 4)).save(folder / "b.png")
    Image.new("RGB", (6, 4)).save(folder / "c.png")
    with pytest.raises(DataError, match=r"4×6 .* the frames of the ledger have 24×32"):
        acquire(folder, tmp_path / "pool", "--out", str(tmp_path / "again"))


@fault(
    "data", "a frame of the ledger that has become bad", "named; the ledger and the next query wait for it"
)
@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_a_frame_of_the_ledger_goes_bad(on_bad: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    acquire(folder, tmp_path / "pool")
    before = (tmp_path / "pool" / "pool.parquet").read_bytes()
    cut(folder / "good1.png")
    with pytest.raises(DataError, match=r"good1\.png: truncated"):
        acquire(folder, tmp_path / "pool", "--on-bad", on_bad, "--out", str(tmp_path / "again"))
    assert (tmp_path / "pool" / "pool.parquet").read_bytes() == before
    assert not (tmp_path / "again").exists()


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
