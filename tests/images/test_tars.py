"""WebDataset shards: the images of a tar, listed without reading them, and read one by one."""

import gzip
import hashlib
import io
import tarfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import fsspec
import pytest
import torch
from data_samples import random_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from meal_gpu.annotate.pictures import read_frame
from meal_gpu.errors import DataError
from meal_gpu.images import tars
from meal_gpu.images.content import contents, digests, span
from meal_gpu.images.listing import list_images
from meal_gpu.images.opening import open_files, open_listing

fault = pytest.mark.fault
SIZE = (24, 40)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEAL_GPU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(random_image(SIZE, seed)).save(out, format="PNG")
    return out.getvalue()


def write(path: Path, members: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return path


def samples(*numbers: int) -> dict[str, bytes]:
    return {
        f"{number:04d}.{end}": content
        for number in numbers
        for end, content in (("png", png(number)), ("json", b"{}"), ("mask.png", b"no image to us"))
    }


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_the_images_of_shards_are_named_and_read(tmp_path: Path, kind: int) -> None:
    write(tmp_path / "train-1.tar", samples(2, 0), kind)
    write(tmp_path / "train-0.tar", {"./seq/0001.PNG": png(1), **samples(0)}, kind)
    listing = list_images(str(tmp_path / "*.tar"))
    assert listing.names == (
        "train-0/seq/0001.PNG",
        "train-0/0000.png",
        "train-1/0002.png",
        "train-1/0000.png",
    )
    assert contents(listing.files) == [png(1), png(0), png(2), png(0)]
    assert (read_frame(listing.files[2], SIZE) == random_image(SIZE, 2)).all()
    assert len(set(listing.stamps[:2])) == 1, "all images of a shard change with it"


def test_digests_of_files_and_members(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", samples(0, 1))
    (tmp_path / "b.png").write_bytes(png(2))
    first, second = list_images(str(tmp_path / "a.tar")).files
    found = digests([second, str(tmp_path / "b.png"), first, second])
    assert found == [hashlib.sha256(png(number)).hexdigest() for number in (1, 2, 0, 1)]
    with pytest.raises(DataError, match=r"c\.png: cannot be read \(No such file"):
        digests([str(tmp_path / "c.png")])


def test_hidden_members_are_left_out(tmp_path: Path) -> None:
    held = {"._0000.png": b"x", ".ipynb_checkpoints/0000.png": png(1), "@eaDir/0000.png": png(1)}
    write(tmp_path / "a.tar", {**held, **samples(0)})
    assert list_images(str(tmp_path / "a.tar")).names == ("a/0000.png",)


def test_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number:04d}.png")
        paths[-1].write_bytes(png(number))
    whole = write(tmp_path / "all.tar", samples(*range(5)))
    expected = torch.cat(list(open_files(paths, CPU).batches(2)))
    for share in (0.5, 0.0):  # in memory, and fetched in each pass
        images = open_listing(list_images(str(whole)), CPU, share=share)
        assert torch.equal(torch.cat(list(images.batches(2))), expected)


def test_shards_behind_a_url(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    try:
        for number in range(2):
            content = write(tmp_path / "one.tar", samples(number)).read_bytes()
            system.pipe_file(f"/tars/deep[{number}]/shard.tar", content)
        listing = list_images("memory://tars/**/*.tar")
        assert listing.names == ("deep[0]/shard/0000.png", "deep[1]/shard/0001.png")
        assert contents(listing.files) == [png(0), png(1)]
        one = list_images("memory://tars/deep[1]/shard.tar")
        assert (one.names, one.files) == (("shard/0001.png",), listing.files[1:])
    finally:
        system.rm("/", recursive=True)


def test_neighbours_share_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards, each with images next to each other and one far behind."""
    held = {**samples(*range(4)), "far.bin": bytes(100_000), **samples(9)}
    for name in ("a", "b"):
        write(tmp_path / f"{name}.tar", held)
    asked: list[tuple[str, int, int]] = []
    system = type(fsspec.filesystem("file"))
    read = system.cat_file

    def cat_file(self: object, path: str, start: int, end: int) -> bytes:
        asked.append((path, start, end))
        return read(self, path, start, end)

    monkeypatch.setattr(system, "cat_file", cat_file)
    files = list_images(str(tmp_path / "*.tar")).files
    mixed = [files[i] for i in (4, 9, 1, 0, 7, 2, 3, 8, 5, 6)]
    assert contents(mixed) == [png((0, 1, 2, 3, 9)[i % 5]) for i in (4, 9, 1, 0, 7, 2, 3, 8, 5, 6)]
    assert len(asked) == 4


def test_a_shard_is_looked_through_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tar", samples(0))
    first = list_images(str(path))
    with monkeypatch.context() as patched:
        patched.setattr(tars, "_read", lambda *_: pytest.fail("read again"))
        assert list_images(str(path)) == first
    write(path, samples(0, 1))
    assert list_images(str(path)).names == ("a/0000.png", "a/0001.png")
    for kept in (cache / "tars").iterdir():
        kept.write_text("[[1]]")
    assert list_images(str(path)).names == ("a/0000.png", "a/0001.png"), "a damaged index is made anew"


@pytest.mark.parametrize(
    ("names", "left_out"),
    [
        (["0001.png", "0001.mask.png", "0002.jpg", "0002.json"], []),  # a mask lies beside its image
        (["1623.1.png", "1623.2.png", "0001.png", "._0001.png", "x/.0.png"], ["1623.1.png", "1623.2.png"]),
        (["a.b/0001.PNG", "a.b/0002.rgb.PNG", "0002.png"], ["a.b/0002.rgb.PNG"]),
        (["0001.json", "0001.txt", "0002.png"], []),
    ],
)
def test_images_that_a_dot_hides_are_told(tmp_path: Path, names: list[str], left_out: list[str]) -> None:
    path = write(tmp_path / "a.tar", dict.fromkeys(names, png(0)))
    first = f"{path}/{left_out[0]}:" if left_out else ""
    told = f"{len(left_out)} files that end like images are left out, first {first}"
    for _ in range(2):  # the second time from its index
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            listing = list_images(str(path))
        assert not {f"a/{name}" for name in left_out} & set(listing.names)
        assert [told in str(each.message) for each in caught] == [True] * bool(left_out)
    if left_out:
        none = write(tmp_path / "none.tar", dict.fromkeys(left_out, png(0)))
        with pytest.raises(DataError, match=r"first dot is the sample's key.*names that have one dot"):
            list_images(str(none))


def test_an_index_that_cannot_be_kept_stops_nothing(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the folder would be")
    assert list_images(str(write(tmp_path / "a.tar", samples(0)))).names == ("a/0000.png",)


@fault("data", "a tar shard that is cut off, compressed or not there", "named, before anything is scored")
def test_faulty_shards_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.tar", samples(0, 1))
    content = whole.read_bytes()
    with tarfile.open(whole) as tar:
        tar.getmembers()
        end = tar.offset
    for cut in (100, end // 2, end - 100, end):  # in a header, in data, behind the last image
        path = tmp_path / "cut.tar"
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"cut\.tar: .*copy it again"):
            list_images(str(path))
    with pytest.raises(DataError, match=r"two\.tar: another tar follows .*--concatenate"):
        (tmp_path / "two.tar").write_bytes(content + write(tmp_path / "b.tar", samples(2)).read_bytes())
        list_images(str(tmp_path / "two.tar"))
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        with tarfile.open(tmp_path / "link.tar", "w") as tar:
            item = tarfile.TarInfo("0001.png")
            item.type, item.linkname = kind, "0000.png"
            tar.addfile(item)
        with pytest.raises(DataError, match=r"link\.tar: 0001\.png is a link or has holes; .*--dereference"):
            list_images(str(tmp_path / "link.tar"))
    (tmp_path / "zip.tar").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=r"zip\.tar: not a plain tar.*do not compress"):
        list_images(str(tmp_path / "zip.tar"))
    with pytest.raises(DataError, match=r"none-\*\.tar: no such tar file, nor files of this pattern"):
        list_images(str(tmp_path / "none-*.tar"))
    (tmp_path / "b2.tar").hardlink_to(tmp_path / "b.tar")
    with pytest.raises(DataError, match=r"b2\.tar is .*b\.tar \(a link\): remove one"):
        list_images(str(tmp_path / "b*.tar"))
    with pytest.raises(DataError, match=r"empty\.tar: no images"):
        list_images(str(write(tmp_path / "empty.tar", {"a.json": b"{}"})))
    with pytest.raises(DataError, match=r"twice\.tar: 'twice/0\.jpg' and 'twice/0\.png' differ only"):
        list_images(str(write(tmp_path / "twice.tar", {"0.jpg": png(0), "0.png": png(0)})))


@fault("data", "a tar shard shrinks or goes after it was listed", "the image is named, with both sizes")
def test_a_shard_that_changes_after_it_was_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples(0, 1))
    last = list_images(str(path)).files[-1]
    path.write_bytes(path.read_bytes()[: span(last).start + 10])
    with pytest.raises(DataError, match=r"0001\.png: 10 bytes found, \d+ expected.*ask again"):
        contents([last])
    path.unlink()
    with pytest.raises(DataError, match=r"0001\.png: no such file; was it removed\?"):
        contents([last])


@fault("data", "an image within a tar shard is damaged", "named, with its shard")
def test_a_damaged_image_within_a_shard_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"0000.png": png(0), "0001.png": b"no image"})
    with pytest.raises(DataError, match=r"a\.tar#\d+\+8/0001\.png: "):
        list(open_listing(list_images(str(path)), CPU).batches(2))


names = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/."), min_size=1, max_size=130
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.dictionaries(names, st.binary(max_size=1500), min_size=1, max_size=6))
def test_every_member_is_found_where_tarfile_finds_it(tmp_path: Path, held: dict[str, bytes]) -> None:
    path = write(tmp_path / "any.tar", {f"{name}.png": content for name, content in held.items()})
    listing = list_images(str(path))
    assert listing.names == tuple(f"any/{name}.png" for name in held)
    assert contents(listing.files) == list(held.values())
