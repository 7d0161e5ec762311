from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meal_gpu.annotate.labels import Info, LabelStore, classes_text
from meal_gpu.data.folder import read_classes
from meal_gpu.errors import ConfigError, DataError, RunError

MASK = np.arange(12, dtype=np.uint8).reshape(3, 4) * 23


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore.of(tmp_path / "pool.parquet")


def test_a_mask_comes_back_as_it_was(store: LabelStore) -> None:
    store.write(6789, MASK)
    store.write(6789, MASK[::-1])
    assert [p.relative_to(store.folder.parent).as_posix() for p in store.folder.rglob("*.png")] == [
        "pool.labels/000006/6789.png"
    ]
    assert np.array_equal(store.read(6789, (3, 4)), MASK[::-1])


def test_missing_damaged_and_other_masks_are_named(store: LabelStore) -> None:
    with pytest.raises(DataError, match=r"000000/5\.png: no such mask, but the ledger says that patch 5"):
        store.read(5, (3, 4))
    store.write(5, MASK)
    with pytest.raises(DataError, match=r"5\.png: 3×4 pixels .* found, 4×4 expected"):
        store.read(5, (4, 4))
    store.path(5).write_bytes(store.path(5).read_bytes()[:50])
    with pytest.raises(DataError, match=r"5\.png: truncated or damaged"):
        store.read(5, (3, 4))
    Image.new("RGB", (4, 3)).save(store.path(5))
    with pytest.raises(DataError, match=r"5\.png: an 8-bit RGB PNG"):
        store.read(5, (3, 4))


def test_the_first_description_decides(store: LabelStore) -> None:
    with pytest.raises(RunError, match=r"labels\.json: no such file; `meal-gpu ingest`"):
        _ = store.info
    for _ in range(2):
        store.describe(("road", "Straße"), (24, 32), (2, 2))
    assert store.info == Info(("road", "Straße"), (24, 32), (2, 2))
    with pytest.raises(RunError, match=r"labels\.json: .*road, Straße.*24×32.*of 2 classes \(road, car\)"):
        store.describe(("road", "car"), (24, 32), (2, 2))
    with pytest.raises(RunError, match=r"24×32 .* 48×64"):
        store.describe(("road", "Straße"), (48, 64), (2, 2))
    store.describe(("class 0", "class 1"), (24, 32), (2, 2))  # asked before the classes had names
    assert store.info.classes == ("road", "Straße")
    with pytest.raises(RunError, match=r"of 2 classes .*of 3 classes"):
        store.describe(("class 0", "class 1", "class 2"), (24, 32), (2, 2))
    (store.folder / "labels.json").write_text("{")
    with pytest.raises(RunError, match=r"labels\.json: damaged"):
        _ = store.info


def test_more_classes_than_a_mask_can_hold(store: LabelStore) -> None:
    assert len(store.named(255)) == 255
    with pytest.raises(ConfigError, match="the model has 256 classes; labels are 8-bit ids, 0 to 254"):
        store.named(256)


def test_classes_that_had_no_names_get_them(store: LabelStore) -> None:
    assert store.named(2) == ("class 0", "class 1")
    store.require(("a", "b"))
    store.describe(("class 0", "class 1"), (24, 32), (2, 2))
    store.require(("a", "b"))
    store.describe(("a", "b"), (24, 32), (2, 2))
    assert store.info.classes == store.named(2) == ("a", "b")
    with pytest.raises(ConfigError, match=r"of 2 classes \(a, b\), the model's of 3"):
        store.named(3)


def test_a_full_disk_keeps_the_mask_of_before(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(1, MASK)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("meal_gpu.atomic.sync", full)
        with pytest.raises(RunError, match=r"1\.png: .*No space left on device; free some room"):
            store.write(1, MASK * 0)
        with pytest.raises(RunError, match=r"labels\.json: .*No space left on device"):
            store.describe(("road",), (3, 4), (1, 1))
    assert np.array_equal(store.read(1, (3, 4)), MASK)
    assert sorted(p.name for p in store.folder.rglob("*") if p.is_file()) == ["1.png"]


def test_classes_survive_a_classes_txt(tmp_path: Path) -> None:
    classes = ("road", "void", "3: car", "Straße")
    (tmp_path / "classes.txt").write_text(classes_text(classes), encoding="utf-8")
    names, lookup = read_classes(tmp_path / "classes.txt")
    assert names == classes
    assert lookup[:4] == (0, 1, 2, 3) and lookup[255] == 255
    for name in ("a#b", "a\nb", " a", ""):
        with pytest.raises(DataError, match=r"cannot stand in a classes\.txt"):
            classes_text((name,))
