"""Finding runs: one by its id, name or `latest`, or all that fit some conditions."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from waymark import names
from waymark.errors import BadInput
from waymark.tracking import outbox, ownership, registry
from waymark.tracking.limits import reason_of
from waymark.tracking.liveness import DEAD_AFTER_S
from waymark.tracking.questions import question
from waymark.tracking.recovery import mark_dead_runs_killed
from waymark.tracking.registry import ModelCheckpoint
from waymark.tracking.runs import RunRecord, RunSummary
from waymark.tracking.store import RunStore, summary_of

NEWEST_FIRST = ["attributes.start_time DESC"]


@question
def find_single(store: RunStore, text: str) -> RunRecord:
    """Find RUN as `find` does; raise BadInput for a sweep's parent as well."""
    record = find(store, text)
    if record.tags.get(names.KIND) == "sweep":
        command = record.tags.get(names.COMMAND) or "the one that it was begun with"
        raise BadInput(
            f"run {record.id} is a sweep; waymark compare --sweep {record.id[:8]} shows its "
            f"trials, and this command completes it: {command}"
        )
    return record


@question
def find_checkpoint_of(store: RunStore, text: str) -> tuple[RunRecord, ModelCheckpoint | None]:
    """Find RUN, or the run that the model at an address was made by, and of which checkpoint."""
    if not registry.is_address(text):
        return find_single(store, text), None
    made = registry.resolve(store, text)
    try:
        return find_single(store, made.run_id), made
    except BadInput as error:
        raise BadInput(
            f"RUN={text!r}: the run that it was made by is not there ({error}); waymark serve and "
            f"MLflow still load the model."
        ) from None


@question
def find(store: RunStore, text: str) -> RunRecord:
    """Find RUN: an id, a prefix of one, a name, or `latest`; raise BadInput if it is not one."""
    where, trouble = store.address.display_uri, ""
    if registry.is_address(text):
        raise BadInput(
            f"RUN={text!r}: is a model's address, which evaluate, predict, export, register, "
            f"serve, gate and run --fork take; here it takes the run that the model was made by."
        )
    try:
        if store.server:
            mark_dead_runs_killed(store)
        found = [store.record(run) for run in _matching(store, text)]
    except BadInput:
        raise
    except Exception as error:  # whatever is wrong with the server, what is here is here
        reason = reason_of(error)
        if not store.server:
            raise BadInput(f"RUN={text!r}: {where} cannot be read ({reason}).") from None
        found, trouble = [], f"; {store.address.named}: cannot be used ({reason})"
    here = [record for record in _spooled(store) if trouble or not record.known]
    if text == "latest":
        past = _present() / 1000
        found = sorted([*found, *here], key=lambda r: (r.start_time <= past, r.start_time))[-1:]
    elif not found and len(text) >= 4:
        found = [each for each in here if each.id.startswith(text) or each.local.startswith(text)]
        found = found or [each for each in here if each.name == text != "offline"]
    if not found:
        raise BadInput(f"RUN={text!r}: there is no such run in {where}{trouble}.")
    if len(found) > 1:
        ids = ", ".join(record.id[:12] for record in found[:5])
        raise BadInput(f"RUN={text!r}: more than one run fits ({ids}); give more of its id.")
    (record,) = found
    try:
        content = outbox.read(record.outbox) if outbox.is_pending(record.outbox) else None
    except OSError as error:  # another user's, who has closed it
        reason = f"{record.folder.parent}: cannot be read ({error.strerror})"
        raise BadInput(f"run {record.id}: {reason}.") from None
    owner = ownership.owner(record.tags, record.status == "FINISHED")
    written = content.status if content and content.may_write(owner) else None
    # Without one it ended, if it did, as MLflow says; else MLflow has not heard of it yet.
    return replace(record, status=written[0]) if written else record


def _matching(store: RunStore, text: str) -> list[Any]:
    if text == "latest":
        own = f"tags.`{names.VERSION}` != '' AND attributes.start_time"
        queries = [f"{own} <= {_present()}", f"{own} > {_present()}"]  # the latter by a wrong clock
        runs = chain.from_iterable(store.search(query, NEWEST_FIRST) for query in queries)
        return list(islice((run for run in runs if run.data.tags.get(names.KIND) != "sweep"), 1))
    if len(text) >= 4 and text.isalnum():
        for key in ("attributes.run_id", f"tags.`{names.LOCAL_ID}`"):
            found = list(islice(store.search(f"{key} LIKE '{text}%'"), 50))
            if found:
                return found
    # MLflow's filters know no escape, but a pattern in which `_` is any character.
    pattern = text.replace("'", "_")
    quote = '"' if "'" in text else "'"
    same = f"= {quote}{text}{quote}" if quote not in text else f"LIKE '{pattern}'"
    alike = store.search(f"attributes.run_name {same}") if text else ()
    return list(islice((run for run in alike if run.info.run_name == text), 50))


def _spooled(store: RunStore) -> Iterator[RunRecord]:
    """Yield the runs of this machine that are not, or not all, in the server."""
    for path in sorted(store.root.glob(f"spool/*/{outbox.NAME}")):
        content = outbox.read(path)
        if content.creation and content.creation.address == store.address.store_key:
            status = content.status[0] if content.status else "RUNNING"
            record = store.offline(content.creation, content.ids, status, path.parent)
            yield replace(record, tags=record.tags | content.tags, offline=True)


@question
def select(
    store: RunStore,
    experiment: str | None,
    sweep: str | None,
    where: str | None,
    most: int | None = None,
) -> list[tuple[RunRecord, RunSummary]]:
    """Return the runs that fit all conditions, the one started last first, `most` at most.

    `sweep` is RUN of a sweep or of one of its trials, all of which are meant; `where` is a filter
    of MLflow's. Raises BadInput for what does not exist or cannot be read.
    """
    conditions = [where] if where else []
    if sweep is not None:
        record = find(store, sweep)
        trial = names.TRIAL in record.tags
        parent = record.tags.get(names.PARENT_RUN, record.id) if trial else record.id
        conditions.append(f"tags.{names.PARENT_RUN} = '{parent}'")
    try:
        if store.server:
            mark_dead_runs_killed(store)
        known = sweep is None or record.tags.get(names.KIND) == "sweep"
        if not known and next(store.search(conditions[-1], page=1), None) is None:
            raise BadInput(f"--sweep={sweep!r}: {record.id} is no sweep, and no trial of one.")
        page = min(most or 1000, 1000)
        runs = store.search(" AND ".join(conditions), NEWEST_FIRST, experiment, page)
        return [(store.record(run), summary_of(run)) for run in islice(runs, most)]
    except BadInput:
        raise
    except Exception as error:  # of MLflow, the network
        wrong = where and getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE"
        what = f"--where={where!r}" if wrong else store.address.named
        raise BadInput(f"{what}: cannot be used ({reason_of(error)}).") from None


@question
def tagged(
    store: RunStore, experiment: str, key: str, text: str
) -> list[tuple[RunRecord, RunSummary]]:
    """Return an experiment's runs that bear a tag, the one started last first."""
    known = store.client.get_experiment_by_name(experiment)
    if known is None or known.lifecycle_stage != "active":
        return []
    return select(store, experiment, None, f"tags.`{key}` = '{text}'")


def _present() -> int:
    """Return the latest time (ms) that a right clock may show now, on whatever machine."""
    return int((time.time() + DEAD_AFTER_S) * 1000)
