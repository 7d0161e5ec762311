"""A pool in an S3-compatible store (moto's server, over HTTP): the query of the same files on the disk."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from acquire_command import acquire as asked
from data_samples import random_image, smooth_image
from PIL import Image

from meal_gpu.errors import DataError, UnavailableError
from meal_gpu.images.content import contents
from meal_gpu.images.listing import list_images
from meal_gpu.ledger import Ledger

s3fs = pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")
fault = pytest.mark.fault
SIZE = (64, 96)
FRAMES = 8


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    for number in range(FRAMES):
        path = folder / "day 1" / f"{number}[#+]é.jpg"
        path.parent.mkdir(exist_ok=True)
        smooth_image(SIZE, number).save(path)
    return folder


@pytest.fixture(scope="module")
def store(frames: Path) -> Iterator[str]:
    """A bucket with the frames: one by one, as shards, and a manifest of them."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        patched.setenv("AWS_ACCESS_KEY_ID", "anyone")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "anything")
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        system.mkdir("fleet")
        system.put(str(frames), "fleet/frames", recursive=True)
        names = sorted(path.relative_to(frames).as_posix() for path in frames.rglob("*.jpg"))
        for number in range(2):
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as tar:
                for name in names[number::2]:
                    tar.add(frames / name, name)
            system.pipe_file(f"fleet/shards/{number}.tar", packed.getvalue())
        with system.open("fleet/pool.parquet", "wb") as stream:
            pd.DataFrame({"path": [f"frames/{name}" for name in names], "name": names}).to_parquet(stream)
        yield "s3://fleet"
        s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def acquire(images: str | Path, out: Path, *more: object) -> str:
    return asked(images, out, "--shard", 3, "-n", "10patches", *more)


@pytest.fixture(scope="module")
def local(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local")
    acquire(frames, out)
    return out


def test_listings_are_those_of_the_disk(frames: Path, store: str) -> None:
    here, there = list_images(str(frames)), list_images(f"{store}/frames")
    assert there.names == here.names
    assert contents(there.files) == [Path(file).read_bytes() for file in here.files]
    manifest = list_images(f"{store}/pool.parquet")
    assert manifest.names == here.names and manifest.stamps == there.stamps
    shards = list_images(f"{store}/shards/*.tar")
    assert sorted(name.partition("/")[2] for name in shards.names) == list(here.names)
    assert sorted(contents(shards.files)) == sorted(contents(there.files))


@pytest.mark.parametrize("given", ["frames", "pool.parquet"])
def test_the_query_is_that_of_the_disk(local: Path, store: str, tmp_path: Path, given: str) -> None:
    assert f"{FRAMES} frames scored now" in acquire(f"{store}/{given}", tmp_path)
    for file in (
        "pool.parquet",
        *(f"query/predictions/{p.name}" for p in (local / "query/predictions").iterdir()),
    ):
        assert (tmp_path / file).read_bytes() == (local / file).read_bytes(), file
    columns = ["patch", "image", "left", "top", "right", "bottom", "score"]
    queries = [pd.read_parquet(out / "query" / "query.parquet") for out in (tmp_path, local)]
    pd.testing.assert_frame_equal(queries[0][columns], queries[1][columns])


@pytest.mark.slow
def test_workers_read_shards_and_keep_scores_there(local: Path, store: str, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    cache = f"{store}/known/{tmp_path.name}"
    images = f"{store}/shards/*.tar"
    said = acquire(images, tmp_path, "--cluster", "local:2", "--cache", cache)
    assert f"{FRAMES} frames scored now" in said
    assert "0 frames scored now" in acquire(images, tmp_path, "--cache", cache, "--out", tmp_path / "again")
    assert scores(tmp_path, lambda name: name.partition("/")[2]) == scores(local)


def scores(out: Path, called: Callable[[str], str] = str) -> dict[str, list[float]]:
    """Of every frame's patches, by the frame's name."""
    names = Ledger.read(out / "pool.parquet").names
    table = pd.read_parquet(out / "pool.parquet")
    return {called(names[image]): group["score"].tolist() for image, group in table.groupby("image")}


@fault("data", "frames in an object store are damaged or of another size", "named; or left out and listed")
def test_bad_frames_are_left_out_and_named(store: str, tmp_path: Path) -> None:
    system = s3fs.S3FileSystem()
    system.pipe_file("fleet/mixed/0.png", _png(SIZE))
    system.pipe_file("fleet/mixed/1.png", _png(SIZE)[:200])
    system.pipe_file("fleet/mixed/2.png", _png((32, 32)))
    system.pipe_file("fleet/mixed/3.png", _png(SIZE))
    with pytest.raises(DataError, match=r"s3://fleet/mixed/1\.png: "):
        acquire(f"{store}/mixed", tmp_path)
    acquire(f"{store}/mixed", tmp_path, "--on-bad", "skip", "--out", tmp_path / "skipped")
    assert Ledger.read(tmp_path / "pool.parquet").names == ("0.png", "3.png")
    left_out = pd.read_csv(tmp_path / "pool.quarantine.csv")
    assert list(left_out["file"]) == ["s3://fleet/mixed/1.png", "s3://fleet/mixed/2.png"]
    assert "32×32 pixels (height × width) found, most images have 64×96" in left_out["reason"][1]
    assert left_out["reason"].str.startswith("s3://fleet/mixed/").all()


def test_a_bucket_that_is_not_there(store: str) -> None:
    with pytest.raises((DataError, UnavailableError), match="s3://nobody/frames: "):
        list_images("s3://nobody/frames")


def _png(size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.asarray(random_image(size, 3))).save(out, format="PNG")
    return out.getvalue()
