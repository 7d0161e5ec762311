import subprocess
import sys
from pathlib import Path

import pytest
from data_samples import MakeTree
from PIL import Image

from meal_gpu.cache import cache_root, expanded
from meal_gpu.data import DATASETS, Dataset, load_images, load_labels, open_dataset
from meal_gpu.errors import ConfigError, DataError, UnavailableError


def test_importing_the_package_imports_no_dali() -> None:
    code = "import sys, meal_gpu.data; sys.exit(any(name.startswith('nvidia.dali') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_names() -> None:
    assert list(DATASETS) == ["synthetic", "camvid", "cityscapes", "folder"]
    assert all(info.name == name and info.summary for name, info in DATASETS.items())


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        ConfigError, match="'kitti' is unknown; known are synthetic, camvid, cityscapes, folder"
    ):
        open_dataset("kitti")


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("cityscapes", r"--root \(root=\), or set \$CITYSCAPES_DATASET"),
        ("camvid", r"--root .* \$MEAL_GPU_CAMVID, or run `meal-gpu data download camvid`"),
        ("folder", r"--root \(root=\)$"),
    ],
)
def test_without_a_root_it_says_how_to_give_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ways: str
) -> None:
    monkeypatch.setenv("MEAL_GPU_CACHE", str(tmp_path))
    for info in DATASETS.values():
        if info.env:
            monkeypatch.delenv(info.env, raising=False)
    with pytest.raises(DataError, match=ways):
        open_dataset(name)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_dataset("cityscapes", tmp_path / "nowhere")


@pytest.mark.parametrize("size", [(0, 10), (10, -1), (10,)])
def test_an_impossible_size(tmp_path: Path, size: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least 1×1"):
        open_dataset("folder", tmp_path, size=size)


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MEAL_GPU_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / "home/.cache/meal-gpu"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg/meal-gpu"
    monkeypatch.setenv("MEAL_GPU_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


def test_without_a_home_directory_it_is_said_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is in no list."""
    for name in ("MEAL_GPU_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UnavailableError, match=r"no cache folder: Could not .* Set MEAL_GPU_CACHE to one"):
        cache_root()
    with pytest.raises(UnavailableError, match="~nobody-at-all/x: there is no such home directory"):
        expanded("~nobody-at-all/x")


def test_loading_reports_progress(cityscapes: Dataset) -> None:
    for load in (
        lambda report: load_images(cityscapes.train, cityscapes.size, progress=report),
        lambda report: load_labels(cityscapes.train, cityscapes, progress=report),
    ):
        counts: list[int] = []
        load(counts.append)
        assert sum(counts) == 3


def test_a_label_of_another_size_than_its_image(cityscapes_tree: MakeTree) -> None:
    dataset = open_dataset("cityscapes", cityscapes_tree(), size=(12, 24))
    assert dataset.train.labels is not None
    Image.new("L", (48, 20)).save(dataset.train.labels[2])
    with pytest.raises(DataError, match=r"labelIds\.png: 20×48 .* found, 24×48 expected"):
        load_labels(dataset.train, dataset)
