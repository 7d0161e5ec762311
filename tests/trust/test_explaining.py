"""Why a patch was chosen, or not: beside NumPy in float64, and beside the model itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from typer import Typer
from typer.testing import CliRunner

from meal_gpu.errors import InputError, RunError
from meal_gpu.ledger import Ledger
from meal_gpu.scoring import patch_features
from meal_gpu.trust import commands
from meal_gpu.trust.explaining import Explanation, explain
from meal_gpu.trust.opening import Past

RunOf = Callable[[str], Path]
NOWHERE = Path("nowhere")  # no dataset: what the records alone say

app = Typer()
commands.register(app)


def ledger(run: Path, step: int) -> pd.DataFrame:
    return pd.read_parquet(run / f"steps/{step:03d}/ledger.parquet")


def asked(run: Path, step: int, arm: str = "strategy") -> list[int]:
    frame = pd.read_parquet(run / f"steps/{step:03d}/query.parquet")
    if "arm" not in frame:
        frame["arm"] = "strategy"
    return frame["patch"][frame["arm"] == arm].tolist()


def ranked(run: Path, step: int) -> list[int]:
    """What the strategy could choose from, by falling score, then rising id."""
    frame = ledger(run, step)
    frame = frame[(ledger(run, step - 1)["step"] < 0) & ~frame["patch"].isin(asked(run, step, "control"))]
    return frame.sort_values(["score", "patch"], ascending=[False, True])["patch"].tolist()


def of_records(run: Path, step: int, patch: int) -> Explanation:
    found = explain(run, step, patch, root=NOWHERE)
    assert found.seen is None and found.missing is not None
    return found


@pytest.mark.parametrize("step", [1, 2])
def test_every_draw_beside_numpy(run_of: RunOf, step: int) -> None:
    run = run_of("meal")
    order, candidates, frame = asked(run, step), ranked(run, step)[:20], ledger(run, step)
    assert set(order) <= set(candidates)
    points = frame.set_index("patch").loc[candidates, ["embedding_0", "embedding_1"]].to_numpy(np.float64)
    squares = np.array([[((a - b) ** 2).sum() for b in points] for a in points])
    rows = [candidates.index(patch) for patch in order]
    shares = [np.nan]
    for at in range(1, len(rows)):
        before, after = (squares[:, rows[: at + more]].min(axis=1).sum() for more in (0, 1))
        shares.append((before - after) / before)
    for at, (patch, row) in enumerate(zip(order, rows, strict=True)):
        found = of_records(run, step, patch)
        assert (found.outcome, found.order, found.of) == ("chosen", at + 1, len(order))
        ranking, draw = found.ranking, found.draw
        assert ranking is not None and draw is not None
        assert ranking.score == np.float32(frame["score"][patch])
        assert (ranking.rank, ranking.open, ranking.candidates) == (row + 1, len(ranked(run, step)), 20)
        assert draw.equal == pytest.approx(1 / (20 - at))
        assert draw.coincident == (squares[row] == 0).sum() - 1
        after = squares[:, rows[: at + 1]].min(axis=1).sum()
        assert draw.after == pytest.approx(after, rel=1e-12)
        if at:
            weights = squares[:, rows[:at]].min(axis=1)
            assert draw.before == pytest.approx(weights.sum(), rel=1e-12)
            assert draw.chance == pytest.approx(weights[row] / weights.sum(), rel=1e-12)
            assert draw.removed == pytest.approx(shares[at], rel=1e-9)
            assert draw.removed_rank == 1 + sum(share > shares[at] for share in shares[1:])
        else:
            assert (draw.before, draw.removed, draw.removed_rank) == (None, None, None)
            assert draw.chance == pytest.approx(1 / 20)
        for near, inside in ((found.not_chosen, False), (found.chosen, True)):
            others = [i for i, p in enumerate(candidates) if (p in order) == inside and p != patch]
            nearest = sorted(others, key=lambda i: (squares[row, i], i))[:3]
            assert [n.patch for n in near] == [candidates[i] for i in nearest]
            assert [n.value for n in near] == pytest.approx(np.sqrt(squares[row, nearest]))


def test_a_candidate_that_was_not_drawn(run_of: RunOf) -> None:
    run = run_of("meal")
    order, candidates, frame = asked(run, 1), ranked(run, 1)[:20], ledger(run, 1)
    patch = next(p for p in candidates if p not in order)
    found = of_records(run, 1, patch)
    assert (found.outcome, found.order) == ("candidate", None)
    assert found.reason.startswith("a candidate, but not drawn")
    points = frame.set_index("patch").loc[candidates, ["embedding_0", "embedding_1"]].to_numpy(np.float64)
    row, left_out, rows = candidates.index(patch), 1 - 1 / 20, [candidates.index(p) for p in order]
    for at in range(1, len(rows)):
        nearest = ((points[:, None] - points[rows[:at]]) ** 2).sum(axis=2).min(axis=1)
        left_out *= 1 - nearest[row] / nearest.sum()
    assert found.draw is not None
    assert found.draw.chance == pytest.approx(1 - left_out, rel=1e-9)
    assert found.draw.equal == pytest.approx(len(order) / 20)
    assert f"in all {len(order)} draws" in found.text()


def test_why_not(run_of: RunOf) -> None:
    run = run_of("meal")
    low = of_records(run, 1, ranked(run, 1)[30])
    assert (low.outcome, low.draw) == ("open", None)
    assert low.reason == "no candidate: rank 31 by entropy, and the 20 highest are candidates"
    drawn = of_records(run, 1, asked(run, 1, "control")[0])
    assert (drawn.outcome, drawn.order) == ("control", None)
    assert drawn.reason == "drawn at random: one of the 2 of the control arm"
    assert drawn.ranking is not None and drawn.ranking.open == len(ranked(run, 1)) + 1
    for since, patch in ((0, asked(run, 0)[3]), (1, asked(run, 1)[0])):
        taken = of_records(run, 2, patch)
        assert (taken.outcome, taken.ranking) == ("labelled", None)
        assert taken.reason == f"labelled already, since step {since}"


def test_a_ranked_patch_and_its_margin(run_of: RunOf) -> None:
    run = run_of("entropy")
    order, scores = ranked(run, 1), ledger(run, 1)["score"].to_numpy()
    assert asked(run, 1) == order[:6]
    for rank, than in ((1, 6), (6, 6), (7, 5), (50, 5)):
        found = of_records(run, 1, order[rank - 1])
        assert found.ranking is not None
        assert found.ranking.rank == rank and found.ranking.candidates is None
        assert found.ranking.margin == scores[order[rank - 1]] - scores[order[than]]
        assert (found.outcome == "chosen") == (rank <= 6) == (found.order == rank)
    assert found.reason == "not chosen: rank 50 by entropy, and the 6 highest are taken"


def test_a_score_of_the_strategy_s_own_has_its_name(run_of: RunOf) -> None:
    run = run_of("clasp-pe")
    found = of_records(run, 1, asked(run, 1)[0]).ranking
    assert found is not None and (found.measure, found.candidates) == ("clasp-pe", None)


def test_a_strategy_that_ranks_nothing(run_of: RunOf) -> None:
    run = run_of("badge")
    found = of_records(run, 1, asked(run, 1)[2])
    assert (found.outcome, found.order, found.ranking, found.draw) == ("chosen", 3, None, None)
    other = next(p for p in range(96) if p not in (*asked(run, 0), *asked(run, 1)))
    left = of_records(run, 1, other)
    assert left.outcome == "open" and left.reason.startswith("not chosen: K-Means++ seeding over factorised")


def test_where_all_candidates_are_taken(run_of: RunOf, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_of("entropy"), tmp_path / "run"))
    text = (run / "config.toml").read_text()
    text = text.replace('strategy = "entropy"', 'strategy = "meal-ft"').replace(
        "candidates = 20", "candidates = 6"
    )
    (run / "config.toml").write_text(text)
    found = of_records(run, 1, asked(run, 1)[1])
    assert found.reason == "one of 6 candidates, all of which were taken"
    assert (found.outcome, found.draw, found.not_chosen) == ("chosen", None, ())


def test_records_that_contradict_each_other(run_of: RunOf, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_of("meal"), tmp_path / "run"))
    path, low = run / "steps/001/query.parquet", ranked(run, 1)[40]
    frame = pd.read_parquet(path)
    frame.loc[0, "patch"] = low
    frame.to_parquet(path, index=False)
    with pytest.raises(RunError, match=rf"query\.parquet: patch {low} was no candidate by the ledger beside"):
        explain(run, 1, ranked(run, 1)[0], root=NOWHERE)


@pytest.mark.parametrize(
    ("step", "patch", "kind", "words"),
    [
        (3, 0, RunError, "no query of step 3: give a step from 1 to 2"),
        (0, 0, RunError, r"step 0 \(step 0 is drawn from the seed alone\): give a step from 1 to 2"),
        (1, 96, InputError, "no patch 96: ids go from 0 to 95"),
        (1, -1, InputError, "no patch -1: ids go from 0 to 95"),
    ],
)
def test_what_is_not_there(run_of: RunOf, step: int, patch: int, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        explain(run_of("meal"), step, patch)


def test_what_the_model_sees_beside_the_model(run_of: RunOf, past: Past) -> None:
    run = run_of("meal")
    patch = asked(run, 1)[1]
    found = explain(run, 1, patch)
    assert found.missing is None and found.seen is not None
    model, grid, images = (
        past.learner.model.eval(),
        past.experiment.grid,
        past.experiment.pool.images.resident,
    )
    assert images is not None
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.mean, model.std))
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def crop(number: int) -> torch.Tensor:
        left, top, right, bottom = grid.boxes(number)
        return pixels[number // 16, :, top:bottom, left:right][None]

    with torch.inference_mode():
        logits = model(pixels[patch // 16][None]).logits
        labels = F.interpolate(logits, (96, 192), mode="bilinear", align_corners=model.align_corners)
        left, top, right, bottom = found.box
        inside = labels.argmax(dim=1)[0, top:bottom, left:right]
        labelled = Ledger.read(run / "steps/000/ledger.parquet").labelled()
        crops = [model.features(crop(p)).mean(dim=(2, 3)) for p in (*labelled.tolist(), patch)]
    assert past.manifold is not None
    # Of the engine's own features: what UMAP makes of the last bit of one is a step away
    exact = patch_features(past.experiment.pool, labelled, past.learner.model, grid)
    places = past.manifold.transform(exact).double().numpy()
    features = torch.cat(crops).double().numpy()
    counts = np.bincount(inside.flatten(), minlength=19) / inside.numel()
    names = past.experiment.dataset.classes
    assert [share for _, share in found.seen.classes] == pytest.approx(
        [share for share in np.sort(counts)[::-1][:3] if share], abs=2e-3
    )
    assert all(
        counts[names.index(name)] == pytest.approx(share, abs=2e-3) for name, share in found.seen.classes
    )
    features /= np.linalg.norm(features, axis=1)[:, None]
    cosines = features[:-1] @ features[-1]
    assert found.seen.alike is not None and found.seen.nearest is not None
    assert found.seen.alike.value == pytest.approx(float(cosines.max()), abs=1e-5)
    assert found.seen.alike.value == pytest.approx(
        float(cosines[labelled.tolist().index(found.seen.alike.patch)]), abs=1e-5
    )
    here = ledger(run, 1).loc[patch, ["embedding_0", "embedding_1"]].to_numpy(np.float64)
    apart = np.sqrt(((places - here) ** 2).sum(axis=1))
    assert found.seen.nearest.value == pytest.approx(apart.min(), rel=1e-12)
    assert found.seen.nearest.patch == labelled[apart.argmin()]


def test_the_command(run_of: RunOf) -> None:
    run, runner = run_of("entropy"), CliRunner()
    patch = asked(run, 1)[0]
    said = runner.invoke(app, ["explain", str(run), "--step", "1", "--patch", str(patch)])
    assert said.exit_code == 0
    first, image, score, predicted, labelled = said.stdout.splitlines()
    assert first == f"patch {patch}, step 1 (entropy): choice 1 of 6: mean softmax entropy"
    assert f"rank 1 of {len(ranked(run, 1))}, +" in score and score.endswith("to the first not taken")
    assert "drawn_00" in image and "%" in predicted and "by cosine of features" in labelled
    told = runner.invoke(
        app, ["explain", str(run), "--step", "1", "--patch", str(patch), "--json", "--root", "nowhere"]
    )
    plain = json.loads(told.stdout)
    assert (plain["patch"], plain["outcome"], plain["ranking"]["rank"]) == (patch, "chosen", 1)
