"""Tables, files and the command: the whole text, and names that are data."""

import csv
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_runs import curve, folder

from meal_gpu import cli
from meal_gpu.compare import Comparison, compare, files, gather, markdown, plots, write
from meal_gpu.compare.runs import group
from meal_gpu.compare.tables import escape
from meal_gpu.errors import RunError

GOLDEN = Path(__file__).parent / "golden"
SCORES = {
    ("random", 0): (0.20, 0.30, 0.40), ("random", 1): (0.22, 0.31, 0.41), ("random", 2): (0.21, 0.33, 0.43),
    ("meal", 0): (0.20, 0.41, 0.52), ("meal", 1): (0.22, 0.43, 0.52), ("meal", 2): (0.21, 0.43, 0.56),
}  # fmt: skip


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    runs = [curve(strategy, seed, scores) for (strategy, seed), scores in SCORES.items()]
    return compare(group([*runs, curve("supervised", 0, [0.56], [100])]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("compare.md", markdown),
        ("compare.csv", files.tidy),
        ("pairs.csv", files.pairs),
        ("compare.tex", files.latex),
    ],
)
def test_the_whole_text(name: str, text: Callable[[Comparison], str], comparison: Comparison) -> None:
    assert text(comparison) == (GOLDEN / name).read_text(encoding="utf-8")


def test_the_tidy_table_holds_every_step_of_every_run(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(files.tidy(comparison))))
    learned = {(r["strategy"], int(r["seed"]), int(r["step"])): r for r in rows if r["compared"] == "1"}
    assert {k: float(r["mean_iou"]) for k, r in learned.items()} == {
        (*run, step): score for run, scores in SCORES.items() for step, score in enumerate(scores)
    }
    assert [(r["label"], r["share"]) for r in rows if r["compared"] == "0"] == [("supervised", "1.0")]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("meal-ft", "meal-ft"),
        ("a_b", "a_b"),
        ("_a_", r"\_a\_"),
        ("a|b", r"a\|b"),
        ("<b>*x*</b>", r"\<b\>\*x\*\</b\>"),
        ("[x](y)`z`", r"\[x\](y)\`z\`"),
        ("$a$ \\ &lt;", r"\$a\$ \\ \&lt;"),
        ("two\nlines", "two lines"),
    ],
)
def test_names_are_data_in_markdown(name: str, shown: str) -> None:
    assert escape(name) == shown
    comparison = compare(group([curve(name, 0, [0.1]), curve("meal", 0, [0.2])]))
    assert all(
        line.count("|") - line.count(r"\|") in (0, 4, 5, 7, 8) for line in markdown(comparison).split("\n")
    )
    assert f"| {shown} " in markdown(comparison)


def test_names_are_data_in_latex() -> None:
    name = "a_b & 50% #1 $x$ {y} ~^\\ [z]"
    assert files.tex(name) == (
        r"a\_b \& 50\% \#1 \$x\$ \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{} {[}z]"
    )
    (row,) = (x for x in files.latex(compare(group([curve(name, 0, [0.1])]))).split("\n") if "50" in x)
    assert row.startswith(files.tex(name) + " & 1 & 0.1000 &")


@pytest.mark.parametrize("name", ["<b>&", "$a$", "_old"])
def test_names_are_data_in_the_figure(name: str) -> None:
    figure = plots.curves(compare(group([curve(name, 0, [0.1, 0.2]), curve("meal", 0, [0.2, 0.3])])))
    labels = [
        "".join(node.itertext()).strip()
        for node in ElementTree.fromstring(figure).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert {f"{name}, n = 1", "meal, n = 1"} <= set(labels)


def test_the_figure_has_a_band_per_strategy_and_equal_bytes(comparison: Comparison) -> None:
    figure = plots.curves(comparison)
    assert plots.curves(comparison) == figure
    assert figure.count(b"FillBetweenPolyCollection") == 2
    assert b"supervised, all labels" in figure
    assert b"validation mIoU, mean and 95% interval" in figure


def test_an_unknown_score_is_shown() -> None:
    runs = [curve(name, seed, [0.1, 0.2 + seed / 10]) for name in ("a", "b") for seed in range(2)]
    runs[0] = replace(runs[0], score=runs[0].score * float("nan"))
    found = compare(group(runs))
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in markdown(found).split("## mIoU")[0].split("\n")
        if line.startswith("| ")
    }
    assert cells["a"][:3] == ["2", "nan", "nan"]
    assert cells["b"][1].startswith("0.1750 [")
    (row,) = list(csv.DictReader(io.StringIO(files.pairs(found))))
    assert (row["difference"], row["p"], row["outcome"]) == ("", "", "no test: an mIoU is NaN")
    assert "Holm's correction is for" not in markdown(found)
    assert plots.curves(found).startswith(b"<?xml")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["meal-gpu", "compare", str(tmp_path / "sweep"), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    for (strategy, seed), scores in SCORES.items():
        folder(tmp_path / "sweep" / f"{strategy}-{seed}", strategy, seed, scores)
    out = tmp_path / "new" / "out"
    code, text, errors = call("--out", str(out), "--level", "0.9", "--baseline", "random")
    assert (code, errors) == (0, "")
    assert "**Verdict.** meal wins" in text
    assert "final mIoU [90% interval]" in text
    names = ["compare.csv", "compare.md", "compare.tex", "curves.svg", "pairs.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert text.startswith((out / "compare.md").read_text(encoding="utf-8"))
    assert call("--baseline", "best") == (
        1, "", "meal-gpu: baseline 'best' is not among the runs; known: meal, random\n",
    )  # fmt: skip


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    found = compare(gather([folder(tmp_path / "a", "meal", 0, [0.1])]))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"/file/out: the comparison cannot be written"):
        write(found, tmp_path / "file" / "out")
