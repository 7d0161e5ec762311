"""Where the pool lives changes no result: memory, files, a pack; and files never fill the memory."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import calibrated
from torch.utils._python_dispatch import TorchDispatchMode

from meal_gpu import data, experiment, ops, strategies
from meal_gpu.config import Config
from meal_gpu.grid import Grid
from meal_gpu.images.sources import Images, Resident, Streamed
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold
from meal_gpu.models import Builder, Segmenter
from meal_gpu.ops import reference
from meal_gpu.oracle import Oracle
from meal_gpu.passes import ImageSet
from meal_gpu.pool import ScoredPool, Settings
from meal_gpu.scoring import patch_features, score_pool
from meal_gpu.strategies import STRATEGIES, WAITING, Selection


def records(path: Path) -> dict[str, bytes]:
    """Everything a run decided, by file."""
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*.parquet")}
    return found | {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def from_memory(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("places") / "memory"
    experiment.run(tiny, out)
    return records(out)


def test_a_run_from_files_decides_the_same(
    tiny: Config, from_memory: dict[str, bytes], tmp_path: Path
) -> None:
    experiment.run(tiny.replace(pool_share=0.0), tmp_path / "files")
    assert records(tmp_path / "files") == from_memory


def test_a_run_from_files_without_any_cache_decides_the_same(
    tiny: Config, from_memory: dict[str, bytes], tmp_path: Path
) -> None:
    experiment.run(tiny.replace(pool_share=0.0, cache_gib=0.0), tmp_path / "files")
    assert records(tmp_path / "files") == from_memory


def test_a_run_from_a_pack_decides_the_same(
    tiny: Config, from_memory: dict[str, bytes], tmp_path: Path
) -> None:
    packed = data.pack(data.open_dataset(tiny.dataset, tiny.root, size=tiny.size), tmp_path / "pack")
    experiment.run(tiny.replace(root=str(packed)), tmp_path / "run")
    assert records(tmp_path / "run") == from_memory


def test_shared_features_from_files_decide_the_same(tiny: Config, tmp_path: Path) -> None:
    shared = tiny.replace(features="shared", steps=1)
    for name, share in (("memory", 0.5), ("files", 0.0)):
        experiment.run(shared.replace(pool_share=share), tmp_path / name)
    assert records(tmp_path / "files") == records(tmp_path / "memory")


@pytest.fixture(scope="module")
def split(scenes: Path) -> data.Split:
    return data.open_dataset("cityscapes", scenes, size=(96, 192)).train


@pytest.fixture(scope="module")
def both(split: data.Split) -> tuple[Images, Images]:
    resident = Resident(data.load_images(split, (96, 192)))
    return resident, Streamed(split.images, (96, 192), torch.device("cpu"))


def test_features_and_labels_come_from_anywhere(both: tuple[Images, Images], scenes: Path) -> None:
    dataset = data.open_dataset("cityscapes", scenes, size=(96, 192))
    labels = data.load_labels(dataset.train, dataset)
    grid = Grid(4, 4, 96, 192)
    model = calibrated(Builder("smp", 3, "none"), 0)
    patches = torch.tensor([95, 3, 40, 3, 17, 16, 64, 0])
    resident, streamed = (Oracle(images, labels, grid, reference, 255) for images in both)
    assert torch.equal(resident.pixels(patches, model), streamed.pixels(patches, model))
    assert torch.equal(resident.truth(patches), streamed.truth(patches))
    here, there = (patch_features(ImageSet(images, reference), patches, model, grid) for images in both)
    assert torch.equal(here, there)


class Watch(TorchDispatchMode):
    """Notes every tensor an operation makes, and refuses to let the host wait for a value."""

    WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::unique")

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[torch.Size] = set()
        self.waited: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.name()
        if name.startswith(self.WAITS) and not name.startswith("aten::nonzero_static"):
            self.waited.append(name)
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.shapes.add(value.shape)
        return out


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return calibrated(Builder("smp", 19, "none"), 0)


def test_no_full_size_tensor_of_logits_is_made(model: Segmenter) -> None:
    images = torch.randint(256, (16, 256, 512, 3), dtype=torch.uint8)
    with Watch() as watch:
        score_pool(ImageSet(Resident(images), reference, batch_size=1), model, Grid(4, 4, 256, 512))
    full = [shape for shape in watch.shapes if {256, 512} <= set(shape)]
    assert torch.Size([1, 3, 256, 512]) in full  # the network's input
    assert max(shape.numel() for shape in full) < 19 * 256 * 512
    assert torch.Size([1, 19, 64, 128]) in watch.shapes


@pytest.mark.parametrize("features", ["crop", "shared"])
@pytest.mark.parametrize("strategy", ["random", "entropy", "meal"])
def test_a_query_waits_for_no_value(
    strategy: str, features: str, model: Segmenter, both: tuple[Images, Images]
) -> None:
    """On a GPU each of these operations would make the host wait; UMAP is cuML's there, and left out here."""

    class Linear(Manifold):
        def __init__(self) -> None: ...

        def transform(self, features: torch.Tensor, *, check: bool = True) -> torch.Tensor:
            assert not check
            return features[:, :2]

    ledger = Ledger.create(Grid(4, 4, 96, 192), tuple("abcdef"))
    pool = ScoredPool(
        ImageSet(both[0], reference), model, ledger, 8, Settings(candidates=24, features=features), Linear()
    )
    with Watch() as watch:
        selection = strategies.get(strategy).select(pool)
    assert watch.waited == []
    assert len(selection.patches) == 8


@pytest.mark.gpu
@pytest.mark.parametrize("features", ["crop", "shared"])
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in WAITING])
def test_a_query_on_a_gpu_does_not_synchronise(
    strategy: str, features: str, model: Segmenter, both: tuple[Images, Images]
) -> None:
    """From scoring to the chosen ids, which stay on the device; what cuML does inside torch cannot see."""
    ledger = Ledger.create(Grid(4, 4, 96, 192), tuple("abcdef"))
    assert both[0].resident is not None
    images = ImageSet(both[0].resident.cuda(), ops.select("cuda"), precision="bfloat16", batch_size=4)
    network, member = copy.deepcopy(model).cuda(), calibrated(Builder("smp", 19, "none"), 1).cuda()
    settings = Settings(candidates=24, features=features)
    manifold = Manifold.fit(patch_features(images, torch.arange(96), network, ledger.grid), seed=0)

    def made() -> ScoredPool:
        return ScoredPool(images, network, ledger, 8, settings, manifold, members=[member])

    def select() -> Selection:
        pool = made()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return strategies.get(strategy).select(pool)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    expected = strategies.get(strategy).select(made())
    assert torch.equal(select().patches.cpu(), expected.patches.cpu())


@pytest.mark.gpu
def test_a_captured_pass_gives_the_scores_of_an_eager_one(
    model: Segmenter, both: tuple[Images, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert both[0].resident is not None
    pixels, network = both[0].resident.cuda(), copy.deepcopy(model).cuda()
    scores = []
    for passes in (1, 10**9):
        monkeypatch.setattr("meal_gpu.passes._GRAPH_FROM", passes)
        images = ImageSet(pixels, ops.select("cuda"), precision="bfloat16", batch_size=4)
        scores.append(score_pool(images, network, Grid(4, 4, 96, 192), features=True))
    captured, eager = scores
    torch.testing.assert_close(captured.scores, eager.scores, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(captured.features, eager.features, rtol=1e-2, atol=1e-2)


MEMORY = """
import sys, torch
from pathlib import Path
from meal_gpu.acquisition import acquire
from meal_gpu.models import Output

class Small(torch.nn.Module):
    align_corners, mean, std = False, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Conv2d(3, 4, 8, stride=8)
    def padded_size(self, size): return size
    def features(self, images): return self.net(images)
    def forward(self, images):
        logits = self.net(images)
        return Output(logits, logits)

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith("VmHWM")) * 1024

torch.set_num_threads(1)
files = sorted(Path(sys.argv[1]).glob("*.jpg"))
for count in map(int, sys.argv[2:]):
    paths = [Path(sys.argv[1], str(count), f"{i}.jpg") for i in range(count)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths):
        path.write_bytes(files[i % len(files)].read_bytes())
    query = acquire(Small(), paths, 16, strategy="entropy", precision="float32", pool_share=0.0)
    assert len(query) == 16
    print(peak())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pool(tmp_path: Path) -> None:
    """2,000 frames of 512×1024, decoded as they are scored, against 200: 3.1 GB of pixels."""
    from data_samples import smooth_image

    for i in range(8):
        smooth_image((512, 1024), i).save(tmp_path / f"{i}.jpg", quality=90)
    (tmp_path / "run.py").write_text(MEMORY)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path), "200", "2000"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.split())
    assert many < 1.5 * 2**30
    # scores and ledger grow by tens of bytes a patch; the rest is what allocators happen to keep
    assert many - few < 256 * 2**20
