"""CVAT's formats beyond test_cvat_export: shapes that CVAT has, and files that are damaged or hostile."""

import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import peer
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from meal_gpu.annotate import cvat, segmentation_mask
from meal_gpu.annotate.asked import VOID, Answer, Asked, Box, Item
from meal_gpu.errors import DataError

GOLDEN = Path(__file__).parent / "golden" / "segmentation_mask"
CLASSES = ("road", "car", "sky")
FIRST = "seq 1/ä.b__l0_t0_r16_b12"
LABELMAP = "road:10,0,0::\ncar:20,0,0::\nbackground:0,0,0::\npatch:255,255,255::\ndog:30,0,0::\n"


def asked_of(folder: Path) -> Asked:
    """Three patches of two frames 24×32; every class and void are predicted."""
    draw = np.random.default_rng(1)
    items = []
    for patch, image, box in (
        (0, "seq 1/ä.b.png", Box(0, 0, 16, 12)),
        (3, "seq 1/ä.b.png", Box(16, 12, 32, 24)),
        (5, "c.png", Box(16, 0, 32, 12)),
    ):
        file = folder / image
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(file)
        items.append(Item(patch, image, str(file), box, 0.5, 12.0, 23.0))
    asked = Asked(folder / "query", 4, "meal", 0, CLASSES, (24, 32), (2, 2), tuple(items), {})
    asked.path.mkdir()
    asked.write_into(asked.path, [draw.choice([0, 1, 2, VOID], (12, 16)).astype(np.uint8) for _ in items])
    return asked


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return asked_of(tmp_path_factory.mktemp("asked"))


def seen_with(asked: Asked, context: int) -> Asked:
    """The query whose annotators see `context` pixels around each patch."""
    return replace(asked, notes={"context": context})


def full(asked: Asked, item: Item) -> np.ndarray:
    crop = asked.crop(item)
    labels = np.full((crop.height, crop.width), VOID, np.uint8)
    labels[item.box.within(crop)] = asked.prediction(item)
    return labels


def drawn(
    asked: Asked, shapes: str, name: str = FIRST + ".png", size: str = 'width="16" height="12"'
) -> Answer:
    text = f'<annotations><image id="0" name="{name}" {size}>{shapes}</image></annotations>'
    (answer,) = cvat.read({"annotations.xml": text.encode()}, asked)
    return answer


def png(pixels: np.ndarray | Image.Image) -> bytes:
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, "png")
    return stream.getvalue()


def colored(asked: Asked, content: bytes, labelmap: str = LABELMAP) -> Answer:
    files = {"task/labelmap.txt": labelmap.encode(), f"task/SegmentationClass/{FIRST}.png": content}
    (answer,) = segmentation_mask.read(files, asked)
    return answer


@pytest.mark.parametrize(
    "name", [f"{FIRST}.jpg", FIRST, f"train/{FIRST}.png", f"a\\b/{FIRST}.PNG", f"images/default/{FIRST}.png"]
)
def test_names_are_known_with_other_folders_and_suffixes(asked: Asked, name: str) -> None:
    assert drawn(asked, "", name).name == FIRST


def test_polygons_and_boxes_hold_the_pixels_whose_centre_is_within(asked: Asked) -> None:
    labels = drawn(
        asked,
        '<box label="road" xtl="0.5" ytl="0.49" xbr="2.5" ybr="1.51"/>'
        '<polygon label="car" points="4.00,4.00;10.00,4.00;4.00,10.00"/>'
        '<tag label="dog"/><box label="patch" xtl="0" ytl="0" xbr="16" ybr="12" z_order="5"/>',
    ).labels
    wanted = np.full((12, 16), VOID, np.uint8)
    wanted[0:2, 0:2] = 0
    y, x = np.mgrid[0:12, 0:16] + 0.5
    wanted[(x > 4) & (y > 4) & (x + y < 14)] = 1
    assert labels is not None
    edge = x + y == 14  # a centre on the edge belongs to the polygon on its right
    assert np.array_equal(labels[~edge], wanted[~edge])


def test_boxes_turn_clockwise(asked: Asked) -> None:
    flat = drawn(asked, '<box label="car" xtl="2" ytl="5" xbr="10" ybr="7" rotation="0"/>').labels
    upright = drawn(asked, '<box label="car" xtl="2" ytl="5" xbr="10" ybr="7" rotation="90.0"/>').labels
    # Down to the right after an eighth of a turn, as seen on a screen.
    leaning = drawn(asked, '<box label="car" xtl="2" ytl="5" xbr="10" ybr="7" rotation="45"/>').labels
    assert flat is not None and upright is not None and leaning is not None
    assert (flat[5:7, 2:10] == 1).all() and (flat == 1).sum() == 16
    assert (upright[2:10, 5:7] == 1).all() and (upright == 1).sum() == 16
    assert leaning[8, 8] == 1 and leaning[3, 3] == 1 and leaning[3, 8] == VOID


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ('<mask label="car" left="-1" top="0" width="2" height="1" rle="0, 2"/>', ("outside", "12×16")),
        ('<mask label="car" left="0" top="11" width="2" height="2" rle="0, 4"/>', ("outside",)),
        ('<mask label="car" left="0" top="0" width="4" height="4" rle="20, -4"/>', ("run lengths",)),
        ('<mask label="car" left="0" top="0" width="2" height="1" rle="1, 99999999999999999999"/>', ("rle",)),
        ('<mask label="car" left="0" top="0" width="2" height="1"/>', ("rle",)),
        ('<mask label="car" left="x" top="0" width="2" height="1" rle="0, 2"/>', ("left='x'",)),
        ('<mask label="car" left="0.5" top="0" width="2" height="1" rle="0, 2"/>', ("whole",)),
        ('<mask label="car" left="0" top="0" height="1" rle="0, 2"/>', ("width=None",)),
        ('<polygon label="car" points="0,0;1,1"/>', ("three points",)),
        ('<polygon label="car" points="0,0;1,nan;2,2"/>', ("polygon",)),
        ('<polygon label="car" points="0,0;1e300,1;2,2"/>', ("polygon",)),
        ('<polygon label="car"/>', ("points",)),
        ('<box label="car" xtl="inf" ytl="0" xbr="1" ybr="1"/>', ("xtl='inf'",)),
        ('<box label="car" xtl="0" ytl="0" xbr="1" ybr="1" z_order="top"/>', ("z_order",)),
        ('<polyline label="car" points="0,0;5,5"/>', ("polyline", "'car'")),
        ('<ellipse label="car" cx="3" cy="3" rx="2" ry="2"/>', ("ellipse",)),
        ('<box xtl="0" ytl="0" xbr="1" ybr="1"/>', ("unknown class None", "road, car, sky")),
    ],
)
def test_a_shape_that_is_none_is_a_problem_of_its_image(
    asked: Asked, shapes: str, words: tuple[str, ...]
) -> None:
    answer = drawn(asked, shapes)
    assert answer.labels is None and answer.problem is not None
    assert all(word in answer.problem for word in words), answer.problem
    assert "\n" not in answer.problem


def test_a_size_that_is_none_is_a_problem_too(asked: Asked) -> None:
    assert "height=None" in str(drawn(asked, "", size='width="16"').problem)


BOMB = '<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;">]><annotations>&d;</annotations>'


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"annotations.xml": BOMB.encode()}, "not trusted"),
        ({"annotations.xml": BOMB.encode("utf-16")}, "UTF-8"),
        ({"annotations.xml": BOMB.encode("utf-16-le")}, "not trusted"),
        ({"annotations.xml": BOMB.encode("utf-16-be")}, "not trusted"),
        ({"annotations.xml": b'<?xml version="1.0" encoding="utf-7"?>+ADwAIQ-DOCTYPE a+AD4-<a/>'}, "not"),
        ({"annotations.xml": b"<annotations><image"}, "truncated"),
        ({"annotations.xml": b"<annotations><image/></annotations>"}, "without a name"),
        ({"annotations.xml": b"<annotations><track/></annotations>"}, "CVAT for images 1.1"),
        ({"a.xml": b"<html/>"}, "CVAT for images 1.1"),
        ({"a.xml": b"<annotations/>", "b.xml": b"<annotations/>"}, "a.xml, b.xml"),
        ({"a/annotations.xml": b"<annotations/>", "b/annotations.xml": b"<annotations/>"}, "one annotations"),
        ({"labels.json": b"[]"}, "none"),
    ],
)
def test_files_that_are_no_annotations_are_errors(asked: Asked, files: dict[str, bytes], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        list(cvat.read(files, asked))
    assert "\n" not in str(caught.value)


def test_annotations_are_found_among_other_xml_files(asked: Asked) -> None:
    files = {"config.xml": b"<View/>", "job/annotations.xml": b"\xef\xbb\xbf<annotations/>"}
    assert list(cvat.read(files, asked)) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_export_never_raises_anything_else(asked: Asked, data: st.DataObject) -> None:
    asked = seen_with(asked, 2)
    root = Path(asked.path).parent / "damaged"
    if not root.exists():
        root.mkdir()
        cvat.write(asked, root)
    content = bytearray((root / "annotations.xml").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        for answer in cvat.read({"annotations.xml": bytes(content)}, asked):
            assert (answer.labels is None) != (answer.problem is None)
    except DataError:
        pass


def test_masks_zip_is_as_committed(asked: Asked, tmp_path: Path) -> None:
    """Text members byte for byte, PNG members pixel for pixel; MEAL_GPU_GOLDEN commits them anew."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (path,) = segmentation_mask.write(seen_with(asked, 2), tmp_path / name)
    assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    if os.environ.get("MEAL_GPU_GOLDEN"):
        for name, content in members.items():
            (GOLDEN / name).parent.mkdir(parents=True, exist_ok=True)
            (GOLDEN / name).write_bytes(content)
    assert set(members) == {str(f.relative_to(GOLDEN)) for f in GOLDEN.rglob("*.*") if f.is_file()}
    for name, content in members.items():
        if name.endswith(".png"):
            assert np.array_equal(Image.open(io.BytesIO(content)), Image.open(GOLDEN / name)), name
        else:
            assert content == (GOLDEN / name).read_bytes(), name


def test_colours_of_rgb_and_palette_files_are_classes(asked: Asked) -> None:
    values = np.tile(np.array([0, 10, 20, 255], np.uint8), (12, 4))
    rgb = np.zeros((12, 16, 3), np.uint8)
    rgb[..., 0] = values
    rgb[values == 255] = 255
    wanted = np.select([values == 10, values == 20], [0, 1], VOID)
    indexed = Image.fromarray(rgb).quantize(4)
    assert indexed.mode == "P"
    for content in (png(rgb), png(indexed)):
        answer = colored(asked, content)
        assert answer.name == FIRST and answer.problem is None
        assert np.array_equal(answer.labels, wanted)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png(np.full((12, 16, 3), (30, 0, 0), np.uint8)), ("'dog'", "road, car, sky")),
        (png(np.full((12, 16, 3), (1, 2, 3), np.uint8)), ("1,2,3", "labelmap.txt")),
        (png(np.zeros((12, 17, 3), np.uint8)), ("12×17", "12×16")),
        (png(np.zeros((12, 16, 3), np.uint8))[:-40], ("not a readable PNG",)),
        (b"", ("not a readable PNG",)),
    ],
)
def test_an_image_of_other_colours_is_a_problem(asked: Asked, content: bytes, words: tuple[str, ...]) -> None:
    answer = colored(asked, content)
    assert answer.labels is None and answer.problem is not None
    assert all(word in answer.problem for word in words), answer.problem
    assert "\n" not in answer.problem


def test_a_header_of_another_size_is_enough(asked: Asked) -> None:
    content = bytearray(png(np.zeros((12, 16, 3), np.uint8)))
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    problem = colored(asked, bytes(content)).problem
    assert problem is not None


@pytest.mark.parametrize(
    ("labelmap", "words"),
    [
        ("road", "NAME:R,G,B::"),
        ("road:1,2::", "NAME:R,G,B::"),
        ("road:1,2,256::", "NAME:R,G,B::"),
        ("road:::", "NAME:R,G,B::"),
        ("road:1,2,3::\ncar:1,2,3::", "same colour"),
    ],
)
def test_a_labelmap_that_is_none_is_an_error(asked: Asked, labelmap: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        colored(asked, png(np.zeros((12, 16, 3), np.uint8)), labelmap)


def test_masks_need_a_labelmap_and_images(asked: Asked) -> None:
    with pytest.raises(DataError, match=r"labelmap.txt expected, found: none"):
        list(segmentation_mask.read({}, asked))
    with pytest.raises(DataError, match="no PNG file"):
        list(segmentation_mask.read({"labelmap.txt": LABELMAP.encode(), "x/a.png": b""}, asked))


def test_classes_that_the_format_cannot_name_are_errors(asked: Asked, tmp_path: Path) -> None:
    background = replace(asked, classes=("road", "background"))
    with pytest.raises(DataError, match="'background' is what this format calls"):
        segmentation_mask.write(background, tmp_path)
    with pytest.raises(DataError, match="use another format"):
        list(segmentation_mask.read({"labelmap.txt": b""}, background))
    with pytest.raises(DataError, match="rename it"):
        segmentation_mask.write(replace(asked, classes=("a:b",)), tmp_path)
    many = replace(asked, classes=tuple(map(str, range(255))))
    if len(set(many.colors)) < 255:
        with pytest.raises(DataError, match="not all different"):
            segmentation_mask.write(many, tmp_path)
    assert not list(tmp_path.iterdir())


@peer.needs_peers
@pytest.mark.parametrize("context", [0, 4])
def test_datumaro_reads_one_object_per_class_and_no_background(
    asked: Asked, tmp_path: Path, context: int
) -> None:
    """As CVAT does when it imports the zip file: what it would draw, object by object."""
    asked = seen_with(asked, context)
    segmentation_mask.write(asked, tmp_path)
    with zipfile.ZipFile(tmp_path / "segmentation_mask.zip") as archive:
        archive.extractall(tmp_path / "voc")
    cvat.write(asked, tmp_path / "cvat")
    for form, folder in (("voc_segmentation", tmp_path / "voc"), ("cvat", tmp_path / "cvat")):
        peer.run("read_cvat", form, folder, tmp_path / f"{form}.npz")
        with np.load(tmp_path / f"{form}.npz") as read:
            objects = {key: read[key] for key in read}
        wanted = {}
        for item in asked.items:
            labels = full(asked, item)
            for train_id in np.unique(labels[labels != VOID]).tolist():
                wanted[f"{item.name}|{CLASSES[train_id]}|0"] = labels == train_id
        assert set(objects) == set(wanted), form
        assert all(np.array_equal(objects[key], wanted[key]) for key in wanted), form
