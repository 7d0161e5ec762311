"""Label Studio tasks of a query: committed bytes, there and back, what annotators do, and its SDK."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import peer
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_coco import GOLDEN, SHARED_FOLDER, asked_of, full, mutated, same_bytes

from meal_gpu.annotate import brush, label_studio
from meal_gpu.annotate.asked import VOID, Answer, Asked
from meal_gpu.errors import DataError

SIZE = (15, 19)  # of the first item's crop with 3 pixels of context


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return asked_of(tmp_path)


def tasks_of(asked: Asked, out: Path) -> list[dict[str, Any]]:
    label_studio.write(asked, out)
    tasks: list[dict[str, Any]] = json.loads((out / "tasks.json").read_text("utf-8"))
    return tasks


def accepted(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tasks as exported after an annotator submitted each prediction as it was."""
    for number, task in enumerate(tasks, 1):
        result = [{**region, "origin": "prediction"} for region in task["predictions"][0]["result"]]
        task.update(id=number, annotations=[{"id": number, "was_cancelled": False, "result": result}])
    return tasks


def read(tasks: Any, asked: Asked) -> list[Answer]:
    content = tasks if isinstance(tasks, bytes) else json.dumps(tasks).encode()
    return list(label_studio.read({"project-1.json": content, "config.xml": b""}, asked))


def region(kind: str, value: dict[str, Any], label: str = "sky") -> dict[str, Any]:
    return {
        "type": kind, "value": {**value, kind: [label]}, "original_width": 19, "original_height": 15,
        "image_rotation": 0,
    }  # fmt: skip


def drawn(asked: Asked, *regions: dict[str, Any]) -> Answer:
    """What is read of a task of the first item with these regions."""
    task = {"data": {"patch": asked.items[0].name}, "annotations": [{"result": list(regions)}]}
    (answer,) = read([task], asked)
    return answer


def test_files_are_as_committed(asked: Asked, tmp_path: Path) -> None:
    written = label_studio.write(asked, tmp_path / "out")
    names = [path.relative_to(tmp_path / "out").as_posix() for path in written]
    assert names[0] == "images/c__l0_t12_r16_b24.png"
    assert names[3:] == ["tasks.json", "config.xml"]
    assert [same_bytes(path, GOLDEN / "label_studio" / path.name) for path in written[3:]] == [True, True]


def test_tasks_say_what_is_asked(asked: Asked, tmp_path: Path) -> None:
    task, unscored, _ = tasks_of(asked, tmp_path / "out")
    assert task["data"] == {
        "image": "/data/local-files/?d=images/c__l0_t12_r16_b24.png", "patch": "c__l0_t12_r16_b24",
        "frame": "c.png", "box": [0, 12, 16, 24], "score": 1.0, "clicks": 10.0, "seconds": 20.5,
    }  # fmt: skip
    assert task["predictions"][0]["score"] == pytest.approx(1 / np.log(3))
    assert unscored["data"]["score"] is unscored["predictions"][0]["score"] is None
    value = task["predictions"][0]["result"][0]["value"]
    assert [value[key] for key in ("x", "y", "width", "height")] == [0, 20, 100 * 16 / 19, 80]
    assert unscored["data"]["image"] == ("/data/local-files/?d=images/seq%201/%C3%A4.b__l16_t0_r32_b12.png")
    labels = ElementTree.parse(tmp_path / "out" / "config.xml").findall("./BrushLabels/Label")
    assert [label.get("value") for label in labels] == list(asked.classes)
    assert len({label.get("background") for label in labels}) == 3


@pytest.mark.parametrize("context", [0, 3])
def test_predictions_that_are_accepted_come_back(tmp_path: Path, context: int) -> None:
    asked = asked_of(tmp_path, context=context)
    answers = read(accepted(tasks_of(asked, tmp_path / "out")), asked)
    for item, answer in zip(asked.items, answers, strict=True):
        assert answer.name == item.name
        assert answer.labels is not None
        assert answer.labels.dtype == np.uint8
        assert np.array_equal(answer.labels, full(asked, item))


def test_a_task_that_nobody_labelled_is_no_answer(asked: Asked, tmp_path: Path) -> None:
    tasks = accepted(tasks_of(asked, tmp_path / "out"))
    del tasks[0]["annotations"]
    tasks[1]["annotations"] = []
    tasks[2]["annotations"][0]["was_cancelled"] = True
    assert read(tasks, asked) == []
    tasks[2]["annotations"].append({"result": []})
    (answer,) = read(tasks, asked)
    assert answer.labels is not None
    assert (answer.labels == VOID).all()


def test_the_annotation_changed_last_counts(asked: Asked) -> None:
    whole = {"x": 0, "y": 0, "width": 100, "height": 100}
    entries = [
        ("sky", "2026-01-01T09:00:00Z", False),
        ("road", "2026-01-02T09:00:00.5+00:00", False),
        ("sky", "2026-01-02T09:00:00", False),
        ("sky", "2026-01-03T09:00:00Z", True),
    ]
    annotations: list[dict[str, Any]] = [
        {"result": [region("rectanglelabels", whole, name)], "updated_at": time, "was_cancelled": skipped}
        for name, time, skipped in entries
    ]
    task = {"data": {"patch": asked.items[0].name}, "annotations": annotations}
    assert (read([task], asked)[0].labels == 0).all()
    annotations[0]["updated_at"] = "yesterday"
    assert (read([task], asked)[0].labels == 2).all()


def test_regions_are_painted_in_their_order(asked: Asked) -> None:
    mask = np.zeros(SIZE, bool)
    mask[2, 3:9] = True
    answer = drawn(
        asked,
        region("polygonlabels", {"points": [[0, 0], [100, 0], [100, 100], [0, 100]], "closed": True}, "road"),
        region("brushlabels", {"format": "rle", "rle": brush.encode(mask)}, 'a "b" & <c>'),
        region("rectanglelabels", {"x": 100 * 8 / 19, "y": 0, "width": 100 * 2 / 19, "height": 20}),
        region("rectanglelabels", {"x": 0, "y": 0, "width": 100, "height": 100}, "patch"),
        {"type": "relation", "from_id": "a", "to_id": "b"},
        {"type": "choices", "value": {"choices": ["hard"]}},
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[mask] = 1
    expected[0:3, 8:10] = 2
    assert np.array_equal(answer.labels, expected)


def test_a_turned_rectangle_is_turned_in_pixels(asked: Asked) -> None:
    value = {
        "x": 100 * 10 / 19,
        "y": 100 * 2 / 15,
        "width": 100 * 4 / 19,
        "height": 100 * 2 / 15,
        "rotation": 90,
    }
    expected = np.full(SIZE, VOID, np.uint8)
    expected[2:6, 8:10] = 2
    assert np.array_equal(drawn(asked, region("rectanglelabels", value)).labels, expected)


@pytest.mark.parametrize(
    "image",
    [
        "/data/local-files/?d=query/images/seq%201/%C3%A4.b__l16_t0_r32_b12.png",
        "https://images.example/q/images/seq%201/%C3%A4.b__l16_t0_r32_b12.png?sign=1",
        "s3://bucket/images/seq 1/ä.b__l16_t0_r32_b12.jpg",
        "seq 1\\ä.b__l16_t0_r32_b12.png",
    ],
)
def test_tasks_made_by_others_are_known_by_their_image(asked: Asked, image: str) -> None:
    (answer,) = read([{"data": {"image": image}, "annotations": [{"result": []}]}], asked)
    assert answer.name == asked.items[1].name
    uploaded = {"image": "/data/upload/1/0a1b2c3d-c__l0_t12_r16_b24.png"}
    (answer,) = read([{"data": uploaded, "annotations": [{"result": []}]}], asked)
    assert answer.name == asked.items[0].name


WHOLE = {"x": 0, "y": 0, "width": 100, "height": 100}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"value": {**WHOLE, "rectanglelabels": ["tree"]}},
            "unknown class 'tree'; known: road, a \"b\" & <c>, sky",
        ),
        ({"original_width": 18}, "an image of 15×18 pixels (height × width) found, 15×19 expected"),
        ({"image_rotation": 90}, "drawn on an image turned by 90°"),
        (
            {"type": "brushlabels", "value": {"rle": [0], "brushlabels": ["sky"]}},
            "brush mask of 1 bytes is truncated",
        ),
        ({"type": "ellipselabels"}, "a region of type 'ellipselabels'"),
        ({"type": "brush", "value": {"rle": [0]}}, "a region of type 'brush'"),
        ({"value": {**WHOLE, "rectanglelabels": ["sky", "road"]}}, "a region with 2 classes"),
        ({"value": WHOLE}, "a region with 0 classes"),
        ({"value": {"rectanglelabels": ["sky"]}}, "not as the format says: KeyError('x')"),
        ({"value": {**WHOLE, "x": "far", "rectanglelabels": ["sky"]}}, "not as the format says"),
        (
            {"type": "polygonlabels", "value": {"points": [[0, 0]], "polygonlabels": ["sky"]}},
            "at least three points",
        ),
    ],
)
def test_what_does_not_fit_is_a_problem(asked: Asked, change: dict[str, Any], problem: str) -> None:
    answer = drawn(asked, region("rectanglelabels", WHOLE), {**region("rectanglelabels", WHOLE), **change})
    assert answer.labels is None
    assert answer.problem is not None
    assert problem in answer.problem


def test_what_is_not_asked_for_is_a_problem(asked: Asked) -> None:
    for data in (
        {"image": "images/other.png"},
        {"patch": "other"},
        {"image": "data:image/png;base64,AA//"},
        {},
    ):
        (answer,) = read([{"data": data, "annotations": [{"result": []}]}], asked)
        assert answer.labels is None
        assert answer.problem == "not asked for in this query"
        assert len(answer.name) < 20


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (b"[{", "truncated or not JSON"),
        (b"[" * 100_000, "truncated or not JSON"),
        ({"data": {}}, "list of tasks expected, found: none"),
        ([{"id": 1, "image": "x", "brush": []}], "task 0 has no data; export as JSON, not as JSON-MIN"),
        ([3], "task 0 has no data"),
    ],
)
def test_what_is_no_export_is_said(asked: Asked, tasks: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tasks, asked)
    with pytest.raises(DataError, match=r"found: a\.json, b\.json"):
        list(label_studio.read({"a.json": b"[]", "b.json": b"[]"}, asked))


@SHARED_FOLDER
@given(data=st.data())
def test_any_change_gives_labels_a_problem_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    asked = asked_of(folder)
    tasks: Any = accepted(tasks_of(asked, folder / "out"))
    tasks[0]["annotations"][0]["updated_at"] = "2026-01-01T09:00:00Z"
    points = {"points": [[0, 0], [90, 0], [50, 90]]}
    tasks[0]["annotations"][0]["result"].append(region("polygonlabels", points))
    for task in tasks:
        del task["predictions"]
    for _ in range(data.draw(st.integers(1, 3))):
        tasks = mutated(tasks, data)
    try:
        answers = read(tasks, asked)
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
    answers = read(accepted(tasks_of(asked, folder / "out")), asked)
    for item, answer in zip(asked.items, answers, strict=True):
        assert np.array_equal(answer.labels, full(asked, item))


@peer.needs_peers
def test_label_studios_sdk_takes_our_config_and_tasks(asked: Asked, tmp_path: Path) -> None:
    tasks = tasks_of(asked, tmp_path)
    verdict = json.loads(peer.run("read_label_studio", "tasks", tmp_path))
    assert verdict["labels"] == sorted(asked.classes)
    assert verdict["brushless"] == []
    # SDK 2.0's check takes a brush mask for (value, count) pairs: it refuses its own encoder's ones alike
    assert all("for control 'brush'. Got: {'format': 'rle'" in error for error in verdict["errors"])
    assert len(verdict["errors"]) == len(verdict["theirs"])
    regions = np.load(tmp_path / "regions.npz")
    for item, task in zip(asked.items, tasks, strict=True):
        labels = np.full_like(full(asked, item), VOID)
        for entry in task["predictions"][0]["result"][1:]:
            alpha = regions[entry["id"]]
            assert set(np.unique(alpha)) <= {0, 255}
            labels[alpha > 0] = asked.classes.index(entry["value"]["brushlabels"][0])
        assert np.array_equal(labels, full(asked, item))
