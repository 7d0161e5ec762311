"""A person in the loop: acquire → export → fill in → ingest → train on the sparse masks → acquire again.

The known masks of 40 CamVid images play the annotator, once through every format.
"""

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from meal_gpu import checkpoint
from meal_gpu.annotate import formats
from meal_gpu.annotate.asked import VOID, Asked, Item
from meal_gpu.annotate.ingest import ingest
from meal_gpu.annotate.pictures import read_mask
from meal_gpu.cli import app
from meal_gpu.data.folder import open_tree
from meal_gpu.ledger import Ledger

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
MODEL = ["--model", "segmentation_models_pytorch:DeepLabV3Plus", "--model-arg", "encoder_name=mobilenet_v2",
         "--model-arg", "encoder_weights=null", "--model-arg", "classes=11"]  # fmt: skip
ARGUMENTS = {"encoder_name": "mobilenet_v2", "encoder_weights": None, "classes": 11}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.camvid,
    pytest.mark.skipif(not os.environ.get("MEAL_GPU_CAMVID"), reason="needs MEAL_GPU_CAMVID"),
]


def command(*arguments: object) -> None:
    app([str(a) for a in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 CamVid frames in which no mask lies, and classes.txt beside it."""
    folder = tmp_path_factory.mktemp("camvid")
    (folder / "frames").mkdir()
    images = sorted((Path(os.environ["MEAL_GPU_CAMVID"]) / "train").iterdir())[::9][:40]
    assert len(images) == 40
    for image in images:
        (folder / "frames" / image.name).symlink_to(image.resolve())
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


@pytest.fixture(scope="module")
def first(frames: Path) -> Path:
    """The first query, by a network that has seen ImageNet at best; its folder, with the ledger beside it."""
    torch.manual_seed(0)
    network = checkpoint.build("segmentation_models_pytorch:DeepLabV3Plus", ARGUMENTS)
    assert isinstance(network, torch.nn.Module)
    save_file(network.state_dict(), frames / "first.safetensors")
    command("acquire", "--images", frames / "frames", *MODEL, "--checkpoint", frames / "first.safetensors",
            "-n", "24patches", "--candidates", 64, "--ledger", frames / "pool.parquet",
            "--out", frames / "query-1", "--classes", frames / "classes.txt", "--context", 16)  # fmt: skip
    return frames / "query-1"


def truth(image: str) -> np.ndarray:
    labels = Path(os.environ["MEAL_GPU_CAMVID"]) / "trainannot" / Path(image).with_suffix(".png").name
    mask = read_mask(labels, None)
    return np.where(mask == 11, VOID, mask).astype(np.uint8)


def of_patch(item: Item) -> np.ndarray:
    return truth(item.image)[item.box.top : item.box.bottom, item.box.left : item.box.right]


def annotated(query: Path, form: str, out: Path) -> Path:
    """What the tool gives back once a person has corrected every pre-label to the truth."""
    asked = Asked.read(query)
    out.mkdir()
    corrected = replace(asked, path=out / "corrected")
    corrected.path.mkdir()
    cut = [of_patch(item) for item in asked.items]
    corrected.write_into(corrected.path, cut)
    if form == "masks":
        for item, mask in zip(asked.items, cut, strict=True):
            path = out / "masks" / f"{item.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
        return out / "masks"
    formats.export(corrected, out / form, form=form)
    if form == "cvat":  # as the tool zips it
        with zipfile.ZipFile(out / "export.zip", "w") as zipped:
            zipped.write(out / form / "annotations.xml", "annotations.xml")
        return out / "export.zip"
    if form == "segmentation-mask":
        return out / form / "segmentation_mask.zip"
    if form == "coco":
        return out / form / "annotations.json"
    tasks = json.loads((out / form / "tasks.json").read_text())
    for task in tasks:  # an annotator submits what the prediction became
        (prediction,) = task.pop("predictions")
        task["annotations"] = [{"result": prediction["result"], "was_cancelled": False}]
    (out / "export.json").write_text(json.dumps(tasks))
    return out / "export.json"


@pytest.mark.parametrize("form", ["cvat", "segmentation-mask", "label-studio", "coco", "masks"])
def test_the_loop_closes(form: str, frames: Path, first: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "pool.parquet"
    ledger.write_bytes((frames / "pool.parquet").read_bytes())
    asked = Asked.read(first)
    assert len(asked.items) == 24 and asked.context == 16
    if form in formats.WRITERS:
        command("export", "--to", form, "--query", first, "--out", tmp_path / "sent")

    answers = annotated(first, form, tmp_path / "tool")
    command("ingest", answers, "--query", first, "--ledger", ledger)
    labelled = Ledger.read(ledger).labelled().tolist()
    wanted = [item.patch for item in asked.items if (of_patch(item) != VOID).any()]
    assert labelled == sorted(wanted) and len(labelled) >= 20

    command(
        "export",
        "--to",
        "smp",
        "--images",
        frames / "frames",
        "--ledger",
        ledger,
        "--out",
        tmp_path / "train",
    )
    tree = open_tree(tmp_path / "train")
    assert tree.classes == CLASSES and tree.train.labels is not None
    boxes = {item.image: [] for item in asked.items if item.patch in labelled}
    for item in asked.items:
        if item.patch in labelled:
            boxes[item.image].append(item.box)
    assert sorted(tree.train.names) == sorted(f"images/train/{name}" for name in boxes)
    for image, label in zip(tree.train.images, tree.train.labels, strict=True):
        expected = np.full((360, 480), VOID, np.uint8)
        for box in boxes[image.name]:
            part = slice(box.top, box.bottom), slice(box.left, box.right)
            expected[part] = truth(image.name)[part]
        assert np.array_equal(read_mask(label, (360, 480)), expected)

    trained = fit(tree.train.images[:4], tree.train.labels[:4], tmp_path / "second.safetensors")
    command("acquire", "--images", frames / "frames", *MODEL, "--checkpoint", trained, "-n", "24patches",
            "--strategy", "entropy", "--ledger", ledger, "--out", tmp_path / "query-2",
            "--classes", frames / "classes.txt")  # fmt: skip
    second = Asked.read(tmp_path / "query-2")
    assert second.step == 2
    assert len(second.items) == 24
    assert not {item.patch for item in second.items} & set(labelled)
    again = ingest(first, answers, ledger)  # the same masks once more
    assert (again.labelled, again.missing, again.problems) == ((), (), ())


def fit(images: list[Path], labels: list[Path], out: Path) -> Path:
    """Three steps of a training loop that is not ours."""
    network = checkpoint.build("segmentation_models_pytorch:DeepLabV3Plus", ARGUMENTS)
    assert isinstance(network, torch.nn.Module)
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(p).convert("RGB"))) for p in images])
    targets = torch.stack([torch.from_numpy(read_mask(p, None).astype(np.int64)) for p in labels])
    batch = F.pad(pixels.permute(0, 3, 1, 2).float() / 255, (0, 0, 0, 8))
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(3):
        loss = F.cross_entropy(network(batch)[:, :, :360], targets, ignore_index=VOID)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    save_file(network.state_dict(), out)
    return out


def test_a_grown_pool_scores_only_what_is_new(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, ledger = tmp_path / "frames", tmp_path / "pool.parquet"
    folder.mkdir()
    images = sorted((frames / "frames").iterdir())
    for image in images[:5]:
        (folder / image.name).symlink_to(image)
    common = ("acquire", "--images", folder, *MODEL, "--checkpoint", frames / "first.safetensors", "-n", "4",
              "--candidates", 16, "--ledger", ledger)  # fmt: skip
    command(*common, "--out", tmp_path / "a")
    assert "5 new frames, 5 frames scored now" in capsys.readouterr().out
    for image in images[5:7]:
        (folder / image.name).symlink_to(image)
    command(*common, "--out", tmp_path / "b", "--exclude", tmp_path / "a")
    assert "2 new frames, 2 frames scored now" in capsys.readouterr().out
    command(*common, "--out", tmp_path / "c", "--exclude", tmp_path / "a")
    assert "0 new frames, 0 frames scored now" in capsys.readouterr().out
    a, b, c = (Asked.read(tmp_path / name) for name in "abc")
    assert [item.patch for item in b.items] == [item.patch for item in c.items]
    assert not {item.patch for item in a.items} & {item.patch for item in b.items}
    assert (a.step, b.step) == (1, 2)
    # what is kept gives the query that computing all of it anew gives
    fresh = tmp_path / "fresh.parquet"
    for out, table in (("d", fresh), ("e", ledger)):
        command(*common[:-4], "--ledger", table, "--out", tmp_path / out, "--strategy", "entropy")
    assert [i.patch for i in Asked.read(tmp_path / "d").items] == [
        i.patch for i in Asked.read(tmp_path / "e").items
    ]
