"""The view of an experiment that `waymark ui` opens: which columns say something."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from waymark import names
from waymark.comparison.runs import differing_keys, with_current_steps
from waymark.tracking.address import page_of
from waymark.tracking.finder import find, select
from waymark.tracking.limits import param_name
from waymark.tracking.runs import RunRecord, RunSummary
from waymark.tracking.store import RunStore
from waymark.tracking.ui import view_page

RUN_NAME = "attributes.`Run Name`"
FIRST = ("0", RUN_NAME, "runDateAndNestInfo", "duration")  # columns that MLflow always shows
# What differs between runs and is of no interest beside each other.
CADENCE = ("save", "eval_every", "log_every", "prune", "runtime")
RUNS = 200  # that are looked at, those that began last
METRICS, PARAMS = 3, 8  # columns, at most


@dataclass(frozen=True)
class View:
    """Columns of MLflow's table of runs; the trials of `sweep` alone, the best first, if given."""

    metrics: Sequence[str]
    params: Sequence[str]
    sweep: str = ""
    ascending: bool = False

    def state(self) -> dict[str, Any]:
        """Return the view as MLflow's UI keeps it."""
        metrics = [f"metrics.`{name}`" for name in self.metrics]
        columns = [*metrics, *(f"params.`{param_name(key)}`" for key in self.params)]
        widths = {name: 30 + 7 * len(name.partition(".")[2]) for name in columns}  # in pixels
        order = [*FIRST, *columns]
        found: dict[str, Any] = {"selectedColumns": columns}
        found |= {"columnOrder": order, "columnWidths": widths | {RUN_NAME: 220}}
        if self.sweep and metrics:
            found["searchFilter"] = f"tags.`{names.PARENT_RUN}` = '{self.sweep}'"
            found |= {"orderByKey": metrics[0], "orderByAsc": self.ascending}
        return found


def page(store: RunStore, run: str | None) -> str:
    """Return the page of MLflow's UI with a run, the trials of a sweep, or the newest runs.

    Raises BadInput for a `run` that is not there.
    """
    if run is None:
        newest = select(store, None, None, None, 1)
        if not newest:
            return page_of("experiments")
        experiment = store.experiment_name(newest[0][0])
        view = view_of(select(store, experiment, None, None, RUNS))
        return view_page(store, newest[0][0].experiment_id, "waymark", view.state(), "Waymark")
    record = find(store, run)
    if record.tags.get(names.KIND) != "sweep":
        return page_of(f"experiments/{record.experiment_id}/runs/{record.id}")
    view = view_of(select(store, None, record.id, None, RUNS), record)
    return view_page(store, record.experiment_id, record.id, view.state(), "")


def view_of(found: Sequence[tuple[RunRecord, RunSummary]], sweep: RunRecord | None = None) -> View:
    """Return the view of runs, the one that began last first: objectives, varied keys.

    What differs between runs of no sweep counts as varied. With `sweep` they are its trials.
    """
    own = [pair for pair in found if names.VERSION in pair[0].tags]
    parents = [sweep] if sweep else [run for run, _ in found if run.tags.get(names.KIND) == "sweep"]
    varied = [key for parent in parents for key in _varied(parent)]
    runs: Any = [[(None, with_current_steps(*pair))] for pair in own]
    others = differing_keys(runs) if runs and not sweep else []
    keys = dict.fromkeys([*varied, *(k for k in others if k.partition(".")[0] not in CADENCE)])
    metrics = dict.fromkeys(_objective(*pair) for pair in own)
    ascending = any(facts.params.get("objective.mode") == "min" for _, facts in own[:1])
    shown = [*metrics][:METRICS], [*keys][:PARAMS]
    return View(*shown, sweep.id if sweep else "", ascending)


def _varied(parent: RunRecord) -> list[str]:
    with suppress(ValueError, TypeError):
        return [str(key) for key in json.loads(parent.tags.get(names.VARIED, "[]"))]
    return []


def _objective(record: RunRecord, facts: RunSummary) -> str:
    """Return the objective of a trial, else the metric that a run is judged by in the end."""
    judged = f"{names.RESTORED}{names.judged_metric(record.tags)}"
    return facts.params.get("objective.metric", judged) if names.TRIAL in record.tags else judged
