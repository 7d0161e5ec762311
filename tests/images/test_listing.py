"""Folders, manifests and prefixes listed: the same names in the same order, and clear faults."""

import builtins
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from meal_gpu.errors import DataError, UnavailableError
from meal_gpu.images.listing import Listing, list_images
from meal_gpu.images.local import State, files_below, mark, require_different
from meal_gpu.images.opening import open_images

NAMES = ("a.png", "b/1.JPG", "b/2.tiff", "c[0].jpeg")

HIDDEN = (
    ".hidden.png", "b/._1.JPG", ".ipynb_checkpoints/a-checkpoint.png", "b/.git/x/1.png",
    "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pool"
    for place, name in enumerate(reversed(NAMES)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * (place + 1))
    (root / "notes.txt").write_text("no image")
    (root / "d.png").mkdir()
    return root


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    for name in (*NAMES, "notes.txt"):
        system.pipe_file(f"/pool/{name}", b"x")
    yield system
    system.rm("/", recursive=True)


def manifest(path: Path, /, **columns: list[object]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_folder_is_listed_in_the_order_of_its_paths(folder: Path) -> None:
    listing = list_images(str(folder))
    assert listing.names == NAMES
    assert listing.files == tuple(str(folder / name) for name in NAMES)
    status = (folder / "a.png").stat()
    assert listing.stamps[0] == f"{status.st_size}-{status.st_mtime_ns}"
    assert list_images(f"file://{folder}") == listing


def test_stamps_change_with_the_files(folder: Path) -> None:
    before = list_images(str(folder)).stamps
    os.utime(folder / "a.png", ns=(1, 1))
    (folder / "b/2.tiff").write_bytes(b"longer than it was")
    after = list_images(str(folder)).stamps
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, False, True, False]


def test_a_prefix_is_listed_as_a_folder_is(memory: fsspec.AbstractFileSystem) -> None:
    listing = list_images("memory://pool")
    assert listing.names == NAMES
    assert all(fsspec.open(file).open().read() == b"x" for file in listing.files)
    assert list_images("memory://pool/") == listing
    assert list_images("memory://pool/a.png").names == ("a.png",)
    memory.pipe_file("/pool/a.png", b"y")
    assert list_images("memory://pool").stamps[0] != listing.stamps[0]
    assert list_images("memory://pool").stamps[1:] == listing.stamps[1:]


def test_what_is_hidden_is_no_image(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    root = tmp_path / ".kept" / "pool"
    for name in (*NAMES, *HIDDEN):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
        memory.pipe_file(f"/.kept/pool/{name}", b"x")
    assert list_images(str(root)).names == list_images("memory://.kept/pool").names == NAMES
    assert list_images("memory://.kept/pool/.hidden.png").names == (".hidden.png",)
    assert {path.relative_to(root).as_posix() for path in files_below(root)} == set(NAMES)


@pytest.mark.parametrize(
    ("place", "files", "ours"),
    [
        ("query", ("query.json", "query.parquet", "predictions/7.png"), True),
        ("pool.labels", ("labels.json", "000000/7.png"), True),
        ("train", (".meal-gpu", "images/train/a.png", "masks/train/a.png"), True),
        ("query", ("query.json", "predictions/7.png"), False),
        ("labels", ("labels.json", "data/7.png"), False),  # as FiftyOne's COCO datasets are
        ("pool.labels", ("7.png",), False),
        ("train", ("images/.meal-gpu/7.png",), True),  # hidden
    ],
)
@pytest.mark.parametrize("depth", ["", "deep/er/"])
def test_what_we_wrote_is_left_out(
    place: str,
    files: tuple[str, ...],
    ours: bool,
    depth: str,
    folder: Path,
    memory: fsspec.AbstractFileSystem,
) -> None:
    for file in files:
        path = folder / f"{depth}{place}" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        memory.pipe_file(f"/pool/{depth}{place}/{file}", b"x")
    written = tuple(f"{depth}{place}/{file}" for file in files if file.endswith(".png"))
    expected = NAMES if ours else tuple(sorted((*NAMES, *written)))
    assert list_images(str(folder)).names == list_images("memory://pool").names == expected
    # Who names it means it
    inside = tuple(sorted(file for file in files if file.endswith(".png") and "/.meal-gpu/" not in file))
    if inside:
        for root in (str(folder / depth / place), f"memory://pool/{depth}{place}"):
            assert list_images(root).names == inside


def test_a_mark_leaves_out_its_folder(folder: Path) -> None:
    mark(folder / "b")
    assert list_images(str(folder)).names == ("a.png", "c[0].jpeg")
    assert list_images(str(folder / "b")).names == ("1.JPG", "2.tiff")
    (folder / "link").symlink_to(folder / "b")
    assert list_images(str(folder)).names == ("a.png", "c[0].jpeg")


def link_of_a_folder(root: Path) -> str:
    (root / "latest").symlink_to(root / "b")
    return "latest/1.JPG is {root}/b/1.JPG (a link, as 1 more are): remove one"


def link_of_a_file(root: Path) -> str:
    (root / "best.png").symlink_to("a.png")
    return "best.png is {root}/a.png (a link): remove one"


def hard_link(root: Path) -> str:
    (root / "best.png").hardlink_to(root / "a.png")
    return "best.png is {root}/a.png (a link): remove one"


LINKS = [link_of_a_folder, link_of_a_file, hard_link]


@pytest.mark.parametrize("link", LINKS)
def test_links_do_not_bring_a_file_in_twice(link: Callable[[Path], str], folder: Path) -> None:
    message = re.escape(f"{folder}/" + link(folder).format(root=folder))
    with pytest.raises(DataError, match=message):
        list_images(str(folder))
    files = sorted(str(p.relative_to(folder)) for p in files_below(folder) if p.name != "notes.txt")
    files = sorted(files, key=lambda file: file.startswith(("latest", "best")))
    with pytest.raises(DataError, match=message):
        list_images(manifest(folder / "m.parquet", path=files))
    with pytest.raises(DataError, match=message):
        open_images([folder / file for file in files], torch.device("cpu"))
    with pytest.raises(DataError, match=message):
        open_images(folder, torch.device("cpu"))


def test_links_to_files_elsewhere_are_frames(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for number, name in enumerate(NAMES):
        (linked / f"{number}.png").symlink_to(folder / name)
    assert len(list_images(str(linked)).names) == len(NAMES)


def test_files_without_numbers_are_different() -> None:
    unknown, one = State("1-1", 0), State("1-1", 7)
    require_different(["a", "b", "c", "d"], [unknown, unknown, one, None])
    require_different(["a", "b"], [one, one._replace(stamp="2-1")])  # a shortened number
    with pytest.raises(DataError, match=r"c is a \(a link\): remove one"):
        require_different(["a", "b", "c"], [one, unknown, one])


def test_a_link_to_itself_is_a_file(folder: Path) -> None:
    (folder / "loop.png").symlink_to("loop.png")
    assert list_images(str(folder)).names == (*NAMES, "loop.png")


def test_no_file_of_a_prefix_is_asked_for(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was read")

    for name in ("cat_file", "open", "_open"):
        monkeypatch.setattr(type(memory), name, refuse)
    assert len(list_images("memory://pool").names) == 4


@pytest.mark.parametrize("column", ["path", "file", "image"])
def test_a_manifest_keeps_its_order(folder: Path, column: str, memory: fsspec.AbstractFileSystem) -> None:
    files = ["b/1.JPG", str(folder / "a.png"), "memory://pool/b/2.tiff", f"file://{folder}/c[0].jpeg"]
    listing = list_images(manifest(folder / "some.parquet", **{column: files, "size": [1, 2, 3, 4]}))
    assert listing.names == tuple(files)
    assert listing.files == (str(folder / "b/1.JPG"), files[1], files[2], f"{folder}/c[0].jpeg")
    assert listing.stamps[1] == list_images(str(folder)).stamps[0]
    assert listing.stamps[2] == list_images("memory://pool").stamps[2]
    named = list_images(manifest(folder / "some.parquet", **{column: files, "name": ["w", "x", "y", "z"]}))
    assert named == listing._replace(names=("w", "x", "y", "z"))


def test_a_manifest_behind_a_url(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    memory.pipe_file("/pool/m.parquet", Path(manifest(tmp_path / "m.parquet", path=["b/1.JPG"])).read_bytes())
    listing = list_images("memory://pool/m.parquet")
    assert (listing.names, listing.files) == (("b/1.JPG",), ("memory://pool/b/1.JPG",))
    memory.rm("/pool/b/1.JPG")
    with pytest.raises(DataError, match=r"1 of 1 files are not there, first memory://pool/b/1\.JPG"):
        list_images("memory://pool/m.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a.png", "a.png"]}, r"the file .*a\.png' is there twice, in rows 0 and 1"),
        ({"path": ["a.png", "b/../a.png"]}, r"the file .*a\.png' is there twice, in rows 0 and 1"),
        ({"path": ["a.png", "b/1.JPG"], "name": ["n", "n"]}, "the name 'n' is there twice"),
        ({"url": ["a.png"], "label": [1]}, "no column path, file, image; its columns are url, label"),
        ({"path": ["a.png", None]}, "column 'path' has null in row 1"),
        ({"path": ["a.png"], "name": [""]}, "column 'name' has '' in row 0"),
        ({"path": [7]}, "column 'path' has 7 in row 0; expected text"),
        ({"path": ["a.png", "x.png", "y.png"]}, r"2 of 3 files are not there, first .*x\.png"),
        ({"path": ["a.png", "b/1.JPG"], "name": ["n.jpg", "n.png"]}, "differ only by their suffix"),
        ({"path": pa.array([], pa.string())}, "no images"),
    ],
)
def test_a_faulty_manifest_is_explained(folder: Path, columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_images(manifest(folder / "m.parquet", **columns))


def test_a_damaged_manifest(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"m\.parquet: not a readable \.parquet file"):
        list_images(str(tmp_path / "m.parquet"))


@pytest.mark.parametrize(
    "given", ["/nowhere", "memory://nowhere", "/nowhere/m.parquet", "memory://nowhere/m.parquet"]
)
def test_nothing_there(given: str) -> None:
    with pytest.raises(DataError, match=given):
        list_images(given)


def test_names_that_would_collide(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"'a\.jpg' and 'a\.png' differ only by their suffix"):
        list_images(str(folder))


def test_names_must_be_text(folder: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    with pytest.raises(DataError, match=r"udcff.*not valid UTF-8"):
        list_images(str(folder))


def test_protocols_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match="nonsense://"):
        list_images("nonsense://bucket/prefix")
    with pytest.raises(UnavailableError, match="chained"):
        list_images("zip://a::memory://x.zip")
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.split(".")[0] == "s3fs":
            raise ImportError("no s3fs")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "s3fs", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match=r"pip install 'meal-gpu\[s3\]'"):
        list_images("s3://bucket/prefix")


def test_a_server_that_does_not_answer(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the session has expired")

    monkeypatch.setattr(type(memory), "find", fail)
    with pytest.raises(UnavailableError, match=r"memory://pool: cannot be listed .*expired"):
        list_images("memory://pool")
    # Some swallow it while they list
    monkeypatch.setattr(type(memory), "find", lambda *_, **__: {})
    monkeypatch.setattr(type(memory), "info", fail)
    with pytest.raises(UnavailableError, match=r"memory://pool: cannot be listed .*expired"):
        list_images("memory://pool")


def test_a_listing_is_plain() -> None:
    assert Listing(("a",), ("b",), ("c",))._fields == ("names", "files", "stamps")
