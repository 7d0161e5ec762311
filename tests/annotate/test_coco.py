"""COCO instances of a query: committed bytes, there and back, what tools change, and pycocotools."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import peer
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from meal_gpu.annotate import coco
from meal_gpu.annotate.asked import VOID, Answer, Asked, Box, Item
from meal_gpu.errors import DataError
from meal_gpu.grid import Grid

GOLDEN = Path(__file__).parent / "golden"
GRID = Grid(2, 2, 24, 32)
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def asked_of(folder: Path, seed: int = 0, context: int = 3) -> Asked:
    """A query of three patches of two frames, one in a folder; some predicted pixels are void."""
    rng = np.random.default_rng(seed)
    names = ("seq 1/ä.b.png", "c.png")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(folder / name)
    items = []
    for patch, score in ((6, 1.0), (1, float("nan")), (3, 0.25)):
        name = names[patch // 4]
        box = Box(*map(int, GRID.boxes([patch])[0]))
        items.append(Item(patch, name, str(folder / name), box, score, 10.0, 20.5))
    classes = ("road", 'a "b" & <c>', "sky")
    notes = {"context": context}
    asked = Asked(folder / "query", 2, "meal", 0, classes, (24, 32), (2, 2), tuple(items), notes)
    (folder / "query").mkdir()
    blocks = rng.choice([0, 1, 2, VOID], (3, 4, 4), p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
    asked.write_into(folder / "query", [np.kron(block, np.ones((3, 4), np.uint8)) for block in blocks])
    return asked


def same_bytes(path: Path, golden: Path) -> bool:
    """Whether a file is as committed; it is committed anew where MEAL_GPU_GOLDEN is set."""
    if os.environ.get("MEAL_GPU_GOLDEN"):
        golden.write_bytes(path.read_bytes())
    return path.read_bytes() == golden.read_bytes()


def full(asked: Asked, item: Item) -> np.ndarray:
    """The prediction of a patch within its crop."""
    crop = asked.crop(item)
    labels = np.full((crop.height, crop.width), VOID, np.uint8)
    labels[item.box.within(crop)] = asked.prediction(item)
    return labels


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return asked_of(tmp_path)


def exported(asked: Asked, out: Path) -> dict[str, Any]:
    coco.write(asked, out)
    document: dict[str, Any] = json.loads((out / "annotations.json").read_text("utf-8"))
    return document


def read(document: Any, asked: Asked) -> list[Answer]:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return list(coco.read({"annotations/instances_default.json": content}, asked))


def test_files_are_as_committed(asked: Asked, tmp_path: Path) -> None:
    written = coco.write(asked, tmp_path / "out")
    names = [path.relative_to(tmp_path / "out").as_posix() for path in written]
    assert names == [
        "images/c__l0_t12_r16_b24.png",
        "images/seq 1/ä.b__l16_t0_r32_b12.png",
        "images/seq 1/ä.b__l16_t12_r32_b24.png",
        "annotations.json",
    ]
    assert np.asarray(Image.open(written[0])).shape == (15, 19, 3)
    assert same_bytes(written[-1], GOLDEN / "coco" / "annotations.json")


@pytest.mark.parametrize("context", [0, 3])
def test_predictions_come_back(tmp_path: Path, context: int) -> None:
    asked = asked_of(tmp_path, context=context)
    answers = read(exported(asked, tmp_path / "out"), asked)
    for item, answer in zip(asked.items, answers, strict=True):
        assert answer.name == item.name
        assert answer.labels is not None
        assert answer.labels.dtype == np.uint8
        assert np.array_equal(answer.labels, full(asked, item))


def test_tools_may_number_anew_move_files_and_draw_polygons(asked: Asked, tmp_path: Path) -> None:
    document = exported(asked, tmp_path / "out")
    name = asked.items[0].name
    document["images"] = [
        {"id": "x", "file_name": f"C:\\data\\images\\{name}.jpg", "height": 15, "width": 19},
        {"id": 7, "file_name": f"data/{asked.items[1].name}.png", "height": 15, "width": 19},
    ]
    document["categories"] = [{"id": 0, "name": "sky"}, {"id": 9, "name": "road"}, {"id": 3, "name": "patch"}]
    document["annotations"] = [
        {"image_id": "x", "category_id": 9, "segmentation": [[0, 0, 19, 0, 19, 15, 0, 15]]},
        {"image_id": "x", "category_id": 0,
         "segmentation": [[1, 1, 3, 1, 3, 2, 1, 2], [5.5, 4, 7, 4, 7, 6, 5.4, 6]]},
        {"image_id": "x", "category_id": 3, "segmentation": [[0, 0, 9, 0, 9, 9]]},
    ]  # fmt: skip
    drawn, empty = read(document, asked)
    expected = np.zeros((15, 19), np.uint8)
    expected[1, 1:3] = expected[4:6, 5:7] = 2
    assert drawn.name == name
    assert np.array_equal(drawn.labels, expected)
    assert empty.labels is not None
    assert (empty.labels == VOID).all()


def test_a_rectangle_is_filled(asked: Asked, tmp_path: Path) -> None:
    """So it is written: a box, and no polygon."""
    document = exported(asked, tmp_path / "out")
    document["annotations"] = [
        {"image_id": 1, "category_id": 3, "bbox": [1.0, 2.0, 4.0, 3.0], "segmentation": []}
    ]
    expected = np.full((15, 19), VOID, np.uint8)
    expected[2:5, 1:5] = 2
    assert np.array_equal(read(document, asked)[0].labels, expected)


CHANGES: list[tuple[str, Any, str]] = [
    ("images", {"height": 14}, "an image of 14×19 pixels (height × width) found, 15×19 expected"),
    ("images", {"file_name": "other/x.png"}, "not asked for in this query"),
    ("annotations", {"segmentation": {"size": [14, 19], "counts": [266]}}, "a mask of size [14, 19]"),
    ("annotations", {"segmentation": {"size": [15, 19], "counts": [285, 1]}}, ""),
    ("annotations", {"segmentation": {"size": [15, 19], "counts": [-1, 286]}}, "run lengths of at least 0"),
    ("annotations", {"segmentation": {"size": [15, 19], "counts": "é"}}, "damaged compressed RLE"),
    ("annotations", {"segmentation": {"size": [15, 19], "counts": "P"}}, "truncated compressed RLE"),
    ("annotations", {"segmentation": {"size": [15, 19], "counts": "o" * 99}}, "damaged compressed RLE"),
    ("annotations", {"segmentation": [[0, 0, 1, 1]]}, "at least three points"),
    ("annotations", {"segmentation": [], "bbox": [0, 0, 1]}, "not as the format says"),
    ("annotations", {"segmentation": None}, "a segmentation is RLE or a list of polygons"),
    ("annotations", {"category_id": 99}, "category 99 is not in the file"),
    ("categories", {"name": "tree"}, "unknown class 'tree'; known: road, a \"b\" & <c>, sky"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "change", "problem"), CHANGES)
def test_what_does_not_fit_is_a_problem(
    asked: Asked, tmp_path: Path, table: str, change: dict[str, Any], problem: str
) -> None:
    document = exported(asked, tmp_path / "out")
    document[table][0].update(change)
    answer = read(document, asked)[0]
    assert answer.labels is None
    assert answer.problem is not None
    assert problem in answer.problem


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{", "truncated or not JSON"),
        (b"\xff", "truncated or not JSON"),
        (b"[" * 100_000, "truncated or not JSON"),
        ({}, "found: none"),
        ({"images": [{}], "annotations": []}, "not COCO instances"),
        ({"images": [{"id": 1, "file_name": "a"}] * 2, "annotations": []}, "two images have the same id"),
        ({"images": [], "annotations": [{"image_id": 4}]}, "of image 4, which is not there"),
        (
            {
                "images": [],
                "annotations": [],
                "categories": [{"id": 1, "name": "road"}, {"id": 1, "name": "car"}],
            },
            "category 1 is both 'road' and 'car'",
        ),
        ({"images": 3, "annotations": 4}, "not COCO instances"),
        ({"images": [{"id": [], "file_name": "a"}], "annotations": []}, "not COCO instances"),
    ],
)
def test_what_is_no_coco_file_is_said(asked: Asked, document: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(document, asked)
    assert "\n" not in str(caught.value)


def mutated(value: Any, data: st.DataObject) -> Any:
    """A JSON value with one thing in it changed, somewhere."""
    if isinstance(value, dict | list) and value and data.draw(st.integers(0, 5)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = data.draw(st.sampled_from(keys))
        changed = value.copy()
        if data.draw(st.integers(0, 5)):
            changed[key] = mutated(value[key], data)
        else:
            del changed[key]
        return changed
    scalars = (
        None,
        True,
        -1,
        0,
        3,
        10**30,
        1e300,
        float("nan"),
        float("inf"),
        "",
        "x",
        "o`",
        [],
        {},
        [[]],
        [{}],
    )
    return data.draw(st.sampled_from(scalars))


@SHARED_FOLDER
@given(data=st.data())
def test_any_change_gives_labels_a_problem_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    asked = asked_of(folder)
    document = exported(asked, folder / "out")
    document["annotations"][0]["segmentation"] = [[0, 0, 19, 0, 19, 15, 0, 15]]
    for _ in range(data.draw(st.integers(1, 2))):
        document = mutated(document, data)
    try:
        answers = read(document, asked)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert all((answer.labels is None) == bool(answer.problem) for answer in answers)
        assert all("\n" not in (answer.problem or "") for answer in answers)


@SHARED_FOLDER
@given(seed=st.integers(0, 2**32 - 1), context=st.integers(0, 40))
def test_any_prediction_comes_back(tmp_path_factory: pytest.TempPathFactory, seed: int, context: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    asked = asked_of(folder, seed, context)
    answers = read(exported(asked, folder / "out"), asked)
    for item, answer in zip(asked.items, answers, strict=True):
        assert np.array_equal(answer.labels, full(asked, item))


@peer.needs_peers
def test_pycocotools_reads_our_masks_and_we_read_its(asked: Asked, tmp_path: Path) -> None:
    document = exported(asked, tmp_path)
    assert int(peer.run("read_coco", tmp_path)) == len(document["annotations"])
    masks = np.load(tmp_path / "masks.npz")
    for annotation in document["annotations"]:
        labels = full(asked, asked.items[annotation["image_id"] - 1])
        assert np.array_equal(masks[str(annotation["id"])] > 0, labels == annotation["category_id"] - 1)
    compressed = json.loads((tmp_path / "compressed.json").read_text())
    assert any(a["segmentation"]["counts"][-1] > "0" for a in compressed["annotations"])
    for item, answer in zip(asked.items, read(compressed, asked), strict=True):
        assert np.array_equal(answer.labels, full(asked, item))
