"""Nonsense for every reader: an error that is ours, or a result; never another exception, and no hang."""

import json
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from meal_gpu import cli, config, experiment, options, report
from meal_gpu.annotate import formats
from meal_gpu.annotate.asked import Asked
from meal_gpu.annotate.budget import Budget
from meal_gpu.annotate.cost import CostModel
from meal_gpu.annotate.ingest import ingest
from meal_gpu.compare import compare, gather
from meal_gpu.config import Config
from meal_gpu.data.folder import read_classes
from meal_gpu.errors import MealGpuError
from meal_gpu.images.listing import list_images
from meal_gpu.images.tars import members
from meal_gpu.ledger import Ledger
from meal_gpu.manifold import Manifold
from meal_gpu.record import RunFolder

fault = pytest.mark.fault
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def only_ours(call: Callable[[], object]) -> None:
    """Raises whatever is not an error meant for a user, which must have something to say."""
    try:
        call()
    except MealGpuError as error:
        assert str(error)


def damage(content: bytes, seed: int) -> bytes:
    """Some bytes changed, cut out, doubled, or the end lost."""
    draw = random.Random(seed)
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        if not data:
            break
        start = draw.randrange(len(data))
        end = min(len(data), start + draw.choice((1, 2, 8, 64)))
        match draw.randrange(4):
            case 0:
                data[start:end] = draw.randbytes(end - start)
            case 1:
                del data[start:end]
            case 2:
                data[start:start] = data[start:end]
            case _:
                del data[start:]
    return bytes(data)


@fault("fuzz", "a config file of any bytes", "one error that names the file")
@quick
@given(
    content=st.binary(max_size=64) | st.text(max_size=64).map(str.encode),
    suffix=st.sampled_from(["toml", "yaml"]),
)
def test_configs_of_any_bytes(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"settings.{suffix}"
    path.write_bytes(content)
    only_ours(lambda: config.read(path))


@fault("fuzz", "any value for any key of a config", "refused, with the key and what was expected")
@settings(quick, max_examples=300)
@given(key=st.sampled_from(sorted(vars(Config()))), value=JSON)
def test_configs_of_any_values(key: str, value: Any) -> None:
    only_ours(lambda: config.from_dict({key: value}))


@fault("fuzz", "a classes.txt of any bytes", "one error that names the file, or its line")
@quick
@given(content=st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
def test_classes_of_any_bytes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    only_ours(lambda: read_classes(tmp_path / "classes.txt"))


@pytest.mark.parametrize("option", ["budget", "cost", "seeds", "grid"])
@settings(quick, max_examples=150)
@example(text="²x²")  # digits, and no number
@given(text=st.text(max_size=12) | st.from_regex(r"[0-9.,x=%e-]{1,10}(patches|clicks|h|%)?", fullmatch=True))
def test_options_of_any_text(option: str, text: str) -> None:
    from meal_gpu.sweep import request

    readers: dict[str, Callable[[str], object]] = {
        "budget": Budget.parse, "cost": CostModel.parse,
        "grid": lambda given: options.pair(given, "grid"),
        "seeds": lambda given: request.build(Config(), {}, strategy=None, seeds=given, stored=None),
    }  # fmt: skip
    only_ours(lambda: readers[option](text))


@pytest.fixture(scope="module")
def world(tiny: Config, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and a query over the scenes in every format; to be read only."""
    root = tmp_path_factory.mktemp("world")
    experiment.run(tiny.replace(steps=1, final_epochs=1), root / "run")
    result = CliRunner().invoke(
        cli.app,
        ["acquire", "--images", str(scenes / "leftImg8bit/train"), "--model", "meal_gpu.models:segmenter",
         "--model-arg", "classes=3", "--strategy", "entropy", "-n", "4patches",
         "--ledger", str(root / "pool.parquet"), "--out", str(root / "query")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    asked = Asked.read(root / "query")
    with tarfile.open(root / "shard.tar", "w") as tar:
        for path in sorted((scenes / "leftImg8bit/train").rglob("*.png"))[:3]:
            tar.add(path, path.name)
    for form in ("cvat", "segmentation-mask", "label-studio", "coco", "csv"):
        formats.export(asked, root / form, form=form)
    return root


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a ledger": ("pool.parquet", Ledger.read),
    "a manifest": ("query/query.parquet", lambda path: list_images(str(path))),
    "a tar shard": ("shard.tar", lambda path: members(LocalFileSystem(), str(path), str(path), "")),
    "Φ of a run": ("run/manifold/umap.safetensors", Manifold.load),
    "the config.toml of a run": ("run/config.toml", lambda path: RunFolder.resume(path.parent)),
}


@pytest.mark.parametrize(
    ("file", "read"),
    [pytest.param(*case, id=name, marks=fault("fuzz", f"{name} with damaged bytes", "named in one error"))
     for name, case in READERS.items()],
)  # fmt: skip
@settings(quick, max_examples=80)
@given(seed=st.integers(0, 2**32))
def test_damaged_files(
    file: str, read: Callable[[Path], object], seed: int, world: Path, tmp_path: Path
) -> None:
    path = tmp_path / Path(file).name
    path.unlink(missing_ok=True)  # the last one may still be mapped
    path.write_bytes(damage((world / file).read_bytes(), seed))
    only_ours(lambda: read(path))


@pytest.mark.parametrize(
    "name", ["query.json", "query.parquet"],
)  # fmt: skip
@fault("fuzz", "a query folder with damaged files", "one error that names the file")
@quick
@given(seed=st.integers(0, 2**32))
def test_damaged_query_folders(name: str, seed: int, world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "query"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world / "query", folder)
    (folder / name).write_bytes(damage((folder / name).read_bytes(), seed))
    only_ours(lambda: Asked.read(folder))


ANSWERS = {
    "cvat": "cvat/annotations.xml",
    "segmentation-mask": "segmentation-mask/segmentation_mask.zip",
    "label-studio": "label-studio/tasks.json",
    "coco": "coco/annotations.json",
}


@pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=fault("fuzz", f"damaged answers of {form}", "named; nothing changes"))
     for form in ANSWERS],
)  # fmt: skip
@quick
@given(seed=st.integers(0, 2**32))
def test_damaged_answers(form: str, seed: int, world: Path, tmp_path: Path) -> None:
    answers, ledger = tmp_path / Path(ANSWERS[form]).name, tmp_path / "pool.parquet"
    answers.write_bytes(damage((world / ANSWERS[form]).read_bytes(), seed))
    shutil.rmtree(ledger.with_suffix(".labels"), ignore_errors=True)
    shutil.copyfile(world / "pool.parquet", ledger)
    try:
        ingest(world / "query", answers, ledger, form=form)
    except MealGpuError as error:
        assert str(error)
        assert ledger.read_bytes() == (world / "pool.parquet").read_bytes()
        assert not ledger.with_suffix(".labels").exists()


@fault("fuzz", "a label-studio or COCO export of any JSON", "named; neither ledger nor masks change")
@pytest.mark.parametrize("form", ["coco", "label-studio"])
@settings(quick, max_examples=150)
@given(content=JSON | st.fixed_dictionaries(dict.fromkeys(("images", "annotations", "categories"), JSON)))
def test_answers_of_any_json(form: str, content: Any, world: Path, tmp_path: Path) -> None:
    answers, ledger = tmp_path / "answers.json", tmp_path / "pool.parquet"
    answers.write_text(json.dumps(content))
    shutil.copyfile(world / "pool.parquet", ledger)
    only_ours(lambda: ingest(world / "query", answers, ledger, form=form))


@pytest.mark.parametrize(
    "file", ["steps/001/metrics.json", "log.jsonl", "env.json", "steps/001/query.parquet"]
)
@fault(
    "fuzz", "a run folder with damaged files", "`compare` and `report` name the file, or say what is left out"
)
@settings(quick, max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_damaged_run_folders(file: str, seed: int, world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(world / "run", run, ignore=shutil.ignore_patterns("*.safetensors"))
    (run / file).write_bytes(damage((run / file).read_bytes(), seed))
    only_ours(lambda: report.write([run], images=False))
    only_ours(lambda: compare(gather([run])))


def test_damage_is_damage() -> None:
    content = bytes(torch.randint(0, 256, (500,), dtype=torch.uint8).tolist())
    assert sum(damage(content, seed) != content for seed in range(50)) >= 49


@pytest.mark.soak
@pytest.mark.parametrize(
    "reader", ["toml", "yaml", "classes", "cvat", "coco", "label-studio", "budget", "cost"]
)
def test_coverage_guided(reader: str) -> None:
    pytest.importorskip("atheris")
    driver = Path(__file__).with_name("coverage_guided.py")
    done = subprocess.run(
        [sys.executable, str(driver), reader, "-max_total_time=60"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DONE" in done.stderr
