"""One self-contained HTML page: no script, no network, every name escaped."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from meal_gpu.errors import RunError
from meal_gpu.report.plot import curves
from meal_gpu.report.table import HEADER, Run, load, rows, title

_STYLE = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
h2 { font-size: 1.1rem; margin-top: 2.5rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { font-weight: 600; }
"""


def write(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page for some runs to `out`, or into the folder of the first run.

    Raises:
        RunError: a folder without a complete step, or a file that cannot be written.
    """
    target = out or paths[0] / "report.html"
    html = render([load(path) for path in paths])
    try:
        target.write_text(html, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{target}: the report cannot be written: {error.strerror}") from error
    return target


def render(runs: Sequence[Run]) -> str:
    """The page as text."""
    picture = curves(runs).decode()
    figure = picture[picture.index("<svg") :]
    sections = "\n".join(_section(run) for run in runs)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>meal-gpu report</title><style>{_STYLE}</style></head><body>"
        f"<h1>Learning curves</h1><figure>{figure}</figure>{sections}</body></html>\n"
    )


def _section(run: Run) -> str:
    classes = list(run.steps[-1]["class_iou"])
    iou = [
        (str(step["step"]), *(_percent(step["class_iou"][name]) for name in classes)) for step in run.steps
    ]
    return (
        f"<h2>{escape(title(run))}</h2>{_table(HEADER, rows(run))}"
        f"<h3>IoU per class, %</h3>{_table(('step', *classes), iou)}"
    )


def _percent(iou: float | None) -> str:
    return "–" if iou is None else f"{100 * iou:.1f}"


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in body)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'
