"""Run folders found, read, checked and grouped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import CLASSES, folder

from meal_gpu.compare import gather
from meal_gpu.compare.runs import find
from meal_gpu.compare.verdict import environment
from meal_gpu.errors import ConfigError, MealGpuError, RunError


def test_runs_are_found_in_folders_of_runs_each_once(tmp_path: Path) -> None:
    runs = [folder(tmp_path / "sweep" / name, name, 0, [0.1]) for name in ("b", "a")]
    alone = folder(tmp_path / "c", "c", 0, [0.1])
    (tmp_path / "sweep" / "notes").mkdir()
    assert find([tmp_path / "sweep", alone, runs[0]]) == ([runs[1], runs[0], alone], [])


def test_of_a_folder_of_runs_those_without_a_complete_step_are_left_out_and_named(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    made, failed = (
        folder(sweep / name, name, 0, scores) for name, scores in (("meal", [0.1]), ("random", []))
    )
    (failed / "steps" / ".training-000").mkdir()
    assert find([sweep]) == ([made], [failed])
    for path in (sweep, str(sweep)):
        found = gather([path])
        assert [group.label for group in found.groups] == ["meal"]
        assert found.notes == (f"Left out, without a complete step: {failed}.",)
    with pytest.raises(RunError, match="random holds no complete step yet: continue it with --resume"):
        gather([sweep, failed])
    (made / "steps" / "000").rename(tmp_path / "gone")
    with pytest.raises(RunError, match=r"none of the 2 runs in .*sweep holds a complete step yet"):
        gather([sweep])


def test_a_run_shorter_than_other_seeds_is_left_out_and_named(tmp_path: Path) -> None:
    for seed, scores in enumerate(([0.1, 0.2, 0.3], [0.1], [0.1, 0.2, 0.3], [0.1, 0.2])):
        folder(tmp_path / f"m{seed}", "meal", seed, scores)
    folder(tmp_path / "s", "random", 0, [0.1, 0.2])  # nothing shows that it is not whole
    found = gather([tmp_path])
    assert [(group.label, group.seeds, group.steps) for group in found.groups] == [
        ("meal", (0, 2), 3), ("random", (0,), 2),
    ]  # fmt: skip
    assert found.notes == (
        "Left out, since other seeds of the same strategy have more steps: "
        f"{tmp_path}/m1, 1 step; {tmp_path}/m3, 2 steps.",
    )


def test_where_it_was_computed_makes_no_group_but_is_said(tmp_path: Path) -> None:
    for seed, ops in enumerate(("cpu", "reference", "cpu")):
        folder(tmp_path / f"m{seed}", "meal", seed, [0.1], ops=ops)
        folder(tmp_path / f"r{seed}", "random", seed, [0.1], device="cpu")
    found = gather([tmp_path])
    assert [(group.label, group.seeds) for group in found.groups] == [
        ("meal", (0, 1, 2)), ("random", (0, 1, 2)),
    ]  # fmt: skip
    assert found.notes == (
        "The seeds of meal were computed with more than one ops (cpu, reference), which may round otherwise; "
        "they are taken as one strategy.",
    )


def test_runs_are_grouped_by_everything_but_the_seed(tmp_path: Path) -> None:
    for seed in (2, 0, 1):
        folder(tmp_path / f"e{seed}", "entropy", seed, [0.1, 0.2])
        folder(tmp_path / f"m{seed}", "meal", seed, [0.1, 0.2])
        folder(tmp_path / f"f{seed}", "meal", seed, [0.1, 0.2], finetune=True, candidates=300)
        folder(tmp_path / f"s{seed}", "supervised", seed, [0.6], epochs=60)
    found = gather([tmp_path])
    assert [(group.label, group.seeds) for group in found.groups] == [
        ("entropy", (0, 1, 2)),
        ("meal", (0, 1, 2)),
        ("meal (candidates=300, finetune=True)", (0, 1, 2)),
    ]
    assert [(group.label, group.seeds) for group in found.supervised] == [("supervised", (0, 1, 2))]
    assert found.notes == (
        "Where a strategy's name does not say otherwise: candidates=200, finetune=False.",
        "Not the choice of patches alone differs, training does (finetune): pairs compare that, too.",
    )


def test_what_sets_half_of_the_groups_apart_is_said_of_all(tmp_path: Path) -> None:
    folder(tmp_path / "0", "meal", 0, [0.1], candidates=300, root="/a")
    folder(tmp_path / "1", "meal", 0, [0.1], steps=8, root="/a")
    found = gather([tmp_path])
    assert [group.label for group in found.groups] == [
        "meal (candidates=200, steps=8)",
        "meal (candidates=300, steps=None)",
    ]
    assert found.notes == ()


@pytest.mark.parametrize(
    ("first", "changes", "said"),
    [
        (0.2, {}, None),
        (0.3, {}, "seed 1; by 0.1000 at most"),
        (0.3, {"epochs": 9}, None),  # another model
        (0.3, {"candidates": 400}, "seed 1; by 0.1000 at most"),
        (np.nan, {}, None),
    ],
)
def test_strategies_that_do_not_start_from_one_model_are_named(
    tmp_path: Path, first: float, changes: dict[str, Any], said: str | None
) -> None:
    for seed in (0, 1):
        folder(tmp_path / f"r{seed}", "random", seed, [0.2, 0.3])
        folder(tmp_path / f"m{seed}", "meal", seed, [first if seed else 0.2, 0.4], **changes)
    notes = [note for note in gather([tmp_path]).notes if note.startswith("At step 0")]
    assert len(notes) == (said is not None) and all(said in note for note in notes if said)


def test_where_the_pool_lies_makes_no_group_but_is_said(tmp_path: Path) -> None:
    folder(tmp_path / "0", "meal", 0, [0.1], root="/a", cache_gib=1.0)
    folder(tmp_path / "1", "meal", 1, [0.1], root="/b", pool_share=0.0)
    found = gather([tmp_path])
    assert [group.seeds for group in found.groups] == [(0, 1)]
    assert found.notes[0].startswith("The dataset was read from several places (/a, /b)")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "camvid"}, "has dataset 'synthetic' and .*1 'camvid': compare runs of one dataset"),
        ({"size": (96, 192)}, r"has size None and .*1 \(96, 192\)"),
        ({"grid": (2, 4)}, r"has grid \(4, 4\) and .*1 \(2, 4\)"),
        ({"classes": ("road", "car")}, "the classes road, sky and .*1 road, car"),
        ({"patches": 3200}, "a pool of 100 images and .*1 of 200"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_both_values(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    folder(tmp_path / "0", "meal", 0, [0.1])
    folder(tmp_path / "1", "entropy", 0, [0.1], **changes)  # type: ignore[arg-type]
    with pytest.raises((ConfigError, RunError), match=words):
        gather([tmp_path])


def test_a_repeated_run_is_no_new_sample(tmp_path: Path) -> None:
    for name in "ab":
        folder(tmp_path / name, "meal", 3, [0.1])
    with pytest.raises(RunError, match=r"/a and .*/b have the same configuration and seed 3"):
        gather([tmp_path])


def test_only_supervised_runs_are_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="only supervised runs"):
        gather([folder(tmp_path / "s", "supervised", 0, [0.5])])


def test_damaged_and_foreign_folders_are_named(tmp_path: Path) -> None:
    def metrics(path: Path, step: int = 0) -> Path:
        return path / "steps" / f"{step:03d}" / "metrics.json"

    def refused(path: Path, words: str) -> None:
        with pytest.raises(MealGpuError, match=words) as caught:
            gather([path])
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)

    (tmp_path / "photos").mkdir()
    refused(tmp_path / "photos", "holds no run and no folder of runs")
    refused(tmp_path / "nowhere", "holds no run and no folder of runs")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.toml").write_text("title = 'a website'")
    refused(foreign, "unknown key title")
    (foreign / "config.toml").write_text("strategy = 'meal'")
    refused(foreign, "records cannot be read")
    refused(folder(tmp_path / "empty", "meal", 0, []), "holds no complete step yet")
    for name, text in (
        ("broken", "{"),
        ("list", "[1]"),
        ("bare", json.dumps({"mean_iou": 0.5})),
        (
            "words",
            json.dumps({"mean_iou": "x", "labelled": 1, "patches": 2, "class_iou": dict.fromkeys(CLASSES)}),
        ),
    ):
        path = folder(tmp_path / name, "meal", 0, [0.1])
        metrics(path).write_text(text)
        refused(path, "records cannot be read")
    path = folder(tmp_path / "still", "meal", 0, [0.1, 0.2])
    metrics(path, 1).write_text(json.dumps(json.loads(metrics(path, 0).read_text()) | {"step": 1}))
    refused(path, r"labelled patches do not increase from step to step: \(32, 32\)")


def test_the_seeds_of_a_strategy_label_equally_many(tmp_path: Path) -> None:
    folder(tmp_path / "0", "meal", 0, [0.1, 0.2])
    other = folder(tmp_path / "1", "meal", 1, [0.1, 0.2])
    record = other / "steps" / "001" / "metrics.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"labelled": 50}))
    with pytest.raises(RunError, match=r"labelled \(32, 64\) patches step by step, .*/1 \(32, 50\)"):
        gather([tmp_path])


def test_the_environment_is_said(tmp_path: Path) -> None:
    one = folder(tmp_path / "0", "meal", 0, [0.1])
    assert environment(gather([one])) == "Environment: A CPU, 2 cores; commit 0123456789ab."
    two = folder(tmp_path / "1", "meal", 1, [0.1], commit="abc")
    assert environment(gather([one, two])) == (
        "Environment: A CPU, 2 cores; commit 0123456789ab, abc. The commits differ: timings are not compared."
    )
    (two / "env.json").write_text("{}")
    assert (
        "A CPU, 2 cores; unknown; commit 0123456789ab, unknown. The devices and commits differ"
        in environment(gather([one, two]))
    )
