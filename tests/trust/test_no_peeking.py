"""`verify no-peek`: silent on an honest query, loud on one that looks at a label."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from meal_gpu import cli, experiment
from meal_gpu.errors import RunError
from meal_gpu.experiment import acquire
from meal_gpu.preparation import Experiment
from meal_gpu.record import RunFolder
from meal_gpu.trust import no_peeking
from meal_gpu.trust.no_peeking import no_peek
from meal_gpu.trust.opening import Past


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.fault(
    "security", "a query that could see labels", "`verify no-peek` makes it with labels shuffled and absent"
)
def test_the_command_says_that_nothing_changes_and_changes_nothing(run_of: Callable[[str], Path]) -> None:
    run = run_of("meal")
    before = tree(run)
    result = CliRunner().invoke(cli.app, ["verify", "no-peek", str(run)])
    assert result.exit_code == 0, result.output
    assert "step 2: query the same byte for byte with labels shuffled" in result.output
    assert tree(run) == before


def test_with_training_the_model_before_it_sees_no_other_label(run_of: Callable[[str], Path]) -> None:
    looked = no_peek(run_of("meal"), 1, train=True)
    assert (looked.found, looked.trained) == ((), True)
    assert 0.2 < looked.changed < 1


def test_the_training_is_that_of_the_run(past: Past, run_of: Callable[[str], Path]) -> None:
    again = no_peeking._trained(past.experiment, past, experiment.Silent())
    for name, values in past.learner.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], values), name


def test_what_is_hidden_is_what_was_not_labelled(past: Past) -> None:
    grid, hidden = past.experiment.grid, no_peeking._hidden(past)
    for patch in range(len(past.ledger)):
        left, top, right, bottom = grid.boxes([patch])[0]
        part = hidden[patch // grid.patches_per_image, top:bottom, left:right]
        known = bool((past.ledger.labelled() == patch).any())
        assert part.unique().tolist() == [not known]


def peeking(real: Callable[..., experiment.Query]) -> Callable[..., experiment.Query]:
    """Chooses as before, then puts patches with much of class 0 first."""

    def asked(given: Experiment, learner: object, manifold: object, ledger: object, *rest: object) -> object:
        query = real(given, learner, manifold, ledger, *rest)
        labels, grid = given.oracle.labels, given.grid
        boxes = grid.boxes(query.patch_ids)
        images = (query.patch_ids // grid.patches_per_image).tolist()
        road = [
            int((labels[i, t:b, le:r] == 0).sum()) for i, (le, t, r, b) in zip(images, boxes, strict=True)
        ]
        order = torch.tensor(road).argsort(descending=True, stable=True)
        query.patch_ids.copy_(query.patch_ids[order])
        return query

    return asked


@pytest.mark.fault(
    "security", "a strategy that reads the oracle's labels", "named by `verify no-peek`, exit code 1"
)
def test_a_query_that_peeks_is_found_in_both_ways(
    run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(no_peeking, "acquire", peeking(acquire))
    result = CliRunner().invoke(cli.app, ["verify", "no-peek", str(run_of("meal")), "--step", "1"])
    assert result.exit_code == 1
    assert "shuffled: " in result.output
    assert "absent: the query asks the oracle for 'labels'" in result.output


def test_labels_that_shuffling_cannot_change_prove_nothing(
    run_of: Callable[[str], Path], past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    uniform = no_peeking._labelled(past.experiment, torch.zeros_like(past.experiment.oracle.labels))
    given = Past(uniform, past.learner, past.manifold, past.ledger, 1)
    monkeypatch.setattr(no_peeking, "open_past", lambda *_: given)
    with pytest.raises(RunError, match="shuffling changes no label"):
        no_peek(run_of("meal"), 1)


def test_a_run_without_a_query_has_nothing_to_verify(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run_of("meal"), tmp_path / "run")
    for step in ("001", "002"):
        shutil.rmtree(tmp_path / "run/steps" / step)
    assert RunFolder.resume(tmp_path / "run").completed() == [0]
    with pytest.raises(RunError, match="has made no query yet"):
        no_peek(tmp_path / "run")
