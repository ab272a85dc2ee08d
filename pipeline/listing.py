"""The recent runs of a store."""

import os
import time
from dataclasses import dataclass

from pipeline.tracking import RESUME, Facts, RunRecord, Tracking
from pipeline.tracking.tracked import KIND


@dataclass(frozen=True)
class Listed:
    """One of the recent runs."""

    id: str
    name: str
    model: str
    status: str
    steps: str  # reached and asked for
    accuracy: float | None
    age: float  # seconds since it began; negative by a clock that was ahead
    resumable: bool


def recent(uri: str | None, most: int) -> list[Listed]:
    """Return the runs that began last, the last one first; raise BadInput if there is no store."""
    tracking = Tracking(uri, reading=True)
    found = tracking.select(None, None, None, most)
    return [_listed(tracking, record, facts) for record, facts in found]


def _listed(tracking: Tracking, record: RunRecord, facts: Facts) -> Listed:
    steps = record.tags.get("waymark.steps", facts.params.get("steps", "-"))
    if record.status != "FINISHED" and steps != "-":
        steps = f"{tracking.reached(record, 'train/loss')} of {steps}"
    accuracy = facts.metrics.get("restored/accuracy", facts.metrics.get("test/accuracy"))
    sweep, folder = record.tags.get(KIND) == "sweep", record.folder
    stopped = record.status in ("FAILED", "KILLED") and bool(record.tags.get(RESUME))
    # False, too, for what another user has closed, and where only reading is allowed.
    here = os.access(folder / "config.yaml", os.R_OK) and os.access(folder, os.W_OK)
    resumable = stopped and (record.remote or here) and not sweep
    model = facts.params.get("model", "sweep" if sweep else "-")
    age = time.time() - record.start_time
    return Listed(record.id, record.name, model, record.status, steps, accuracy, age, resumable)
