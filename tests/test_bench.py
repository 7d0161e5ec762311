"""The benchmarks that a GPU machine runs do run: here on the CPU, small."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _bench_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_a_whole_acquisition_is_timed_stage_by_stage(tmp_path: Path) -> None:
    from bench import acquisition

    out = tmp_path / "rows.jsonl"
    acquisition.main(["--images", "14", "--size", "64x128", "--device", "cpu", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["start"], row["features"]) for row in rows] == [
        (start, features) for features in ("crop", "shared") for start in ("cold", "warm, first", "warm")
    ]
    for row in rows:
        seconds = row["seconds"]
        stages = {"load", "score", "features", "features of the pool", "fit", "transform and choose"}
        assert set(seconds) == {*stages, "total"}
        assert 0 < sum(seconds[name] for name in stages) <= seconds["total"] + 0.01
        assert row["chosen"] == 32
        assert {"device", "commit", "packages"} <= row.keys()


def test_the_pass_on_a_gpu_runs_modules_that_exist() -> None:
    script = (ROOT / "bench" / "gpu_pass.sh").read_text()
    modules = {line.split(" -m ")[1].split()[0] for line in script.splitlines() if " -m " in line}
    assert modules == {"pytest", "bench", "bench.parity", "bench.acquisition"}
    for name in modules - {"pytest"}:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name
