"""The part of the page that follows the step slider: queried patches, embedding, class shares.

Everything is in the HTML, for every step; the script shows one step at a time and draws the embedding.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from meal_gpu.report import chart

# What the script draws in the embedding, and how the style sheet calls its colours
STATES = (
    ("rest", "in the pool"),
    ("labelled", "labelled before"),
    ("candidate", "candidate"),
    ("chosen", "chosen in this step"),
)


def data(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the script reads of each run."""
    return [{key: run[key] for key in ("steps", "embedding", "details", "shares")} for run in runs]


def panel(run: dict[str, Any], number: int) -> str:
    """Slider, embedding, gallery and class shares of a run; what it does not have is left out."""
    parts = [_embedding(run, number), _gallery(run, number), _shares(run)]
    if not any(parts):
        return ""
    return f'<div class="explore" data-run="{number}">{_slider(run, number)}{"".join(parts)}</div>'


def _slider(run: dict[str, Any], number: int) -> str:
    last = len(run["steps"]) - 1
    if last == 0:
        return ""
    return (
        f'<div class="slider"><label for="step-{number}">Step</label>'
        f'<input type="range" id="step-{number}" min="0" max="{last}" value="{last}" step="1">'
        f'<output for="step-{number}">{run["steps"][last]}</output></div>'
    )


def _embedding(run: dict[str, Any], number: int) -> str:
    embedding = run["embedding"]
    if embedding is None:
        return ""
    notes = []
    if (pool := embedding["pool"]) is None:
        notes.append("Each step has a map of its own, of the candidates alone.")
    else:
        notes.append(f"Showing {pool['shown']} of {embedding['patches']} patches of the pool.")
    if embedding["dimension"] > 2:
        notes.append(f"The first two of {embedding['dimension']} axes.")
    legend = "".join(
        f'<li>{chart.box(state)} {name} <b data-count="{state}"></b></li>' for state, name in STATES
    )
    return (
        f"<h3>Embedding</h3><p>{' '.join(notes)} Point at a patch, tap it, or use ← and → to go through the "
        f'chosen ones.</p><ul class="legend">{legend}</ul>'
        '<div class="map"><canvas tabindex="0" role="img" aria-label="Embedding of the patches" '
        f'aria-describedby="tip-{number}"></canvas>'
        f'<figure class="tip" id="tip-{number}" aria-live="polite"><figcaption>No patch is pointed at.'
        "</figcaption></figure></div><noscript><p>The embedding is drawn by a script.</p></noscript>"
    )


def _gallery(run: dict[str, Any], number: int) -> str:
    if not run["queries"]:
        return ""
    pictured = [item["picture"] for query in run["queries"] for item in query["items"] if item["picture"]]
    controls = ""
    if any(picture["heat"] for picture in pictured):
        choices = "".join(
            f'<label><input type="radio" name="overlay-{number}" value="{value}"'
            f"{' checked' if value == 'photo' else ''}> {name}</label>"
            for value, name in (("photo", "image"), ("heat", "entropy"), ("classes", "prediction"))
        )
        most = math.log(max(2, len(run["palette"])))
        palette = "".join(f"<li>{chart.box(color)} {escape(name)}</li>" for name, color in run["palette"])
        controls = (
            f'<fieldset class="overlays"><legend>Show</legend>{choices}</fieldset>'
            f'<p class="scale key-heat">entropy 0 <span class="ramp"></span> {most:.2f} nats (ln C)</p>'
            f'<ul class="legend key-classes">{palette}</ul>'
        )
    steps = "".join(_query(query, run) for query in run["queries"])
    return f"<h3>Queried patches</h3>{controls}{steps}"


def _query(query: dict[str, Any], run: dict[str, Any]) -> str:
    step, items = query["step"], query["items"]
    row = run["budget"][run["steps"].index(step)]
    asked = f"asked by the model of step {step - 1}" if step else "the first images, drawn at random"
    if query["drawn"]:
        asked = f"{query['of'] - query['drawn']} {asked}, {query['drawn']} drawn at random"
        if (control := query["control"]) and control["accuracy"] is not None:
            asked += f", of whose pixels that model has {control['accuracy']:.1%} right"
            if control["low"] is not None:
                asked += f" [{control['low']:.1%}, {control['high']:.1%}]"
    head = (
        f"Step {step}: {query['of']} patches, {asked}; "
        f"{row['before'] + row['new']} ({row['share']:.2%}) are labelled with them."
    )
    shown = f"Showing {len(items)} of {query['of']}."
    cards = "".join(_card(item) for item in items)
    return (
        f'<div class="query" data-step="{step}"><p>{head} <span class="shown">{shown}</span></p>'
        f'<ul class="gallery">{cards}</ul></div>'
    )


def _card(item: dict[str, Any]) -> str:
    score = "" if item["score"] is None else f" · score {item['score']:.4f}"
    thumb = ""
    if (picture := item["picture"]) is not None:
        width, height = picture["size"]
        left, top, wide, high = (
            part * side for part, side in zip(picture["box"], (width, height, width, height), strict=True)
        )
        told = f"patch {item['patch']} of {item['image']}, outlined in its surroundings"
        over = "".join(
            f'<img class="{kind}" src="{picture[kind]}" alt="" width="{width}" height="{height}">'
            for kind in ("heat", "classes")
            if picture[kind]
        )
        outline = f'x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}"'
        thumb = (
            f'<div class="thumb"><img src="{picture["photo"]}" alt="{escape(told)}" width="{width}" '
            f'height="{height}">{over}<svg viewBox="0 0 {width} {height}" aria-hidden="true">'
            f'<rect class="under" {outline}/><rect {outline}/></svg></div>'
        )
    return (
        f'<li data-patch="{item["patch"]}">{thumb}<p><b>{item["rank"]}.</b> patch {item["patch"]}{score}<br>'
        f'<span class="name">{escape(item["image"])}</span></p></li>'
    )


def _shares(run: dict[str, Any]) -> str:
    shares = run["shares"]
    if shares is None:
        return ""
    first, last, most = shares["steps"][0], shares["steps"][-1], shares["most"]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{before:.2%}</td><td class="after">{after:.2%}</td>'
        f'<td class="pair"><svg viewBox="0 0 100 18" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="before" width="{100 * before / most:.2f}" height="8"/>'
        f'<rect class="after" y="10" width="{100 * after / most:.2f}" height="8"/></svg></td></tr>'
        for name, before, after in zip(shares["classes"], first, last, strict=True)
    )
    return (
        "<h3>Classes of the labelled pixels</h3>"
        '<div class="wide" role="region" tabindex="0" aria-label="Classes of the labelled pixels">'
        '<table class="shares"><thead><tr><th scope="col">class</th>'
        f'<th scope="col">{chart.box("before")} step {run["steps"][0]}</th>'
        f'<th scope="col">{chart.box("after")} step <output class="after">{run["steps"][-1]}</output></th>'
        f'<th scope="col">share, 0 to {most:.0%}</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
