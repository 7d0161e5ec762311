"""One self-contained HTML file: no network, every name escaped, complete also without its script."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from meal_gpu import atomic
from meal_gpu.errors import RunError
from meal_gpu.report import chart, explore
from meal_gpu.report.content import gather
from meal_gpu.report.curves import LEVEL
from meal_gpu.report.table import load_all

_ACROSS = 10  # steps in a table, so that it fits on paper


def write(paths: Sequence[Path], out: Path | None = None, *, images: bool = True) -> Path:
    """Write the page for some runs to `out`, or into the folder of the first run.

    What needs the dataset (thumbnails, predictions, class shares) is left out without `images`, and where it
    is not there; the page then says so.

    Raises:
        RunError: a folder without a complete step, or a file that cannot be written.
    """
    target = out or paths[0] / "report.html"
    html = render(gather(load_all(paths), images=images))
    try:
        atomic.write(target, html.encode("utf-8", "replace"))
    except OSError as error:
        raise RunError(f"{target}: the report cannot be written: {error.strerror}") from error
    return target


def render(content: dict[str, Any]) -> str:
    """The page as text, from what `content.gather` found."""
    style, script = _asset("report.css"), _asset("report.js")
    runs = content["runs"]
    links = "".join(f'<li><a href="#run-{i}">{escape(run["name"])}</a></li>' for i, run in enumerate(runs))
    nav = f'<nav aria-label="Runs"><ul>{links}</ul></nav>' if len(runs) > 1 else ""
    sections = "\n".join(_run(run, number) for number, run in enumerate(runs))
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>meal-gpu report: {escape(', '.join(run['name'] for run in runs))}</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n"
        f"<header><h1>meal-gpu report</h1>{nav}</header>\n<main>\n{_curves(content['curves'])}\n{sections}\n"
        f'</main>\n<script type="application/json" id="data">{_json(explore.data(runs))}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return (resources.files("meal_gpu.report") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: Any) -> str:
    """JSON that cannot end the script around it, whatever names are in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _curves(curves: Sequence[dict[str, Any]]) -> str:
    legend = "".join(f"<li>{chart.swatch(i)} {escape(curve['label'])}</li>" for i, curve in enumerate(curves))
    repeated = [curve for curve in curves if len(curve["runs"]) > 1]
    note = table = ""
    if repeated:
        said = [f"Bands: {LEVEL:.0%} confidence of the mean over seeds (Student's t)."]
        said += [line for curve in repeated for line in curve["notes"]]
        note = "".join(f"<p>{escape(line, quote=False)}</p>" for line in said)
        header = ("curve", "step", "seeds", "labelled", "share", "mIoU", "low", "high")
        body = [
            (
                curve["name"], str(p["step"]), str(p["seeds"]), f"{p['labelled']:.12g}",
                f"{p['share']:.2%}", *(_figure(p[key]) for key in ("mean", "low", "high")),
            )
            for curve in repeated for p in curve["points"]
        ]  # fmt: skip
        table = _table("Means over seeds", header, body)
    figure = _figures(lambda width: chart.lines(curves, width))
    return (
        f'<section id="curves"><h2>Learning curves</h2><figure>{figure}<figcaption>'
        f'<ul class="legend">{legend}</ul>{note}</figcaption></figure>{table}</section>'
    )


def _run(run: dict[str, Any], number: int) -> str:
    missing = ""
    if run["missing"]:
        items = "".join(f"<li>{escape(line)}</li>" for line in run["missing"])
        missing = f'<aside class="missing"><p>Left out of this page:</p><ul>{items}</ul></aside>'
    return (
        f'<section class="run" id="run-{number}"><h2>{escape(run["title"])}</h2>{missing}'
        f"{_table('Steps', run['header'], run['rows'])}{_budget(run['budget'])}"
        f"{explore.panel(run, number)}{_iou(run)}{_timings(run['timings'])}</section>"
    )


def _budget(budget: Sequence[dict[str, Any]]) -> str:
    rows = [
        chart.Bar(
            f"step {row['step']}",
            ((7, row["before"], f"{row['before']} before"), (0, row["new"], f"{row['new']} new")),
            f"{row['before'] + row['new']} ({row['share']:.2%})",
        )
        for row in budget
    ]
    return (
        f"<h3>Budget</h3><figure>{_figures(lambda width: chart.bars(rows, width, 'Labelled patches'))}"
        f'<figcaption><ul class="legend"><li>{chart.box("s7")} labelled before</li>'
        f"<li>{chart.box('s0')} labelled in this step</li></ul></figcaption></figure>"
    )


def _iou(run: dict[str, Any]) -> str:
    parts = []
    for first in range(0, len(run["steps"]), _ACROSS):
        columns = slice(first, first + _ACROSS)
        header = ("class", *(f"step {step}" for step in run["steps"][columns]))
        body = [(name, *map(_percent, values[columns])) for name, values in run["iou"].items()]
        parts.append(_table("IoU per class, %", header, body))
    return f"<h3>IoU per class, %</h3>{''.join(parts)}"


def _timings(timings: Sequence[dict[str, Any]]) -> str:
    if not timings:
        return ""
    stages = list(dict.fromkeys(stage for row in timings for stage in row["seconds"]))
    rows = [
        chart.Bar(
            row["name"],
            tuple((stages.index(s), v or 0.0, f"{s} {v or 0.0:.1f} s") for s, v in row["seconds"].items()),
            f"{sum(v or 0.0 for v in row['seconds'].values()):.1f} s",
        )
        for row in timings
    ]
    legend = "".join(
        f"<li>{chart.box(f's{i % chart.SERIES}')} {escape(stage)}</li>" for i, stage in enumerate(stages)
    )
    return (
        f"<h3>Time per stage</h3><figure>{_figures(lambda width: chart.bars(rows, width, 'Seconds'))}"
        f'<figcaption><ul class="legend">{legend}</ul></figcaption></figure>'
    )


def _figures(draw: Callable[[int], str]) -> str:
    """The chart for a wide and for a narrow screen, of which the style sheet shows one."""
    return f'<div class="broad">{draw(760)}</div><div class="narrow">{draw(330)}</div>'


def _percent(iou: float | None) -> str:
    return "–" if iou is None else f"{100 * iou:.1f}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _table(name: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in body
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(name)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
