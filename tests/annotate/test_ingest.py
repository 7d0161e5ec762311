"""Ways to get the ingest wrong: each ends in one clear line and an unchanged ledger."""

import io
import os
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from meal_gpu.annotate.asked import Asked, Box, Item
from meal_gpu.annotate.ingest import ingest
from meal_gpu.annotate.labels import LabelStore
from meal_gpu.cli import app
from meal_gpu.errors import DataError, MealGpuError, RunError
from meal_gpu.grid import Grid
from meal_gpu.ledger import Ledger

GRID = Grid(2, 2, 24, 32)
CLASSES = ("road", "car", "sky")


class Desk:
    """A ledger of two frames, a query of three patches, and what an annotator hands in."""

    def __init__(self, folder: Path, context: int = 0, step: int = 1) -> None:
        self.folder = folder
        self.ledger = folder / "pool.parquet"
        self.query = folder / "query"
        self.answers = folder / "answers"
        Ledger.create(GRID, ["a.png", "b.png"]).write(self.ledger)
        items = []
        for patch in (6, 1, 4):
            frame = folder / ("a.png" if patch < 4 else "b.png")
            Image.new("RGB", (32, 24), (patch, 0, 0)).save(frame)
            box = Box(*map(int, GRID.boxes([patch])[0]))
            items.append(Item(patch, frame.name, str(frame), box, 0.5, 10.0, 20.0, f"{patch:064d}"))
        self.asked = Asked(
            self.query, step, "meal", 0, CLASSES, (24, 32), (2, 2), tuple(items), {"context": context}
        )
        self.query.mkdir()
        self.asked.write_into(self.query, [np.zeros((12, 16), np.uint8)] * 3)
        self.answers.mkdir()

    def hand_in(self, which: int, mask: np.ndarray, folder: str = "") -> Path:
        path = self.answers / folder / f"{self.asked.items[which].name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
        return path

    def zipped(self, *members: tuple[str, bytes]) -> Path:
        path = self.folder / "answers.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members:
                file.writestr(name, content)
        return path

    def state(self) -> tuple[bytes, dict[Path, bytes]]:
        masks = self.folder.glob("pool.labels/**/*.*")
        return self.ledger.read_bytes(), {file: file.read_bytes() for file in masks}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = np.ones((12, 16), np.uint8)


def test_finished_masks_go_into_the_ledger(desk: Desk) -> None:
    desk.hand_in(0, GOOD)
    desk.hand_in(2, np.full((12, 16), 255, np.uint8))
    done = ingest(desk.query, desk.answers, desk.ledger)
    assert [item.patch for item in done.labelled] == [6]
    assert [item.patch for item in done.empty] == [4]
    assert [item.patch for item in done.missing] == [1]
    ledger = Ledger.read(desk.ledger)
    assert ledger.labelled().tolist() == [6]
    assert ledger.last_step() == 1
    assert np.array_equal(LabelStore.of(desk.ledger).read(6, (12, 16)), GOOD)
    assert LabelStore.of(desk.ledger).digest(6) == f"{6:064d}"
    # the rest of the query, later
    desk.hand_in(0, GOOD).unlink()
    desk.hand_in(1, GOOD * 2)
    done = ingest(desk.query, desk.answers, desk.ledger)
    assert Ledger.read(desk.ledger).labelled().tolist() == [1, 6]
    assert done.missing == ()  # 6 is labelled


def test_masks_that_nobody_touched_are_counted(desk: Desk) -> None:
    for patch, predicted in ((6, GOOD), (1, GOOD * 2), (4, GOOD)):
        Image.fromarray(predicted).save(desk.query / "predictions" / f"{patch}.png")
    for which, mask in enumerate((GOOD, GOOD, GOOD)):
        desk.hand_in(which, mask)
    said = CliRunner().invoke(
        app, ["ingest", str(desk.answers), "--query", str(desk.query), "--ledger", str(desk.ledger)]
    )
    assert said.stdout.splitlines() == [
        f"labelled: 3 patches, {desk.ledger}", "exactly as predicted: 2 of the patches taken now"
    ]  # fmt: skip


def test_a_lost_prediction_is_that_of_one_patch(desk: Desk) -> None:
    for which in range(3):
        desk.hand_in(which, GOOD)
    (desk.query / "predictions" / "4.png").unlink()
    with pytest.raises(DataError, match=r"predictions/4\.png: no such mask; restore the query folder"):
        ingest(desk.query, desk.answers, desk.ledger)
    done = ingest(desk.query, desk.answers, desk.ledger, partial=True)
    assert {item.patch for item in done.labelled} == {1, 6} and len(done.problems) == 1


def test_labels_where_nothing_is_valid_become_void(desk: Desk) -> None:
    predicted = GOOD.copy()
    predicted[6:] = 255  # as `acquire --valid` writes it
    Image.fromarray(predicted).save(desk.query / "predictions" / "6.png")
    Image.fromarray(np.full_like(GOOD, 255)).save(desk.query / "predictions" / "1.png")
    desk.hand_in(0, GOOD * 2)
    desk.hand_in(1, GOOD)
    done = ingest(desk.query, desk.answers, desk.ledger)
    assert [item.patch for item in done.labelled] == [6] and done.untouched == 0
    assert [item.patch for item in done.empty] == [1]
    store = LabelStore.of(desk.ledger)
    assert np.array_equal(store.read(6, (12, 16)), np.where(predicted == 255, 255, 2))
    store.write(6, GOOD * 2)  # as it was kept before
    desk.hand_in(2, GOOD)
    done = ingest(desk.query, desk.answers, desk.ledger)
    assert ([i.patch for i in done.known], [i.patch for i in done.labelled]) == ([6], [4])


def test_a_ledger_without_its_labels_gets_no_second_store(desk: Desk) -> None:
    desk.hand_in(0, GOOD)
    ingest(desk.query, desk.answers, desk.ledger)
    desk.hand_in(1, GOOD)
    LabelStore.of(desk.ledger).folder.rename(desk.folder / "elsewhere")
    with pytest.raises(
        RunError, match=r"pool\.labels: no such folder, but 1 patches .* Was the ledger moved\?"
    ):
        ingest(desk.query, desk.answers, desk.ledger)
    assert not LabelStore.of(desk.ledger).folder.exists()
    (desk.folder / "elsewhere").rename(LabelStore.of(desk.ledger).folder)
    assert [item.patch for item in ingest(desk.query, desk.answers, desk.ledger).labelled] == [1]


def test_patches_that_were_labelled_in_the_beginning_need_no_store(desk: Desk) -> None:
    ledger = Ledger.read(desk.ledger)
    ledger.label([0], 0)
    ledger.write(desk.ledger)
    desk.hand_in(0, GOOD)
    assert [item.patch for item in ingest(desk.query, desk.answers, desk.ledger).labelled] == [6]


def test_a_query_of_before_digests_is_read(desk: Desk) -> None:
    path = desk.query / "query.parquet"
    pd.read_parquet(path).drop(columns="digest").to_parquet(path, index=False)
    assert [(item.patch, item.digest) for item in Asked.read(desk.query).items] == [(6, ""), (1, ""), (4, "")]
    desk.hand_in(0, GOOD)
    ingest(desk.query, desk.answers, desk.ledger)
    assert LabelStore.of(desk.ledger).digest(6) == ""


def test_patches_are_labelled_since_the_step_of_their_query(tmp_path: Path) -> None:
    desk = Desk(tmp_path, step=3)
    desk.hand_in(0, GOOD)
    ingest(desk.query, desk.answers, desk.ledger)
    steps = Ledger.read(desk.ledger).frame["step"].tolist()
    assert [(patch, step) for patch, step in enumerate(steps) if step >= 0] == [(6, 3)]


def test_a_crop_with_context_is_cut_to_its_patch(tmp_path: Path) -> None:
    desk = Desk(tmp_path, context=3)
    box = desk.asked.items[0].box
    crop = box.grown(3, (24, 32))
    mask = np.full((crop.height, crop.width), 2, np.uint8)
    mask[box.within(crop)] = 1
    desk.hand_in(0, mask)
    ingest(desk.query, desk.answers, desk.ledger)
    assert (LabelStore.of(desk.ledger).read(6, (12, 16)) == 1).all()


def another_size(desk: Desk) -> Path:
    desk.hand_in(0, np.ones((13, 16), np.uint8))
    return desk.answers


def unknown_class(desk: Desk) -> Path:
    desk.hand_in(0, GOOD * 77)
    return desk.answers


def duplicate_patch(desk: Desk) -> Path:
    desk.hand_in(0, GOOD, "one")
    desk.hand_in(0, GOOD, "two")
    return desk.answers


def not_asked_for(desk: Desk) -> Path:
    Image.fromarray(GOOD).save(desk.answers / "c__l0_t0_r16_b12.png")
    return desk.answers


def truncated_zip(desk: Desk) -> Path:
    path = desk.zipped((f"{desk.asked.items[0].name}.png", png(GOOD)), ("x.png", os.urandom(4000)))
    path.write_bytes(path.read_bytes()[:-60])
    return path


def damaged_zip(desk: Desk) -> Path:
    path = desk.zipped((f"{desk.asked.items[0].name}.png", os.urandom(4000)))
    content = bytearray(path.read_bytes())
    content[200:210] = b"damaged!!!"
    path.write_bytes(content)
    return path


def path_traversal(desk: Desk) -> Path:
    return desk.zipped(("../../evil.png", png(GOOD)))


def absolute_path(desk: Desk) -> Path:
    return desk.zipped(("/etc/evil.png", png(GOOD)))


def zip_bomb(desk: Desk) -> Path:
    return desk.zipped((f"{desk.asked.items[0].name}.png", b"\0" * (80 << 20)))


def image_bomb(desk: Desk) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )
    return desk.zipped((f"{desk.asked.items[0].name}.png", content))


def truncated_mask(desk: Desk) -> Path:
    path = desk.hand_in(0, np.random.default_rng(0).integers(0, 3, (12, 16), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:60])
    return desk.answers


def colours(desk: Desk) -> Path:
    desk.hand_in(0, np.zeros((12, 16, 3), np.uint8))
    return desk.answers


def billion_laughs(desk: Desk) -> Path:
    path = desk.answers / "annotations.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotations>&c;</annotations>')
    return path


def broken_xml(desk: Desk) -> Path:
    path = desk.answers / "annotations.xml"
    path.write_text("<annotations><image name=")
    return path


def broken_json(desk: Desk) -> Path:
    path = desk.answers / "tasks.json"
    path.write_text('[{"data": {"patch": ')
    return path


def nothing_known(desk: Desk) -> Path:
    (desk.answers / "notes.txt").write_text("done!")
    return desk.answers


def not_there(desk: Desk) -> Path:
    return desk.folder / "nowhere.zip"


def link_outside(desk: Desk) -> Path:
    (desk.folder / "secret.png").write_bytes(png(GOOD))
    (desk.answers / f"{desk.asked.items[0].name}.png").symlink_to(desk.folder / "secret.png")
    return desk.answers


MISTAKES: dict[Callable[[Desk], Path], str] = {
    another_size: r"b__l0_t12_r16_b24.*13×16.*12×16",
    unknown_class: r"b__l0_t12_r16_b24.*77.*0 to 2",
    duplicate_patch: r"b__l0_t12_r16_b24.*2 times",
    not_asked_for: r"c__l0_t0_r16_b12: not asked for",
    truncated_zip: r"answers.zip",
    damaged_zip: r"answers.zip",
    path_traversal: r"answers.zip.*evil.png.*not trusted",
    absolute_path: r"answers.zip.*evil.png.*not trusted",
    zip_bomb: r"answers.zip.*\d+ bytes",
    image_bomb: r"100000×100000",
    truncated_mask: r"b__l0_t12_r16_b24.*truncated or damaged",
    colours: r"b__l0_t12_r16_b24.*RGB",
    billion_laughs: r"annotations.xml",
    broken_xml: r"annotations.xml",
    broken_json: r"tasks.json",
    nothing_known: r"holds nothing that is known",
    not_there: r"nowhere.zip",
    link_outside: r"b__l0_t12_r16_b24",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_one_line_and_changes_nothing(mistake: Callable[[Desk], Path], desk: Desk) -> None:
    before = desk.state()
    answers = mistake(desk)
    with pytest.raises(MealGpuError, match=MISTAKES[mistake]) as caught:
        ingest(desk.query, answers, desk.ledger)
    assert "\n" not in str(caught.value)
    assert desk.state() == before


def test_a_labelled_patch_is_not_overwritten(desk: Desk) -> None:
    desk.hand_in(0, GOOD)
    ingest(desk.query, desk.answers, desk.ledger)
    before = desk.state()
    desk.hand_in(0, GOOD * 2)
    with pytest.raises(DataError, match=r"patch 6 is labelled since step 1, .* --replace takes"):
        ingest(desk.query, desk.answers, desk.ledger)
    assert desk.state() == before
    assert np.array_equal(LabelStore.of(desk.ledger).read(6, (12, 16)), GOOD)


def test_a_correction_takes_the_place_of_a_mask_where_that_is_asked(desk: Desk) -> None:
    desk.hand_in(0, GOOD)
    ingest(desk.query, desk.answers, desk.ledger)
    before = desk.ledger.read_bytes()
    desk.hand_in(0, GOOD * 2)
    done = ingest(desk.query, desk.answers, desk.ledger, replace=True)
    assert ([item.patch for item in done.replaced], done.labelled) == ([6], ())
    assert np.array_equal(LabelStore.of(desk.ledger).read(6, (12, 16)), GOOD * 2)
    assert desk.ledger.read_bytes() == before
    assert ingest(desk.query, desk.answers, desk.ledger, replace=True).replaced == ()  # the same once more

    desk.hand_in(0, GOOD)
    desk.hand_in(1, GOOD)
    done = ingest(desk.query, desk.answers, desk.ledger, replace=True)
    assert [[item.patch for item in part] for part in (done.labelled, done.replaced)] == [[1], [6]]
    assert Ledger.read(desk.ledger).labelled().tolist() == [1, 6]


def test_a_correction_does_not_take_all_labels_away(desk: Desk) -> None:
    desk.hand_in(0, GOOD)
    ingest(desk.query, desk.answers, desk.ledger)
    before = desk.state()
    desk.hand_in(0, GOOD * 255)
    with pytest.raises(DataError, match="no pixel of a class, but patch 6 is labelled"):
        ingest(desk.query, desk.answers, desk.ledger, replace=True)
    assert desk.state() == before


def test_a_mask_that_was_taken_before_may_come_again_with_others(desk: Desk) -> None:
    """As where the tool exports all that is finished so far."""
    desk.hand_in(0, GOOD)
    ingest(desk.query, desk.answers, desk.ledger)
    desk.hand_in(1, GOOD * 2)
    done = ingest(desk.query, desk.answers, desk.ledger)
    assert ([item.patch for item in done.labelled], done.problems) == ([1], ())
    assert [item.patch for item in done.known] == [6]
    assert Ledger.read(desk.ledger).labelled().tolist() == [1, 6]


def test_one_bad_mask_keeps_the_good_ones_out_unless_asked(desk: Desk) -> None:
    before = desk.state()
    desk.hand_in(0, GOOD)
    desk.hand_in(1, GOOD * 9)
    with pytest.raises(DataError, match="nothing was changed; 1 other patches fit: --partial takes them"):
        ingest(desk.query, desk.answers, desk.ledger)
    assert desk.state() == before
    done = ingest(desk.query, desk.answers, desk.ledger, partial=True)
    assert [item.patch for item in done.labelled] == [6]
    assert len(done.problems) == 1 and "unknown class id 9" in done.problems[0]
    assert Ledger.read(desk.ledger).labelled().tolist() == [6]


def test_what_came_back_is_not_guessed_among_several(desk: Desk) -> None:
    desk.hand_in(0, GOOD)
    before = desk.state()
    with pytest.raises(DataError, match=r"holds the query itself, .* once people had worked on it"):
        ingest(desk.query, desk.query, desk.ledger)
    with pytest.raises(DataError, match="holds the query itself"):
        ingest(desk.query, desk.folder, desk.ledger)
    (desk.answers / "annotations.xml").write_text("<annotations/>")
    (desk.answers / "instances.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds annotations\.xml of cvat and instances\.json of coco: give"):
        ingest(desk.query, desk.answers, desk.ledger)
    assert desk.state() == before
    assert ingest(desk.query, desk.answers, desk.ledger, form="masks").labelled


def test_a_query_of_another_pool_is_refused(desk: Desk) -> None:
    desk.hand_in(0, GOOD)
    Ledger.create(GRID, ["b.png", "a.png"]).write(desk.ledger)
    with pytest.raises(DataError, match=r"patch 6 of b.png is not in .*pool.parquet; another pool's query"):
        ingest(desk.query, desk.answers, desk.ledger)
    with pytest.raises(RunError, match=r"not a query folder of meal-gpu: no query\.json"):
        ingest(desk.folder, desk.answers, desk.ledger)


def test_a_full_disk_leaves_the_ledger_as_it_was(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.hand_in(0, GOOD)
    before = desk.ledger.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunError, match="No space left on device"):
        patch.setattr("meal_gpu.ledger.pq.write_table", full)
        ingest(desk.query, desk.answers, desk.ledger)
    assert desk.ledger.read_bytes() == before
    assert ingest(desk.query, desk.answers, desk.ledger).labelled  # what was left over does not disturb


def command(desk: Desk, *more: object) -> Any:
    given = ("ingest", desk.answers, "--query", desk.query, "--ledger", desk.ledger, *more)
    return CliRunner().invoke(app, [str(part) for part in given])


def test_what_is_not_answered_yet_is_said(desk: Desk) -> None:
    desk.hand_in(0, GOOD)
    said = command(desk)
    assert said.exit_code == 0
    assert "labelled: 1 patches" in said.output
    assert f"without an answer yet: 2 patches of {desk.query}" in said.output
    desk.hand_in(0, GOOD).unlink()
    desk.hand_in(1, GOOD)
    desk.hand_in(2, GOOD)
    assert "without an answer" not in command(desk).output


def test_the_same_answers_again_are_no_error(desk: Desk) -> None:
    desk.hand_in(0, GOOD)
    command(desk)
    before = desk.state()
    said = command(desk)
    assert (said.exit_code, desk.state()) == (0, before)
    assert "labelled: 0 patches" in said.output and "taken before: 1 patches" in said.output


def test_masks_that_are_replaced_are_named(desk: Desk) -> None:
    name = desk.asked.items[0].name
    desk.hand_in(0, GOOD)
    command(desk)
    desk.hand_in(0, GOOD * 2)
    assert "--replace takes this one" in str(command(desk).exception)
    assert f"masks replaced: {name}" in command(desk, "--replace").output


def test_answers_without_any_label_are_an_error(desk: Desk) -> None:
    before = desk.state()
    desk.hand_in(2, np.full((12, 16), 255, np.uint8))
    said = command(desk)
    assert said.exit_code == 1
    assert re.search(
        r"answers: no patch of .*query is labelled there: 1 have no pixel of a class, 2 no answer; label",
        str(said.exception),
    )
    assert desk.state() == before


def test_the_command_says_it_in_one_line(desk: Desk) -> None:
    answers = unknown_class(desk)
    command = [
        sys.executable,
        "-m",
        "meal_gpu",
        "ingest",
        answers,
        "--query",
        desk.query,
        "--ledger",
        desk.ledger,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("meal-gpu: ") and done.stderr.count("\n") == 1
    assert "unknown class id 77" in done.stderr


def test_masks_are_on_the_disk_before_the_ledger_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path)
    desk.hand_in(0, GOOD)

    def full(*_: object) -> None:
        raise RunError("no room")

    monkeypatch.setattr(LabelStore, "write", full)
    with pytest.raises(RunError, match="no room"):
        ingest(desk.query, desk.answers, desk.ledger)
    assert Ledger.read(desk.ledger).labelled().tolist() == []


def test_a_query_of_another_grid_is_refused(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    Ledger.create(Grid(4, 1, 24, 32), ["a.png", "b.png"]).write(desk.ledger)  # the same ids, other patches
    desk.hand_in(0, GOOD)
    with pytest.raises(DataError, match="another pool's query"):
        ingest(desk.query, desk.answers, desk.ledger)


def test_a_mask_of_another_frame_of_the_pool_is_not_taken_for_one_of_less_folders(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    Ledger.create(GRID, ["a.png", "b.png", "camB/b.png"]).write(desk.ledger)
    desk.hand_in(0, GOOD, "camB")
    with pytest.raises(DataError, match=r"camB/b__l0_t12_r16_b24: not asked for in this query"):
        ingest(desk.query, desk.answers, desk.ledger)
    (desk.answers / "camB").rename(desk.answers / "masks")  # a tool's own folder
    assert [item.patch for item in ingest(desk.query, desk.answers, desk.ledger).labelled] == [6]


def test_a_frame_that_was_replaced_is_labelled_anew(desk: Desk) -> None:
    desk.hand_in(0, GOOD)
    ingest(desk.query, desk.answers, desk.ledger)
    path = desk.query / "query.parquet"
    table = pd.read_parquet(path)
    table.assign(digest="f" * 64).to_parquet(path, index=False)
    assert [item.patch for item in ingest(desk.query, desk.answers, desk.ledger).known] == [6]
    done = ingest(desk.query, desk.answers, desk.ledger, replace=True)
    assert [item.patch for item in done.replaced] == [6]
    assert LabelStore.of(desk.ledger).digest(6) == "f" * 64
