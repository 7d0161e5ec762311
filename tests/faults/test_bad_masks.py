"""Masks that something is wrong with, and pools of which some files are bad."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bad_files import SIZE, cut, scene
from PIL import Image
from test_bad_images import acquire

from meal_gpu import data, experiment, preparation
from meal_gpu.annotate.asked import Asked
from meal_gpu.config import from_dict
from meal_gpu.errors import DataError, RunError
from meal_gpu.ledger import Ledger

fault = pytest.mark.fault


def mask(value: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.full(size, value, np.uint8))


def dataset(root: Path, *, train: int = 4, val: int = 2) -> Path:
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("road\nsky\n")
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            scene(number).save(root / "images" / split / f"{number:03d}.png")
            ids = np.asarray(scene(number))[..., 0] // 128
            Image.fromarray(ids).save(root / "masks" / split / f"{number:03d}.png")
    return root


@pytest.mark.parametrize(
    ("make", "message", "deep"),
    [
        pytest.param(
            lambda p: mask(size=(12, 16)).save(p), "12×16 pixels .* its image should have 24×32", False,
            marks=fault("data", "a mask of another size than its image", "named, with both sizes"),
        ),
        pytest.param(
            lambda p: mask(7).save(p), "label id 7 is unknown to folder", True,
            marks=fault("data", "a mask with an id that is no class", "named, with the known ids"),
        ),
        pytest.param(
            lambda p: scene().save(p), "8-bit RGB PNG; labels are 8-bit grey or palette", False,
            marks=fault("data", "a mask of colours", "named: pixels are class ids"),
        ),
        pytest.param(
            lambda p: Image.fromarray(np.zeros(SIZE, np.uint16)).save(p), "of more than 8 bits", False,
            marks=fault("data", "a 16-bit mask", "named"),
        ),
        pytest.param(
            lambda p: mask().save(p, format="JPEG"), "not a PNG file; labels are", False,
            marks=fault("data", "a mask that is a JPEG", "named: its ids would be blurred"),
        ),
        pytest.param(
            cut, "truncated or damaged", False, marks=fault("data", "a mask cut off in the middle", "named")
        ),
        pytest.param(
            lambda p: p.write_bytes(b""), "not a readable image", False,
            marks=fault("data", "an empty mask", "named"),
        ),
    ],
)  # fmt: skip
def test_a_bad_mask_is_named(
    make: Callable[[Path], object], message: str, deep: bool, tmp_path: Path
) -> None:
    root = dataset(tmp_path / "tree")
    path = root / "masks/train/001.png"
    make(path)
    opened = data.open_dataset("folder", root)
    (problem,) = data.check(opened, deep=True)
    assert problem.file == str(path)
    with pytest.raises(DataError, match=message):
        raise DataError(problem.message)
    assert len(data.check(opened)) == (0 if deep else 1)


@fault("data", "an image without a mask", "named, with how many have none")
def test_a_missing_mask(tmp_path: Path) -> None:
    root = dataset(tmp_path / "tree")
    (root / "masks/train/001.png").unlink()
    with pytest.raises(DataError, match=r"001\.png: mask missing \(1 of 4 images have none\)"):
        data.open_dataset("folder", root)


@fault("data", "a mask without an image", "ignored: a part of a dataset's images may be used")
def test_a_mask_too_many(tmp_path: Path) -> None:
    root = dataset(tmp_path / "tree")
    mask(7).save(root / "masks/train/more.png")
    opened = data.open_dataset("folder", root)
    assert len(opened.train) == 4 and data.check(opened, deep=True) == []


@fault(
    "data", "a first image of another size than all others, and `run --on-bad skip`", "it alone is left out"
)
def test_a_run_without_an_odd_first_image(tmp_path: Path) -> None:
    root = dataset(tmp_path / "tree")
    Image.new("RGB", (6, 4)).save(root / "images/train/000.png")
    loaded = preparation.load(
        preparation.resolve(from_dict(settings(root, on_bad="skip"))), preparation.Silent()
    )
    assert loaded.dataset.size == SIZE
    assert [path.name for path in loaded.dataset.train.images] == ["001.png", "002.png", "003.png"]
    assert [Path(problem.file).name for problem in loaded.quarantined] == ["000.png"]


@fault("data", "two images that share a mask", "named")
def test_a_shared_mask(tmp_path: Path) -> None:
    root = dataset(tmp_path / "tree")
    scene().save(root / "images/train/001.jpg")
    with pytest.raises(DataError, match="two images share this mask"):
        data.open_dataset("folder", root)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param(
            {"path": ["a.png", "gone.png"]}, r"1 of 2 files are not there, first .*gone\.png",
            marks=fault("data", "a manifest with a file that is not there", "named, with how many"),
        ),
        pytest.param(
            {"path": ["a.png", "a.png"]}, "is there twice, in rows 0 and 1",
            marks=fault("data", "a manifest with a file twice", "named, with both rows"),
        ),
        pytest.param(
            {"path": ["a.png", None]}, "column 'path' has null in row 1; expected text",
            marks=fault("data", "a manifest with an empty cell", "named, with its row"),
        ),
        pytest.param(
            {"frame": ["a.png"]}, "no column path, file, image; its columns are frame",
            marks=fault("data", "a manifest without a column of files", "named, with the columns it has"),
        ),
    ],
)  # fmt: skip
def test_a_bad_manifest_is_named(columns: dict[str, list[str]], message: str, tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    pd.DataFrame(columns).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(DataError, match=message):
        acquire(tmp_path / "m.parquet", tmp_path)


def settings(root: Path, **changes: object) -> dict[str, object]:
    return {
        "dataset": "folder", "root": str(root), "encoder_weights": "none", "initial_images": 1,
        "grid": [2, 2], "query_size": 4, "candidates": 8, "steps": 1, "epochs": 1, "final_epochs": 1,
        "batch_size": 2, "precision": "float32", "device": "cpu", "strategy": "entropy", **changes,
    }  # fmt: skip


@pytest.mark.slow
@fault(
    "data", "a pool of 200 images, 2 of them bad", "`run --on-bad skip` does what it does without these two"
)
def test_a_run_goes_on_without_the_bad(tmp_path: Path) -> None:
    root = dataset(tmp_path / "tree", train=200)
    clean = shutil.copytree(root, tmp_path / "clean")
    bad = ("017", "120")
    for name in bad:
        for kind in ("images", "masks"):
            (clean / kind / "train" / f"{name}.png").unlink()
    cut(root / "images/train/017.png")
    mask(9).save(root / "masks/train/120.png")
    with pytest.raises(DataError, match=r"017\.png: truncated") as refused:
        experiment.run(from_dict(settings(root)), tmp_path / "stopped")
    assert "--on-bad skip goes on without them" in str(refused.value)
    assert not (tmp_path / "stopped").exists()
    expected = experiment.run(from_dict(settings(clean)), tmp_path / "expected")
    skipping = from_dict(settings(root, on_bad="skip"))
    run = experiment.run(skipping, tmp_path / "run")
    rows = list(csv.DictReader((run.path / "quarantine.csv").open()))
    assert [Path(row["file"]).name for row in rows] == ["017.png", "120.png"]
    assert "truncated" in rows[0]["reason"] and "label id 9 is unknown" in rows[1]["reason"]
    assert len(Ledger.read(run.path / "ledger.parquet").names) == 198
    for step in (0, 1):
        for name in ("query.parquet", "model.safetensors"):
            assert (run.step(step) / name).read_bytes() == (expected.step(step) / name).read_bytes()
    shutil.rmtree(run.step(1))
    experiment.run(skipping, run.path, resume=True)
    assert (run.step(1) / "query.parquet").read_bytes() == (expected.step(1) / "query.parquet").read_bytes()


@fault("data", "an image that turns bad, at the same size, between a run and its `--resume`", "named")
def test_a_run_is_not_continued_on_fewer_images(tmp_path: Path) -> None:
    root = dataset(tmp_path / "tree", train=8)
    config = from_dict(settings(root, on_bad="skip"))
    run = experiment.run(config, tmp_path / "run")
    shutil.rmtree(run.step(1))
    image = root / "images/train/003.png"
    image.write_bytes(bytes(image.stat().st_size))
    with pytest.raises(RunError, match=r"begun on other files \(.*003\.png: not a readable image"):
        experiment.run(config, run.path, resume=True)


@fault(
    "data", "an image left out by a run that can be read at its `--resume`", "named: the pool stays as it was"
)
def test_a_run_is_not_continued_on_more_images(tmp_path: Path) -> None:
    root = dataset(tmp_path / "tree", train=8)
    image = root / "images/train/003.png"
    good = image.read_bytes()
    image.write_bytes(bytes(len(good)))
    config = from_dict(settings(root, on_bad="skip"))
    run = experiment.run(config, tmp_path / "run")
    shutil.rmtree(run.step(1))
    image.write_bytes(good)
    with pytest.raises(RunError, match=r"003\.png: was left out when the run began, and can be used now"):
        experiment.run(config, run.path, resume=True)
    listed = run.path / "quarantine.csv"
    listed.write_text("nothing of the kind\n")
    with pytest.raises(RunError, match=r"quarantine\.csv: not a list of files"):
        experiment.run(config, run.path, resume=True)
    image.write_bytes(bytes(len(good)))
    shutil.rmtree(run.step(0))  # nothing was done yet: the list is written anew
    experiment.run(config, run.path, resume=True)
    assert [Path(row["file"]).name for row in csv.DictReader(listed.open())] == ["003.png"]


@fault(
    "data",
    "a pool of 200 frames, 2 of them bad",
    "`acquire --on-bad skip` asks what it asks without these two",
)
def test_a_query_goes_on_without_the_bad(tmp_path: Path) -> None:
    frames, clean = tmp_path / "frames", tmp_path / "clean"
    frames.mkdir()
    for number in range(200):
        scene(number).save(frames / f"{number:03d}.png")
    shutil.copytree(frames, clean)
    for name in ("000.png", "120.png"):
        (clean / name).unlink()
        cut(frames / name)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    said = acquire(frames, tmp_path / "a", "--on-bad", "skip")
    assert "pool: 792 patches, 198 new frames" in said
    acquire(clean, tmp_path / "b")
    ours, theirs = (Asked.read(tmp_path / folder / "query") for folder in ("a", "b"))
    assert [(i.image, i.patch, i.score) for i in ours.items] == [
        (i.image, i.patch, i.score) for i in theirs.items
    ]
    rows = list(csv.DictReader((tmp_path / "a" / "pool.quarantine.csv").open()))
    assert [Path(row["file"]).name for row in rows] == ["000.png", "120.png"]
    # Mended, they enter the pool with the next query
    for name in ("000.png", "120.png"):
        scene(int(name[:3])).save(frames / name)
    shutil.rmtree(tmp_path / "a" / "query")
    assert "pool: 800 patches, 2 new frames" in acquire(frames, tmp_path / "a", "--on-bad", "skip")
    assert not (tmp_path / "a" / "pool.quarantine.csv").exists()
