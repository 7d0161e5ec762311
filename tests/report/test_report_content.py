"""What the page is made of: pictures, points, shares, and what is said where a part is missing."""

import base64
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reported_runs import CLASSES, STAGES, make, make_whole, place

from meal_gpu import data, models, ops
from meal_gpu.errors import DataError
from meal_gpu.grid import Grid
from meal_gpu.ledger import Ledger
from meal_gpu.report import content, load, points
from meal_gpu.report.scenes import Scenes


def picture(uri: str) -> np.ndarray:
    _, _, encoded = uri.partition("base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


def array(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def opened(run: Path) -> tuple[Scenes, Ledger]:
    ledger = Ledger.read(run / "steps" / "002" / "ledger.parquet")
    return Scenes.open(load(run), ledger.grid, ledger.names), ledger


def test_a_whole_run_lacks_nothing_and_is_json(gathered: dict[str, Any]) -> None:
    (found,) = gathered["runs"]
    assert found["missing"] == []
    assert json.loads(json.dumps(gathered, allow_nan=False)) == gathered
    assert found["budget"] == [
        {"step": 0, "before": 0, "new": 16, "share": 16 / 96},
        {"step": 1, "before": 16, "new": 20, "share": 36 / 96},
        {"step": 2, "before": 36, "new": 20, "share": 56 / 96},
    ]
    assert found["timings"] == [
        {"name": "manifold", "seconds": {"fit": 3.0}},
        *({"name": f"step {k}", "seconds": STAGES} for k in range(3)),
    ]


def test_of_each_query_the_first_patches_are_pictured(gathered: dict[str, Any], run: Path) -> None:
    queries = gathered["runs"][0]["queries"]
    assert [(query["step"], query["of"], len(query["items"])) for query in queries] == [
        (0, 16, 16), (1, 20, 16), (2, 20, 16),
    ]  # fmt: skip
    _, ledger = opened(run)
    steps = ledger.frame["step"].to_numpy()
    for query in queries:
        for rank, item in enumerate(query["items"], 1):
            assert item["rank"] == rank
            assert steps[item["patch"]] == query["step"]
            assert item["image"] == ledger.names[item["patch"] // 16]
            asked = bool(query["step"])  # nobody asked for the first images
            assert bool(item["picture"]["heat"]) == bool(item["picture"]["classes"]) == asked
            assert (item["score"] is None) != asked


def test_a_thumbnail_shows_the_patch_in_its_surroundings(run: Path) -> None:
    scenes, _ = opened(run)
    image = data.load_images(scenes.dataset.train, (96, 192))[1].numpy()
    # (row, column) of the 4×4 grid of 24×48 pixels -> left and top of a window of 48×96
    for (row, column), (left, top) in {(0, 0): (0, 0), (1, 2): (72, 12), (3, 3): (96, 48)}.items():
        patch = 16 + 4 * row + column
        (found,) = scenes.pictures([patch], None)
        assert found.size == (96, 48)
        x, y, width, height = found.box
        assert (left + 96 * x, top + 48 * y, 96 * width, 48 * height) == pytest.approx(
            (48 * column, 24 * row, 48, 24)
        )
        expected = image[top : top + 48, left : left + 96].astype(float)
        assert np.abs(picture(found.photo) - expected).mean() < 8  # JPEG
    (detail,) = scenes.details([16 + 6])
    assert np.abs(picture(detail) - image[24:48, 96:144].astype(float)).mean() < 8


def test_entropy_and_prediction_are_those_of_the_model_that_asked(run: Path) -> None:
    scenes, _ = opened(run)
    model = scenes.model(load(run), 0)
    first = models.Builder("smp", len(scenes.dataset.classes), "none")(0)  # drawn from the step's number
    assert torch.equal(model.classifier.weight, 4 * first.classifier.weight)
    (found,) = scenes.pictures([16 + 5], model)
    images = data.load_images(scenes.dataset.train, (96, 192))[1:2]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
    with torch.inference_mode():
        logits = model.eval()((images.permute(0, 3, 1, 2) / 255 - mean) / std).logits
    full = torch.nn.functional.interpolate(logits, size=(96, 192), mode="bilinear", align_corners=True)
    window = full[0, :, 12:60, 24:120]
    colors = np.array(scenes.dataset.colors)[window.argmax(dim=0).numpy()]
    assert (picture(found.classes) == colors).all(axis=2).mean() > 0.995  # ties of float32
    entropy = torch.distributions.Categorical(logits=window.permute(1, 2, 0)).entropy() / math.log(
        len(window)
    )
    # Where the heat is: its colours grow lighter with the entropy
    light = picture(found.heat).sum(axis=2)
    assert np.corrcoef(light.ravel(), entropy.numpy().ravel())[0, 1] > 0.95


def test_the_heat_map_is_black_at_0_and_pale_at_1() -> None:
    from meal_gpu.report.scenes import _HEAT, _heat

    found = _heat(torch.tensor([[0.0, 0.125, 0.5, 1.0]]))
    assert found.tolist() == [[[0, 0, 4], [44, 8, 57], list(_HEAT[2]), [252, 255, 164]]]


def test_class_shares_count_the_labelled_pixels_so_far(gathered: dict[str, Any], run: Path) -> None:
    scenes, ledger = opened(run)
    labels = data.load_labels(scenes.dataset.train, scenes.dataset).numpy()
    steps = ledger.frame["step"].to_numpy()
    shares = gathered["runs"][0]["shares"]
    assert shares["most"] == max(map(max, shares["steps"]))
    for step in range(3):
        counts = np.zeros(len(scenes.dataset.classes))
        for patch in np.flatnonzero((steps >= 0) & (steps <= step)):
            left, top, right, bottom = scenes.grid.boxes(patch)
            truth = labels[patch // 16, top:bottom, left:right]
            counts += np.bincount(truth[truth != data.VOID], minlength=len(counts))
        assert shares["steps"][step] == pytest.approx(counts / counts.sum())


def test_points_of_the_embedding(gathered: dict[str, Any], run: Path) -> None:
    embedding = gathered["runs"][0]["embedding"]
    assert (embedding["patches"], embedding["shared"], embedding["dimension"]) == (96, True, 2)
    assert embedding["labelled"] == [16, 36, 56]
    assert embedding["names"]["5"] == opened(run)[1].names[5]
    pool = embedding["pool"]
    assert array(pool["ids"], "<u4").tolist() == list(range(96))
    since = array(pool["since"], "<i2")
    assert [(since == k).sum() for k in (-1, 0, 1, 2)] == [40, 16, 20, 20]
    for step, n in ((1, 70), (2, 60)):
        found = embedding["steps"][step - 1]
        candidates = found["candidates"]
        ids, xy = array(candidates["ids"], "<u4"), array(candidates["xy"], "<u2").reshape(-1, 2)
        assert found["step"] == step
        assert len(found["chosen"]) == 20
        assert set(found["chosen"]) <= set(ids.tolist())
        assert len(ids) == len(array(candidates["scores"], "<f4")) == n
        # 9 units wide and as high, and 0.02 for the candidates of step 2
        units = place(torch.from_numpy(ids.astype(np.int64))).numpy() + 0.01 * step
        assert xy / 65535 * 9.02 == pytest.approx(units, abs=1e-3)


def test_large_pools_are_thinned_but_no_labelled_patch_is_left_out(run: Path) -> None:
    _, ledger = opened(run)
    found = points.embedding(load(run), ledger.grid, ledger.names, limit=10)
    assert found is not None
    since = array(found["pool"]["since"], "<i2")
    assert found["pool"]["shown"] == len(since) == (since >= 0).sum() + (since < 0).sum() < 96
    assert (since >= 0).sum() == 56


def test_an_embedding_of_an_earlier_query_is_not_shown_again(run: Path, tmp_path: Path) -> None:
    import pandas as pd

    copy = shutil.copytree(run, tmp_path / "copy")
    path = copy / "steps" / "002" / "query.parquet"
    pd.read_parquet(path).drop(columns=["embedding_0", "embedding_1"]).to_parquet(path, index=False)
    found = content.gather([load(copy)], images=False)["runs"][0]["embedding"]
    assert [step["step"] for step in found["steps"]] == [1]


def test_without_a_manifold_every_step_has_its_own_map(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("manifold"))
    found = content.gather([load(copy)], images=False)["runs"][0]["embedding"]
    assert found["pool"] is None
    assert not found["shared"]
    for step in found["steps"]:
        xy = array(step["candidates"]["xy"], "<u2").reshape(-1, 2)
        assert (xy[:, 0].min(), xy[:, 0].max()) == (0, 65535)


def test_caps_hold_over_all_runs_of_a_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "PICTURES", 19)
    monkeypatch.setattr(content, "OTHERS", 7)
    found = content.gather([load(run), load(run)])["runs"]
    queries = [query for part in found for query in part["queries"]]
    assert [len(query["items"]) for query in queries] == [16] * 6
    assert [sum(item["picture"] is not None for item in query["items"]) for query in queries] == [3] * 6
    assert [query["of"] for query in queries] == [16, 20, 20] * 2
    left = "thumbnails of the queried patches after the first {} of a step: a page has {} in all"
    assert [line.partition(";")[0] for line in found[0]["missing"]] == [left.format(3, 19)]
    monkeypatch.setattr(content, "PICTURES", 5)  # fewer than steps: none, but every patch is listed
    found = content.gather([load(run), load(run)])["runs"]
    assert [len(query["items"]) for query in found[0]["queries"]] == [16] * 3
    assert found[0]["missing"][0].startswith(left.format(0, 5))
    scenes, ledger = opened(run)
    others = content._Content(load(run), 2, 3)._details(ledger, scenes)
    assert len(others) == 3
    assert set(map(int, others)) <= set(ledger.unlabelled().tolist())


def test_a_step_that_went_on_from_a_savepoint_is_timed_from_there_and_says_so(
    run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    lines = [json.loads(line) for line in (copy / "log.jsonl").read_text().splitlines()]
    lines[2]["midway"] = True
    (copy / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = content.gather([load(copy)], images=False)["runs"]
    assert [row["name"] for row in found["timings"]] == ["manifold", "step 0", "step 1, resumed", "step 2"]
    assert not any("timings" in told for told in found["missing"])


def test_what_is_missing_is_said_and_nothing_else_is_lost(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "steps" / "000" / "model.safetensors").unlink()
    (copy / "steps" / "001" / "query.parquet").write_bytes(b"not a table")
    with (copy / "log.jsonl").open("ab") as file:
        file.write(
            b'{"event": "step", "st\xff\n[3]\n{"event": "step", "step": 1, "seconds": {"train": "long"}}\n'
        )
    (found,) = content.gather([load(copy)])["runs"]
    assert [query["step"] for query in found["queries"]] == [0, 2]
    assert found["queries"][1]["items"][0]["picture"]["heat"]
    assert found["shares"] is not None
    assert [row["name"] for row in found["timings"]] == ["manifold", "step 0", "step 1", "step 2"]
    told = "\n".join(found["missing"])
    assert "queried patches of step 1: ArrowInvalid" in told
    assert "embedding: ArrowInvalid" in told
    assert "stage timings: 3 of log.jsonl's lines cannot be read" in told
    assert len(found["missing"]) == 3


def test_a_model_that_is_gone_leaves_the_photographs(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "steps" / "001" / "model.safetensors").unlink()
    (found,) = content.gather([load(copy)])["runs"]
    (line,) = found["missing"]
    assert line.startswith("entropy and prediction of step 2: ")
    assert line.endswith("001/model.safetensors: no such weight file")
    item = found["queries"][2]["items"][0]["picture"]
    assert item["photo"] and not item["heat"]
    assert found["queries"][1]["items"][0]["picture"]["heat"]


def test_a_dataset_that_is_gone_or_another_is_named(run: Path, scenes: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(scenes, tmp_path / "tree")
    other = make_whole(tmp_path / "other", tree, name=".png", steps=1)
    found = content.gather([load(other)])["runs"][0]
    assert found["missing"] == [
        f"thumbnails and class shares: {tree} holds other images than the run was made on"
    ]
    assert found["embedding"] and found["queries"] and not found["shares"]
    shutil.rmtree(tree)
    (line,) = content.gather([load(other)])["runs"][0]["missing"]
    assert line.startswith(f"thumbnails and class shares: {tree}: no such folder")
    (line,) = content.gather([load(other)], images=False)["runs"][0]["missing"]
    assert line == "thumbnails and class shares: images were not asked for"


def test_metrics_alone_make_a_page_too(tmp_path: Path) -> None:
    (found,) = content.gather([load(make(tmp_path / "a", (math.nan, 0.5)))])["runs"]
    assert found["iou"] == {CLASSES[0]: [None, 0.5], CLASSES[1]: [None, None]}
    assert [line.partition(":")[0] for line in found["missing"]] == [
        "stage timings",
        "queried patches, embedding, thumbnails and class shares",
    ]


def test_scenes_of_another_size_are_refused(run: Path) -> None:
    _, ledger = opened(run)
    with pytest.raises(DataError, match="holds other images than the run was made on"):
        Scenes.open(load(run), Grid(4, 4, 48, 96), ledger.names)


def test_packed_images_give_the_same_pictures(run: Path, scenes: Path, tmp_path: Path) -> None:
    opened_, ledger = opened(run)
    data.pack(opened_.dataset, tmp_path / "pack")
    packed = Scenes(data.open_dataset("cityscapes", tmp_path / "pack", size=(96, 192)), ledger.grid)
    assert packed.dataset.train.packed is not None
    assert packed.pictures([90, 3], None) == opened_.pictures([90, 3], None)
    steps = torch.from_numpy(ledger.frame["step"].to_numpy(copy=True)).long()
    assert torch.equal(packed.class_pixels(steps, 2), opened_.class_pixels(steps, 2))


def test_pixel_entropy_agrees_with_the_score_of_the_pool(run: Path) -> None:
    scenes, _ = opened(run)
    model = scenes.model(load(run), 1)
    logits = torch.randn(1, 19, 24, 48, generator=torch.Generator().manual_seed(0))
    grid, padded = scenes.grid, model.padded_size((96, 192))
    expected = ops.select("reference").patch_entropy(logits, grid, padded, model.align_corners)[0]
    for patch, box in enumerate(grid.boxes(np.arange(16)).tolist()):
        full = scenes._upsampled(logits[0], model, tuple(box))
        entropy = torch.distributions.Categorical(logits=full.permute(1, 2, 0)).entropy().mean()
        assert entropy.item() == pytest.approx(expected[patch].item(), rel=1e-5)
