"""What differs between runs, and how it is shown: as a table, CSV, JSON, curves."""

import csv
import html
import io
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from waymark import plots
from waymark.comparison.environment import format_difference
from waymark.comparison.rerun_report import Divergence, exact
from waymark.config.values import json_text
from waymark.errors import BadInput, first_line, printable
from waymark.files import TEMPORARY, replace_file
from waymark.table import duration, format_table, number, rate, settings_apart

Curves = tuple[str, Mapping[int, float], Mapping[int, float]]  # row's name, losses, accuracies

NAMED = 20  # runs that a note below the table names, at most


@dataclass(frozen=True)
class Metric:
    """One metric in one row: over a row's runs the means of their final and best values."""

    final: float
    best: float
    count: int = 1  # how many of the row's runs have it
    std: float | None = None  # of the final values, over n - 1; None for one run
    low: float | None = None  # the 95 % interval of their mean, by Student's t
    high: float | None = None
    final_leads: bool = False  # no row's is better
    best_leads: bool = False
    ties: bool = False  # its interval overlaps a leading row's


@dataclass(frozen=True)
class Row:
    """One run, or several that differ only by their seeds."""

    label: str  # the run's name and the beginning of its id; of several runs what they share
    name: str  # of the first run
    runs: list[str]  # ids
    status: str
    values: dict[str, str]  # of the keys that differ
    metrics: dict[str, Metric]
    seconds: float | None  # from start to end, the mean
    steps_per_second: float | None
    states: list[str]  # digests of the final states
    data: str | None  # digest of the data


@dataclass(frozen=True)
class Comparison:
    """What differs between runs; rows are in the order in which the runs were named or begun."""

    rows: list[Row]
    keys: list[str]  # of the configuration, that differ between rows
    same_state: list[list[str]]  # ids of runs whose final states are the same bits
    data: dict[str, list[str]]  # digest of the data -> ids of its runs
    differences: dict[str, list[tuple[str, Any, Any]]]  # run -> from the first run, what, here
    partings: dict[str, Divergence] | None  # of two runs: metric -> where it parts; else None
    names: dict[str, str]  # run -> its name
    curves: list[Curves] = field(repr=False)  # one of each run
    metric: str = "accuracy"  # by which the runs are judged; several, if their tasks differ

    @property
    def metrics(self) -> list[str]:
        """Return the names of the metrics that any row has."""
        return list(dict.fromkeys(key for row in self.rows for key in row.metrics))

    def to_json(self) -> str:
        """Return everything but the curves as one JSON object."""
        body = asdict(self)
        del body["curves"]
        return json_text(body)

    def to_csv(self) -> str:
        """Return the table as CSV, one line a row, full precision, columns named as MLflow does."""
        parts = ("best", "std", "low", "high", "count")
        columns = ["name", "run_ids", "status", *(f"params.{key}" for key in self.keys)]
        for key in self.metrics:
            columns += [f"metrics.{key}", *(f"{part} of metrics.{key}" for part in parts)]
        columns += ["seconds", "steps_per_second", "state_digests", "data_digest"]
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        out.writerow(columns)
        for row in self.rows:
            cells: list[Any] = [row.name, " ".join(row.runs), row.status]
            cells += [row.values.get(key) for key in self.keys]
            for key in self.metrics:
                metric = row.metrics.get(key)
                cells += [getattr(metric, part, None) for part in ("final", *parts)]
            cells += [row.seconds, row.steps_per_second, " ".join(row.states), row.data]
            out.writerow(cells)
        return text.getvalue()

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the table as it is shown: the columns' names, and each row's texts."""
        several = any(len(row.runs) > 1 for row in self.rows)
        failed = {row.status for row in self.rows} != {"FINISHED"}
        # A list times False is empty: that column is left out.
        columns = ["run", *["seeds"] * several, *["status"] * failed, *self.keys, *self.metrics]
        columns += ["duration", "steps/s", "state"]
        values = {
            key: settings_apart(row.values.get(key, "-") for row in self.rows) for key in self.keys
        }
        shown = []
        for row in self.rows:
            cells = [row.label, *[str(len(row.runs))] * several, *[row.status] * failed]
            cells += [values[key][row.values.get(key, "-")] for key in self.keys]
            cells += [_cell(row, key) for key in self.metrics]
            cells.append("-" if row.seconds is None else duration(row.seconds))
            cells.append("-" if row.steps_per_second is None else rate(row.steps_per_second))
            shown.append([*cells, row.states[0][:8] if len(row.runs) == 1 and row.states else "-"])
        return columns, shown

    def notes(self) -> list[str]:
        """Return what stands below the table, as lines."""
        lines = ["metrics: final value / best value on the way; * the best of all rows"]
        if any(metric.ties for row in self.rows for metric in row.metrics.values()):
            lines[0] += "; ~ a tie with it: the 95 % intervals of the means overlap"
        lines += [f"the same final state: {self._named(runs)}" for runs in self.same_state]
        if len(self.data) > 1:
            lines += [f"data {data[:8]}: {self._named(runs)}" for data, runs in self.data.items()]
        for key, at in (self.partings or {}).items():
            lines.append(f"{key} parts at step {at.step}: {exact(at.recorded)} and {exact(at.now)}")
        if self.partings == {}:
            lines.append("no loss and no evaluation parts at any step that both recorded")
        grouped = defaultdict(list)
        for run, found in self.differences.items():
            for each in found:
                if each[0] != "data" or len(self.data) < 2:  # shown above
                    grouped[format_difference(each, ("in the first run", "here"))].append(run)
        lines += [f"{self._named(runs)}: {text}" for text, runs in grouped.items()]
        return [printable(line) for line in lines]

    def _named(self, runs: list[str]) -> str:
        more = [f"and {len(runs) - NAMED} more"] if len(runs) > NAMED else []
        return ", ".join([*(f"{self.names[run]} {run[:8]}" for run in runs[:NAMED]), *more])

    def text(self, width: int | None = None) -> str:
        """Return table and notes for a terminal so many characters wide (None: any width)."""
        return "\n".join([format_table(*self.table(), width), "", *self.notes()])

    def plot(self, path: Path) -> None:
        """Draw all curves together, as a PNG file or an HTML page; raise BadInput for another."""
        path = plot_path(str(path))
        if path.suffix == ".png":
            replace_file(path, plots.curves(self.curves, "png", self.metric))
            return
        svg = plots.curves(self.curves, "svg", self.metric).decode()
        columns, rows = self.table()
        cells = [_html("th", columns), *(_html("td", row) for row in rows)]
        table = "\n".join(f"<tr>{row}</tr>" for row in cells)
        notes = _html("li", self.notes())
        replace_file(path, PAGE.format(table=table, notes=notes, svg=svg[svg.index("<svg") :]))


def _html(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{html.escape(printable(text))}</{tag}>" for text in texts)


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Waymark: comparison</title>
<style>body {{ font: 14px sans-serif }} td, th {{ padding: 2px 10px; text-align: left }}
svg {{ max-width: 100%; height: auto }}</style>
{svg}
<table>
{table}
</table>
<ul>
{notes}
</ul>
"""


def plot_path(text: str) -> Path:
    """Return the file that a plot is to be written to; raise BadInput for one that cannot be."""
    path = Path(os.path.expanduser(text)).absolute()  # unlike Path's it takes an unknown ~user
    if path.suffix not in (".png", ".html"):
        raise BadInput(f"--plot={text!r}: must end in .png or .html.")
    if not os.path.isdir(path.parent) or os.path.isdir(path):
        what = "is a folder" if os.path.isdir(path) else f"there is no folder {path.parent}"
        raise BadInput(f"--plot={text!r}: {what}.")
    try:
        path.with_name(TEMPORARY + path.name).stat()  # by which it is written
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or none that a file can have
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BadInput(f"--plot={text!r}: {reason}.") from None
    return path


def _cell(row: Row, key: str) -> str:
    metric = row.metrics.get(key)
    if metric is None:
        return "-"
    final = number(metric.final)
    if metric.std is not None and metric.low is not None and metric.high is not None:
        final += f" ±{number(metric.std)} [{number(metric.low)}, {number(metric.high)}]"
    final += "*" * metric.final_leads + "~" * metric.ties
    if metric.best != metric.final and not math.isnan(metric.best):
        final += f" / {number(metric.best)}" + "*" * metric.best_leads
    return final if metric.count == len(row.runs) else f"{final} (of {metric.count})"
