"""The page as text: self-contained, escaped, the same for equal runs."""

import base64
import hashlib
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from reported_runs import CLASSES, make, make_whole

from meal_gpu import report
from meal_gpu.report import chart, content, load, page

HOSTILE = [
    "<script>alert(1)<",
    'a"b&c',
    "a$b$c",
    r"$\frac{$",
    "_old",
    "ü %s",
    "</script><img onerror=alert(1)>",
]


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text outside of styles and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.raw: dict[str, str] = {}
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = f"{tag}#{dict(attrs).get('id', '')}" if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw[self._inside] = data
        else:
            self.words.append(data.strip())

    def names(self, *wanted: str) -> list[str]:
        return [tag for tag, _ in self.found if tag in wanted]


def rendered(path: Path, **options: Any) -> str:
    return page.render(content.gather([load(path)], **options))


def test_the_page_holds_the_tables(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    assert report.write([path]) == path / "report.html"
    tags = Tags((path / "report.html").read_text(encoding="utf-8"))
    assert len(tags.names("table")) == 2
    for cell in ("0.2500", "6.00%", "best epoch", "25.0", "–", CLASSES[1]):
        assert cell in tags.words


def test_nothing_comes_from_elsewhere(whole: str) -> None:
    tags = Tags(whole)
    assert not tags.names("iframe", "object", "embed", "image", "use", "base", "form")
    links = [attrs[key] for _, attrs in tags.found for key in ("src", "href", "srcset") if key in attrs]
    assert links
    assert all(str(link).startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", whole)
    assert not [
        attrs for _, attrs in tags.found if any(key.startswith("on") or key == "style" for key in attrs)
    ]


def test_the_policy_allows_this_style_and_this_script_alone(whole: str) -> None:
    tags = Tags(whole)
    (policy,) = (a["content"] for tag, a in tags.found if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(str(rule).strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind, key in (("style", "style#"), ("script", "script#")):
        digest = base64.b64encode(hashlib.sha256(tags.raw[key].encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    # The policy must stand before what it is about
    assert whole.index("Content-Security-Policy") < whole.index("<style>")


@pytest.mark.fault("security", "a run called `<script>alert(1)</script>`", "text in its report, not markup")
@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_data(name: str, tmp_path: Path) -> None:
    # two runs of one strategy: the curves are labelled with the folders' names
    paths = [make(tmp_path / name.replace("/", "∕")), make(tmp_path / "other")]
    html = page.render(content.gather([load(path) for path in paths]))
    tags = Tags(html)
    assert len(tags.names("script")) == 2
    assert not tags.names("img")
    labels = [text for text in tags.words if text.startswith(paths[0].name)]
    assert any(text.startswith(f"{paths[0].name}: entropy") for text in labels)
    assert paths[0].name in labels  # the legend's


@pytest.mark.fault(
    "security", "an image called `</script>…`", "data in its report's script, which it cannot leave"
)
def test_image_names_cannot_leave_the_script(scenes: Path, tmp_path: Path) -> None:
    name = "</script><img src=x onerror=alert(1)>&"
    tags = Tags(rendered(make_whole(tmp_path / "a", scenes, name=name, steps=1)))
    assert len(tags.names("script")) == 2
    assert not tags.names("img")
    assert not {"<", ">", "&"} & set(tags.raw["script#data"])
    (run,) = json.loads(tags.raw["script#data"])
    assert run["embedding"]["names"]["0"] == f"0{name}"
    assert f"0{name}" in tags.words  # the caption's


def test_every_picture_has_an_alternative_and_every_field_a_label(whole: str) -> None:
    tags = Tags(whole)
    pictures = [attrs for tag, attrs in tags.found if tag == "img"]
    named = [attrs for attrs in pictures if attrs["alt"]]
    assert len(named) == 48
    assert all(attrs.get("class") in ("heat", "classes") for attrs in pictures if not attrs["alt"])
    assert re.fullmatch(r"patch \d+ of .+, outlined in its surroundings", str(named[0]["alt"]))
    labelled = {attrs["for"] for tag, attrs in tags.found if tag == "label" and "for" in attrs}
    assert {attrs["id"] for _, attrs in tags.found if attrs.get("type") == "range"} <= labelled
    drawn = [attrs for tag, attrs in tags.found if tag in ("svg", "canvas")]
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for attrs in drawn)
    assert ("html", {"lang": "en"}) in tags.found


def test_caps_are_stated(whole: str) -> None:
    words = Tags(whole).words
    assert words.count("Showing 16 of 20.") == 2
    assert words.count("Showing 16 of 16.") == 1
    assert any(text.startswith("Showing 96 of 96 patches of the pool.") for text in words)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ((3, 0.5, 0.25, 0.75), ", of whose pixels that model has 50.0% right [25.0%, 75.0%];"),
        ((1, 0.5, None, None), ", of whose pixels that model has 50.0% right;"),
        ((0, None, None, None), ";"),
    ],
)
def test_patches_that_were_drawn_are_not_said_to_be_asked_for(
    found: tuple[float | None, ...], told: str, run: Path, tmp_path: Path
) -> None:
    step = shutil.copytree(run, tmp_path / "copy") / "steps" / "001"
    frame = pd.read_parquet(step / "query.parquet")
    frame["arm"] = ["strategy"] * 17 + ["control"] * 3
    frame.to_parquet(step / "query.parquet", index=False)
    metrics = json.loads((step / "metrics.json").read_text())
    control = dict(zip(("patches", "accuracy", "low", "high"), found, strict=True))
    (step / "metrics.json").write_text(json.dumps(metrics | {"control": control}))
    text = rendered(tmp_path / "copy", images=False)
    assert f"20 patches, 17 asked by the model of step 0, 3 drawn at random{told}" in text
    assert "20 patches, asked by the model of step 1;" in text


def test_what_is_missing_is_on_the_page(run: Path, whole: str) -> None:
    words = Tags(rendered(run, images=False)).words
    assert "thumbnails and class shares: images were not asked for" in words
    assert "Left out of this page:" in words
    assert "Left out of this page:" not in Tags(whole).words


def test_steps_are_split_into_tables_that_fit_on_paper(tmp_path: Path) -> None:
    tags = Tags(rendered(make(tmp_path / "a", tuple(k / 100 for k in range(23)))))
    tables = [attrs for _, attrs in tags.found if attrs.get("aria-label") == "IoU per class, %"]
    assert len(tables) == 3  # of 10, 10 and 3 steps
    assert tags.words.count("step 22") == 3  # its column, and the bar of the wide and the narrow chart


def test_equal_runs_give_equal_bytes(run: Path, html: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / run.name)
    assert report.write([copy], tmp_path / "page.html").read_bytes() == html.read_bytes()
    assert html.stat().st_size < 1_000_000


def test_bands_are_drawn_where_there_are_seeds(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"e{seed}", (0.2 + 0.1 * seed, 0.5), seed=seed) for seed in range(3)]
    html = page.render(content.gather([load(path) for path in paths], images=False))
    assert html.count('class="band s0"') == 2  # the wide and the narrow chart
    words = Tags(html).words
    assert "Bands: 95% confidence of the mean over seeds (Student's t)." in words
    assert "entropy, mean of 3 seeds" in words
    assert "0.3000" in words
    single = page.render(content.gather([load(paths[0])], images=False))
    assert 'class="band' not in single
    assert "Means over seeds" not in single


def test_a_mean_of_fewer_seeds_is_said_beside_the_chart(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"e{seed}", (0.2, 0.5)[: 2 - seed // 2], seed=seed) for seed in range(3)]
    words = Tags(page.render(content.gather([load(path) for path in paths], images=False))).words
    assert "Not all seeds of entropy have every step: the mean is of 2 at step 1." in words


def test_a_score_that_no_seed_moves_is_drawn_and_patches_are_counted_whole(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"e{seed}", (0.03014682199774292,) * 3, seed=seed) for seed in range(5)]
    for path in paths:
        file = path / "steps" / "002" / "metrics.json"
        more = {"labelled": 1234567, "patches": 160_000_000}
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    words = Tags(page.render(content.gather([load(path) for path in paths], images=False))).words
    assert {"0.0301", "1234567"} <= set(words)
    assert not [word for word in words if "e+" in word]


def test_a_curve_breaks_where_a_score_is_missing(tmp_path: Path) -> None:
    path = make(tmp_path / "a", (0.1, 0.2, math.nan, 0.4, 0.5))
    assert rendered(path, images=False).count("<polyline") == 4  # two, twice


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0.0, 1.0, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.0719, 0.1198, 5, [0.07, 0.08, 0.09, 0.1, 0.11, 0.12]),
        (2.0, 6.0, 4, [2, 3, 4, 5, 6]), (0.5, 0.5, 5, [0.5, 0.52]), (0.0, 0.0, 4, [0, 0.05]),
        (0.03, 0.03 + 1e-17, 5, [0.02, 0.04]), (0.3, 0.3 + 1e-12, 5, [0.3, 0.32]),
    ],
)  # fmt: skip
def test_ticks(low: float, high: float, count: int, expected: list[float]) -> None:
    assert chart.ticks(low, high, count) == pytest.approx(expected)


def test_bars_are_as_long_as_their_values() -> None:
    rows = [
        chart.Bar("a", ((0, 1.0, "one"), (1, 3.0, "three")), "4"),
        chart.Bar("b", ((0, 2.0, "two"),), "2"),
    ]
    svg = chart.bars(rows, 400, "what")
    lengths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert lengths[1] == pytest.approx(3 * lengths[0], abs=0.2)
    assert lengths[2] == pytest.approx(2 * lengths[0], abs=0.2)
    assert svg.startswith('<svg role="img" aria-label="what. a: one, three; b: two"')
