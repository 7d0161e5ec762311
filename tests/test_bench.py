"""The benchmarks count right, say what they did, and run: on the CPU, small, and never against a clock."""

import ast
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from meal_gpu.acquisition import Query

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _bench_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture
def limits() -> Any:
    from bench.ceiling import Limits

    return Limits(copy=100.0, matrix={"float32": 1000.0, "bfloat16": 4000.0}, vector=1000.0, special=50.0)


def scripted(*seconds: float) -> Callable[..., tuple[float, float]]:
    """A stopwatch that calls, and then reads what it is told to."""
    left = iter(seconds)

    def clock(call: Callable[[], object]) -> tuple[float, float]:
        call()
        each = next(left)
        return each, 2 * each

    return clock


def case(calls: list[str], *names: str, **settings: Any) -> Any:
    from bench.harness import Case

    return Case("thing", {"n": 3}, {name: lambda name=name: calls.append(name) for name in names}, **settings)


def test_contenders_take_turns_after_a_first_call_each(limits: Any) -> None:
    from bench.harness import measure

    calls: list[str] = []
    clock = scripted(9, 8, 1, 10, 2, 20, 3, 30)
    a, b = measure(case(calls, "a", "b", least=3, most=3, memory=False), CPU, limits, clock=clock)
    assert calls == ["a", "b"] * 4
    assert (a.first, a.median, a.rounds, a.cpu) == (9, 2, 3, 4)
    assert (b.first, b.median) == (8, 20)
    assert (a.p20, a.p80) == pytest.approx((1.4, 2.6))


@pytest.mark.parametrize(
    ("times", "settings", "rounds"),
    [
        ([1.0] * 9, {"seconds": 2.0, "least": 1, "most": 9}, 2),
        ([1.0] * 9, {"seconds": 2.0, "least": 5, "most": 9}, 5),
        ([0.1] * 9, {"seconds": 2.0, "least": 1, "most": 4}, 4),
    ],
)
def test_a_contender_has_its_time(times: list[float], settings: Any, rounds: int, limits: Any) -> None:
    from bench.harness import measure

    calls: list[str] = []
    (row,) = measure(case(calls, "a", memory=False, **settings), CPU, limits, clock=scripted(5.0, *times))
    assert row.rounds == rounds == len(calls) - 1


def test_a_slow_contender_does_not_hold_up_a_fast_one(limits: Any) -> None:
    from bench.harness import measure

    calls: list[str] = []
    clock = scripted(0, 0, 5, 1, 5, 1, 1, 1, 1)
    slow, fast = measure(
        case(calls, "slow", "fast", seconds=5.0, least=2, memory=False), CPU, limits, clock=clock
    )
    assert (slow.rounds, fast.rounds) == (2, 5)


def test_who_is_not_timed_before_the_deadline_has_no_row(
    monkeypatch: pytest.MonkeyPatch, limits: Any
) -> None:
    from bench import harness

    now = [0.0]
    monkeypatch.setattr(harness.time, "monotonic", lambda: now[0])

    def clock(call: Callable[[], object]) -> tuple[float, float]:
        call()
        now[0] += 10
        return 10.0, 10.0

    def timed(deadline: float) -> list[tuple[str, int]]:
        now[0] = 0.0
        chosen = case([], "a", "b", "c", least=3, most=3, memory=False)
        rows = harness.measure(chosen, CPU, limits, clock=clock, deadline=deadline)
        return [(row.contender, row.rounds) for row in rows]

    assert timed(1000) == [("a", 3), ("b", 3), ("c", 3)]
    assert timed(45) == [("a", 1), ("b", 1)]  # c would begin at 50
    assert timed(75) == [("a", 2), ("b", 2), ("c", 2)]  # a round that was begun is finished
    assert timed(15) == []


def test_a_warm_up_stands_in_for_the_first_call(limits: Any) -> None:
    from bench.harness import measure

    calls: list[str] = []
    warm_ups = {"a": lambda: calls.append("warm-up")}
    chosen = case(calls, "a", warm_ups=warm_ups, least=1, most=1, memory=False)
    measure(chosen, CPU, limits, clock=scripted(1, 1))
    assert calls == ["warm-up", "a"]


def test_memory_is_what_one_call_allocates(limits: Any) -> None:
    from bench.harness import Case, measure

    size = 64 << 20
    contenders = {"none": lambda: None, "some": lambda: torch.ones(size, dtype=torch.uint8).amax()}
    none, some = measure(Case("memory", {}, contenders, least=1, most=1), CPU, limits)
    assert none.peak_bytes < 8 << 20
    assert size * 0.95 < some.peak_bytes < size + (16 << 20)


def test_the_binding_limit_gives_the_floor(limits: Any) -> None:
    from bench.ceiling import Work

    table = [
        (Work(moved=100), (1.0, "copy")),
        (Work(moved=100, matrix_flops=8000, precision="bfloat16"), (2.0, "matrix, bfloat16")),
        (Work(moved=100, matrix_flops=8000), (8.0, "matrix, float32")),
        (Work(moved=100, vector_flops=3000), (3.0, "vector")),
        (Work(moved=100, vector_flops=3000, special=500), (10.0, "special")),
    ]
    for work, expected in table:
        assert limits.floor(work) == expected


def test_a_row_says_which_share_of_the_limit_it_reaches(limits: Any) -> None:
    from bench.ceiling import Work
    from bench.harness import measure

    chosen = case([], "a", work=Work(moved=100), least=1, most=1, memory=False)
    (row,) = measure(chosen, CPU, limits, clock=scripted(1, 4))
    assert (row.floor, row.limit, row.share) == (1.0, "copy", 0.25)


def test_the_limits_of_this_machine_are_measured() -> None:
    from bench import ceiling

    found = ceiling.measured(CPU)
    assert min(found.copy, found.vector, found.special, *found.matrix.values()) > 1e6
    assert set(found.matrix) == {"float32", "bfloat16", "float16"}


def test_every_row_describes_itself(limits: Any) -> None:
    from bench.harness import described

    known = described(CPU, limits)
    assert {"device", "clocks", "packages", "commit", "command", "time", "threads", "limits"} <= known.keys()
    assert known["packages"]["torch"] == torch.__version__.partition("+")[0]
    json.dumps(known)


def test_results_are_all_there_or_not(tmp_path: Path) -> None:
    from bench import harness

    out = tmp_path / "rows.jsonl"
    out.write_text("before")
    with pytest.raises(KeyboardInterrupt), harness.recording(out) as write:
        write([{"a": 1}])
        raise KeyboardInterrupt
    assert out.read_text() == "before"
    assert harness.read(tmp_path / "rows.jsonl.partial") == [{"a": 1}]
    with harness.recording(out) as write:
        write([{"a": 1}])
        write([{"a": 2}])
    assert harness.read(out) == [{"a": 1}, {"a": 2}]
    with harness.recording(out):
        pass  # nothing was measured
    assert len(harness.read(out)) == 2
    assert list(tmp_path.iterdir()) == [out]


def row(contender: str = "ours", case: str = "thing", **changes: Any) -> dict[str, Any]:
    return {
        "case": case, "contender": contender, "sizes": {"n": 1}, "median": 2.0, "p20": 1.0, "p80": 3.0,
        "cpu": 2.0, "first": 2.0, "peak_bytes": 1 << 20, "over": None, "share": None, "limit": None,
        "quality": {}, "extra": {}, "rounds": 9,
    } | changes  # fmt: skip


def test_growth_is_fitted_in_the_logarithms() -> None:
    from bench import results

    rows = [
        row(sizes={"n": n}, over="n", median=1e-3 * n**1.5, peak_bytes=n << 20, case=case)
        for case in ("a", "b")
        for n in (1, 4, 16)
    ]
    rows.append(row(case="not along anything"))
    rows += [row(case="cut short", sizes={"n": n}, over="n") for n in (1, 4)]
    a, b = results.growth(rows)
    assert (a.case, a.over, a.sizes) == ("a", "n", (1, 4, 16))
    assert (a.time, a.memory, b.time) == pytest.approx((1.5, 1.0, 1.5))


def test_a_slow_down_shows_in_the_row_it_belongs_to() -> None:
    from bench import results

    before = [row("ours"), row("peer"), row("ours", "other")]
    slower = row("ours", median=5.0, p20=4.0, p80=6.0)
    found = results.compared(before, [slower, row("peer", median=2.5, p20=1.5, p80=3.5), before[2]])
    assert [(each.key[:1] + each.key[2:], each.agree, each.ratio) for each in found] == [
        (("thing", "ours"), False, 2.5),
        (("thing", "peer"), True, 1.25),
        (("other", "ours"), True, 1.0),
    ]
    assert results.compared(before, [row(sizes={"n": 2})]) == []


@pytest.mark.parametrize(
    ("p20", "p80", "agree"), [(3.2, 4.0, True), (3.4, 4.0, False), (0.5, 0.95, True), (0.5, 0.9, False)]
)
def test_spreads_may_lie_as_far_apart_as_two_processes_do(p20: float, p80: float, agree: bool) -> None:
    from bench import results

    (found,) = results.compared([row()], [row(p20=p20, p80=p80)])
    assert found.agree is agree


def test_a_sleep_in_an_operation_is_found_in_its_row(monkeypatch: pytest.MonkeyPatch, limits: Any) -> None:
    from time import sleep

    from bench import bench_kmeans_plusplus, harness
    from meal_gpu.ops import select_for

    ops = select_for(CPU)
    whole, slept = ops.kmeans_plusplus, []

    def slow(*given: Any) -> torch.Tensor:
        sleep(0.2)
        slept.append(0.2)
        return whole(*given)

    monkeypatch.setattr(ops, "kmeans_plusplus", slow)
    chosen = replace(next(bench_kmeans_plusplus.cases(CPU)), least=2, most=2, memory=False)
    ours, peer = harness.measure(chosen, CPU, limits)
    assert (ours.contender[:4], peer.contender) == ("ours", "scikit-learn")
    # The first call and both rounds of ours, and none of the peer's
    assert len(slept) == 3
    assert min(ours.first, ours.p20) >= 0.2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 µs"), (1.5e-6, "1.50 µs"), (0.0123, "12.3 ms"), (2.0, "2.00 s"), (1234.5, "1,234 s")],
)
def test_times_have_three_figures(value: float, text: str) -> None:
    from bench import results

    assert results.seconds(value) == text


QUICK = ("confusion", "gather", "kmeans_plusplus", "selection", "decode", "neighbors", "scaling")


@pytest.mark.parametrize("name", QUICK)
def test_every_contender_gives_what_it_should(name: str, limits: Any) -> None:
    """The first case of each, once; what a contender's result was worth says whether it did its work."""
    from bench.harness import measure

    found = import_module(f"bench.bench_{name}").cases(CPU)
    chosen = next(found)
    rows = measure(replace(chosen, seconds=0.0, least=1, memory=False), CPU, limits)
    assert [row.contender for row in rows] == list(chosen.contenders)
    assert rows[0].contender.startswith("ours")
    worth = {
        "confusion": lambda q: q["pixels counted elsewhere"] < 100,
        "gather": lambda q: q["largest difference"] < 1e-5,
        "kmeans_plusplus": lambda q: 0 < q["potential"] < 1,
        "selection": lambda q: q["same patches"] == 200,
        "decode": lambda q: q["largest difference from Pillow"] <= 2,
        "neighbors": lambda q: q["rows with another set"] <= 5,
        "scaling": lambda q: q == {},
    }[name]
    for each in rows:
        assert worth(each.quality), (each.contender, each.quality)


def test_training_within_images_has_their_logits(limits: Any) -> None:
    from bench import bench_training
    from bench.harness import measure, narrowed

    chosen = narrowed(next(bench_training.cases(CPU)), [bench_training.OURS])
    (row,) = measure(replace(chosen, seconds=0.0, least=1, memory=False), CPU, limits)
    assert 0 < row.quality["relative error"] < 1e-5


def test_every_form_of_entropy_is_the_same(limits: Any) -> None:
    from bench import bench_patch_entropy
    from bench.harness import measure

    chosen = next(iter(bench_patch_entropy.cases(CPU)))
    plain = {name: call for name, call in chosen.contenders.items() if "compile" not in name}
    assert len(plain) == len(chosen.contenders) - 2
    for each in measure(replace(chosen, contenders=plain, least=1, most=1), CPU, limits):
        assert each.quality["largest error, nats"] < 1e-4, each.contender


def test_a_whole_acquisition_is_timed_stage_by_stage(monkeypatch: pytest.MonkeyPatch, limits: Any) -> None:
    from bench import bench_acquisition, performance, trained
    from bench.harness import measure

    monkeypatch.setattr(trained, "STEPS", 6)
    found = []
    for chosen in bench_acquisition.cases(CPU, count=14, size=(64, 128)):
        plain = {name: each for name, each in chosen.contenders.items() if "compile" not in name}
        assert len(plain) == len(chosen.contenders) - 1
        rows = measure(replace(chosen, contenders=plain, least=1, most=1), CPU, limits)
        found.append((chosen.sizes["start"], [row.contender for row in rows]))
        for each in rows:
            stages = each.extra["stages"]
            assert set(stages) <= set(performance.STAGES)
            assert {"network", "entropy", "features", "fit", "transform", "choose"} <= set(stages)
            assert 0 < sum(stages.values()) <= each.median + 0.01
            assert each.extra["float32 candidates"] > 150
        assert rows[0].extra["chosen again"] == 32
    names = ["ours", "ours, shared features", "DataLoader, Pillow, float32, seeded umap-learn",
             "OpenCV, bfloat16, unseeded umap-learn"]  # fmt: skip
    assert found == [("warm", names), ("cold", names)]


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command line over one quick case, with limits that are not measured."""
    from bench import ceiling

    limits = ceiling.Limits(1.0, {"float32": 1.0, "bfloat16": 1.0, "float16": 1.0}, 1.0, 1.0)
    monkeypatch.setattr(ceiling, "measured", lambda device: limits)
    module = import_module("bench.bench_kmeans_plusplus")
    first = replace(next(iter(module.cases(CPU))), seconds=0.0, least=2, memory=False)
    monkeypatch.setattr(module, "cases", lambda device: iter([first]))
    yield


@pytest.mark.usefixtures("few_cases")
def test_the_command_writes_draws_and_compares(tmp_path: Path) -> None:
    from bench.__main__ import app

    out, plot = tmp_path / "rows.jsonl", tmp_path / "rows.svg"
    done = CliRunner().invoke(app, ["kmeans_plusplus", "--out", str(out), "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["contender"] for row in rows] == ["ours, cpu ops", "scikit-learn"]
    assert "scikit-learn" in done.output
    assert "scikit-learn" in plot.read_text()
    for row in rows:
        row["p20"] = row["p80"] = 0.0
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(app, ["kmeans_plusplus", "--against", str(out)])
    assert done.exit_code == 1
    assert "2 of the 2 rows that are in" in done.output.replace("\n", " ")
    out.write_text(json.dumps(rows[0] | {"case": "another"}) + "\n")
    done = CliRunner().invoke(app, ["kmeans_plusplus", "--against", str(out)])
    assert done.exit_code == 1
    assert "0 of the 0 rows" in done.output.replace("\n", " ")


@pytest.mark.usefixtures("few_cases")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--contender", "typo"], "no case has typo"),
        (["--device", "gpu0"], "gpu0"),
        (["--plot", "rows.jpg"], ".svg or .png"),
        (["--against", "nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_a_wrong_argument_is_told_and_costs_no_rows(tmp_path: Path, arguments: list[str], told: str) -> None:
    from bench.__main__ import app

    out = tmp_path / "rows.jsonl"
    out.write_text("before")
    done = CliRunner().invoke(app, ["kmeans_plusplus", "--out", str(out), *arguments])
    assert done.exit_code == 2
    assert told in done.output
    assert out.read_text() == "before"


def test_an_error_of_ours_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from bench import harness
    from meal_gpu.errors import DataError

    def fails() -> None:
        raise DataError("no such folder")

    with pytest.raises(SystemExit, match="1"):
        harness.told(fails)
    assert capsys.readouterr().err == "bench: no such folder\n"


@pytest.mark.parametrize("wrong", ["choice", "scores", None])
def test_parity_fails_where_the_device_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str | None
) -> None:
    from bench import parity

    def query(score: float) -> Query:
        points = torch.arange(40), torch.arange(80.0).reshape(40, 2)
        return Query(
            torch.arange(32), ("image",) * 32, torch.zeros(32, 4), torch.zeros(32),
            pool_scores=torch.full((64,), score), candidates=points,
        )  # fmt: skip

    answers = itertools.cycle([query(0), query(0.01 if wrong == "scores" else 0)])
    monkeypatch.setattr(parity, "acquire", lambda *_, **__: next(answers))
    real = parity.ops.select_for(torch.device("cpu"))

    def reversed_(*given: Any) -> torch.Tensor:
        return real.kmeans_plusplus(*given).flip(0)

    if wrong == "choice":
        monkeypatch.setattr(parity.ops, "select_for", lambda _: SimpleNamespace(kmeans_plusplus=reversed_))
    out = tmp_path / "rows.jsonl"
    if wrong:
        with pytest.raises(SystemExit, match="other queries"):
            parity.main(["--device", "cpu", "--out", str(out)])
    else:
        parity.main(["--device", "cpu", "--out", str(out)])
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.usefixtures("few_cases")
def test_what_is_not_begun_in_time_is_named() -> None:
    from bench.__main__ import app

    done = CliRunner().invoke(app, ["kmeans_plusplus", "--seconds", "-1"])
    assert "no time within -1 s: kmeans_plusplus" in done.output


@pytest.mark.usefixtures("few_cases")
def test_contenders_are_chosen_by_name() -> None:
    from bench.__main__ import app

    narrowed = CliRunner().invoke(app, ["kmeans_plusplus", "--contender", "scikit-learn"])
    assert narrowed.exit_code == 0 and "1 rows in" in narrowed.output
    unknown = CliRunner().invoke(app, ["kmeans_plusplus", "--contender", "sklearn"], env={"COLUMNS": "200"})
    assert unknown.exit_code == 2
    assert "no case has sklearn; there are ours, cpu ops, scikit-learn" in unknown.output


def test_the_cases_are_listed_and_unknown_ones_refused() -> None:
    from bench.__main__ import ORDER, app

    assert set(ORDER) == {path.stem.removeprefix("bench_") for path in (ROOT / "bench").glob("bench_*.py")}
    listed = CliRunner().invoke(app, ["--list"])
    assert [line.split()[0] for line in listed.output.splitlines()] == list(ORDER)
    assert all(len(line.split()) > 3 for line in listed.output.splitlines())
    unknown = CliRunner().invoke(app, ["nonsense"])
    assert unknown.exit_code == 2
    assert "unknown case nonsense" in unknown.output


def test_meal_gpu_bench_is_that_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from meal_gpu import cli

    runner = CliRunner()
    done = runner.invoke(cli.app, ["bench", "--list"])
    assert done.exit_code == 0
    assert "patch_entropy" in capfd.readouterr().out
    monkeypatch.setattr(cli, "__file__", "/nowhere/meal_gpu/cli.py")
    missing = runner.invoke(cli.app, ["bench"])
    assert "clone the repository" in str(missing.exception)


def test_the_pass_on_a_gpu_runs_modules_that_exist_and_every_case() -> None:
    from bench.__main__ import ORDER

    script = (ROOT / "bench" / "gpu_pass.sh").read_text().replace("\\\n", " ")
    steps = [line.split(" -m ")[1].split() for line in script.splitlines() if line.startswith("step ")]
    assert {module for module, *_ in steps} == {"pytest", "bench", "bench.parity"}
    for name in ("bench", "bench.parity"):
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name
    cases = [word for module, *words in steps if module == "bench" for word in words if word in ORDER]
    assert set(cases) == set(ORDER)


def test_a_peer_that_is_not_installed_has_no_row_and_stops_no_other(limits: Any) -> None:
    from bench.harness import measure

    def absent() -> None:
        raise ModuleNotFoundError("No module named 'baal'")

    chosen = replace(case([], "a", "b", memory=False), contenders={"baal": absent, "ours": lambda: None})
    assert [row.contender for row in measure(chosen, CPU, limits)] == ["ours"]


def test_a_case_narrowed_to_some_contenders_keeps_their_order_and_the_rest() -> None:
    from bench.harness import Case, narrowed

    given = Case("any", {"n": 3}, {name: lambda: None for name in "abc"}, least=2)
    found = narrowed(given, ["c", "a", "unknown"])
    assert list(found.contenders) == ["c", "a"]
    assert (found.sizes, found.least) == (given.sizes, 2)


def test_peers_that_may_be_missing_are_imported_where_they_are_called() -> None:
    """Elsewhere they would end a call of many cases."""
    optional = {"baal", "cuml", "cv2", "torchmetrics", "triton"}
    for path in (ROOT / "bench").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name != "cases"
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in optional:
                assert id(node) in called, f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Import) and {name.name.split(".")[0] for name in node.names} & optional:
                assert id(node) in called, f"{path.name}:{node.lineno}"
