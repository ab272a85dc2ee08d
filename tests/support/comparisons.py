"""Recorded runs made without a store, and how a comparison of them is read."""

import csv
import io
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from waymark.comparison.recorded_run import RecordedRun
from waymark.comparison.report import Comparison
from waymark.comparison.runs import compare_recorded
from waymark.tracking.history import History
from waymark.tracking.runs import RunRecord, RunSummary

Curve = Mapping[int, float]


QUICK = settings(max_examples=40, deadline=None)
# What names, params and tags may hold to do harm on a terminal, in a page, a table or a picture.
HARM = [
    "\x1b[31mred\x07",
    "<script>alert(1)</script>",
    "a & b ]]> --> <!-- \"'",
    "[red]bold[/red] [/x] :smile:",
    "line\r\nbreak\ttab",
    "lone\rreturn",
    "comma, \"quote\" ; 'x'",
    "\u202egnp.exe\u2028\x9b2J",
    "cost $x_{$ \\frac{",
    "_hidden",
    "模型 \U0001f600",
    " ",
    "n" * 250,
]


def made(
    number: int,
    params: Mapping[str, str] | None = None,
    metrics: Mapping[str, Curve] | None = None,
    tags: Mapping[str, str] | None = None,
    name: str | None = None,
    seconds: float | None = 10.0,
    **facts: Any,
) -> tuple[RecordedRun, RunSummary]:
    """Return what a run recorded, as if it had been read from a store."""
    run = f"{number:08x}{0:024x}"  # as MLflow's, told apart by their beginnings
    name, tags = f"run-{number}" if name is None else name, dict(tags or {})
    record = RunRecord(run, run, name, "0", "FINISHED", 1000.0, tags, Path("none"), False)
    known = {key: dict(curve) for key, curve in (metrics or {}).items()}
    last = {key: curve[max(curve)] for key, curve in known.items() if curve}
    end = None if seconds is None else 1000.0 + seconds
    return RecordedRun(record, History(known), facts), RunSummary(dict(params or {}), last, end)


def compared(*runs: tuple[RecordedRun, RunSummary]) -> Comparison:
    return compare_recorded(runs)


def number_of(run: str) -> int:
    return int(run[:8], 16)


def members(found: Comparison) -> list[list[int]]:
    return [[number_of(run) for run in row.runs] for row in found.rows]


def cells(found: Comparison) -> list[list[str]]:
    """Return the lines of the CSV; check that all are as long as the first."""
    lines = list(csv.reader(io.StringIO(found.to_csv(), newline=""), strict=True))
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines) == 1 + len(found.rows)
    return lines


def table(found: Comparison) -> list[dict[str, str]]:
    """Return the rows of the table as it is shown, by column."""
    columns, rows = found.table()
    assert {len(row) for row in rows} == {len(columns)}
    return [dict(zip(columns, row, strict=True)) for row in rows]


def strict_json(text: str) -> Any:
    """Read JSON; fail for what only Python takes for it."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def printable(text: str) -> bool:
    """Tell whether a terminal does nothing but show a text, line by line."""
    text.encode()
    return all(line.isprintable() for line in text.split("\n"))


same = struct.Struct("<d").pack


def identical(a: float, b: float) -> bool:
    """Tell whether two numbers are the same bits; there is one NaN."""
    return (math.isnan(a) and math.isnan(b)) or same(a) == same(b)


FINITE = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)
ANY = st.one_of(FINITE, st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0]))


@st.composite
def curves(draw: st.DrawFn) -> list[list[dict[int, float]]]:
    """Draw rows of runs, each with one metric's values by step."""
    few = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, math.nan, math.inf, -math.inf])
    values = draw(st.sampled_from([few, ANY, FINITE]))
    curve = st.dictionaries(st.integers(-2, 50), values, min_size=1, max_size=4)
    row = st.lists(curve, min_size=1, max_size=3)
    return draw(st.lists(row, min_size=2, max_size=5))


def shown_in(path: Path) -> np.ndarray:
    """Return the pixels of a whole PNG."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    return np.asarray(matplotlib.image.imread(path))
