"""Tables and pages from run folders that were written by hand."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from meal_gpu import report
from meal_gpu.config import Config
from meal_gpu.errors import InputError, RunError
from meal_gpu.record import RunFolder
from meal_gpu.report import page, table
from meal_gpu.report.plot import curves

CLASSES = ("road", "<b>sky</b>")
SCORES = (0.25, 0.375, 0.5)


def make(path: Path, scores: tuple[float, ...] = SCORES, **changes: Any) -> Path:
    """A run folder with a complete step per score."""
    folder = RunFolder.create(path, Config(strategy="entropy").replace(**changes), torch.device("cpu"))
    environment = {"device": "A CPU, 2 cores", "commit": "0123456789ab"}
    (path / "env.json").write_text(json.dumps(environment))  # the same on every machine
    for step, score in enumerate(scores):
        metrics = {
            "step": step, "labelled": 32 * (step + 1), "patches": 1600, "share": 32 * (step + 1) / 1600,
            "mean_iou": score, "class_iou": {CLASSES[0]: score, CLASSES[1]: None}, "epoch": step + 1,
            "history": [],
        }  # fmt: skip
        with folder.writing(folder.step(step)) as aside:
            (aside / "metrics.json").write_text(json.dumps(metrics))
    return path


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


class Tags(HTMLParser):
    """Counts the tags of a page and collects the text outside of styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_the_page_holds_the_tables_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    assert report.write([path]) == path / "report.html"
    html = (path / "report.html").read_text(encoding="utf-8")
    tags = Tags(html)
    assert tags.names.count("svg") == 1
    assert tags.names.count("table") == 2
    assert not {"script", "link", "img", "iframe", "image"} & set(tags.names)
    fetched = re.findall(r"""(?:src|href)\s*=\s*["']([^#"'][^"']*)|url\(([^#)][^)]*)\)|@import""", html)
    assert not fetched  # references inside the figure are fragments
    for cell in ("0.2500", "6.00%", "best epoch", "25.0", "–"):
        assert cell in tags.words
    assert 'charset="utf-8"' in html


@pytest.mark.parametrize("name", ["<script>alert(1)<", 'a"b&c', "a$b$c", r"$\frac{$", "_old", "ü %s"])
def test_names_are_data(name: str, tmp_path: Path) -> None:
    # two runs of one strategy: the curves are labelled with the folders' names
    runs = [make(tmp_path / name), make(tmp_path / "other")]
    html = page.render([table.load(path) for path in runs])
    tags = Tags(html)
    assert "script" not in tags.names
    assert "b" not in tags.names  # the class called <b>sky</b>
    assert CLASSES[1] in tags.words
    assert any(word.startswith(f"{name}: entropy") for word in tags.words)
    svg = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    labels = ["".join(node.itertext()).strip() for node in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {name, "other"} <= set(labels)


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    first = report.write([path], tmp_path / "1.html").read_bytes()
    assert report.write([path], tmp_path / "2.html").read_bytes() == first
    for suffix in ("svg", "png", "pdf"):
        outs = [tmp_path / f"{n}.{suffix}" for n in (1, 2)]
        for out in outs:
            report.plot([path], out)
        assert outs[0].read_bytes() == outs[1].read_bytes()
    assert (tmp_path / "1.png").read_bytes().startswith(b"\x89PNG")


def legend(runs: list[table.Run]) -> list[str]:
    svg = ElementTree.fromstring(curves(runs))
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
    assert sorted(legend([entropy, again])) == sorted([*axes, "a", "d"])


def test_a_score_that_is_not_a_number_is_shown(tmp_path: Path) -> None:
    path = make(tmp_path / "a", (math.nan, 0.5))
    assert "nan" in report.text([path])
    assert report.write([path]).is_file()


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
        report.write([path], tmp_path / "no" / "such" / "page.html")
    with pytest.raises(RunError, match=r"no/such/plot\.svg: the plot cannot be written"):
        report.plot([path], tmp_path / "no" / "such" / "plot.svg")
    for name in ("plot.xyz", "plot"):
        with pytest.raises(InputError, match=rf"{name}: a plot ends in \.svg, \.png or \.pdf"):
            report.plot([path], tmp_path / name)
