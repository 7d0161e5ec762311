"""100,000 files, a ledger of 1,000,000 patches: seconds and memory on two cores stay within what is stated.

Each case is a process of its own. Seconds are those of the work, without imports; memory is what the peak of
the process rises by. The limits are about three times what an idle machine with two cores takes.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.soak

FILES, IMAGES = 100_000, 62_500  # × 16 patches


class Cost(NamedTuple):
    seconds: float
    mebibytes: float
    said: object


PRELUDE = """
import json, resource, sys, time
from pathlib import Path
import torch
from meal_gpu import data, report
from meal_gpu.grid import Grid
from meal_gpu.images.listing import list_images
from meal_gpu.ledger import Ledger
where = Path(sys.argv[1])
GRID = Grid(4, 4, 90, 120)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.perf_counter()
"""


def measured(code: str, where: Path, record: pytest.FixtureRequest) -> Cost:
    """What `code`, which sets `said`, costs in a process of its own."""
    end = "\nprint(json.dumps([time.perf_counter() - start, peak() - before, said]))"
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code + end, str(where)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    cost = Cost(*json.loads(done.stdout.splitlines()[-1]))
    print(f"{record.node.name}: {cost.seconds:.1f} s, {cost.mebibytes:.0f} MiB")
    return cost


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder dataset of 100,000 images of 16×16 pixels and as many masks, in 1,000 folders."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("load")
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(root / "image.png")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(root / "mask.png")
    image, mask = (root / "image.png").read_bytes(), (root / "mask.png").read_bytes()
    (root / "classes.txt").write_text("road\n")
    for name, content in (("images", image), ("masks", mask)):
        for sequence in range(FILES // 100):
            inside = root / name / "train" / f"{sequence:04d}"
            inside.mkdir(parents=True)
            for frame in range(100):
                (inside / f"{frame:02d}.png").write_bytes(content)
    return root


@pytest.mark.fault("load", "a folder of 100,000 images", "listed within 10 s and 300 MiB")
def test_a_large_folder_is_listed(folder: Path, request: pytest.FixtureRequest) -> None:
    cost = measured("said = len(list_images(str(where / 'images')).names)", folder, request)
    assert cost.said == FILES
    assert cost.seconds < 10
    assert cost.mebibytes < 300


@pytest.mark.fault(
    "load", "a dataset of 100,000 images and masks", "opened and checked, each file, within 90 s and 400 MiB"
)
def test_a_large_dataset_is_checked(folder: Path, request: pytest.FixtureRequest) -> None:
    code = """
opened = data.open_dataset("folder", where)
said = [len(opened.train), len(data.check(opened))]
"""
    cost = measured(code, folder, request)
    assert cost.said == [FILES, 0]
    assert cost.seconds < 90
    assert cost.mebibytes < 400


@pytest.mark.fault(
    "load",
    "a ledger of 1,000,000 patches",
    "made, labelled in 100 steps, scored, extended, written and read within 20 s and 1 GiB",
)
def test_a_large_ledger(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    code = f"""
names = [f"drive/{{i:06d}}.jpg" for i in range({IMAGES})]
ledger = Ledger.create(GRID, names[:-100])
for step in range(100):
    ledger.label(ledger.unlabelled()[:32], step)
ledger.set_scores(torch.rand(len(ledger)))
ledger.set_embedding(torch.arange(200), torch.rand(200, 2))
ledger = ledger.extended(names)
ledger.write(where / "pool.parquet")
read = Ledger.read(where / "pool.parquet")
said = [len(read), len(read.labelled()), read.last_step(), read.names[-1]]
"""
    cost = measured(code, tmp_path, request)
    assert cost.said == [IMAGES * 16, 3200, 99, f"drive/{IMAGES - 1:06d}.jpg"]
    assert cost.seconds < 20
    assert cost.mebibytes < 1024


@pytest.mark.fault(
    "load",
    "the report of a run over 1,000,000 patches",
    "written within 60 s and 2 GiB; the page stays below 10 MB",
)
def test_the_report_of_a_large_run(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    code = f"""
from meal_gpu.config import Config
from meal_gpu.acquisition import describe
from meal_gpu.record import RunFolder
from meal_gpu.strategies.base import Selection
folder = RunFolder.create(where / "run", Config(), torch.device("cpu"))
ledger = Ledger.create(GRID, [f"drive/{{i:06d}}.jpg" for i in range({IMAGES})])
generator = torch.Generator().manual_seed(0)
with folder.writing(folder.path / "manifold") as aside:
    pool = Ledger.create(GRID, ledger.names)
    pool.set_embedding(torch.arange(len(pool)), torch.randn(len(pool), 2, generator=generator))
    pool.frame.drop(columns=["step", "score"]).to_parquet(aside / "pool.parquet")
for step in range(5):
    chosen = ledger.unlabelled()[torch.randint(900_000, (32,), generator=generator).unique()]
    candidates = torch.arange(1000 * step, 1000 * step + 200)
    if step:
        ledger.set_scores(torch.rand(len(ledger), generator=generator))
        ledger.set_embedding(candidates, torch.randn(200, 2, generator=generator))
    ledger.label(chosen, step)
    metrics = {{
        "step": step, "labelled": len(ledger.labelled()), "patches": len(ledger), "share": 0.001,
        "mean_iou": 0.1 * step, "class_iou": {{"road": 0.5}}, "epoch": 1, "history": [],
    }}
    with folder.writing(folder.step(step)) as aside:
        scores = torch.from_numpy(ledger.frame["score"].to_numpy(copy=True))
        embedded = (candidates, torch.randn(200, 2, generator=generator)) if step else ()
        selection = Selection(chosen, scores, *embedded)
        describe(selection, ledger).to_parquet(aside / "query.parquet")
        ledger.write(aside / "ledger.parquet")
        (aside / "metrics.json").write_text(json.dumps(metrics))
folder.publish_ledger()
before, start = peak(), time.perf_counter()
page = report.write([folder.path], images=False)
said = [page.stat().st_size, page.read_text().count("embedding")]
"""
    cost = measured(code, tmp_path, request)
    size, embeddings = cost.said  # type: ignore[misc]
    assert embeddings > 0
    assert size < 10 << 20
    assert cost.seconds < 60
    assert cost.mebibytes < 2048
