"""The parent run of a sweep, and trials that failed before they had a run of their own."""

import json
import time
from collections.abc import Mapping
from typing import Any

from waymark import names
from waymark.tracking.finder import tagged
from waymark.tracking.limits import NAME_LENGTH, TAG_LENGTH, fitted, store_errors
from waymark.tracking.liveness import this_process
from waymark.tracking.questions import question
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore, user_name


@question
def open_parent(
    store: RunStore, experiment: str, name: str, tags: Mapping[str, str], key: str
) -> tuple[RunRecord, RunRecord | None]:
    """Return the run of the same tag `key`, made if need be and RUNNING now, and what it was.

    That is None if it was made. Raises BadInput if the store does not answer.
    """
    alive = {names.PROCESS: json.dumps(this_process()), names.HEARTBEAT: str(int(time.time()))}
    tags = {**tags, **alive}
    with store_errors(f"{store.address.named}: takes no sweep"):
        known = tagged(store, experiment, key, tags[key])
        if not known:
            return store.record(_made(store, experiment, name, tags)), None
        record = known[-1][0]  # the first one that was made
        own = record.name.partition(" (")[0] == name.partition(" (")[0]  # but for the number
        store.client.update_run(record.id, status="RUNNING", name=name if own else None)
        over = {tag: "" for tag in (names.REASON,) if tag in record.tags}
        store.set_tags(record.id, tags | over)
        return record, record


@question
def withdraw(store: RunStore, run_id: str, before: RunRecord | None) -> None:
    """Make a run that `open_parent` returned what it was before; delete it if there was none."""
    if before is None:
        store.client.delete_run(run_id)
        return
    own = ("waymark.", names.DESCRIPTION)
    store.set_tags(run_id, {tag: text for tag, text in before.tags.items() if tag.startswith(own)})
    store.client.update_run(run_id, status=before.status, name=before.name)


@question
def record_failed_trial(
    store: RunStore, experiment: str, name: str, tags: Mapping[str, str]
) -> None:
    """Record a run that failed before it began."""
    store.client.set_terminated(_made(store, experiment, name, tags).info.run_id, "FAILED")


def _made(store: RunStore, experiment: str, name: str, tags: Mapping[str, str]) -> Any:
    """Return a new run of MLflow's that no process trains."""
    own = {names.USER: user_name(), names.SOURCE: "waymark", **tags}
    own = {key: fitted(text, TAG_LENGTH) for key, text in own.items()}
    return store.client.create_run(
        store.experiment(experiment), tags=own, run_name=name[:NAME_LENGTH]
    )
