"""The recent runs of a store."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from waymark import names
from waymark.errors import BadInput
from waymark.processes.process_state import taken_back
from waymark.tracking.finder import find, select
from waymark.tracking.history import last_step
from waymark.tracking.opening import open_store
from waymark.tracking.runs import RunRecord, RunSummary
from waymark.tracking.store import RunStore


@dataclass(frozen=True)
class ListedRun:
    """One of the recent runs."""

    id: str
    name: str
    model: str
    status: str
    steps: str  # reached and asked for
    metric: str  # by which it is judged
    value: float | None  # of that, restored or else in training
    age: float  # seconds since it began; negative by a clock that was ahead
    resumable: bool
    parent: str = ""  # the id of the sweep that it is a trial of
    trials_left: str = ""  # of a sweep that is not complete: "3 of 9"

    @property
    def todo(self) -> str:
        """Return what can be done with it: "resume" an interrupted run, complete a sweep."""
        if self.trials_left:
            return f"{self.trials_left} trials left: repeat its command"
        return "resume" if self.resumable else ""

    @property
    def accuracy(self) -> float | None:
        """Return the accuracy, None of a run that is judged by something else."""
        return self.value if self.metric == "accuracy" else None


@taken_back()
def list_runs(
    uri: str | None, most: int, experiment: str | None = None, status: str | None = None
) -> list[ListedRun]:
    """Return the runs that began last, the last one first; raise BadInput if there is no store.

    Only those of an `experiment`, and with a `status` of MLflow's, are returned where it is given.
    Without a `status` the sweeps of trials among them are there as well, last.
    """
    tracking = open_store(uri, reading=True)
    where = f"attributes.status = '{status}'" if status else None
    found = select(tracking, experiment, None, where, most)
    if not status:  # a sweep is older than its trials, and has a line wherever one of them has
        there = {record.id for record, _ in found}
        parents = (r.tags.get(names.PARENT_RUN) for r, _ in found if names.TRIAL in r.tags)
        for parent in dict.fromkeys(parents):
            if parent and parent not in there:
                with suppress(BadInput):  # it is deleted
                    record = find(tracking, parent)
                    found.append((record, tracking.summary(record)))
    return [_listed(tracking, *each) for each in found]


def as_tree(runs: Sequence[ListedRun]) -> list[tuple[ListedRun, bool]]:
    """Return the runs with the trials of each sweep below it, and whether each stands so."""
    sweeps = {run.id for run in runs if run.model == "sweep"}
    trials: dict[str, list[ListedRun]] = {}
    for run in runs:
        if run.parent in sweeps:
            trials.setdefault(run.parent, []).append(run)
    tops = [run for run in runs if run.parent not in sweeps]
    below = {top.id: [(run, True) for run in trials.get(top.id, [])] for top in tops}
    return [pair for top in tops for pair in ((top, False), *below[top.id])]


def _listed(tracking: RunStore, record: RunRecord, facts: RunSummary) -> ListedRun:
    steps = record.tags.get(names.STEPS, facts.params.get("steps", "-"))
    pruned = record.tags.get(names.PRUNED)  # "" if it was trained to its end since
    pruned = pruned or record.tags.get(names.STOPPED)
    if steps != "-" and (pruned or record.status != "FINISHED"):
        steps = f"{pruned or last_step(tracking, record, names.TRAIN_LOSS)} of {steps}"
    metric = names.judged_metric(record.tags)
    known = [f"{part}{metric}" for part in (names.RESTORED, *names.EVALUATED)]
    judged = metric, next((facts.metrics[key] for key in known if key in facts.metrics), None)
    sweep, folder = record.tags.get(names.KIND) == "sweep", record.folder
    stopped = record.status in ("FAILED", "KILLED") and bool(record.tags.get(names.RESUME))
    # False, too, for what another user has closed, and where only reading is allowed.
    here = os.access(folder / "config.yaml", os.R_OK) and os.access(folder, os.W_OK)
    resumable = stopped and (record.remote or here) and not sweep
    model = facts.params.get("model", "sweep" if sweep else "-")
    age = time.time() - record.start_time
    parent = record.tags.get(names.PARENT_RUN, "")
    parts = ("trials", "finished", "pruned")
    trials, *over = [int(facts.metrics.get(f"{names.PROGRESS}{part}", 0)) for part in parts]
    incomplete = sweep and record.status != "RUNNING" and sum(over) < trials
    left = f"{trials - sum(over)} of {trials}" if incomplete else ""
    return ListedRun(
        *(record.id, record.name, model, record.status, steps, *judged, age, resumable),
        *(parent, left),
    )
