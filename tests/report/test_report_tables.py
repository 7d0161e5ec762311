"""Tables, curves and plots from run folders that were written by hand."""

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from reported_runs import SCORES, make
from typer.testing import CliRunner

from meal_gpu import cli, report
from meal_gpu.errors import InputError, RunError
from meal_gpu.report import curves, table
from meal_gpu.report.plot import curves as figure


def test_the_table_as_text(tmp_path: Path) -> None:
    assert report.text([make(tmp_path / "camvid-0")]) == (
        "camvid-0: entropy on synthetic, smp, encoder frozen, seed 0; A CPU, 2 cores, commit 0123456789ab\n"
        "\n"
        "| step | labelled | share |   mIoU | best epoch |\n"
        "|-----:|---------:|------:|-------:|-----------:|\n"
        "|    0 |       32 | 2.00% | 0.2500 |          1 |\n"
        "|    1 |       64 | 4.00% | 0.3750 |          2 |\n"
        "|    2 |       96 | 6.00% | 0.5000 |          3 |\n"
    )


def test_several_runs_are_tabulated_one_after_another(tmp_path: Path) -> None:
    runs = [make(tmp_path / "a"), make(tmp_path / "b", (0.125,), finetune=True, seed=7)]
    text = report.text(runs)
    assert text.index("a: entropy") < text.index("0.5000") < text.index("b: entropy") < text.index("0.1250")
    assert "encoder fine-tuned, seed 7" in text


def test_a_run_outside_a_checkout_has_no_commit(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    (path / "env.json").write_text(json.dumps({"device": "CPU", "commit": None}))
    assert "commit unknown" in report.text([path])


def legend(runs: list[table.Run]) -> list[str]:
    svg = ElementTree.fromstring(figure(runs))
    words = ["".join(node.itertext()).strip() for node in svg.iter("{http://www.w3.org/2000/svg}text")]
    return [word for word in words if not re.fullmatch(r"[\d.−]+", word)]


def test_curves_are_named_by_strategy_where_that_tells_them_apart(tmp_path: Path) -> None:
    entropy = table.load(make(tmp_path / "a"))
    meal = table.load(make(tmp_path / "b", strategy="meal"))
    supervised = table.load(make(tmp_path / "c", (0.7,), strategy="supervised"))
    again = table.load(make(tmp_path / "d"))
    axes = ["labelled patches, % of the pool", "validation mIoU"]
    assert sorted(legend([entropy, meal, supervised])) == sorted(
        [*axes, "entropy", "meal", "supervised, all labels"]
    )
    # equal runs are no repetition over seeds
    assert sorted(legend([entropy, again])) == sorted([*axes, "a", "d"])


def test_seeds_of_one_configuration_are_averaged(tmp_path: Path) -> None:
    runs = [
        table.load(make(tmp_path / "e0", (0.2, 0.4, 0.9))),
        table.load(make(tmp_path / "e1", (0.3, 0.6), seed=1)),
        table.load(make(tmp_path / "m", strategy="meal")),
        table.load(make(tmp_path / "e2", (0.4, 0.5, 0.9), seed=2)),
    ]
    mean, single = curves.gather(runs)
    assert mean.label == "entropy, mean of 2 to 3 seeds"
    assert mean.runs == ("e0", "e1", "e2")
    # t(0.975, 2 degrees) = 4.3027; s = 0.1 and 0.1
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert [(p.step, p.seeds, p.labelled, p.share) for p in mean.points] == [
        (0, 3, 32, 0.02), (1, 3, 64, 0.04), (2, 2, 96, 0.06),
    ]  # fmt: skip
    for point, expected in zip(mean.points, (0.3, 0.5), strict=False):
        assert point.mean == pytest.approx(expected)
        assert (point.low, point.high) == pytest.approx((expected - half, expected + half))
    assert mean.points[2].mean == 0.9
    assert mean.notes == ("Not all seeds of entropy have every step: the mean is of 2 at step 2.",)
    assert (single.label, single.notes) == ("meal", ())
    assert [p.mean for p in single.points] == list(SCORES)
    assert all(math.isnan(p.low) and math.isnan(p.high) for p in single.points)
    assert {"entropy, mean of 2 to 3 seeds", "meal"} <= set(legend(runs))


def test_runs_of_two_sweeps_are_told_apart(tmp_path: Path) -> None:
    paths = [
        make(tmp_path / sweep / f"entropy-{seed}", seed=seed, learning_rate=rate)
        for sweep, rate in (("slow", 1e-4), ("fast", 1e-2)) for seed in (0, 1)
    ]  # fmt: skip
    runs = table.load_all([*paths, make(tmp_path / "slow" / "meal-0", strategy="meal")])
    assert [run.name for run in runs] == [
        "slow/entropy-0", "slow/entropy-1", "fast/entropy-0", "fast/entropy-1", "meal-0",
    ]  # fmt: skip
    assert [curve.label for curve in curves.gather(runs)] == [
        "entropy (slow), mean of 2 seeds", "entropy (fast), mean of 2 seeds", "meal",
    ]  # fmt: skip
    assert "slow/entropy-0: entropy on" in report.text(paths)


DAMAGE: list[dict[str, Any]] = [
    {"share": math.inf}, {"share": math.nan}, {"labelled": math.nan}, {"labelled": 20.5}, {"labelled": 0},
    {"patches": 0}, {"step": 7}, {"mean_iou": True}, {"mean_iou": "0.5"}, {"class_iou": {"road": "x"}},
    {"control": {"accuracy": "x", "low": None, "high": None}}, {"control": 7}, {"epoch": None},
]  # fmt: skip


@pytest.mark.parametrize("change", DAMAGE, ids=str)
def test_metrics_that_no_run_writes_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = make(tmp_path / "a")
    file = path / "steps" / "001" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(RunError, match="a: the run's records cannot be read"):
        table.load(path)


def test_other_settings_keep_seeds_apart(tmp_path: Path) -> None:
    runs = [table.load(make(tmp_path / "a")), table.load(make(tmp_path / "b", seed=1, query_size=16))]
    assert [curve.label for curve in curves.gather(runs)] == ["a", "b"]
    moved = [runs[0], table.load(make(tmp_path / "c", seed=1, root="/elsewhere", device="cpu"))]
    assert [curve.label for curve in curves.gather(moved)] == ["entropy, mean of 2 seeds"]
    assert curves.gather(moved)[0].notes == (
        "The seeds of entropy were computed with more than one device (auto, cpu), which may round "
        "otherwise; they are taken as one strategy.",
    )
    both = [*moved, runs[1]]
    assert [curve.label for curve in curves.gather(both)] == ["entropy (a, c), mean of 2 seeds", "b"]


def test_a_score_that_is_not_a_number_is_shown(tmp_path: Path) -> None:
    path = make(tmp_path / "a", (math.nan, 0.5))
    assert "nan" in report.text([path])
    assert report.write([path], images=False).is_file()


def test_plots_of_equal_runs_are_equal(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    for suffix in ("svg", "png", "pdf"):
        outs = [tmp_path / f"{n}.{suffix}" for n in (1, 2)]
        for out in outs:
            report.plot([path], out)
        assert outs[0].read_bytes() == outs[1].read_bytes()
    assert (tmp_path / "1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("show", [report.text, report.write, lambda paths: report.plot(paths, Path("x.svg"))])
def test_runs_that_cannot_be_reported_are_named(show: Any, tmp_path: Path) -> None:
    empty = make(tmp_path / "empty", ())
    with pytest.raises(RunError, match=r"empty holds no complete step yet: continue it with --resume"):
        show([empty])
    with pytest.raises(RunError, match="nowhere holds no run"):
        show([tmp_path / "nowhere"])
    gap = make(tmp_path / "gap")
    (gap / "steps" / "001").rename(tmp_path / "gone")
    with pytest.raises(RunError, match="a step is missing"):
        show([gap])
    damaged = make(tmp_path / "damaged")
    (damaged / "steps" / "002" / "metrics.json").write_text("{")
    with pytest.raises(RunError, match="damaged: the run's records cannot be read"):
        show([damaged])


def test_a_page_or_plot_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    with pytest.raises(RunError, match=r"no/such/page\.html: the report cannot be written"):
        report.write([path], tmp_path / "no" / "such" / "page.html", images=False)
    with pytest.raises(RunError, match=r"no/such/plot\.svg: the plot cannot be written"):
        report.plot([path], tmp_path / "no" / "such" / "plot.svg")
    for name in ("plot.xyz", "plot"):
        with pytest.raises(InputError, match=rf"{name}: a plot ends in \.svg, \.png or \.pdf"):
            report.plot([path], tmp_path / name)


def test_the_command_takes_a_folder_of_runs_and_looks_at_the_suffix_first(tmp_path: Path) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(cli.app, ["report", *map(str, arguments), "--no-images"])

    for name, scores in (("a", SCORES), ("b", ())):
        make(tmp_path / "sweep" / name, scores)
    refused = call(tmp_path / "sweep", "--plot", tmp_path / "x.jpg")
    assert "a plot ends in .svg, .png or .pdf" in str(refused.exception)
    assert not (tmp_path / "sweep" / "report.html").exists()
    done = call(tmp_path / "sweep")
    assert done.exit_code == 0, done.output
    assert "a: entropy on synthetic" in done.output
    assert f"Left out, without a complete step: {tmp_path}/sweep/b." in done.output
    assert (tmp_path / "sweep" / "report.html").is_file()
    assert "holds no complete step yet" in str(call(tmp_path / "sweep" / "b").exception)
