import builtins
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_samples import random_image, random_labels, smooth_image
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from meal_gpu.errors import DataError, InputError, UnavailableError
from meal_gpu.grid import Grid
from meal_gpu.images.headers import inspect, orientation, upright
from meal_gpu.images.loader import JPEG_TOLERANCE, Loader

SIZE = (24, 40)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(11)]
    for i, path in enumerate(paths):
        Image.fromarray(random_image(SIZE, i)).save(path)
    return paths


@pytest.fixture
def labels(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"label{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.fromarray(random_labels(SIZE, tuple(range(256)), i)).save(path)
    return paths


def pillow(paths: list[Path]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in paths])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 11, 16])
def test_png_images_equal_pillow_in_order(images: list[Path], batch_size: int) -> None:
    loader = Loader(images, SIZE, batch_size=batch_size)
    batches = list(loader)
    assert len(loader) == len(batches) == math.ceil(11 / batch_size)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert all(batch.dtype == torch.uint8 for batch in batches)
    assert np.array_equal(torch.cat(batches).numpy(), pillow(images))


def test_batches_stay_valid_while_they_are_held(images: list[Path]) -> None:
    held = [(batch, batch.clone()) for batch in Loader(images, SIZE, batch_size=2)]
    assert all(torch.equal(view, copy) for view, copy in held)


def test_every_iteration_starts_over(images: list[Path]) -> None:
    loader = Loader(images, SIZE, batch_size=4)
    next(iter(loader))
    assert torch.equal(torch.cat(list(loader)), torch.cat(list(loader)))


def test_labels_equal_pillow(labels: list[Path]) -> None:
    found = torch.cat(list(Loader(labels, SIZE, labels=True, batch_size=2)))
    assert found.shape == (5, *SIZE)
    assert np.array_equal(found.numpy(), pillow(labels))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_labels_are_indices(tmp_path: Path, bits: int) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    expected = [random_labels(SIZE, tuple(range(2**bits)), i) for i in range(3)]
    for path, pixels in zip(paths, expected, strict=True):
        image = Image.fromarray(pixels).convert("P")
        image.putdata(pixels.reshape(-1).tolist())
        image.putpalette([(7 * i) % 256 for i in range(3 * 2**bits)])
        image.save(path, bits=bits)
    found = torch.cat(list(Loader(paths, SIZE, labels=True, batch_size=2)))
    assert np.array_equal(found.numpy(), np.stack(expected))


@pytest.mark.parametrize("quality", [50, 75, 90, 100])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_jpeg_is_within_tolerance_of_pillow(tmp_path: Path, quality: int, subsampling: str) -> None:
    path = tmp_path / "x.jpg"
    smooth_image((90, 120)).save(path, quality=quality, subsampling=subsampling)
    (batch,) = Loader([path], (90, 120))
    difference = batch[0].numpy().astype(int) - np.asarray(Image.open(path))
    assert np.abs(difference).max() <= JPEG_TOLERANCE


@pytest.fixture(scope="module")
def coordinates(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two labels whose ids are the rows and the columns."""
    folder = tmp_path_factory.mktemp("coordinates")
    paths = [folder / "rows.png", folder / "columns.png"]
    for path, ids in zip(paths, np.indices(SIZE).astype(np.uint8), strict=True):
        Image.fromarray(ids).save(path)
    return paths


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 60), width=st.integers(1, 60))
@example(height=12, width=20)
@example(height=48, width=10)
@example(height=23, width=40)
def test_label_resize_takes_the_stated_pixel(coordinates: list[Path], height: int, width: int) -> None:
    rows, columns = (
        batch[0].numpy() for batch in Loader(coordinates, (height, width), labels=True, batch_size=1)
    )
    for found, output, size in ((rows[:, 0], height, SIZE[0]), (columns[0], width, SIZE[1])):
        exact = (np.arange(output) + 0.5) * size / output
        rounded_down = (exact % 1 == 0) & (found == exact - 1)  # in float32, just short of a border
        assert np.array_equal(np.where(rounded_down, exact, found), np.floor(exact))
        if size % output == 0 or output % size == 0:
            assert not rounded_down.any()
    assert (rows == rows[:, :1]).all()
    assert (columns == columns[:1]).all()


@pytest.mark.parametrize("size", [(12, 20), (48, 80), (18, 30)])
def test_image_resize_is_close_to_pillow(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "x.png"
    image = smooth_image(SIZE)
    image.save(path)
    (batch,) = Loader([path], size)
    expected = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(batch[0].numpy() - expected).max() <= 2


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 4), (3, 5), (24, 40)])
def test_tiling_equals_slicing(images: list[Path], labels: list[Path], rows: int, columns: int) -> None:
    grid = Grid(rows, columns, *SIZE)
    boxes = grid.boxes(np.arange(grid.patches_per_image))
    for paths, are_labels in ((images, False), (labels, True)):
        whole = torch.cat(list(Loader(paths, SIZE, labels=are_labels, batch_size=4)))
        tiled = torch.cat(list(Loader(paths, SIZE, labels=are_labels, batch_size=4, grid=grid)))
        slices = [whole[:, top:bottom, left:right] for left, top, right, bottom in boxes]
        assert torch.equal(tiled, torch.stack(slices, dim=1))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(5, 4, 24, 40), "do not divide 24×40"),
        (Grid(2, 2, 48, 80), "for 48×80 pixels, the batches are 24×40"),
    ],
)
def test_grids_that_do_not_fit(images: list[Path], grid: Grid, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Loader(images, SIZE, grid=grid)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"threads": 0}, {"size": (0, 4)}], ids=str)
def test_impossible_options(images: list[Path], options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Loader(images, **{"size": SIZE, **options})


def test_no_files() -> None:
    with pytest.raises(DataError, match="no files"):
        Loader([], SIZE)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGE = {
    "truncated": truncate,
    "one byte wrong": flip,
    "text": lambda path: path.write_text("hello"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("index", [0, 6, 10])
def test_a_damaged_file_is_named(images: list[Path], damage: object, index: int) -> None:
    damage(images[index])
    with pytest.raises(DataError, match=rf"/{index}\.png: "):
        list(Loader(images, SIZE, batch_size=2, native=SIZE))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_label_is_named(labels: list[Path], damage: object) -> None:
    damage(labels[3])
    with pytest.raises(DataError, match=r"/label3\.png: "):
        list(Loader(labels, SIZE, labels=True, batch_size=2))


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for path in paths:
        smooth_image((90, 120)).save(path, quality=95)
    truncate(paths[1])
    with pytest.raises(DataError, match=r"b\.jpg: truncated"):
        list(Loader(paths, (90, 120)))


def test_another_size_is_named_with_both(images: list[Path]) -> None:
    Image.fromarray(random_image((20, 30))).save(images[7])
    with pytest.raises(DataError, match=r"/7\.png: 20×30 .* found, 24×40 expected"):
        list(Loader(images, (12, 20), batch_size=4))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (40, 24)), "8-bit RGB PNG; labels are 8-bit grey or palette"),
        (Image.new("RGBA", (40, 24)), "8-bit RGB with alpha PNG"),
        (Image.new("I;16", (40, 24)), "16-bit grey PNG"),
        (Image.new("1", (40, 24)), "1-bit grey PNG"),
        (Image.new("P", (40, 24)), r"a palette PNG, but .*label0\.png is a grey PNG"),
    ],
    ids=["RGB", "RGBA", "16 bit", "1 bit", "mixed"],
)
def test_labels_of_another_kind_are_refused(labels: list[Path], image: Image.Image, message: str) -> None:
    image.save(labels[2])
    with pytest.raises(DataError, match=rf"label2\.png: .*{message}"):
        list(Loader(labels, SIZE, labels=True, batch_size=2))


def test_a_jpeg_is_no_label(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.new("L", (40, 24)).save(path)
    with pytest.raises(DataError, match="not a PNG file"):
        Loader([path], SIZE, labels=True)


TURNS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
"""What an orientation makes of the pixels [H, W, 3] of a file."""


def xmp(turn: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{turn}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


@pytest.mark.parametrize("said", ["EXIF", "EXIF against XMP", "XMP alone", "XMP beside an EXIF without it"])
@pytest.mark.parametrize("turn", TURNS)
def test_a_photograph_is_turned_as_its_exif_says_and_by_nothing_else(
    tmp_path: Path, turn: int, said: str
) -> None:
    """Header, decoder and what people are shown agree."""
    path, exif = tmp_path / "x.jpg", Image.Exif()
    if said != "XMP alone":
        exif[0x010F] = "a camera"
    if said.startswith("EXIF"):
        exif[0x0112] = turn
    beside = {"EXIF": b"", "EXIF against XMP": xmp(9 - turn)}
    smooth_image(SIZE).save(path, quality=95, exif=exif, xmp=beside.get(said, xmp(turn)))
    turned = turn if said.startswith("EXIF") else 1
    with Image.open(path) as image:
        assert orientation(image) == turned
        shown, expected = np.asarray(upright(image)), TURNS[turned](np.asarray(image))
    (batch,) = Loader([path], inspect(path))
    assert batch.shape[1:] == shown.shape == (*inspect(path), 3)
    assert np.abs(batch[0].numpy().astype(int) - expected).max() <= JPEG_TOLERANCE
    assert np.array_equal(shown, expected)


def test_without_dali_it_says_what_to_install(images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def block(name: str, *args: object) -> object:
        if name.startswith("nvidia"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", block)
    with pytest.raises(UnavailableError, match="pip install nvidia-dali"):
        Loader(images, SIZE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error(images: list[Path]) -> None:
    with pytest.raises(UnavailableError, match="no GPU"):
        Loader(images, SIZE, device="cuda")


@pytest.mark.parametrize(("device", "number"), [("cuda", 3), ("cuda:0", 0), ("cuda:1", 1), ("cpu", None)])
def test_a_gpu_without_a_number_is_the_current_one(
    images: list[Path], device: str, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    class Built:
        def build(self) -> None:
            pass

    def pipeline(_: object, *, device_id: int | None, **__: object) -> Callable[[], Built]:
        asked.append(device_id)
        return Built

    dali = SimpleNamespace(fn=None, types=None, pipeline_def=pipeline)
    monkeypatch.setattr("meal_gpu.images.loader._import_dali", lambda: dali)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    Loader(images, SIZE, device=device)._build(0)
    assert asked == [number]


def test_threads_are_torchs_and_few_on_a_gpu(images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 128)
    assert [Loader(images, SIZE, device=device).threads for device in ("cpu", "cuda")] == [128, 16]
    assert Loader(images, SIZE, device="cuda", threads=40).threads == 40


@pytest.mark.gpu
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_file_is_decoded_alike_wherever_it_stands(subsampling: int, tmp_path: Path) -> None:
    """The GPU's JPEG engine takes a part of each batch, and its other decoder the rest."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (32, 64, 3), dtype=np.uint8))
    coarse.resize((1024, 512), Image.Resampling.BICUBIC).save(
        tmp_path / "x.jpg", quality=95, subsampling=subsampling
    )
    (batch,) = Loader([tmp_path / "x.jpg"] * 16, (512, 1024), device="cuda", batch_size=16)
    assert all(torch.equal(image, batch[0]) for image in batch)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [SIZE, (12, 20)])
def test_the_gpu_pipeline_equals_the_cpu_one(
    images: list[Path], labels: list[Path], tmp_path: Path, size: tuple[int, int]
) -> None:
    grid = Grid(2, 2, *size)
    jpeg = tmp_path / "x.jpg"
    smooth_image(SIZE).save(jpeg, quality=95)
    for paths, are_labels, tolerance in ((images, False, 1), (labels, True, 0), ([jpeg], False, 4)):
        for cut in (None, grid):
            cpu, gpu = (
                torch.cat(list(Loader(paths, size, labels=are_labels, device=device, batch_size=4, grid=cut)))
                for device in ("cpu", "cuda")
            )
            assert gpu.is_cuda
            assert int((cpu.int() - gpu.cpu().int()).abs().max()) <= tolerance
