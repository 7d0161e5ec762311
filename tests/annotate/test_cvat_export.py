"""CVAT's formats: golden files, round trips, mistakes, and what datumaro and the SDK make of them."""

import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import peer
import pytest
from PIL import Image

from meal_gpu.annotate import cvat, segmentation_mask
from meal_gpu.annotate.asked import VOID, Answer, Asked, Box, Item
from meal_gpu.errors import DataError

GOLDEN = Path(__file__).parent / "golden"
CLASSES = ("road", "car", "sky & cloud")


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """Three patches of two frames of 24×32; the second prediction holds every class and void."""
    draw = np.random.default_rng(0)
    items = []
    for patch, image, box in (
        (6, "seq/b.png", (0, 12, 16, 24)),
        (1, "a.png", (16, 0, 32, 12)),
        (0, "a.png", (0, 0, 16, 12)),
    ):
        file = tmp_path / image
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(file)
        items.append(Item(patch, image, str(file), Box(*box), 0.5, 12.0, 23.0))
    query = Asked(tmp_path / "query", 1, "meal", 0, CLASSES, (24, 32), (2, 2), tuple(items), {})
    masks = [np.zeros((12, 16), np.uint8), np.full((12, 16), VOID, np.uint8), np.ones((12, 16), np.uint8)]
    masks[0][4:9, 3:11] = 1
    masks[1][2:] = draw.integers(0, 3, (10, 16))
    query.path.mkdir()
    query.write_into(query.path, masks)
    return query


def sent(out: Path) -> dict[str, bytes]:
    return {"annotations.xml": (out / "annotations.xml").read_bytes()}


def unzipped(out: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(out / "segmentation_mask.zip") as file:
        return {name: file.read(name) for name in file.namelist()}


def seen_with(asked: Asked, context: int) -> Asked:
    """The query whose annotators see `context` pixels around each patch."""
    return replace(asked, notes={"context": context})


def expected(asked: Asked, item: Item) -> np.ndarray:
    crop = asked.crop(item)
    labels = np.full((crop.height, crop.width), VOID, np.uint8)
    labels[item.box.within(crop)] = asked.prediction(item)
    return labels


def test_files_are_as_committed(asked: Asked, tmp_path: Path) -> None:
    asked = seen_with(asked, 3)
    cvat.write(asked, tmp_path / "out")
    for name in ("annotations.xml", "labels.json"):
        assert (tmp_path / "out" / name).read_text() == (GOLDEN / "cvat" / name).read_text(), name
    segmentation_mask.write(asked, tmp_path / "mask")
    members = unzipped(tmp_path / "mask")
    assert members["labelmap.txt"].decode() == (GOLDEN / "cvat" / "labelmap.txt").read_text()
    assert members["ImageSets/Segmentation/default.txt"].decode().split() == [
        item.name for item in asked.items
    ]


@pytest.mark.parametrize("context", [0, 5])
def test_what_was_sent_comes_back(asked: Asked, tmp_path: Path, context: int) -> None:
    asked = seen_with(asked, context)
    cvat.write(asked, tmp_path / "a")
    segmentation_mask.write(asked, tmp_path / "b")
    for answers in (
        list(cvat.read(sent(tmp_path / "a"), asked)),
        list(segmentation_mask.read(unzipped(tmp_path / "b"), asked)),
    ):
        assert {answer.name for answer in answers} == set(asked.by_name)
        for answer in answers:
            assert answer.problem is None and answer.labels is not None
            assert np.array_equal(answer.labels, expected(asked, asked.by_name[answer.name]))


def answers_of(
    asked: Asked, shapes: str, *, name: str = "a__l0_t0_r16_b12", size: str = 'width="16" height="12"'
) -> Answer:
    text = f'<annotations><image id="0" name="{name}.png" {size}>{shapes}</image></annotations>'
    (answer,) = cvat.read({"annotations.xml": text.encode()}, asked)
    return answer


def test_shapes_are_painted_in_the_order_of_their_layers(asked: Asked) -> None:
    answer = answers_of(
        asked,
        '<box label="car" xtl="4" ytl="2" xbr="8" ybr="6" z_order="1"/>'
        '<polygon label="road" points="0,0;16,0;16,12;0,12" z_order="0"/>'
        '<mask label="sky &amp; cloud" left="5" top="3" width="2" height="2" rle="1, 3" z_order="2"/>'
        '<box label="patch" xtl="0" ytl="0" xbr="16" ybr="12" z_order="9"/>',
    )
    wanted = np.zeros((12, 16), np.uint8)
    wanted[2:6, 4:8] = 1
    wanted[3, 6] = wanted[4, 5] = wanted[4, 6] = 2
    assert answer.problem is None
    assert np.array_equal(answer.labels, wanted)


def test_an_image_without_shapes_is_void(asked: Asked) -> None:
    labels = answers_of(asked, "").labels
    assert labels is not None and (labels == VOID).all()


@pytest.mark.parametrize(
    ("shapes", "options", "words"),
    [
        ('<box label="dog" xtl="0" ytl="0" xbr="1" ybr="1"/>', {}, ("dog", "road")),
        ("", {"size": 'width="17" height="12"'}, ("12×17", "12×16")),
        ("", {"name": "c__l0_t0_r16_b12"}, ("not asked for",)),
        ('<mask label="car" left="15" top="0" width="2" height="1" rle="0, 2"/>', {}, ("mask",)),
        ('<mask label="car" left="0" top="0" width="2" height="1" rle="0, 3"/>', {}, ()),
        ('<mask label="car" left="0" top="0" width="2" height="1" rle="x"/>', {}, ()),
        ('<polygon label="car" points="0,0;1"/>', {}, ()),
    ],
)
def test_what_is_wrong_is_said(
    asked: Asked, shapes: str, options: dict[str, str], words: tuple[str, ...]
) -> None:
    answer = answers_of(asked, shapes, **options)
    assert answer.labels is None and answer.problem
    assert all(word in answer.problem for word in words)
    assert "\n" not in answer.problem


@pytest.mark.parametrize(
    "text", ["", "<annotations>", "<!DOCTYPE a><annotations/>", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>']
)
def test_what_is_no_annotation_file_is_an_error(asked: Asked, text: str) -> None:
    with pytest.raises(DataError):
        list(cvat.read({"annotations.xml": text.encode()}, asked))


def test_colours_must_be_known(asked: Asked, tmp_path: Path) -> None:
    segmentation_mask.write(asked, tmp_path / "out")
    members = unzipped(tmp_path / "out")
    name = next(name for name in members if name.startswith("SegmentationClass/"))
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (1, 2, 3)).save(buffer, "PNG")
    answers = list(segmentation_mask.read(members | {name: buffer.getvalue()}, asked))
    assert next(a.problem for a in answers if a.labels is None).count("1,2,3") == 1
    assert len([a for a in answers if a.labels is not None]) == 2


@peer.needs_peers
@pytest.mark.parametrize("context", [0, 3])
def test_datumaro_reads_the_same_masks(asked: Asked, tmp_path: Path, context: int) -> None:
    asked = seen_with(asked, context)
    cvat.write(asked, tmp_path / "cvat")
    segmentation_mask.write(asked, tmp_path / "voc")
    shutil.unpack_archive(tmp_path / "voc" / "segmentation_mask.zip", tmp_path / "voc" / "unpacked")
    for form, folder in (("cvat", tmp_path / "cvat"), ("voc_segmentation", tmp_path / "voc" / "unpacked")):
        said = json.loads(peer.run("read_cvat_export", folder, form, tmp_path / "read.npz"))
        read = np.load(tmp_path / "read.npz")
        assert {key.replace("|", "/") for key in read} == set(asked.by_name)
        for item in asked.items:
            found = read[item.name.replace("/", "|")]
            names = np.array(["void", *said["names"]])[found]
            wanted = expected(asked, item)
            ours = np.where(wanted == VOID, "void", np.array([*CLASSES, *[""] * 253])[wanted])
            names[names == "background"] = "void"
            assert np.array_equal(names, ours), (form, item.name)
            if form == "cvat":
                rows, columns = item.box.within(asked.crop(item))
                box = ["patch", columns.start, rows.start, columns.stop, rows.stop]
                assert said["boxes"][item.name] == [box]
