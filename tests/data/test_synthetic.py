import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from meal_gpu.data import VOID, check, load_images, load_labels, open_dataset, synthetic
from meal_gpu.data.cityscapes import LOOKUP
from meal_gpu.errors import DataError
from meal_gpu.rng import stream


@pytest.fixture(scope="module")
def default_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEAL_GPU_CACHE", str(tmp_path_factory.mktemp("cache")))
        start = time.monotonic()
        root = synthetic.cached()
        assert time.monotonic() - start < 60
        assert synthetic.cached() == root
        assert open_dataset("synthetic").root == root
    return root


def test_the_default_tree_shows_every_class_in_both_splits(default_tree: Path) -> None:
    dataset = open_dataset("synthetic", default_tree)
    assert (len(dataset.train), len(dataset.val), dataset.size) == (96, 24, (192, 384))
    for split in (dataset.train, dataset.val):
        labels = load_labels(split, dataset)
        assert set(labels.unique().tolist()) == {*range(19), VOID}
        for rare in ("truck", "bus", "train", "motorcycle"):
            frames = (labels == dataset.classes.index(rare)).flatten(1).any(1)
            assert 1 <= int(frames.sum()) <= len(split) // 8


def test_it_is_a_cityscapes_tree(default_tree: Path) -> None:
    dataset = open_dataset("cityscapes", default_tree, size=(96, 192))
    assert check(dataset, deep=True) == []
    assert load_images(dataset.val, dataset.size).shape == (24, 96, 192, 3)


def test_frames_depend_on_seed_split_and_number_only(tmp_path: Path) -> None:
    size = (48, 96)
    trees = {
        "a": synthetic.write(tmp_path / "a", train=3, val=1, size=size),
        "longer": synthetic.write(tmp_path / "longer", train=4, val=2, size=size),
        "other": synthetic.write(tmp_path / "other", train=3, val=1, size=size, seed=1),
    }
    files = {
        name: {p.relative_to(root): p.read_bytes() for p in root.rglob("*.png")}
        for name, root in trees.items()
    }
    assert files["a"].items() <= files["longer"].items()
    assert all(files["a"][path] != files["other"][path] for path in files["a"] if "leftImg8bit" in path.name)
    train, val = sorted(p for p in files["a"] if p.name.startswith("drawn_000000") and "left" in p.name)
    assert files["a"][train] != files["a"][val]


@pytest.mark.parametrize("size", [(16, 16), (37, 53), (120, 80), (192, 384), (256, 512)])
@pytest.mark.parametrize("rare", [None, "truck", "bus", "train", "motorcycle"])
def test_any_size_and_rare_class(size: tuple[int, int], rare: str | None) -> None:
    from meal_gpu.data.street.scene import draw

    image, labels = draw(size, stream(3, 0, "test"), rare=rare)
    assert image.shape == (*size, 3)
    assert image.dtype == labels.dtype == np.uint8
    assert labels.shape == size
    assert {LOOKUP[i] for i in np.unique(labels)} <= {*range(19), VOID}
    assert image.std() > 20  # not black, not white, not flat


def test_progress_counts_frames(tmp_path: Path) -> None:
    counts: list[int] = []
    synthetic.write(tmp_path / "t", train=2, val=1, size=(16, 16), progress=counts.append)
    assert sum(counts) == 3


def test_two_writers_at_once_both_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEAL_GPU_CACHE", str(tmp_path))
    monkeypatch.setattr(synthetic, "TRAIN", 4)
    monkeypatch.setattr(synthetic, "VAL", 1)
    monkeypatch.setattr(synthetic, "SIZE", (48, 96))
    barrier = threading.Barrier(2)
    roots: list[Path] = []

    def write() -> None:
        barrier.wait()
        roots.append(synthetic.cached())

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert roots[0] == roots[1]
    assert [p.name for p in tmp_path.iterdir()] == [roots[0].name]
    assert len(open_dataset("synthetic", roots[0]).train) == 4


def test_nothing_is_left_behind_when_drawing_fails(tmp_path: Path) -> None:
    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write(tmp_path / "t", train=2, val=1, size=(16, 16), progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"train": 0}, {"val": 0}, {"size": (8, 64)}], ids=["train", "val", "size"]
)
def test_impossible_trees(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(DataError, match="at least 1 frame"):
        synthetic.write(tmp_path / "t", **{"train": 1, "val": 1, "size": (16, 16), **options})


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        synthetic.write(tmp_path, train=1, val=1, size=(16, 16))


def test_labels_are_learnable_from_colour(default_tree: Path) -> None:
    # A floor under the difficulty: mean colours alone must tell sky, road and vegetation apart.
    dataset = open_dataset("synthetic", default_tree)
    images, labels = load_images(dataset.val, dataset.size).float(), load_labels(dataset.val, dataset)
    means = {
        name: images[labels == dataset.classes.index(name)].mean(0) for name in ("sky", "road", "vegetation")
    }
    assert means["sky"][2] > means["road"][2] + 20
    assert means["vegetation"][1] > torch.maximum(means["vegetation"][0], means["vegetation"][2]) + 10
