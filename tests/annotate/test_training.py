import json
import re
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from meal_gpu.annotate.asked import Asked
from meal_gpu.annotate.labels import LabelStore
from meal_gpu.annotate.training import _nnunet_labels, export
from meal_gpu.cli import app
from meal_gpu.data.folder import open_tree
from meal_gpu.errors import ConfigError, DataError, RunError
from meal_gpu.grid import Grid
from meal_gpu.ledger import Ledger

SIZE = (11, 16)  # patches of 6×8 and 5×8; the ledger below works at half of it
NAMES = ("seq/a.png", "b.png", "c.png")
PATCHES = (1, 2, 11)  # two of the first frame, the last of the last one
CLASSES = ("road", "car", "sky")


class Pool:
    """Three frames, of which two have labelled patches; a mask of a killed ingest lies beside these."""

    def __init__(self, root: Path, names: Sequence[str] = NAMES, classes: tuple[str, ...] = CLASSES) -> None:
        self.root, self.ledger, self.out = root, root / "pool.parquet", root / "out"
        self.files: dict[str, str] = {}
        for number, name in enumerate(names):
            path = root / "frames" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE[::-1], (number, 9, 9)).save(path)
            self.files[name] = str(path)
        ledger = Ledger.create(Grid(2, 2, 6, 8), names)
        self.store = LabelStore.of(self.ledger)
        self.store.describe(classes, SIZE, (2, 2))
        self.masks = {name: np.full(SIZE, 255, np.uint8) for name in names}
        for patch in (*PATCHES, 0):
            left, top, right, bottom = Grid(2, 2, *SIZE).boxes(patch).tolist()
            labels = np.random.default_rng(patch).choice([0, 1, 2, 255], (bottom - top, right - left))
            frame = Path(self.files[names[patch // 4]]).read_bytes()
            self.store.write(patch, labels.astype(np.uint8), sha256(frame).hexdigest())
            if patch:
                self.masks[names[patch // 4]][top:bottom, left:right] = labels
        ledger.label(torch.tensor(PATCHES), 1)
        ledger.write(self.ledger)

    def export(self, to: str, *, changed: str = "stop") -> tuple[int, int]:
        done = export(self.ledger, self.files, self.out, to=to, changed=changed)
        assert done.patches + done.left_out == len(PATCHES)
        return done.frames, done.patches

    def tree(self) -> set[str]:
        return {path.relative_to(self.out).as_posix() for path in self.out.rglob("*") if path.is_file()} - {
            ".meal-gpu"
        }

    def mask(self, path: str) -> np.ndarray:
        with Image.open(self.out / path) as image:
            assert image.mode == "L"
            return np.array(image)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)


def test_a_folder_dataset_opens(pool: Pool) -> None:
    assert pool.export("smp") == (2, 3)
    data = open_tree(pool.out)
    assert data.classes == CLASSES and data.size == SIZE
    assert [path.name for path in data.train.images] == ["c.png", "a.png"]
    assert data.train.labels is not None and not len(data.val)
    for name, path in (("c.png", data.train.labels[0]), ("seq/a.png", data.train.labels[1])):
        assert np.array_equal(pool.mask(path.relative_to(pool.out).as_posix()), pool.masks[name])
    image = pool.out / "images" / "train" / "c.png"
    assert image.samefile(pool.files["c.png"])  # a hard link
    assert not image.is_symlink()


def test_mmsegmentation(pool: Pool) -> None:
    assert pool.export("mmseg") == (2, 3)
    assert pool.tree() == {
        "classes.json", "img_dir/train/seq/a.png", "img_dir/train/c.png", "ann_dir/train/seq/a.png",
        "ann_dir/train/c.png",
    }  # fmt: skip
    assert np.array_equal(pool.mask("ann_dir/train/c.png"), pool.masks["c.png"])
    meta = json.loads((pool.out / "classes.json").read_text())
    assert meta["classes"] == list(CLASSES) and np.shape(meta["palette"]) == (3, 3)
    assert (meta["ignore_index"], meta["reduce_zero_label"]) == (255, False)
    assert (meta["img_suffix"], meta["seg_map_suffix"]) == (".png", ".png")


def test_mmsegmentation_gets_frames_of_one_kind(tmp_path: Path) -> None:
    pool = Pool(tmp_path, ("a.jpg", "b.png", "c.png"))
    pool.export("mmseg")
    assert {path for path in pool.tree() if path.startswith("img_dir")} == {
        "img_dir/train/a.png", "img_dir/train/c.png"
    }  # fmt: skip
    with Image.open(pool.files["a.jpg"]) as before, Image.open(pool.out / "img_dir/train/a.png") as after:
        assert after.format == "PNG" and np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize(
    ("classes", "shift", "labels"),
    [
        (CLASSES, 1, {"background": 0, "road": 1, "car": 2, "sky": 3, "ignore": 4}),
        (("Background", "car", "sky"), 0, {"background": 0, "car": 1, "sky": 2, "ignore": 3}),
        (
            ("ignore", "background", "sky"), 1,
            {"background": 0, "ignore_": 1, "background_": 2, "sky": 3, "ignore": 4},
        ),
    ],
)  # fmt: skip
def test_nnunet(classes: tuple[str, ...], shift: int, labels: dict[str, int], tmp_path: Path) -> None:
    pool = Pool(tmp_path, ("seq/a é.jpg", "b.png", "seq_a_.png"), classes)
    assert pool.export("nnunet") == (2, 3)
    cases = {"seq/a é.jpg": "seq_a_", "seq_a_.png": "seq_a__2"}
    assert pool.tree() == {"dataset.json"} | {
        path for case in cases.values() for path in (f"imagesTr/{case}_0000.png", f"labelsTr/{case}.png")
    }
    assert json.loads((pool.out / "dataset.json").read_text()) == {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": labels,
        "numTraining": 2,
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
    }
    for name, case in cases.items():
        mask = pool.masks[name]
        expected = np.where(mask == 255, labels["ignore"], mask + shift)
        assert np.array_equal(pool.mask(f"labelsTr/{case}.png"), expected)
        with Image.open(pool.out / "imagesTr" / f"{case}_0000.png") as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", SIZE[::-1])


def test_frames_of_urls_are_fetched_and_of_other_disks_copied(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    with fsspec.open("memory://meal-gpu-training/a.png", "wb") as file:
        file.write(Path(pool.files["seq/a.png"]).read_bytes())
    pool.files["seq/a.png"] = "memory://meal-gpu-training/a.png"

    def other_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", other_disk)
    pool.export("smp")
    assert (pool.out / "images/train/c.png").read_bytes() == Path(pool.files["c.png"]).read_bytes()
    assert open_tree(pool.out).size == SIZE
    pool.out = pool.root / "again"
    pool.files["seq/a.png"] = "memory://meal-gpu-training/b.png"
    with pytest.raises(DataError, match=r"memory://meal-gpu-training/b\.png: no such file"):
        pool.export("smp")


def test_names_stay_inside_and_apart(tmp_path: Path) -> None:
    pool = Pool(tmp_path, NAMES)
    ledger = Ledger.create(Grid(2, 2, 6, 8), ("../../x.png", "b.png", "/X.png"))
    ledger.label(torch.tensor(PATCHES), 1)
    ledger.write(pool.ledger)
    pool.files |= {"../../x.png": pool.files["seq/a.png"], "/X.png": pool.files["c.png"]}
    pool.export("smp")
    assert pool.tree() == {
        "classes.txt", "images/train/x.png", "images/train/X_2.png", "masks/train/x.png",
        "masks/train/X_2.png",
    }  # fmt: skip


def missing_mask(pool: Pool) -> None:
    pool.store.path(11).unlink()


def missing_frame(pool: Pool) -> None:
    Path(pool.files["c.png"]).unlink()


def unlisted_frame(pool: Pool) -> None:
    del pool.files["c.png"]


def other_size(pool: Pool) -> None:
    Image.new("RGB", (9, 9)).save(pool.files["c.png"])


def no_store(pool: Pool) -> None:
    (pool.store.folder / "labels.json").unlink()


def nothing_labelled(pool: Pool) -> None:
    Ledger.create(Grid(2, 2, 6, 8), NAMES).write(pool.ledger)


def other_grid(pool: Pool) -> None:
    ledger = Ledger.create(Grid(2, 4, 6, 8), NAMES)
    ledger.label(torch.tensor([0]), 1)
    ledger.write(pool.ledger)


MISTAKES: dict[Callable[[Pool], None], tuple[type[Exception], str]] = {
    missing_mask: (DataError, r"000000/11\.png: no such mask, but the ledger says that patch 11"),
    missing_frame: (DataError, r"c\.png: no such image file"),
    unlisted_frame: (DataError, r"c\.png: a labelled frame of .*pool\.parquet that is not among the images"),
    other_size: (DataError, r"c\.png: no longer the file that patch 11 was labelled on"),
    no_store: (RunError, r"labels\.json: no such file"),
    nothing_labelled: (DataError, r"pool\.parquet: no patch is labelled yet"),
    other_grid: (RunError, r"pool\.labels: labels of a grid of 2×2, but .* 2×4"),
}


@pytest.mark.parametrize("to", ["smp", "nnunet"])
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_leaves_nothing_behind(mistake: Callable[[Pool], None], to: str, pool: Pool) -> None:
    kind, message = MISTAKES[mistake]
    mistake(pool)
    before = sorted(pool.root.iterdir())
    with pytest.raises(kind, match=message):
        pool.export(to)
    assert sorted(pool.root.iterdir()) == before


def test_where_it_may_be_written(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = pool.root / ".partial-out"
    (leftover / "images").mkdir(parents=True)
    pool.out.mkdir()
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("PIL.Image.Image.save", full)
        with pytest.raises(RunError, match="out: could not be written: No space left on device"):
            pool.export("smp")
    assert not leftover.exists() and not any(pool.out.iterdir())
    pool.export("smp")
    with pytest.raises(RunError, match="out is not empty; name another --out"):
        pool.export("smp")
    with pytest.raises(ConfigError, match="'voc' is unknown; known: smp, mmseg, nnunet"):
        pool.export("voc")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a query of no patch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "query").mkdir()
    Asked(tmp_path / "query", 1, "random", 0, ("a",), SIZE, (2, 2), (), {}).write_into(tmp_path / "query", [])
    return tmp_path


@pytest.mark.parametrize(
    ("to", "options", "told"),
    [
        ("smp", ["--push", "http://x"], "--push means nothing for --to smp: leave it out"),
        ("mmseg", ["--no-predictions"], "--no-predictions means nothing for --to mmseg"),
        ("nnunet", ["--query", "query"], "--query means nothing for --to nnunet"),
        ("coco", ["--ledger", "pool.parquet"], "--ledger means nothing for --to coco"),
        ("csv", ["--push", "http://x"], "--push means nothing for --to csv"),
        ("cvat", ["--no-predictions"], "--no-predictions means nothing for --to cvat"),
        ("label-studio", ["--no-predictions"], "--no-predictions is for --push; files hold them always"),
        ("fiftyone", ["--push", "http://x"], "--push means nothing for --to fiftyone"),
        ("fiftyone", ["--out", "new"], "--out means nothing for --to fiftyone"),
        ("smp", [], "--to smp needs --images"),
        ("smb", [], "format 'smb' is unknown; known: cvat, "),
    ],
)
def test_options_that_mean_nothing_are_refused(to: str, options: list[str], told: str, desk: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        app(["export", "--to", to, *options], standalone_mode=False)


def test_a_frame_that_was_replaced_does_not_get_the_labels_of_another(pool: Pool) -> None:
    Image.new("RGB", SIZE[::-1], (9, 0, 9)).save(pool.files["c.png"])
    refused = re.escape(f"{pool.files['c.png']}: no longer the file that patch 11 was labelled on (SHA-256 ")
    with pytest.raises(DataError, match=refused + r".* 1 of 2 frames\).*--changed"):
        pool.export("smp")
    assert not pool.out.exists()
    assert pool.export("smp", changed="take") == (2, 3)


def test_labels_of_a_frame_that_was_replaced_are_left_out(pool: Pool) -> None:
    Image.new("RGB", SIZE[::-1], (9, 0, 9)).save(pool.files["c.png"])
    assert pool.export("smp", changed="skip") == (1, 2)
    assert pool.tree() == {"classes.txt", "images/train/seq/a.png", "masks/train/seq/a.png"}
    pool.out = pool.root / "again"
    pool.store.write(1, pool.store.read(1, (6, 8)), "0" * 64)  # of another file than patch 2, in one frame
    assert pool.export("smp", changed="skip") == (1, 1)
    labels = pool.masks["seq/a.png"].copy()
    labels[:6, 8:] = 255
    assert np.array_equal(pool.mask("masks/train/seq/a.png"), labels)
    pool.out = pool.root / "none"
    pool.store.write(2, pool.store.read(2, (5, 8)), "0" * 64)
    with pytest.raises(DataError, match=r"2 of 2 frames.*; --changed skip would leave none"):
        pool.export("smp", changed="skip")
    with pytest.raises(ConfigError, match="changed is 'yes'; known: stop, skip, take"):
        pool.export("smp", changed="yes")


@pytest.mark.parametrize("to", ["smp", "nnunet"])
@pytest.mark.parametrize(
    ("content", "told"),
    [(b"no image", "not a readable image"), (None, r"9×9 pixels \(height × width\) found, .*11×16")],
)
def test_a_frame_that_cannot_be_taken_is_named(content: bytes | None, told: str, to: str, pool: Pool) -> None:
    if content is None:
        other_size(pool)
    else:
        Path(pool.files["c.png"]).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(pool.files["c.png"]) + ": " + told):
        pool.export(to, changed="take")
    assert not pool.out.exists()


def test_a_frame_that_cannot_be_read_is_named(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def broken(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.parent.name == ".frames" and path.name.startswith("000001"):
            raise OSError(5, "Input/output error")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", broken)
    for to, changed in (("smp", "stop"), ("nnunet", "take")):
        with pytest.raises(
            DataError, match=re.escape(f"{pool.files['c.png']}: cannot be read (Input/output")
        ):
            pool.export(to, changed=changed)
    assert not pool.out.exists()


def test_a_class_that_no_classes_txt_can_hold(tmp_path: Path) -> None:
    pool = Pool(tmp_path, classes=("road # old", "car", "sky"))
    with pytest.raises(DataError, match=r"class 'road # old' cannot stand in a classes\.txt"):
        pool.export("smp")
    assert pool.export("mmseg") == (2, 3)


def test_mistakes_are_said_before_frames_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(tmp_path, classes=tuple(f"c{k}" for k in range(255)))
    with monkeypatch.context() as patch:
        patch.setattr("meal_gpu.annotate.training._brought", pytest.fail)
        with pytest.raises(ConfigError, match="255 classes"):
            pool.export("nnunet")
        missing_mask(pool)
        with pytest.raises(DataError, match=r"11\.png: no such mask"):
            pool.export("smp")


@pytest.mark.parametrize("to", ["smp", "mmseg", "nnunet"])
def test_frames_stay_as_they_are(to: str, tmp_path: Path) -> None:
    """Those too that are written in another format, though links to them lie aside for that."""
    pool = Pool(tmp_path, ("a.jpg", "b.png", "c.png"))
    before = {file: Path(file).read_bytes() for file in pool.files.values()}
    pool.export(to)
    assert {file: Path(file).read_bytes() for file in pool.files.values()} == before
    assert not [path for path in pool.out.rglob(".*") if path.name != ".meal-gpu"]


def test_a_frame_behind_a_url_is_fetched_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    pixels = Image.open(pool.files["seq/a.png"])
    for name, url in (
        ("seq/a.png", "memory://meal-gpu-once/a.jpg"),
        ("c.png", "memory://meal-gpu-once/c.png"),
    ):
        with fsspec.open(url, "wb") as file:
            pixels.save(file, format="JPEG" if url.endswith("jpg") else "PNG")
        pool.files[name] = url
    read: list[str] = []
    original = MemoryFileSystem.cat_file

    def counted(self: MemoryFileSystem, path: str, *args: object, **kwargs: object) -> bytes:
        read.append(path)
        return bytes(original(self, path, *args, **kwargs))

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    for patch, file in ((1, "a.jpg"), (2, "a.jpg"), (11, "c.png")):
        content = fsspec.filesystem("memory").store[f"/meal-gpu-once/{file}"].getvalue()
        box = Grid(2, 2, *SIZE).boxes(patch).tolist()
        size = (box[3] - box[1], box[2] - box[0])
        pool.store.write(patch, pool.store.read(patch, size), sha256(content).hexdigest())
    pool.export("mmseg")
    assert sorted(read) == ["/meal-gpu-once/a.jpg", "/meal-gpu-once/c.png"]
    assert {path for path in pool.tree() if path.startswith("img_dir")} == {
        "img_dir/train/seq/a.png", "img_dir/train/c.png"
    }  # fmt: skip


def test_labels_of_before_that_say_no_file_are_taken(pool: Pool) -> None:
    for patch in PATCHES:
        path = pool.store.path(patch)
        with Image.open(path) as image:
            pixels = np.array(image)
        pool.store.write(patch, pixels)
        assert pool.store.digest(patch) == ""
    Image.new("RGB", SIZE[::-1], (9, 0, 9)).save(pool.files["c.png"])
    assert pool.export("smp") == (2, 3)


def test_nnunet_has_room_for_background_and_ignore() -> None:
    names = tuple(f"c{k}" for k in range(255))
    assert _nnunet_labels(names[:254])[1]["ignore"] == 255
    assert _nnunet_labels(("background", *names[:254]))[1]["ignore"] == 255
    for many in (names, ("background", *names)):
        with pytest.raises(ConfigError, match="8-bit masks of nnU-Net hold at most"):
            _nnunet_labels(many)


def test_a_photograph_that_its_exif_turns_is_written_upright(pool: Pool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    lying = Path(pool.files["c.png"]).with_suffix(".jpg")
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, :8] = 200
    Image.fromarray(pixels).save(lying, exif=exif)
    pool.files["c.png"] = str(lying)
    pool.export("smp", changed="take")
    assert {path for path in pool.tree() if "/c." in path} == {"images/train/c.png", "masks/train/c.png"}
    with Image.open(pool.out / "images/train/c.png") as image:
        assert abs(np.asarray(image).astype(int) - pixels[::-1, ::-1]).max() < 9


def test_names_stay_from_one_export_to_the_next(tmp_path: Path) -> None:
    """Though only some of those that are alike but for letters that "_" stands for are labelled yet."""
    pool = Pool(tmp_path, ("前/1.png", "後/1.png", "横/1.png"))
    pool.export("nnunet")
    assert {path for path in pool.tree() if path.startswith("labelsTr")} == {
        "labelsTr/__1.png", "labelsTr/__1_3.png",
    }  # fmt: skip
