"""A comparison as one HTML page that needs nothing else: a table to sort, curves to point at."""

import base64
import html
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from waymark.errors import printable
from waymark.plots.curves import looks_of
from waymark.plots.groups import Panel, Run, panels
from waymark.plots.style import GREY

TEMPLATE = Path(__file__).with_name("page.html")
POINTS = 30_000  # of all curves of a panel together, about; each has at least LEAST
MOST, LEAST = 200, 20
NAMED = 3  # curves, of those that are not all in the range shown
DASHES = {"-": "", "--": "7 4", ":": "2 4", "-.": "8 4 2 4"}
SECONDS = {"d": 86400, "h": 3600, "min": 60, "s": 1}
CODE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})  # in JSON in a page


@dataclass(frozen=True)
class Content:
    """What a page shows of a comparison, by rows of its table; curves have a row's label."""

    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    labels: Sequence[str]
    runs: Sequence[Sequence[str]]  # the ids of each row's runs
    curves: Sequence[Run]
    evaluated: str  # what the second of a run's curves is
    notes: Sequence[str]


@dataclass(frozen=True)
class Extras:
    """What a page shows beside a comparison."""

    title: str = "Waymark: comparison"
    facts: Mapping[str, str] = field(default_factory=dict)  # below the title
    link: Callable[[str], str | None] = lambda run: None  # run id -> the address of its page
    linked: Mapping[str, str] = field(default_factory=dict)  # of the facts -> the run meant
    others: Sequence[Sequence[str]] = ()  # of runs that are not compared: id, name, status, why
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # what each shows -> PNG file


def page(shown: Content, extras: Extras) -> str:
    """Return the page."""
    looks = looks_of(shown.labels)
    texts = [_text(name) for name in shown.columns]
    heads = [f'<th scope="col"><button type="button">{text}</button></th>' for text in texts]
    count = max(LEAST, min(MOST, POINTS // max(1, len(shown.curves))))
    order = {label: place for place, label in enumerate(shown.labels)}
    rows = zip(shown.labels, shown.runs, shown.cells, strict=True)
    lines = [
        _line(place, runs, cells, looks.get(label), extras)
        for place, (label, runs, cells) in enumerate(rows)
    ]
    several = any(len(runs) > 1 for runs in shown.runs)
    every = max((len(losses) for _, losses, _ in shown.curves), default=0) / count
    said = ["Point at a curve to see its numbers."]
    said += ["Each is the mean over its seeds."] if several else []
    said += [f"A point is the mean of {every:.0f} losses or more."] if every > 1 else []
    data = [_panel(each, looks, order) for each in panels(shown.curves, shown.evaluated, count)]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_text(extras.title),
        facts="\n".join(_fact(key, text, extras) for key, text in extras.facts.items()),
        heading="Configurations" if several else "Runs",
        legend=" ".join(said),
        columns="".join(heads),
        rows="\n".join(lines),
        notes="".join(f"<li>{_text(note)}</li>" for note in shown.notes),
        others=_others(extras),
        pictures="\n".join(_picture(*each) for each in extras.pictures.items()),
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).translate(CODE),
    )


def _text(words: str) -> str:
    return html.escape(printable(words))


def _linked(words: str, run: str, extras: Extras) -> str:
    """Return words that lead to a run's page, if it has one."""
    address = extras.link(run)
    if not address or not address.startswith(("http://", "https://")):
        return _text(words)
    where = html.escape(address)
    return f'<a href="{where}" target="_blank" rel="noopener noreferrer">{_text(words)}</a>'


def _fact(key: str, words: str, extras: Extras) -> str:
    run = extras.linked.get(key)
    return f"<dt>{_text(key)}</dt><dd>{_linked(words, run, extras) if run else _text(words)}</dd>"


def _line(place: int, runs: Sequence[str], cells: Sequence[str], look: Any, extras: Extras) -> str:
    """Return a row of the table; its first cell leads to its runs."""
    first, *others = cells
    if len(runs) == 1:
        name = _linked(first, runs[0], extras)
    else:
        name = " ".join([_text(first), *(_linked(run[:8], run, extras) for run in runs)])
    colour = look[0] if look else GREY
    shown = [f'<td data-v="{_text(first)}"><i style="background:{colour}"></i>{name}</td>']
    shown += [f'<td data-v="{html.escape(sorted_by(c))}">{_text(c)}</td>' for c in others]
    return f'<tr data-row="{place}">{"".join(shown)}</tr>'


def sorted_by(cell: str) -> str:
    """Return what a cell is sorted by: the number that it shows, else its text; "" is last."""
    plain = cell.strip("*~±= ")
    if plain in ("-", ""):
        return ""
    parts = re.findall(r"([\d.]+) (d|h|min|s)(?![a-z])", plain)
    if parts and re.fullmatch(r"(?:[\d.]+ (?:d|h|min|s) ?)+", plain):
        return str(sum(float(count) * SECONDS[unit] for count, unit in parts))
    try:
        value = float(plain)
    except ValueError:
        return printable(cell)
    return "" if math.isnan(value) else repr(value).replace("inf", "Infinity")


def _panel(panel: Panel, looks: Mapping[str, Any], order: Mapping[str, int]) -> dict[str, Any]:
    """Return one panel as the script of the page draws it; what is drawn last lies on top."""
    steps = [step for group in panel.groups for step in group.steps.tolist()]
    lines = []
    for group in sorted(panel.groups, key=lambda group: -order[group.name]):
        colour, dashes = looks.get(group.name, (GREY, "-"))
        values = [_short(value) for value in group.mean.tolist()]
        lines.append({
            "name": printable(group.name), "row": order[group.name], "colour": colour,
            "dashes": DASHES[dashes], "width": 1.8 if group.name in looks else 0.8,
            "x": [round(step, 1) for step in group.steps.tolist()], "y": values,
        })  # fmt: skip
    away = [name for name, _ in panel.outside()]
    more = f" (not all in this range: {', '.join(away[:NAMED])})" if away else ""
    more = f" (not all in this range: {len(away)} curves)" if len(away) > NAMED else more
    return {
        "title": printable(f"{panel.title}{more}"),
        "low": panel.low,
        "high": panel.high,
        "log": panel.is_log,
        "steps": [min(steps, default=0), max(steps, default=0)],
        "lines": lines,
    }


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _others(extras: Extras) -> str:
    """Return a table of the runs that are not compared."""
    if not extras.others:
        return ""
    rows = []
    for run, name, *more in extras.others:
        cells = "".join(f"<td>{_text(text)}</td>" for text in more)
        rows.append(f"<tr><td>{_linked(name, run, extras)}</td>{cells}</tr>")
    head = "<tr><th>run</th><th>status</th><th>why</th></tr>"
    table = f"<table>{head}{''.join(rows)}</table>"
    return f'<h2>Not compared</h2><div class="table">{table}</div>'


def _picture(what: str, content: bytes) -> str:
    """Return a picture, on a narrow screen so wide that its texts can be read, to be scrolled."""
    coded, dots = base64.b64encode(content).decode(), int.from_bytes(content[16:20])
    size = f"min-width: {0.4 * dots:.0f}px; max-width: {0.6 * dots:.0f}px"
    image = f'<img alt="{_text(what)}" style="{size}" src="data:image/png;base64,{coded}">'
    return f'<h2>{_text(what)}</h2><div class="picture">{image}</div>'
