"""What differs between runs, and how it is shown: as a table, CSV, JSON, curves."""

import csv
import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from waymark import names
from waymark.comparison.environment import format_difference
from waymark.comparison.layout import ACROSS, Column, laid_out
from waymark.comparison.page import Content, Extras, page
from waymark.comparison.rerun_report import Divergence, exact
from waymark.config.values import json_text
from waymark.errors import BadInput, first_line, printable
from waymark.files import TEMPORARY, replace_file
from waymark.plots.curves import draw_curves
from waymark.plots.style import ENDINGS
from waymark.table import (
    duration,
    html_table,
    number,
    rate,
    settings_apart,
    short_keys,
    wrapped,
)

Curves = tuple[str, Mapping[int, float], Mapping[int, float]]  # row's name, losses, accuracies

Best = Callable[[Iterable[float]], float]  # min or max

# Words in a metric's name that tell which way is better; the second ones win.
HIGHER = {"acc", "accuracy", "auc", "roc", "map", "iou", "dice", "f1", "r2", "bleu", "rouge"}
HIGHER |= {"precision", "recall", "score", "sensitivity", "specificity", "top"}
LOWER = {"loss", "error", "err", "mse", "rmse", "mae", "mape", "nll", "perplexity", "entropy"}

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
    seeds: Mapping[str, float] = field(default_factory=dict)  # of several runs: seed -> final
    ties: str = ""  # the test by which it is not told apart from a leading row's, if it is not


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


# What else rows can be sorted by, as the columns are called: a number of which less is better.
TIMES: dict[str, Callable[[Row], float | None]] = {
    "duration": lambda row: row.seconds,
    "steps/s": lambda row: row.steps_per_second and -row.steps_per_second,
}


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
    is_arranged: bool = False  # its rows are in an order that was asked for
    by: str | None = None  # what they are sorted by

    @property
    def metrics(self) -> list[str]:
        """Return the names of the metrics that any row has."""
        return list(dict.fromkeys(key for row in self.rows for key in row.metrics))

    def arranged(
        self, sort: str | None = None, shown: Sequence[str] = (), top: int | None = None
    ) -> "Comparison":
        """Return it with the best rows first, `top` of them, and the metrics that are `shown`.

        `sort` is a metric or a setting that differs, `duration` or `steps/s`; without it rows are
        sorted by the metric that the runs are judged by. Without `shown` all metrics are. Raises
        BadInput for unknown names.
        """
        for option, key, known in (
            *(("--metrics", key, self.metrics) for key in shown),
            *([("--sort", sort, [*self.metrics, *self.keys, *TIMES])] if sort is not None else []),
        ):
            if key not in known:
                kind = "metric" if option == "--metrics" else "metric, and no such setting differs"
                names = f"there are {', '.join(known)}" if known else "there is none"
                raise BadInput(f"{option}={key!r}: no run has such a {kind}; {names}.")
        by = sort if sort is not None else next(iter(self.judged), None)
        rows = self.rows if by is None else sorted(self.rows, key=partial(_place, key=by))
        if shown:
            rows = [replace(r, metrics={k: r.metrics[k] for k in shown if k in r.metrics})
                    for r in rows]  # fmt: skip
        return replace(self, rows=rows, is_arranged=True, by=by)._cut(top or len(rows))

    def _cut(self, count: int) -> "Comparison":
        """Return its first `count` rows, and what is told of their runs alone."""
        if count >= len(self.rows):
            return self
        rows = self.rows[:count]
        runs = {run for row in rows for run in row.runs}
        same = [[run for run in group if run in runs] for group in self.same_state]
        data = {key: [run for run in group if run in runs] for key, group in self.data.items()}
        values = {key: {row.values.get(key) for row in rows} for key in self.keys}
        labels = {row.label for row in rows}
        return replace(
            self,
            rows=rows,
            keys=[key for key in self.keys if count == 1 or len(values[key]) > 1],
            same_state=[group for group in same if len(group) > 1],
            data={key: group for key, group in data.items() if group},
            differences={run: found for run, found in self.differences.items() if run in runs},
            partings=None,
            curves=[curve for curve in self.curves if curve[0] in labels],
        )

    def to_json(self) -> str:
        """Return everything but the curves as one JSON object."""
        body = asdict(self)
        del body["curves"]
        return json_text(body)

    def to_csv(self) -> str:
        """Return the table as CSV, one line a row, full precision, columns named as MLflow does."""
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        out.writerows(self._whole())
        return text.getvalue()

    def to_frame(self) -> Any:
        """Return the table of `to_csv` as a pandas frame; settings that are numbers are numbers."""
        import pandas as pd

        columns, *rows = self._whole()
        frame = pd.DataFrame(rows, columns=columns)
        for column in (f"params.{key}" for key in self.keys):
            with suppress(ValueError):
                frame[column] = pd.to_numeric(frame[column])
        return frame

    def _whole(self) -> list[list[Any]]:
        """Return the names of all columns, and each row's values."""
        parts = ("best", "std", "low", "high", "count")
        columns = ["name", "run_ids", "status", *(f"params.{key}" for key in self.keys)]
        for key in self.metrics:
            columns += [f"metrics.{key}", *(f"{part} of metrics.{key}" for part in parts)]
        columns += ["seconds", "steps_per_second", "state_digests", "data_digest"]
        found: list[list[Any]] = [columns]
        for row in self.rows:
            cells: list[Any] = [row.name, " ".join(row.runs), row.status]
            cells += [row.values.get(key) for key in self.keys]
            for key in self.metrics:
                metric = row.metrics.get(key)
                cells += [getattr(metric, part, None) for part in ("final", *parts)]
            cells += [row.seconds, row.steps_per_second, " ".join(row.states), row.data]
            found.append(cells)
        return found

    def columns(self) -> list[Column]:
        """Return the table's columns: what differs, the metrics, time, and the final state.

        One that says the same of all rows, or what another one says, is left out.
        """
        rows, keys = self.rows, self.keys
        shown = {key: settings_apart(row.values.get(key, "-") for row in rows) for key in keys}
        found = [Column("run", [row.label for row in rows])]
        if any(len(row.runs) > 1 for row in rows):
            found.append(Column("seeds", [str(len(row.runs)) for row in rows], 1))
        if {row.status for row in rows} != {"FINISHED"}:
            found.append(Column("status", [row.status for row in rows], 1))
        found += [Column(k, [shown[k][row.values.get(k, "-")] for row in rows], 2) for k in keys]
        judged = list(dict.fromkeys([k for k in self.metrics if k == self.by] + self.judged))
        for key in [*judged, *(key for key in self.metrics if key not in judged)]:
            known = [row.metrics.get(key) for row in rows]
            rank = 1 if key in judged else 4
            found.append(Column(key, list(map(_final, known)), rank))
            if any(each and each.high is not None for each in known):
                found.append(Column(f"± {key}", list(map(_half_width, known)), rank + 2))
            if any(each and number(each.best) != number(each.final) for each in known):
                found.append(Column(f"best {key}", list(map(_best, known)), rank + 3))
        paces = [row.steps_per_second for row in rows]
        seconds = ["-" if row.seconds is None else duration(row.seconds) for row in rows]
        states = [row.states[0][:8] if len(row.runs) == 1 and row.states else "-" for row in rows]
        found.append(Column("duration", seconds, 8))
        found.append(Column("steps/s", ["-" if pace is None else rate(pace) for pace in paces], 9))
        found.append(Column("state", states, 10))
        return [column for i, column in enumerate(found) if i == 0 or self._says(column, found)]

    def _says(self, column: Column, columns: Sequence[Column]) -> bool:
        """Tell whether a column says something: not what one before does, nor all the same."""
        again = any(other.cells == column.cells for other in columns[: columns.index(column)])
        if column.rank < 4:  # a setting, or a metric that the runs are judged by
            return not (again and column.name.removeprefix("± ") in self.judged)
        return not again and len({*column.cells}) > 1

    @property
    def judged(self) -> list[str]:
        """Return the names of the metrics that the runs are judged by, what is restored first."""
        parts = (names.RESTORED, *names.EVALUATED)
        known = [f"{part}{name}" for name in self.metric.split(", ") for part in parts]
        return [key for key in known if key in self.metrics]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the whole table: the columns' names, and each row's texts."""
        columns = self.columns()
        cells = [column.cells for column in columns]
        return [column.name for column in columns], [list(row) for row in zip(*cells, strict=True)]

    def notes(self) -> list[str]:
        """Return what stands below the table, as lines."""
        told = [metric for row in self.rows for metric in row.metrics.values()]
        lines, tests = [], sorted({metric.ties for metric in told} - {""})
        if any(metric.final_leads or metric.best_leads for metric in told):
            lines.append("* the best of all rows")
        if tests:
            lines.append(f"~ not told apart from the best at the 5 % level ({'; '.join(tests)})")
        if any(metric.high is not None for metric in told):
            lines.append("± half of the 95 % interval of a mean over seeds")
        lines += [f"the same final state: {self._named(runs)}" for runs in self.same_state]
        if len(self.data) > 1:
            lines += [f"data {data[:8]}: {self._named(runs)}" for data, runs in self.data.items()]
        for key, at in (self.partings or {}).items():
            first, second = [self._named([run]) for run in list(self.names)[:2]]
            values = f"{exact(at.recorded)} in {first}, {exact(at.now)} in {second}"
            lines.append(f"{key} first differs at step {at.step}: {values}")
        if self.partings == {}:
            lines.append("all shared losses and evaluations are identical")
        grouped = defaultdict(list)
        for run, found in self.differences.items():
            for each in found:
                if each[0] != "data" or len(self.data) < 2:  # shown above
                    first = self._named([next(iter(self.names))])
                    grouped[format_difference(each, (f"in {first}", "here"))].append(run)
        lines += [f"{self._named(runs)}: {text}" for text, runs in grouped.items()]
        return [printable(line) for line in lines]

    def _named(self, runs: list[str]) -> str:
        more = [f"and {len(runs) - NAMED} more"] if len(runs) > NAMED else []
        return ", ".join([*(f"{self.names[run]} {run[:8]}" for run in runs[:NAMED]), *more])

    def text(self, width: int | None = None) -> str:
        """Return table and notes for a terminal so many characters wide (None: any width)."""
        table, left_out = laid_out(self.best_first().columns(), width)
        more = [f"left out for the width: {', '.join(left_out)}; --csv has all"] if left_out else []
        return "\n".join([table, "", *wrapped([*map(printable, more), *self.notes()], width)])

    def best_first(self) -> "Comparison":
        """Return it with the best rows first, unless they are few or an order was asked for."""
        return self.arranged() if len(self.rows) > ACROSS and not self.is_arranged else self

    def content(self) -> Content:
        """Return what a page shows of it."""
        legend, runs = self.legend(), [list(row.runs) for row in self.rows]
        labels = [legend[row.label] for row in self.rows]
        curves = self.curves_of_rows()
        return Content(*self.table(), labels, runs, curves, self.evaluated(), self.notes())

    def legend(self) -> dict[str, str]:
        """Return what stands for each row's label in a picture: the keys that differ alone."""
        short = short_keys(self.keys)
        shown = {k: settings_apart(row.values.get(k, "-") for row in self.rows) for k in self.keys}
        texts = [
            " ".join(f"{short[k]}={shown[k][row.values.get(k, '-')]}" for k in self.keys)
            for row in self.rows
        ]
        alone = {text for text in texts if text and texts.count(text) == 1}
        return {
            row.label: text if text in alone else row.label
            for row, text in zip(self.rows, texts, strict=True)
        }

    def curves_of_rows(self) -> list[Curves]:
        """Return the curves in the order of the rows, by what stands in the legend."""
        legend, order = self.legend(), [row.label for row in self.rows]
        ordered = sorted(self.curves, key=lambda curve: order.index(curve[0]))
        return [(legend[label], losses, values) for label, losses, values in ordered]

    def evaluated(self) -> str:
        """Return what the second of each run's curves is: the metric, and on which set."""
        parts = {"validation": names.VAL, "test": names.TEST}
        known = [w for w, part in parts.items() if f"{part}{self.metric}" in self.metrics]
        return f"{' or '.join(known)} {self.metric}".strip()

    def _repr_html_(self) -> str:
        columns, rows = self.best_first().table()
        if len(rows) <= ACROSS:  # side by side, as `text` has them
            columns, *rows = map(list, zip(columns, *rows, strict=True))
        return html_table(columns, rows, self.notes())

    def plot(self, path: Path, extras: Extras | None = None) -> None:
        """Draw all curves together, as a picture or an HTML page; raise BadInput for another file.

        The page shows `extras` as well.
        """
        path, found, file = plot_path(str(path)), self.best_first(), io.BytesIO()
        if path.suffix == ".html":
            replace_file(path, page(found.content(), extras or Extras()))
            return
        draw_curves(file, found.curves_of_rows(), found.evaluated(), path.suffix[1:])
        replace_file(path, file.getvalue())


def plot_path(text: str) -> Path:
    """Return the file that a plot is to be written to; raise BadInput for one that cannot be."""
    path = Path(os.path.expanduser(text)).absolute()  # unlike Path's it takes an unknown ~user
    if path.suffix not in (*ENDINGS, ".html"):
        raise BadInput(f"--plot={text!r}: must end in .png, .svg, .pdf or .html.")
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


def better_value(key: str) -> Best | None:
    """Return what picks the best of some values of a metric, None if its name does not tell."""
    words = set(re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).lower()))
    words |= {word.rstrip("0123456789") for word in words}  # accuracy5
    if words & LOWER:
        return min
    return max if words & HIGHER else None


def _place(row: Row, key: str) -> tuple[bool, Any]:
    """Return what sorts rows by a metric, the best first, or a setting; one without it is last."""
    if key in row.metrics:
        value = row.metrics[key].final
        higher = better_value(key) is max
        return math.isnan(value), (0, -value if higher else value, "")
    if key in TIMES and key not in row.values:
        time = TIMES[key](row)
        return time is None, (0, time or 0.0, "")
    text = row.values.get(key)
    if text is None:
        return True, (0, 0.0, "")
    try:
        return False, (0, float(text), "")
    except ValueError:
        return False, (1, 0.0, text)


def _final(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    return number(metric.final) + "*" * metric.final_leads + "~" * bool(metric.ties)


def _half_width(metric: Metric | None) -> str:
    return "-" if metric is None or metric.high is None else number(metric.high - metric.final)


def _best(metric: Metric | None) -> str:
    return "-" if metric is None else number(metric.best) + "*" * metric.best_leads
