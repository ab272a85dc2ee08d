"""What differs between runs: configuration, results, data, code and environment."""

import csv
import html
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import pictures
from pipeline.checkpoints.store import replace_file
from pipeline.config import BadInput, Sentence, json_text
from pipeline.table import duration, rendered
from pipeline.tracking import Facts, RunRecord, Tracking
from pipeline.verdict import (
    DATA,
    STATE,
    Evidence,
    Parting,
    all_differences,
    evidence,
    number,
    partings,
    told,
)

LOSS, ACCURACY = "train/loss", "test/accuracy"
# Words in a metric's name that tell which way is better; the second ones win.
HIGHER = {"acc", "accuracy", "auc", "roc", "map", "iou", "dice", "f1", "r2", "bleu", "rouge"}
HIGHER |= {"precision", "recall", "score", "sensitivity", "specificity"}
LOWER = {"loss", "error", "err", "mse", "rmse", "mae", "mape", "nll", "perplexity", "entropy"}
CONFIDENCE = 0.95
PACE = "train/steps_per_second"
Curves = tuple[str, Mapping[int, float], Mapping[int, float]]  # row's name, losses, accuracies


@dataclass(frozen=True)
class Metric:
    """One metric in one row: over a row's runs the means of their final and best values."""

    final: float
    best: float
    std: float | None = None  # of the final values, over n - 1; None for one run
    low: float | None = None  # the 95 % interval of their mean, by Student's t
    high: float | None = None
    final_leads: bool = False  # no row's is better
    best_leads: bool = False
    ties: bool = False  # its interval overlaps that of the leading row, which is another one


@dataclass(frozen=True)
class Row:
    """One run, or several that differ only by their seeds."""

    name: str
    runs: list[str]  # ids
    status: str
    values: dict[str, str]  # of the keys that differ
    metrics: dict[str, Metric]
    seconds: float | None  # from start to end, the mean
    steps_per_second: float | None
    states: list[str]  # digests of the final states
    data: str | None  # digest of the data

    @property
    def label(self) -> str:
        """Return what names the row: the run, or what all its runs have and others have not."""
        if len(self.runs) == 1:
            return f"{self.name} {self.runs[0][:8]}"
        own = [f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items()]
        return " ".join(own) or f"{len(self.runs)} seeds"


@dataclass(frozen=True)
class Comparison:
    """What differs between runs; rows are in the order in which the runs were named or begun."""

    rows: list[Row]
    keys: list[str]  # of the configuration, that differ between rows
    same_state: list[list[str]]  # ids of runs whose final states are the same bits
    data: dict[str, list[str]]  # digest of the data -> ids of its runs
    differences: dict[str, list[tuple[str, Any, Any]]]  # run -> from the first run, what, here
    partings: dict[str, Parting] | None  # of two runs: metric -> where it parts; else None
    names: dict[str, str]  # run -> its name
    curves: list[Curves] = field(repr=False)  # one of each run

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
        parts = ("best", "std", "low", "high")
        columns = ["name", "run_ids", "status", *(f"params.{key}" for key in self.keys)]
        for key in self.metrics:
            columns += [f"metrics.{key}", *(f"metrics.{key}.{part}" for part in parts)]
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
        told = {row.status for row in self.rows} != {"FINISHED"}
        columns = ["run", *["seeds"] * several, *["status"] * told, *self.keys, *self.metrics]
        columns += ["duration", "steps/s", "state"]
        shown = []
        for row in self.rows:
            cells = [row.label, *[str(len(row.runs))] * several, *[row.status] * told]
            cells += [row.values.get(key, "-") for key in self.keys]
            cells += [_cell(row.metrics.get(key)) for key in self.metrics]
            cells.append("-" if row.seconds is None else duration(row.seconds))
            cells.append("-" if row.steps_per_second is None else f"{row.steps_per_second:.4g}")
            cells.append(row.states[0][:8] if len(row.runs) == 1 and row.states else "-")
            shown.append(cells)
        return columns, shown

    def notes(self) -> list[str]:
        """Return what stands below the table, as lines."""
        lines = ["metrics: final value / best value on the way; * the best of all rows"]
        if any(metric.ties for row in self.rows for metric in row.metrics.values()):
            lines[0] += "; ~ a tie with it: the 95 % intervals of the means overlap"
        for runs in self.same_state:
            lines.append(f"the same final state: {self._named(runs)}")
        if len(self.data) > 1:
            lines += [f"data {data[:8]}: {self._named(runs)}" for data, runs in self.data.items()]
        for key, parting in (self.partings or {}).items():
            values = f"{number(parting.recorded)} and {number(parting.now)}"
            lines.append(f"{key} parts at step {parting.step}: {values}")
        if self.partings == {}:
            lines.append("no loss and no evaluation parts at any step that both recorded")
        grouped: dict[str, list[str]] = {}
        for run, found in self.differences.items():
            for each in found:
                grouped.setdefault(told(each, ("in the first run", "here")), []).append(run)
        lines += [f"{self._named(runs)}: {text}" for text, runs in grouped.items()]
        return [str(Sentence(line)) for line in lines]

    def _named(self, runs: list[str]) -> str:
        return ", ".join(f"{self.names[run]} {run[:8]}" for run in runs)

    def text(self, width: int | None = None) -> str:
        """Return table and notes for a terminal so many characters wide (None: any width)."""
        return "\n".join([rendered(*self.table(), width), "", *self.notes()])

    def plot(self, path: Path) -> None:
        """Draw the curves of losses and accuracies together, as a PNG file or an HTML page.

        Raises BadInput for another kind of file.
        """
        path = plot_path(str(path))
        if path.suffix == ".png":
            replace_file(path, pictures.curves(self.curves, "png"))
            return
        svg = pictures.curves(self.curves, "svg").decode()
        columns, rows = self.table()
        cells = [_html("th", columns), *(_html("td", row) for row in rows)]
        table = "\n".join(f"<tr>{row}</tr>" for row in cells)
        notes = _html("li", self.notes())
        replace_file(path, PAGE.format(table=table, notes=notes, svg=svg[svg.index("<svg") :]))


def _html(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{html.escape(str(Sentence(text)))}</{tag}>" for text in texts)


PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Waymark: comparison</title>
<style>body {{ font: 14px sans-serif }} td, th {{ padding: 2px 10px; text-align: left }}</style>
{svg}
<table>
{table}
</table>
<ul>
{notes}
</ul>
"""


def compare(
    runs: Sequence[str],
    uri: str | None = None,
    experiment: str | None = None,
    sweep: str | None = None,
    where: str | None = None,
) -> Comparison:
    """Compare the runs that are named, and those that fit all of the conditions.

    Raises BadInput for a run or condition that does not exist, and for fewer than two runs.
    """
    tracking = Tracking(uri)
    found: list[tuple[RunRecord, Facts]] = []
    for text in runs:
        record = tracking.find(text)
        found.append((record, tracking.facts(record)))
    if experiment is not None or sweep is not None or where is not None:
        found += reversed(tracking.select(experiment, sweep, where))
    chosen = {record.id: (record, facts) for record, facts in found}
    if len(chosen) < 2:
        raise BadInput(f"compare takes two runs or more; these are {len(chosen)}.")
    with ThreadPoolExecutor(8 if tracking.server else 1) as pool:  # to wait for a server
        records = list(pool.map(partial(evidence, tracking), [r for r, _ in chosen.values()]))
    return _compared(records, [_as_it_is(*pair) for pair in chosen.values()])


def _as_it_is(record: RunRecord, facts: Facts) -> Facts:
    """Put the number of steps right: MLflow's param stays when a run is extended."""
    steps = {"steps": record.tags["waymark.steps"]} if "waymark.steps" in record.tags else {}
    return replace(facts, params={**facts.params, **steps})


def plot_path(text: str) -> Path:
    """Return the file that a plot is to be written to; raise BadInput for one that cannot be."""
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError:  # there is no such user
        path = Path(text).absolute()
    if path.suffix not in (".png", ".html"):
        raise BadInput(f"--plot={text!r}: must end in .png or .html.")
    if not path.parent.is_dir() or path.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise BadInput(f"--plot={text!r}: {what}.")
    return path


def _compared(found: list[Evidence], facts: list[Facts]) -> Comparison:
    groups = _by_seed(found, facts)
    params = [facts[members[0]].params for members in groups]
    keys = [key for key in dict.fromkeys(k for p in params for k in p) if key != "run_name"]
    keys = [k for k in keys if len({p.get(k) for p in params}) > 1]
    keys = [k for k in keys if not _implied(k, keys, params)]
    if any(len(members) > 1 for members in groups):
        keys = [key for key in keys if key != "seed"]
    rows = [_row(members, found, facts, keys) for members in groups]
    states: dict[str, list[str]] = {}
    data: dict[str, list[str]] = {}
    for each in found:
        for known, tag in ((states, STATE), (data, DATA)):
            if tag in each.record.tags:
                known.setdefault(each.record.tags[tag], []).append(each.record.id)
    others = {each.record.id: all_differences(found[0], each) for each in found[1:]}
    return Comparison(
        _marked(rows),
        keys,
        [runs for runs in states.values() if len(runs) > 1],
        data,
        {run: differences for run, differences in others.items() if differences},
        partings(found[0].history, found[1].history)[0] if len(found) == 2 else None,
        {each.record.id: each.record.name for each in found},
        [_curves(row, found[i]) for row, own in zip(rows, groups, strict=True) for i in own],
    )


def _implied(key: str, keys: list[str], params: list[dict[str, str]]) -> bool:
    """Tell whether a setting only says again which member of its group was chosen."""
    group = key.partition(".")[0]
    shared = not key.endswith("._target_") and all(key in known for known in params)
    if group == key or group not in keys or shared:
        return False
    pairs = {(known.get(group), known.get(key)) for known in params}
    return len(pairs) == len({member for member, _ in pairs})


def _curves(row: Row, run: Evidence) -> Curves:
    metrics = run.history.metrics
    return row.label, metrics.get(LOSS, {}), metrics.get(ACCURACY, {})


def _by_seed(found: list[Evidence], facts: list[Facts]) -> list[list[int]]:
    """Return the indices of the runs that make a row each: they differ only by their seeds.

    A second run of the same seed (a rerun, say) is no further sample: it comes into another row.
    """
    rows: dict[Any, list[int]] = {}
    seen: dict[Any, int] = {}
    for index, (each, known) in enumerate(zip(found, facts, strict=True)):
        seed = known.params.get("seed")
        kept = {k: v for k, v in known.params.items() if k not in ("seed", "run_name")}
        same = (tuple(sorted(kept.items())), each.record.tags.get(DATA))
        count = seen[same, seed] = seen.get((same, seed), -1) + 1
        # Without a seed nothing says what two runs of one configuration differ by.
        lonely = None if "seed" in known.params else index
        rows.setdefault((same, count, lonely), []).append(index)
    return list(rows.values())


def _row(members: list[int], found: list[Evidence], facts: list[Facts], keys: list[str]) -> Row:
    own = [found[i] for i in members]
    known = [facts[i] for i in members]
    pairs = list(zip(own, known, strict=True))
    seconds = [max(0.0, f.end - e.record.start_time) for e, f in pairs if f.end]
    paces = [
        f.metrics["train/steps_per_second"] for f in known if "train/steps_per_second" in f.metrics
    ]
    metrics = {}
    for key in dict.fromkeys(key for f in known for key in f.metrics):
        values = [
            _final_and_best(key, e, f) for e, f in zip(own, known, strict=True) if key in f.metrics
        ]
        if key != "train/steps_per_second" and not key.startswith("system/"):
            metrics[key] = _metric(values)
    return Row(
        own[0].record.name,
        [e.record.id for e in own],
        ", ".join(dict.fromkeys(e.record.status for e in own)),
        {key: known[0].params[key] for key in keys if key in known[0].params},
        metrics,
        _mean(seconds) if seconds else None,
        _mean(paces) if paces else None,
        [e.record.tags[STATE] for e in own if STATE in e.record.tags],
        own[0].record.tags.get(DATA),
    )


def _final_and_best(key: str, run: Evidence, facts: Facts) -> tuple[float, float]:
    """Return a metric's last and best value; the last is the best where neither way is better."""
    known = run.history.metrics.get(key, {})
    final = known[max(known)] if known else facts.metrics[key]
    better, values = _better(key), [v for v in known.values() if not math.isnan(v)]
    return final, better(values) if better and values else final


def _better(key: str) -> Callable[[Iterable[float]], float] | None:
    """Return what picks the best of some values of a metric, None if its name does not tell."""
    words = set(re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).lower()))
    words |= {word.rstrip("0123456789") for word in words}  # accuracy5
    if words & LOWER:
        return min
    return max if words & HIGHER else None


def _mean(values: list[float]) -> float:
    """Return the mean; of opposite infinities it is NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        return values[0] if len(values) == 1 else float(np.mean(values))


def _metric(values: list[tuple[float, float]]) -> Metric:
    from scipy import stats

    finals = [final for final, _ in values]
    mean, best = _mean(finals), _mean([best for _, best in values])
    if len(values) < 2 or not all(map(math.isfinite, finals)):
        return Metric(mean, best)
    std = statistics.stdev(finals)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return Metric(mean, best, std, mean - half, mean + half)


def _marked(rows: list[Row]) -> list[Row]:
    """Return the rows with the best of each metric marked, and what ties with it."""
    for key in dict.fromkeys(key for row in rows for key in row.metrics):
        better = _better(key)
        known = {i: row.metrics[key] for i, row in enumerate(rows) if key in row.metrics}
        finals = [m.final for m in known.values() if not math.isnan(m.final)]
        bests = [m.best for m in known.values() if not math.isnan(m.best)]
        if not better or len(known) < 2 or not finals:
            continue
        lead = next(m for m in known.values() if m.final == better(finals))
        for i, m in known.items():  # where all are equal, there is nothing to choose
            leads = m.final == lead.final and len(set(finals)) > 1
            best = m.best == better(bests) and len(set(bests)) > 1
            ties = m.final != lead.final and _overlap(m, lead)
            rows[i].metrics[key] = replace(m, final_leads=leads, best_leads=best, ties=ties)
    return rows


def _overlap(a: Metric, b: Metric) -> bool:
    """Tell whether two intervals overlap; a single run has no interval, but a value."""
    lows = [m.final if m.low is None else m.low for m in (a, b)]
    highs = [m.final if m.high is None else m.high for m in (a, b)]
    return max(lows) <= min(highs)


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    final = _short(metric.final)
    if metric.std is not None and metric.low is not None and metric.high is not None:
        final += f" ±{_short(metric.std)} [{_short(metric.low)}, {_short(metric.high)}]"
    final += "*" * metric.final_leads + "~" * metric.ties
    if metric.best == metric.final or math.isnan(metric.best):
        return final
    return f"{final} / {_short(metric.best)}" + "*" * metric.best_leads


def _short(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"
