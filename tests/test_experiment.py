"""Algorithm 1 as a whole, on a tiny synthetic set."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from meal_gpu import config as configs
from meal_gpu import data, experiment, learner, lock, ops, rng, train
from meal_gpu.acquisition import draw_control
from meal_gpu.calibration import LIMITS
from meal_gpu.compare import compare, gather
from meal_gpu.config import Config
from meal_gpu.data import synthetic
from meal_gpu.errors import ConfigError, DataError, InputError, RunError
from meal_gpu.evaluate import Evaluation
from meal_gpu.grid import Grid
from meal_gpu.ledger import Ledger
from meal_gpu.models import Builder
from meal_gpu.preparation import Silent, load, resolve
from meal_gpu.savepoint import Savepoint
from meal_gpu.timing import Stages

STRATEGIES = ("random", "entropy", "meal", "meal-ft")


def queries(path: Path) -> list[list[int]]:
    return [pd.read_parquet(p)["patch"].tolist() for p in sorted(path.glob("steps/*/query.parquet"))]


@pytest.fixture(scope="module")
def runs(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    return {name: experiment.run(tiny.replace(strategy=name), base / name).path for name in STRATEGIES}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_labels_what_it_queried(runs: dict[str, Path], strategy: str) -> None:
    path = runs[strategy]
    chosen = queries(path)
    ledger = Ledger.read(path / "ledger.parquet")
    assert [len(query) for query in chosen] == [16, 6, 6]
    assert len({patch for query in chosen for patch in query}) == 28
    for step, query in enumerate(chosen):
        assert sorted(query) == ledger.frame.index[ledger.frame["step"] == step].tolist()
    metrics = [json.loads((path / f"steps/{k:03d}/metrics.json").read_text()) for k in range(3)]
    assert [m["labelled"] for m in metrics] == [16, 22, 28]
    assert [len(m["history"]) for m in metrics] == [1, 1, 2]  # final_epochs after the last step
    assert all(0 <= m["mean_iou"] <= 1 for m in metrics)


def test_a_run_records_which_ops_auto_was(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    taken = ops.select_for(torch.device("cpu")).name
    assert {configs.read(path / "config.toml").ops for path in runs.values()} == {taken}
    monkeypatch.setattr(ops, "why_not_cpu", lambda: "no compiler")
    ops._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="the slower reference ops are used: no compiler"):
        assert resolve(Config(device="cpu")).ops == "reference"
    ops._warn_once.cache_clear()


def test_initial_patches_are_paired_across_strategies(runs: dict[str, Path]) -> None:
    first = [queries(path)[0] for path in runs.values()]
    assert first == [first[0]] * len(STRATEGIES)


def ranked(path: Path, step: int) -> list[int]:
    """The patches that were open at `step`, by falling score, then rising id."""
    frame = Ledger.read(path / f"steps/{step:03d}/ledger.parquet").frame
    was_open = frame[(frame["step"] < 0) | (frame["step"] == step)]
    return was_open.sort_values(["score", "patch"], ascending=[False, True])["patch"].tolist()


def test_a_query_comes_from_the_candidates(runs: dict[str, Path]) -> None:
    for strategy in ("meal", "meal-ft"):
        for step in (1, 2):
            candidates = ranked(runs[strategy], step)[:20]
            frame = Ledger.read(runs[strategy] / f"steps/{step:03d}/ledger.parquet").frame
            assert set(queries(runs[strategy])[step]) <= set(candidates)
            assert set(frame.index[frame["embedding_0"].notna()]) == set(candidates)
    for step in (1, 2):
        assert queries(runs["entropy"])[step] == ranked(runs["entropy"], step)[:6]


def test_the_same_run_twice_is_the_same_bytes(runs: dict[str, Path], tiny: Config, tmp_path: Path) -> None:
    again = experiment.run(tiny, tmp_path / "meal").path
    for file in ("ledger.parquet", "steps/002/query.parquet", "steps/002/model.safetensors"):
        assert (again / file).read_bytes() == (runs["meal"] / file).read_bytes()


def test_a_query_does_not_depend_on_labels_it_was_not_shown(
    runs: dict[str, Path], tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of every patch that is not labelled at step 0 are scrambled: the first query stays the same."""
    load_labels = data.load_labels
    first = queries(runs["meal"])[0][0] // 16

    def scrambled(split: data.Split, *args: object, **kwargs: object) -> torch.Tensor:
        labels = load_labels(split, *args, **kwargs)  # type: ignore[arg-type]
        if len(split) == 6:
            shown = labels[first].clone()
            labels = labels.flip(0, 1, 2)
            labels[first] = shown
        return labels

    monkeypatch.setattr(data, "load_labels", scrambled)
    other = experiment.run(tiny.replace(steps=1), tmp_path / "run").path
    assert queries(other)[1] == queries(runs["meal"])[1]


def metrics_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(path.glob("steps/*/metrics.json"))]


@pytest.fixture(scope="module")
def ensemble(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members, and two of every six patches drawn for the control arm."""
    config = tiny.replace(strategy="ensemble", members=2, control_share=0.3)
    return experiment.run(config, tmp_path_factory.mktemp("ensemble") / "run").path


@pytest.fixture(scope="module")
def calibrated(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.replace(strategy="meal-calibrated")
    return experiment.run(config, tmp_path_factory.mktemp("calibrated") / "run").path


def test_a_control_arm_is_drawn_judged_and_recorded(ensemble: Path) -> None:
    metrics = metrics_of(ensemble)
    assert "control" not in metrics[0]  # the initial patches are no query
    for step in (1, 2):
        query = pd.read_parquet(ensemble / f"steps/{step:03d}/query.parquet")
        assert query["arm"].tolist() == ["strategy"] * 4 + ["control"] * 2
        ledger = Ledger.read(ensemble / f"steps/{step - 1:03d}/ledger.parquet")
        drawn = draw_control(ledger, 2, 0, step)
        assert query["patch"].tolist()[4:] == drawn.tolist()
        rest = [patch for patch in ranked(ensemble, step) if patch not in drawn.tolist()]
        assert query["patch"].tolist()[:4] == rest[:4]
        found = metrics[step]["control"]
        assert found["patches"] == 2
        assert found["low"] <= found["accuracy"] <= found["high"]
        assert 0 <= found["accuracy"] <= 1
        assert sorted(found) == ["accuracy", "high", "low", "patches"]


def test_members_are_trained_and_recorded_where_a_query_follows(ensemble: Path) -> None:
    from safetensors.torch import load_file

    files = sorted(str(file.relative_to(ensemble)) for file in ensemble.rglob("member-*"))
    assert files == ["steps/000/member-01.safetensors", "steps/001/member-01.safetensors"]
    model, member, later = (
        load_file(ensemble / "steps" / name)
        for name in ("000/model.safetensors", "000/member-01.safetensors", "001/member-01.safetensors")
    )
    assert model.keys() == member.keys()
    for name, values in model.items():  # one frozen encoder; decoders of their own
        assert torch.equal(values, member[name]) or not name.startswith("encoder.")
    assert not torch.equal(model["classifier.weight"], member["classifier.weight"])
    assert not torch.equal(later["classifier.weight"], member["classifier.weight"])


def test_members_keep_their_best_epoch_as_the_model_does(
    tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(resolve(tiny.replace(strategy="ensemble", members=3, epochs=1)), Silent())
    ledger = Ledger.create(loaded.grid, loaded.dataset.train.names)
    ledger.label([0, 3, 5, 9], 0)

    def trained(epochs: int, **changes: Any) -> list[dict[str, torch.Tensor]]:
        config = loaded.config.replace(epochs=epochs, **changes)
        stages = Stages(torch.device("cpu"))
        members = learner.train_members(replace(loaded, config=config), ledger, 0, stages, Silent())
        return [member.state_dict() for member in members]

    def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> list[bool]:
        return [all(torch.equal(a[k], b[k]) for k in a) for a, b in zip(one, other, strict=True)]

    right = iter([5, 5, 5, 4, 4, 5, 1, 1])  # of 10: after one epoch of two members; then two epochs of each

    def judged(*_: Any) -> Evaluation:
        k = next(right)
        return Evaluation(torch.tensor([[k, 10 - k], [10 - k, k]]))

    monkeypatch.setattr(learner, "evaluate", judged)
    first = trained(1)
    assert same(trained(2), first) == [True, False]
    assert same(trained(2, keep="last"), first) == [False, False]


def test_a_temperature_is_fitted_recorded_and_used(
    calibrated: Path, runs: dict[str, Path], tiny: Config
) -> None:
    for found in (row["calibration"] for row in metrics_of(calibrated)):
        assert LIMITS[0] <= found["temperature"] <= LIMITS[1]
        assert 0 <= found["ece_before"] <= 1
        assert 0 <= found["ece_after"] <= 1
    assert all("calibration" not in row and "control" not in row for row in metrics_of(runs["meal"]))
    # the same models as without: other scores, since the logits were divided
    for file in ("steps/000/model.safetensors", "steps/000/query.parquet"):
        assert (calibrated / file).read_bytes() == (runs["meal"] / file).read_bytes()
    scores = [
        Ledger.read(path / "steps/001/ledger.parquet").frame["score"] for path in (calibrated, runs["meal"])
    ]
    assert (scores[0] - scores[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["ensemble", "calibrated"])
def test_members_and_temperature_are_taken_up_where_a_run_is_continued(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    whole: Path = request.getfixturevalue(name)
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/steps/002")
    experiment.run(configs.read(whole / "config.toml"), tmp_path / "run", resume=True)
    assert queries(tmp_path / "run") == queries(whole)
    files = [p.relative_to(whole) for p in whole.rglob("*") if p.name not in ("env.json", "log.jsonl")]
    for file in files:
        if (whole / file).is_file():
            assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.parametrize("name", ["model", "member-01"])
def test_a_long_training_goes_on_within_its_step(
    name: str, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped right after the savepoint of one network, of which one epoch of two is left."""
    config = tiny.replace(strategy="ensemble", members=2, epochs=2, final_epochs=1, steps=1)
    whole = experiment.run(config, tmp_path / "whole").path
    trained: list[int] = []
    write, epoch = Savepoint.write, train._epoch

    def stopped(self: Savepoint, *given: Any) -> None:
        write(self, *given)
        if self.path.stem == name:
            raise KeyboardInterrupt

    monkeypatch.setattr("meal_gpu.savepoint.SECONDS", 0)
    monkeypatch.setattr(Savepoint, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run/steps").iterdir()] == [".training-000"]
    monkeypatch.setattr(Savepoint, "write", write)
    monkeypatch.setattr(train, "_epoch", lambda *given: (trained.append(1), epoch(*given))[1])
    experiment.run(config, tmp_path / "run", resume=True)
    assert len(trained) == {"model": 1 + 2, "member-01": 1 + 1}[name] + 1  # and the last step's
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row.get("midway", False) for row in lines if row["event"] == "step"] == [True, False]
    files = {p.relative_to(whole) for p in whole.rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "run") for p in (tmp_path / "run").rglob("*") if p.is_file()}
    for file in files:
        same = (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes()
        assert same or file.name in ("env.json", "log.jsonl"), file


def test_supervised_trains_on_every_image(tiny: Config, tmp_path: Path) -> None:
    config = configs.supervised(tiny).replace(epochs=1)
    path = experiment.run(config, tmp_path / "run").path
    metrics = json.loads((path / "steps/000/metrics.json").read_text())
    assert (metrics["labelled"], metrics["share"]) == (6, 1.0)
    assert not (path / "steps/001").exists()
    experiment.run(tiny.replace(strategy="random", steps=1, epochs=1, final_epochs=1), tmp_path / "random")
    (summary,) = compare(gather([tmp_path])).summaries
    assert (summary.label, summary.supervised) == ("random", metrics["mean_iou"])


def test_frozen_and_finetuned_differ_in_the_encoder(tiny: Config, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    frozen = experiment.run(tiny.replace(steps=0, strategy="random"), tmp_path / "a").path
    tuned = experiment.run(tiny.replace(steps=0, strategy="random", finetune=True), tmp_path / "b").path
    first, second = (load_file(p / "steps/000/model.safetensors") for p in (frozen, tuned))
    start = Builder("smp", 19, "none", seed=rng.integer(0, 0, "encoder"))(0)
    given = {f"encoder.{k}": v for k, v in start.encoder.state_dict().items()}
    assert all(torch.equal(first[k], v) for k, v in given.items())
    assert not all(torch.equal(second[k], v) for k, v in given.items())


def test_a_pool_that_runs_dry_ends_the_run(tiny: Config, tmp_path: Path) -> None:
    config = tiny.replace(steps=9, query_size=50, candidates=200, strategy="random", final_epochs=3)
    path = experiment.run(config, tmp_path / "run").path
    assert [len(query) for query in queries(path)] == [16, 50, 30]
    last = json.loads((path / "steps/002/metrics.json").read_text())
    assert last["labelled"] == 96
    assert len(last["history"]) == 3


@pytest.mark.parametrize("strategy", ["meal", "meal-ft"])
@pytest.mark.parametrize(
    ("rows", "initial", "lengths"),
    [(1, 2, [2, 1]), (2, 1, [2, 1, 1, 1, 1])],  # pools of 3 patches, of which none is fitted, and of 6
)
def test_a_pool_too_small_for_a_umap_is_labelled_to_its_end(
    strategy: str, rows: int, initial: int, lengths: list[int], tiny: Config, tmp_path: Path
) -> None:
    synthetic.write(tmp_path / "tree", train=3, val=1, size=(96, 192), seed=0)
    config = tiny.replace(
        root=str(tmp_path / "tree"), grid=[rows, 1], strategy=strategy, query_size=1, steps=9, batch_size=2,
        initial_images=initial,
    )  # fmt: skip
    path = experiment.run(config, tmp_path / "run").path
    assert [len(query) for query in queries(path)] == lengths
    assert (path / "manifold").exists() == (strategy == "meal" and rows == 2)


def test_initial_patches_are_all_patches_of_some_images() -> None:
    grid = Grid(4, 4, 64, 64)
    patches = experiment.initial_patches(grid, 100, 3, seed=1)
    images = patches.view(3, 16)[:, 0] // 16
    assert patches.tolist() == [int(i) * 16 + k for i in images for k in range(16)]
    assert patches.tolist() != experiment.initial_patches(grid, 100, 3, seed=2).tolist()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"strategy": "meall"},
            ConfigError,
            "unknown strategy 'meall'; known: entropy, .*, meal-calibrated$",
        ),
        ({"measure": "meal"}, ConfigError, "unknown measure 'meal'; known: entropy, "),
        (
            {"strategy": "clasp-pe", "measure": "margin"},
            ConfigError,
            "strategy 'clasp-pe' takes none: leave it",
        ),
        ({"initial_images": 7}, ConfigError, "initial_images is 7, but the pool has 6"),
        ({"initial_images": 1, "grid": [1, 1]}, ConfigError, "one patch is too few .* raise initial_images"),
        ({"grid": [200, 4]}, InputError, "200 rows over 96 pixels"),
        ({"root": "/nonexistent"}, DataError, "/nonexistent"),
    ],
)
def test_an_impossible_run_leaves_no_folder(
    tiny: Config, tmp_path: Path, changes: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        experiment.run(tiny.replace(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unlabelled_images_cannot_run(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "val"):
        (tmp_path / f"images/{split}").mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / f"images/{split}/a.png")
    (tmp_path / "classes.txt").write_text("thing\n")
    with pytest.raises(DataError, match="labelled"):
        experiment.run(Config(dataset="folder", root=str(tmp_path)), tmp_path / "run")


def test_a_run_refuses_a_folder_in_use_and_other_settings(
    runs: dict[str, Path], tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*given: object) -> None:
        raise AssertionError("the pool is decoded")

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "load", load)
        with pytest.raises(RunError, match="--resume"):
            experiment.run(tiny, runs["meal"])
        with lock.of_folder(tmp_path / "busy"), pytest.raises(RunError, match="busy is in use by process"):
            experiment.run(tiny, tmp_path / "busy")
    with pytest.raises(ConfigError, match="query_size: 6 → 7"):
        experiment.run(tiny.replace(query_size=7), runs["meal"], resume=True)
    with pytest.raises(RunError, match="holds no run"):
        experiment.run(tiny, tmp_path / "nothing", resume=True)
    with pytest.raises(RunError, match=r"holds \d runs and is none: name one, such as"):
        experiment.run(tiny, runs["meal"].parent, resume=True)


def test_a_run_goes_on_where_its_dataset_lies_now(
    runs: dict[str, Path], tiny: Config, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs["meal"], tmp_path / "run"))
    moved = Path(shutil.copytree(str(tiny.root), tmp_path / "moved"))
    experiment.run(tiny.replace(root=str(moved), cache_gib=0.5), run, resume=True)
