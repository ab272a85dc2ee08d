"""The recent runs of a store."""

import os
import time
from dataclasses import dataclass

from waymark import names
from waymark.processes.process_state import taken_back
from waymark.tracking.finder import select
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

    @property
    def accuracy(self) -> float | None:
        """Return the accuracy, None of a run that is judged by something else."""
        return self.value if self.metric == "accuracy" else None


@taken_back()
def list_runs(uri: str | None, most: int) -> list[ListedRun]:
    """Return the runs that began last, the last one first; raise BadInput if there is no store."""
    tracking = open_store(uri, reading=True)
    return [_listed(tracking, *found) for found in select(tracking, None, None, None, most)]


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
    return ListedRun(record.id, record.name, model, record.status, steps, *judged, age, resumable)
