"""bench.table1: what each row of the paper's Table 1 runs."""

import sys
from pathlib import Path

import pytest
import typer

sys.path.insert(0, str(Path(__file__).parent.parent))  # bench is not installed
from bench import table1
from meal_gpu import cli
from meal_gpu.config import PRESETS, Config
from meal_gpu.sweep.request import FILE, Sweep, read

TWO_CORES = PRESETS["camvid"].replace(architecture="smp", validate_every=5, precision="float32")
EXPECTED = {
    "frozen": PRESETS["camvid"],
    "finetuned": PRESETS["camvid-finetune"],
    "frozen-smp": PRESETS["camvid"].replace(architecture="smp"),
    "finetuned-smp": PRESETS["camvid-finetune"].replace(architecture="smp"),
    "frozen-patch": PRESETS["camvid"].replace(context="patch"),
    "finetuned-patch": PRESETS["camvid-finetune"].replace(context="patch"),
    "frozen-smp-cpu": TWO_CORES.replace(context="image"),
    "frozen-smp-patch-cpu": TWO_CORES.replace(context="patch"),
}
CHANGED = {
    "frozen+candidates=800": PRESETS["camvid"].replace(candidates=800),
    "frozen-smp-cpu+features=shared+manifold_dimension=8": TWO_CORES.replace(
        context="image", features="shared", manifold_dimension=8
    ),
}


def test_every_row_is_expected() -> None:
    assert list(EXPECTED) == list(table1.ROWS)


@pytest.mark.parametrize("row", [*EXPECTED, *CHANGED])
def test_a_row_is_one_sweep_and_goes_on(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Sweep, Path, bool, int]] = []

    def execute(sweep: Sweep, out: Path, *, resume: bool, jobs: int, track: object) -> int:
        asked.append((sweep, out, resume, jobs))
        out.mkdir(exist_ok=True)
        sweep.write(out)
        return 0

    def run(command: list[str], check: bool) -> object:
        with pytest.raises(SystemExit, match="0"):
            cli.app(command[3:], standalone_mode=False)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("meal_gpu.sweep.command.execute", execute)
    monkeypatch.setattr(table1.subprocess, "run", run)
    for seeds in ("0..2", "0..4"):
        table1.main([row], "w.safetensors", "random,meal,supervised", seeds, 2, tmp_path, tmp_path)
    (first, out, resumed, jobs), (second, _, again, _) = asked
    assert (out, resumed, again, jobs) == (tmp_path / row, False, True, 2)
    expected = (EXPECTED | CHANGED)[row].replace(root=str(tmp_path), encoder_weights="w.safetensors")
    assert same(first.base, expected)
    assert (first.strategies, first.seeds) == (("random", "meal", "supervised"), (0, 1, 2))
    assert read(tmp_path / row) == second and second.seeds == (0, 1, 2, 3, 4)
    assert (tmp_path / row / FILE).is_file()


def same(one: Config, other: Config) -> bool:
    return one.replace(strategy="random", seed=0) == other.replace(strategy="random", seed=0)


def test_an_unknown_row() -> None:
    with pytest.raises(typer.BadParameter, match="unknown row frozn; known: frozen, "):
        table1.main(["frozn"])
    with pytest.raises(typer.BadParameter, match=r"unknown row frozn\+candidates=800"):
        table1.main(["frozn+candidates=800"])
