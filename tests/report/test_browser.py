"""The page in a headless Chromium, without a network."""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from reported_runs import make, make_whole

from meal_gpu import report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = '</script><img src=x onerror="window.hit=1">&amp;.png'
# WCAG 2's contrast of a text with the first background behind it that is not transparent
CONTRASTS = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [], TEXTS = "h1,h2,h3,p,li,td,th,a,label,legend,output,figcaption,svg text";
  for (const node of document.querySelectorAll(TEXTS)) {
    if (!node.getClientRects().length || !node.textContent.trim()) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(parse(node.tagName === "text" ? style.fill : style.color)), light(behind(node))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""
# What sticks out of the window, unless a box around it scrolls
OUTSIDE = """() => [...document.body.querySelectorAll("*")].filter((node) => {
  if (node.closest(".wide") && !node.matches(".wide")) return false;
  const box = node.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map((node) => node.outerHTML.slice(0, 80))"""


def counts(page: "Page") -> list[int]:
    states = ("rest", "labelled", "candidate", "chosen")
    return [int(page.locator(f'[data-count="{state}"]').inner_text()) for state in states]


def go_to(page: "Page", step: int) -> None:
    page.locator(".slider input").focus()
    page.keyboard.press("Home")
    for _ in range(step):
        page.keyboard.press("ArrowRight")


def point_at(page: "Page", patch: int, *, tap: bool = False) -> None:
    """Move to a patch of the map: 10 in a row, a unit apart, over 9.02 by 9.02 units."""
    canvas = page.locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    side = (min(box["width"], box["height"]) - 2 - 28) / 9.02
    x = box["x"] + box["width"] / 2 + (patch % 10 - 4.51) * side
    y = box["y"] + box["height"] / 2 - (patch // 10 - 4.51) * side
    page.touchscreen.tap(x, y) if tap else page.mouse.move(x, y)


def test_it_opens_without_a_network_and_without_a_complaint(visit: Any, html: Path) -> None:
    page = visit(html)
    assert page.title() == "meal-gpu report: whole"
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.locator("img").count() > 48


def test_the_policy_forbids_scripts_and_requests_of_others(browser: "Browser", html: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(html.as_uri())
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.hit = 1";
        document.body.append(script);
        const image = document.createElement("img");
        document.body.append(image);
        return new Promise((done) => { image.onerror = done; image.src = "file:///x.png"; });
    }""")
    assert page.evaluate("window.hit") is None
    assert page.evaluate("fetch('https://example.org').catch(error => error.name)") == "TypeError"
    context.close()


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_overflows_sideways(width: int, visit: Any, html: Path) -> None:
    page = visit(html, width)
    for step in range(3):
        go_to(page, step)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(OUTSIDE) == []


def test_long_names_and_many_steps_fit_a_phone(visit: Any, tmp_path: Path) -> None:
    scores = tuple(step / 30 for step in range(25))
    runs = [
        make(tmp_path / f"{'name' * 30}{seed}", scores, seed=seed, query_size=16 + seed) for seed in (0, 1)
    ]
    page = visit(report.write(runs, tmp_path / "page.html"), 360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(OUTSIDE) == []


def test_the_slider_changes_what_is_counted_and_shown(visit: Any, html: Path) -> None:
    page = visit(html)
    assert counts(page) == [0, 36, 40, 20]
    for step, expected in ((0, [80, 0, 0, 16]), (1, [10, 16, 50, 20]), (2, [0, 36, 40, 20])):
        go_to(page, step)
        assert counts(page) == expected
        assert page.locator(".slider output").inner_text() == str(step)
        shown = page.locator(".query:visible")
        assert shown.count() == 1
        assert shown.get_attribute("data-step") == str(step)
    assert page.locator(".slider input").get_attribute("aria-valuetext") == "step 2"


def test_the_slider_changes_the_class_shares(visit: Any, html: Path) -> None:
    page = visit(html)
    after = page.locator("td.after")
    last = after.all_inner_texts()
    go_to(page, 0)
    before = page.locator(".shares tbody tr td:nth-of-type(1)").all_inner_texts()
    assert after.all_inner_texts() == before != last
    bars = page.locator(".pair rect")
    widths = [rect.get_attribute("width") for rect in bars.all()]
    assert widths[::2] == widths[1::2]


def test_pointing_at_a_patch_shows_it(visit: Any, html: Path) -> None:
    page = visit(html)
    tip = page.locator(".tip")
    assert tip.inner_text() == "No patch is pointed at."
    first = page.locator(".query:visible .gallery li").first
    patch = int(first.get_attribute("data-patch"))
    point_at(page, patch)
    assert tip.locator("figcaption").inner_text().startswith(f"patch {patch} · chosen · score ")
    assert tip.locator("img").first.get_attribute("src") == first.locator("img").first.get_attribute("src")
    assert "lit" in first.get_attribute("class")
    # One of step 0: its picture is in a gallery that is not shown now
    point_at(page, 5)
    assert tip.locator("figcaption").inner_text().startswith("patch 5 · labelled · ")
    own = page.locator('[data-patch="5"] img').first.get_attribute("src")
    assert tip.locator("img").first.get_attribute("src") == own
    # The first that was never asked for has a small picture of its own
    rest = 95
    point_at(page, rest)
    assert tip.locator("figcaption").inner_text().startswith(f"patch {rest} · candidate")
    assert tip.locator("img").get_attribute("alt").startswith(f"patch {rest} of ")


def test_a_patch_is_what_it_was_at_the_step_shown(visit: Any, html: Path) -> None:
    page = visit(html)
    # 5 is of the first image, 16 of the first query, and 70 one of its candidates
    for step, states in enumerate(
        (("chosen", "in the pool", "in the pool"), ("labelled", "chosen", "candidate"))
    ):
        go_to(page, step)
        for patch, state in zip((5, 16, 70), states, strict=True):
            point_at(page, patch)
            assert page.locator(".tip figcaption").inner_text().startswith(f"patch {patch} · {state} · ")


def test_a_tap_shows_a_patch_too(visit: Any, html: Path) -> None:
    page = visit(html, 390, has_touch=True, is_mobile=True)
    point_at(page, 5, tap=True)
    assert page.locator(".tip figcaption").inner_text().startswith("patch 5 · labelled · ")


def test_arrows_go_through_the_chosen_patches(visit: Any, html: Path) -> None:
    page = visit(html)
    chosen = [int(card.get_attribute("data-patch")) for card in page.locator(".query:visible li").all()]
    page.locator("canvas").focus()
    for patch in chosen[:3]:
        page.keyboard.press("ArrowRight")
        assert page.locator(".tip figcaption").inner_text().startswith(f"patch {patch} · chosen")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".tip figcaption").inner_text().startswith(f"patch {chosen[1]} ·")


def test_overlays_are_toggled_and_shown_under_the_pointer(visit: Any, html: Path) -> None:
    page = visit(html)
    heat = page.locator(".query:visible .heat").first
    classes = page.locator(".query:visible .classes").first

    def visible(locator: Any) -> bool:
        return float(locator.evaluate("node => getComputedStyle(node).opacity")) > 0.5

    page.emulate_media(reduced_motion="reduce")
    assert not visible(heat) and not visible(classes)
    heat.hover(force=True)
    assert visible(heat)
    page.mouse.move(0, 0)
    page.get_by_label("entropy").check()
    assert visible(heat) and not visible(classes)
    assert page.locator(".key-heat").is_visible() and not page.locator(".key-classes").is_visible()
    page.get_by_label("prediction").check()
    assert visible(classes) and not visible(heat)
    assert page.locator(".key-classes").is_visible()


def test_hostile_names_stay_names(visit: Any, scenes: Path, tmp_path: Path) -> None:
    run = make_whole(tmp_path / "<img onerror=alert(1)>", scenes, name=HOSTILE, steps=1)
    page = visit(report.write([run], tmp_path / "page.html"))
    point_at(page, 5)
    assert page.locator(".tip figcaption").inner_text().endswith(f"0{HOSTILE} · no thumbnail in this page")
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hit") is None
    assert page.locator("h2").last.inner_text().startswith("<img onerror=alert(1)>: meal")


def test_on_paper_every_step_is_there_and_nothing_is_cut_off(visit: Any, html: Path) -> None:
    page = visit(html, 718, color_scheme="dark")  # A4 at 96 dpi, within margins
    page.emulate_media(media="print")
    assert page.locator(".query:visible").count() == 3
    assert not page.locator(".slider").is_visible()
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    cut = """() => [...document.querySelectorAll(".wide")].filter((node) =>
        node.scrollWidth > node.clientWidth + 1 || getComputedStyle(node).overflowX !== "visible").length"""
    assert page.evaluate(cut) == 0
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(scheme: str, visit: Any, html: Path) -> None:
    page = visit(html, color_scheme=scheme)
    page.get_by_label("prediction").check()
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [text for contrast, text in found if contrast < 4.5] == []
    # 3 to 1 is what WCAG asks of graphics: lines, bars and points against the page
    for name in ("s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "labelled", "candidate", "chosen"):
        contrast = page.evaluate(
            """([measure, name]) => {
                const probe = document.createElement("p");
                probe.textContent = "probe";
                probe.style.color = `var(--${name})`;
                document.body.append(probe);
                const found = eval(measure)().find(([, text]) => text === "probe")[0];
                probe.remove();
                return found;
            }""",
            [CONTRASTS, name],
        )
        assert contrast >= 3, name


def test_a_page_is_whole_without_its_script(visit: Any, html: Path) -> None:
    page = visit(html, java_script_enabled=False)
    assert page.locator(".query:visible").count() == 3
    assert page.locator("noscript").first.is_visible()


def test_fifty_thousand_points_are_found_at_once(visit: Any, html: Path, tmp_path: Path) -> None:
    """Not timed: what pointing costs is counted in points that are looked at."""
    page_file = tmp_path / "page.html"
    text = html.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    data = text[start : text.index("</script>", start)]
    page_file.write_text(text.replace(data, enlarged(data, 50_000)), encoding="utf-8")
    page = visit(page_file)
    assert counts(page)[0] > 49_000
    looked_at = page.evaluate("""() => {
        let calls = 0;
        const hypot = Math.hypot;
        Math.hypot = (...sides) => { calls++; return hypot(...sides); };
        const canvas = document.querySelector("canvas");
        const box = canvas.getBoundingClientRect();
        canvas.dispatchEvent(new PointerEvent("pointermove",
            { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 }));
        return calls;
    }""")
    assert 0 < looked_at < 5_000


def enlarged(data: str, count: int) -> str:
    """The page's data with a pool of `count` patches, spread evenly."""
    import base64
    import json

    import numpy as np

    def encoded(values: Any, dtype: str) -> str:
        return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()

    runs = json.loads(data)
    embedding = runs[0]["embedding"]
    xy = np.random.default_rng(0).integers(0, 65536, (count, 2))
    embedding["patches"] = count
    embedding["pool"] = {
        "ids": encoded(np.arange(count), "<u4"), "xy": encoded(xy, "<u2"), "shown": count,
        "since": encoded(np.where(np.arange(count) < 16, 0, -1), "<i2"),
    }  # fmt: skip
    return json.dumps(runs)


@pytest.mark.slow
def test_the_screenshot_command_uses_the_same_browser(
    chromium: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # bench is not installed
    from bench import screenshot

    assert screenshot.chromium() == chromium
    done = subprocess.run(
        [sys.executable, "-m", "bench.screenshot", run, tmp_path / "shot.png"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    from PIL import Image

    with Image.open(tmp_path / "shot.png") as picture:
        assert picture.size == (screenshot.WIDTH, screenshot.HEIGHT)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50  # something is on it
    monkeypatch.setenv("MEAL_GPU_CHROMIUM", "/opt/chromium")
    assert screenshot.chromium() == "/opt/chromium"
