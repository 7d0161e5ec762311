"""The report of a run as a picture for the README: the embedding, and the queried patches with their entropy.

    python -m bench.screenshot RUN docs/report.png

Chromium is the program that $MEAL_GPU_CHROMIUM names, or one in PATH; playwright drives it.
"""

import argparse
import io
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import harness
from meal_gpu.errors import UnavailableError

NAMES = ("chromium", "chromium-browser", "google-chrome")
# No sandbox: it needs rights that containers lack, and the only page opened is ours
ARGUMENTS = ("--no-sandbox",)
WIDTH, HEIGHT = 1100, 1056
_COLORS = 256


def chromium() -> str:
    """The path of a Chromium. Raises UnavailableError where there is none."""
    named = os.environ.get("MEAL_GPU_CHROMIUM")
    found = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise UnavailableError(
            f"no Chromium: none of {', '.join(NAMES)} is in PATH; install one, or set $MEAL_GPU_CHROMIUM"
        )
    return found


def shoot(run: Path, out: Path) -> None:
    """Write what a screen shows of the last step of `run`."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from meal_gpu import report

    with TemporaryDirectory() as folder, sync_playwright() as play:
        page_file = report.write([run], Path(folder) / "report.html")
        browser = play.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.locator("input[value=heat]").first.check()
        page.locator("canvas").first.focus()
        page.keyboard.press("ArrowRight")
        top = page.evaluate("document.querySelector('.explore').getBoundingClientRect().top + scrollY - 16")
        page.evaluate("document.activeElement.blur()")
        page.evaluate("top => scrollTo(0, top)", top)
        page.wait_for_function("[...document.images].every(image => image.complete)")
        page.wait_for_timeout(300)  # overlays fade in
        picture = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder, with its dataset in place")
    parser.add_argument("out", type=Path, help=".png to write")
    arguments = parser.parse_args()
    shoot(arguments.run, arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    harness.told(main)
