"""Images behind URLs: the bits of local files, a bounded disk, and faults that name the URL."""

import http.server
import importlib.util
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from data_samples import random_image, smooth_image
from PIL import Image

from meal_gpu.errors import DataError, InputError
from meal_gpu.images import opening, remote
from meal_gpu.images.collected import Collected
from meal_gpu.images.listing import Listing, list_images
from meal_gpu.images.loader import Loader
from meal_gpu.images.opening import open_files, open_listing
from meal_gpu.images.remote import Remote
from meal_gpu.images.sources import Hosted, Part, Resident, Streamed

SIZE = (24, 40)
COUNT = 11
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        if i % 3:
            Image.fromarray(random_image(SIZE, i)).save(root / f"{i:02d}[x].png")
        else:
            smooth_image(SIZE, i).save(root / f"{i:02d}.JPG", format="JPEG")
    return root


@pytest.fixture
def pool(folder: Path) -> Iterator[Listing]:
    system = fsspec.filesystem("memory")
    for path in folder.iterdir():
        system.pipe_file(f"/pool/{path.name}", path.read_bytes())
    yield list_images("memory://pool")
    system.rm("/", recursive=True)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
@pytest.mark.parametrize("size", [None, (12, 30)])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_the_batches_are_those_of_local_files(
    pool: Listing, folder: Path, temporary: Path, batch_size: int, size: tuple[int, int] | None, chunk: int
) -> None:
    local = Streamed(sorted(folder.iterdir()), size, CPU)
    far = Remote(pool.files, size, CPU, chunk=chunk)
    assert (len(far), far.size, far.device, far.resident) == (COUNT, local.size, CPU, None)
    for of in (None, torch.tensor([7, 2, 2, 10, 0])):
        for there, here in zip(far.batches(batch_size, of), local.batches(batch_size, of), strict=True):
            assert torch.equal(there, here)
    assert not list(temporary.iterdir())


def test_two_chunks_are_on_the_disk_at_most(
    pool: Listing, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    real = remote._fetched

    def watched(files: tuple[str, ...], place: Path) -> remote._Fetched:
        nonlocal most
        done = real(files, place)
        most = max(most, sum(path.is_file() for path in temporary.rglob("*")))
        return done

    far = Remote(pool.files, None, CPU, chunk=2)
    monkeypatch.setattr(remote, "_fetched", watched)
    assert sum(len(batch) for batch in far.batches(2)) == COUNT
    assert 0 < most <= 4


def test_local_and_remote_files_mix(pool: Listing, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    files = [str(path) if i % 2 else f"file://{path}" for i, path in enumerate(paths)]
    files[4] = pool.files[4]
    wanted = torch.cat(list(Streamed(paths, None, CPU).batches(4)))
    assert torch.equal(torch.cat(list(Remote(files, None, CPU, chunk=3).batches(4))), wanted)


@pytest.mark.parametrize(
    ("damage", "message"), [("gone", "no such file"), ("cut", "truncated"), ("other", "24×41 pixels")]
)
@pytest.mark.parametrize("place", [0, 9])
def test_a_fault_names_the_url(
    pool: Listing, temporary: Path, folder: Path, tmp_path: Path, damage: str, message: str, place: int
) -> None:
    system = fsspec.filesystem("memory")
    far = Remote(pool.files, None, CPU, chunk=4)
    if damage == "gone":
        system.rm(pool.files[place])
    elif damage == "cut":
        system.pipe_file(pool.files[place], sorted(folder.iterdir())[place].read_bytes()[:120])
    else:
        Image.fromarray(random_image((24, 41))).save(tmp_path / "other.png")
        system.pipe_file(pool.files[place], (tmp_path / "other.png").read_bytes())
    with pytest.raises(DataError, match=message) as raised:
        list(far.batches(4))
    assert pool.files[place] in str(raised.value)
    assert str(temporary) not in str(raised.value)
    assert not list(temporary.iterdir())


def test_a_first_file_that_is_no_image_is_named(pool: Listing, temporary: Path) -> None:
    fsspec.filesystem("memory").pipe_file(pool.files[0], b"no image")
    with pytest.raises(DataError, match=r"^memory://.*00\.JPG: not a readable image"):
        Remote(pool.files, None, CPU)
    with pytest.raises(DataError, match="no images"):
        Remote([], None, CPU)
    assert not list(temporary.iterdir())


def test_a_server_that_fails_as_a_whole(pool: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("expired")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_ranges", fail)
    with pytest.raises(DataError, match=r"00\.JPG: cannot be fetched \(RuntimeError: expired\)"):
        Remote(pool.files, None, CPU)


def test_a_pass_that_is_left_early_leaves_nothing(pool: Listing, temporary: Path) -> None:
    passing = Remote(pool.files, None, CPU, chunk=2).batches(2)
    first = next(passing)
    passing.close()  # type: ignore[attr-defined]
    assert not list(temporary.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("meal-gpu-fetch")]
    assert first.shape == (2, *SIZE, 3)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_listing_is_opened_where_it_has_room(pool: Listing, folder: Path, share: float) -> None:
    wanted = torch.cat(list(open_files(sorted(folder.iterdir()), CPU, share=0).batches(4)))
    images = open_listing(pool, CPU, share=share)
    assert isinstance(images, Collected if share else Remote)
    assert torch.equal(torch.cat(list(images.batches(3))), wanted)
    local = open_listing(list_images(str(folder)), CPU, share=share)
    assert isinstance(local, Collected if share else Streamed)
    assert torch.equal(torch.cat(list(local.batches(3))), wanted)
    small = open_listing(pool, CPU, size=(12, 20), share=share)
    assert small.size == (12, 20)


def test_a_listing_that_fits_the_host_only(pool: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "free_bytes", lambda device: 2**40 if device == CPU else 0)
    monkeypatch.setattr("meal_gpu.images.collected.pin", lambda *_: None)
    monkeypatch.setattr("meal_gpu.images.collected.copied", lambda parts, device: parts)
    monkeypatch.setattr(remote, "Loader", lambda *files, device, **how: Loader(*files, **how))
    images = open_listing(pool, torch.device("cuda"))
    assert isinstance(images, Collected)
    assert images.device.type == "cuda"
    wanted = torch.cat(list(Remote(pool.files, None, CPU).batches(8)))
    assert torch.equal(torch.cat(list(images.batches(3))), wanted)
    assert images.resident is None and torch.equal(images._pixels, wanted)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_what_has_room_is_fetched_once_and_only_what_is_asked_for(
    pool: Listing, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    real = remote.contents
    monkeypatch.setattr(remote, "contents", lambda files: fetched.extend(files) or real(files))
    images = open_listing(pool, CPU, share=share)
    assert fetched == [pool.files[0]]  # whose size is that of all
    fetched.clear()
    for of in ([2, 3, 9], [3, 2], [9, 4]):
        list(images.batches(2, of=torch.tensor(of)))
    expected = [2, 3, 9, 4] if share else [2, 3, 9, 3, 2, 9, 4]
    assert fetched == [pool.files[number] for number in expected]


def test_a_part_of_a_source(folder: Path) -> None:
    streamed = Streamed(sorted(folder.iterdir()), None, CPU)
    pixels = torch.cat(list(streamed.batches(4)))
    numbers = torch.tensor([5, 1, 9, 9])
    for source in (Resident(pixels), Hosted(pixels, CPU), streamed):
        part = Part(source, numbers)
        assert (len(part), part.size, part.device) == (4, SIZE, CPU)
        assert part.resident is None  # nothing is copied
        assert torch.equal(torch.cat(list(part.batches(3))), pixels[numbers])
        assert [len(batch) for batch in part.batches(3)] == [3, 1]
        some = torch.tensor([3, 0])
        assert torch.equal(torch.cat(list(part.batches(3, of=some))), pixels[numbers[some]])
    view = Part(Resident(pixels), torch.arange(3, 7)).resident
    assert view is not None and view.data_ptr() == pixels[3].data_ptr() and len(view) == 4
    for wrong in (numbers.int(), numbers[:0], numbers[None], torch.tensor([COUNT]), torch.tensor([-1])):
        with pytest.raises(InputError, match="numbers"):
            Part(streamed, wrong)


@pytest.mark.skipif(not importlib.util.find_spec("aiohttp"), reason="http needs aiohttp, which is not there")
def test_files_of_a_web_server(folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        paths = sorted(folder.glob("*.JPG"))
        urls = [f"http://127.0.0.1:{server.server_port}/{path.name}" for path in paths]
        pq.write_table(pa.table({"path": urls}), tmp_path / "m.parquet")
        listed = list_images(str(tmp_path / "m.parquet"))
        images = open_listing(listed, CPU)
        # The folder's own listing says nothing of its files: each is asked for
        whole = list_images(f"http://127.0.0.1:{server.server_port}/")
        stamps = dict(zip(whole.files, whole.stamps, strict=True))
        assert [stamps[url] for url in urls] == list(listed.stamps)
        assert all(whole.stamps)
        wanted = torch.cat(list(Streamed(paths, None, CPU).batches(4)))
        assert np.array_equal(torch.cat(list(images.batches(4))), wanted)
    finally:
        server.shutdown()
