"""One pool in every place: same pixels, same batches, nothing fetched twice."""

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_samples import random_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from meal_gpu.errors import DataError, InputError
from meal_gpu.grid import Grid
from meal_gpu.images import opening
from meal_gpu.images.collected import Collected
from meal_gpu.images.listing import Listing
from meal_gpu.images.loader import Loader
from meal_gpu.images.opening import open_files, open_images, open_listing
from meal_gpu.images.remote import Remote
from meal_gpu.images.sources import Drawn, Hosted, Images, Resident, Streamed, windows

SIZE = (24, 40)
COUNT = 11
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        path = root / f"part{i // 4}" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random_image(SIZE, i)).save(path)
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.stack([random_image(SIZE, i) for i in range(COUNT)]))


class Photos:
    """A map-style dataset of (image, target); the target must never be needed."""

    def __init__(self, pixels: torch.Tensor, form: str) -> None:
        self.pixels, self.form = pixels, form
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> object:
        self.asked.append(index)
        image = self.pixels[index]
        forms = {"pil": lambda: Image.fromarray(image.numpy()), "array": image.numpy}
        forms |= {"tensor": lambda: image, "channels first": lambda: image.permute(2, 0, 1)}
        return forms[self.form](), object()


@pytest.fixture(params=["resident", "hosted", "streamed", "drawn", "collected"])
def source(request: pytest.FixtureRequest, folder: Path, pixels: torch.Tensor) -> Images:
    paths = sorted(folder.rglob("*.png"))
    sources: dict[str, Images] = {
        "resident": Resident(pixels),
        "hosted": Hosted(pixels, CPU),
        "streamed": Streamed(paths, None, CPU),
        "drawn": Drawn(Photos(pixels, "pil"), CPU),
        "collected": Collected(Streamed(paths, None, CPU), CPU),
    }
    return sources[request.param]


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_batches_in_order(source: Images, pixels: torch.Tensor, batch_size: int) -> None:
    assert (len(source), source.size, source.device) == (COUNT, SIZE, CPU)
    for _ in range(2):  # every pass starts over
        batches = list(source.batches(batch_size))
        assert [len(batch) for batch in batches] == [len(part) for part in pixels.split(batch_size)]
        assert torch.equal(torch.cat(batches), pixels)


@pytest.mark.parametrize(("batch_size", "decoded"), [(1, 8), (3, 9), (8, 8), (10, 10), (16, 11)])
def test_files_are_decoded_together_however_small_the_batches(
    batch_size: int, decoded: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Spy(Loader):
        def __iter__(self) -> Iterator[torch.Tensor]:
            asked.append(self.batch_size)
            return super().__iter__()

    monkeypatch.setattr("meal_gpu.images.sources.Loader", Spy)
    batches = list(Streamed(sorted(folder.rglob("*.png")), None, CPU).batches(batch_size))
    assert asked == [decoded]
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)


@pytest.mark.parametrize("of", [[3], [0, 2, 3, 9, 10], [7, 1]])
def test_some_of_them(source: Images, pixels: torch.Tensor, of: list[int]) -> None:
    batches = list(source.batches(2, of=torch.tensor(of, dtype=torch.int64)))
    assert torch.equal(torch.cat(batches), pixels[of])


@pytest.mark.parametrize("form", ["pil", "array", "tensor", "channels first"])
def test_items_of_a_dataset(pixels: torch.Tensor, form: str) -> None:
    source = Drawn(Photos(pixels, form), CPU)
    assert torch.equal(torch.cat(list(source.batches(4))), pixels)


class Counting(Resident):
    """Resident images that say they are not, and count what is fetched."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__(images)
        self.resident = None
        self.fetched: list[int] = []

    def batches(self, batch_size: int, of: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        assert of is not None
        for batch, numbers in zip(super().batches(batch_size, of), of.split(batch_size), strict=True):
            self.fetched += numbers.tolist()
            yield batch


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_what_is_collected_is_fetched_once_when_it_is_asked_for(
    pixels: torch.Tensor, batch_size: int
) -> None:
    counting = Counting(pixels)
    images = Collected(counting, CPU)
    fetched: list[int] = []
    for of, new in (
        ([3, 4], [3, 4]), ([4, 3, 8], [8]), ([0, 8, 1, 0], [0, 1]), ([3], []), ([2, 5], [2, 5]),
        (list(range(COUNT)), [6, 7, 9, 10]), ([10, 0], []),
    ):  # fmt: skip
        batches = list(images.batches(batch_size, of=torch.tensor(of)))
        assert [len(batch) for batch in batches] == [len(part) for part in torch.tensor(of).split(batch_size)]
        assert torch.equal(torch.cat(batches), pixels[of])
        fetched += new
        assert sorted(set(counting.fetched)) == sorted(fetched)
        assert len(counting.fetched) <= len(fetched) + 1  # what is asked for twice at once may come twice
        assert (images.resident is None) == (len(fetched) < COUNT)
    assert images.resident is not None and torch.equal(images.resident, pixels)


def test_two_passes_at_once_over_what_is_collected(pixels: torch.Tensor) -> None:
    images = Collected(Counting(pixels), CPU)
    for one, other in zip(images.batches(2), images.batches(2), strict=True):
        assert torch.equal(one, other)
    assert images.resident is not None and torch.equal(images.resident, pixels)


def test_a_dataset_with_room_is_asked_once(pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = COUNT * SIZE[0] * SIZE[1] * 3
    for free, times in ((2 * needed, 1), (2 * needed - 1, 3)):
        monkeypatch.setattr(opening, "free_bytes", lambda device, free=free: free)
        photos = Photos(pixels, "array")
        source, _ = open_images(photos, CPU)
        assert photos.asked == [0]  # whose size is that of all
        for _ in range(3):
            assert torch.equal(torch.cat(list(source.batches(4))), pixels)
        assert sorted(photos.asked[1:]) == sorted(list(range(COUNT)) * times)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, COUNT * 6 - 1), min_size=1, max_size=60),
    count=st.integers(1, 9),
)
def test_windows_hold_every_patch_and_fetch_each_image_once(ids: list[int], count: int) -> None:
    pool = torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None].expand(COUNT, 4, 6, 3).contiguous()
    grid, patches = Grid(2, 3, 4, 6), torch.tensor(sorted(ids))
    source = Counting(pool)
    found = []
    for window in windows(source, patches, grid, count):
        assert len(window.local) <= count
        assert torch.equal(window.pixels[:, 0, 0, 0].long(), window.images)
        at, cell = window.local // 6, window.local % 6
        found.append(window.images[at] * 6 + cell)
        # bounded: the images of these patches, and those fetched ahead
        assert len(window.pixels) <= len(window.local) + 8
    assert torch.equal(torch.cat(found), patches)
    assert source.fetched == sorted({patch // 6 for patch in ids})
    resident = list(windows(Resident(pool), patches, grid, count))
    assert all(window.pixels is pool for window in resident)
    assert torch.equal(torch.cat([window.local for window in resident]), patches)


def test_every_way_to_say_my_images(folder: Path, pixels: torch.Tensor) -> None:
    names = tuple(f"part{i // 4}/{i:02d}.png" for i in range(COUNT))
    files = [folder / name for name in names]
    numbers = tuple(str(i) for i in range(COUNT))
    for images, expected in (
        (folder, names), (str(folder), names), (files, tuple(map(str, files))),
        (pixels, numbers), (Photos(pixels, "tensor"), numbers),
    ):  # fmt: skip
        source, found = open_images(images, CPU)
        assert found == expected
        assert torch.equal(torch.cat(list(source.batches(4))), pixels)


def test_files_stay_files_where_there_is_no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(folder.rglob("*.png"))
    needed = COUNT * SIZE[0] * SIZE[1] * 3
    for free, kind in ((2 * needed, Resident), (2 * needed - 1, Streamed)):
        monkeypatch.setattr(opening, "free_bytes", lambda device, free=free: free)
        done: list[int] = []
        assert isinstance(open_files(files, CPU, share=0.5, progress=done.append), kind)
        assert sum(done) == COUNT
    assert open_files(files, CPU, size=(12, 20), share=0.5).size == (12, 20)


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        (3, InputError, "a folder, a list of files, a uint8 tensor or a torch Dataset"),
        ([torch.zeros(2)], InputError, "must hold paths"),
        ([], DataError, "no images"),
        ("/nowhere/at/all", DataError, "no such folder"),
        (["/nowhere/x.png"], DataError, r"/nowhere/x\.png"),
        (
            ["/x.png", "/y.png", Path("/x.png")],
            DataError,
            r"the file '/x\.png' is there twice, in rows 0 and 2",
        ),
        (torch.zeros(2, 3, 4, 4), InputError, r"uint8 \[N, H, W, 3\]"),
    ],
)
def test_what_cannot_be_opened(given: object, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        open_images(given, CPU)  # type: ignore[arg-type]


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(DataError, match="no images"):
        open_images(tmp_path, CPU)


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (torch.zeros(3, 8, 8), "leave ToTensor and Normalize out"),
        (torch.zeros(8, 8, dtype=torch.uint8), r"\[8, 8\]"),
        ({"image": torch.zeros(8, 8, 3)}, "item 1 of the dataset is of type dict; it must be an image"),
        (("a.png", torch.zeros(8, 8, 3, dtype=torch.uint8)), "item 1 .* of type str; .*; of paths give a li"),
        (np.array(["a.png", "b.png"])[0], "item 1 of the dataset is of type str_; .*; of paths give a list"),
        (b"bytes", "item 1 of the dataset is of type bytes; it must be an image"),
        (object(), "item 1 of the dataset is of type object; it must be an image"),
        (None, "item 1 of the dataset is of type NoneType; it must be an image"),
        ([[[1], [1, 2]]], "item 1 of the dataset is of type list; it must be an image"),
        (torch.zeros(9, 8, 3, dtype=torch.uint8), "item 1 of the dataset is 9×8 pixels, item 0 is 8×8"),
    ],
)
def test_items_that_are_no_images_are_named(item: object, told: str) -> None:
    dataset = [torch.zeros(8, 8, 3, dtype=torch.uint8), item]
    with pytest.raises(InputError, match=told):
        list(Drawn(dataset, CPU).batches(2))


class Runtime:
    """Stands in for `torch.cuda.cudart()`: registers memory, or refuses it and leaves an error behind."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.pending = False
        self.calls: list[tuple[object, ...]] = []

    def cudaHostRegister(self, place: int, size: int, flags: int) -> int:  # noqa: N802
        self.calls.append(("register", place, size, flags))
        self.pending = self.status != 0
        return self.status

    def cudaHostUnregister(self, place: int) -> int:  # noqa: N802
        self.calls.append(("unregister", place))
        return 0

    def launch(self, *_: object, **__: object) -> None:
        pending, self.pending = self.pending, False
        if pending:
            raise RuntimeError("CUDA error: out of memory")


@pytest.fixture(params=[0, 2])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Of the statuses success and cudaErrorMemoryAllocation."""
    found = Runtime(request.param)
    cuda = SimpleNamespace(
        cudart=lambda: found, synchronize=lambda device: found.calls.append(("synchronize", device))
    )
    stand_in = SimpleNamespace(**vars(torch) | {"cuda": cuda, "ones": found.launch})
    monkeypatch.setattr("meal_gpu.images.sources.torch", stand_in)
    return found


@pytest.mark.parametrize("kind", ["hosted", "collected"])
def test_page_locked_memory_is_unlocked_before_it_is_freed(
    pixels: torch.Tensor, runtime: Runtime, kind: str
) -> None:
    """And a refusal is nobody else's error."""
    gpu = torch.device("cuda")
    source = Hosted(pixels, gpu, locked=True) if kind == "hosted" else Collected(Resident(pixels), gpu)
    if isinstance(source, Collected):
        for numbers in (torch.arange(4, COUNT), torch.arange(COUNT)):
            assert not runtime.calls, "locked memory is taken at once, whatever will be asked for"
            list(source._parts(3, numbers))
    memory = source._images if isinstance(source, Hosted) else source._pixels
    locked: list[tuple[object, ...]] = [("register", memory.data_ptr(), pixels.nbytes, 0)]
    assert runtime.calls == locked and not runtime.pending
    view = memory[2:4]  # whoever still holds the memory has it pageable
    del source, memory
    gc.collect()
    if runtime.status == 0:
        locked += [("synchronize", gpu), ("unregister", view.data_ptr() - view[:2].nbytes)]
    assert runtime.calls == locked


def test_memory_of_others_is_not_page_locked(pixels: torch.Tensor, runtime: Runtime) -> None:
    Hosted(pixels, torch.device("cuda"))
    Collected(Resident(pixels), CPU)
    assert not runtime.calls


@pytest.mark.parametrize("place", ["device", "host", "files"])
def test_the_device_that_computes_decodes(
    place: str, folder: Path, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the pixels are kept: those of a GPU's decoder differ from a CPU's."""
    decoders: list[torch.device] = []

    def loader(paths: Sequence[Path], size: object, *, device: torch.device, **_: object) -> Loader:
        decoders.append(device)
        return Loader(paths, SIZE)

    gpu = torch.device("meta")
    kept = {"device": gpu, "host": CPU, "files": None}[place]
    monkeypatch.setattr(opening, "_room", lambda *_: kept)
    for module in ("opening", "sources", "remote"):
        monkeypatch.setattr(f"meal_gpu.images.{module}.Loader", loader)
    monkeypatch.setattr("meal_gpu.images.sources.pin", lambda *_: None)
    paths = sorted(folder.rglob("*.png"))
    sources = [open_files(paths, gpu)]
    for files in (paths, [path.as_uri() for path in paths]):
        listing = Listing(tuple(map(str, range(COUNT))), tuple(map(str, files)), ("",) * COUNT)
        sources.append(open_listing(listing, gpu))
    for source in sources:
        inner = source._images if isinstance(source, Collected) else source
        if isinstance(inner, Streamed | Remote):
            (first, *_) = inner.batches(4)
            assert first.device == (kept or gpu)
    assert decoders == [gpu] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("kept", [torch.device("cuda"), CPU, None])
def test_pixels_are_the_same_bits_wherever_they_are_kept(
    kept: torch.device | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    paths = [tmp_path / f"{number}.jpg" for number in range(5)]
    for number, path in enumerate(paths):
        Image.fromarray(random_image(SIZE, number)).save(path, quality=90)
    expected = torch.cat(list(Streamed(paths, (18, 30), gpu).batches(2)))
    monkeypatch.setattr(opening, "_room", lambda *_: kept)
    listing = Listing(tuple(path.name for path in paths), tuple(map(str, paths)), ("",) * 5)
    for source in (open_files(paths, gpu, size=(18, 30)), open_listing(listing, gpu, size=(18, 30))):
        for _ in range(2):
            assert torch.equal(torch.cat([batch.clone() for batch in source.batches(2)]), expected)


@pytest.mark.gpu
def test_images_in_another_order_of_memory_are_put_in_theirs(pixels: torch.Tensor) -> None:
    turned = pixels.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for images, share in ((turned, 0.5), (turned, 0.0), (turned.cuda(), 0.5)):
        source, _ = open_images(images, torch.device("cuda"), share=share)
        for batch in source.batches(4):
            assert batch.is_cuda and batch.is_contiguous()
        assert torch.equal(torch.cat([batch.clone() for batch in source.batches(4)]).cpu(), pixels)


@pytest.mark.gpu
def test_hosted_images_reach_the_gpu_whole(pixels: torch.Tensor) -> None:
    for locked in (False, True):
        source = Hosted(pixels.clone(), torch.device("cuda"), locked=locked)
        assert source._images.is_pinned() == locked
        batches = [batch.clone() for batch in source.batches(2)]
        assert all(batch.is_cuda for batch in batches)
        assert torch.equal(torch.cat(batches).cpu(), pixels)
