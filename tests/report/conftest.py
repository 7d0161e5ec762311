"""One whole run for all tests of the report, what is made of it once, and a browser to open it in."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from reported_runs import make_whole

from meal_gpu import report
from meal_gpu.report import content, load, page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whole(tmp_path_factory.mktemp("report") / "whole", scenes)


@pytest.fixture(scope="session")
def gathered(run: Path) -> dict[str, Any]:
    return content.gather([load(run)])


@pytest.fixture(scope="session")
def whole(gathered: dict[str, Any]) -> str:
    return page.render(gathered)


@pytest.fixture(scope="session")
def html(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write([run], tmp_path_factory.mktemp("pages") / "page.html")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the program; none: the tests that need it are skipped."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("MEAL_GPU_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs a Chromium: $MEAL_GPU_CHROMIUM, or one of {', '.join(names)} in PATH")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Callable[..., "Page"]]:
    """Open a page offline; at the end nothing but itself was asked for and nothing was complained about."""
    contexts, requests, complaints, visited = [], [], [], []

    def go(path: Path, width: int = 1000, height: int = 800, **options: Any) -> "Page":
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        visited.append(path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == visited
