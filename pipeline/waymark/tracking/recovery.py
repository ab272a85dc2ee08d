"""Mark dead runs KILLED, deliver their outboxes, recreate runs missing from the database."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path

from waymark import names
from waymark.errors import BadInput, printable
from waymark.tracking import outbox, ownership, pictures
from waymark.tracking.delivery import Delivery
from waymark.tracking.history import NAME as HISTORY
from waymark.tracking.history import History, load
from waymark.tracking.limits import Deleted, reason_of
from waymark.tracking.liveness import DELIVERY_END_S
from waymark.tracking.lock import (
    RunLocked,
    is_held,
    last_activity_ms,
    may_be_alive,
    owner_and_heartbeat,
    run_lock,
)
from waymark.tracking.outbox import Content, Outbox, RunCreation
from waymark.tracking.questions import question
from waymark.tracking.runs import RunRecord, delete_spool, mark_delivered
from waymark.tracking.store import RunStore


def delivered(run_id: str, refused: str) -> str:
    """Say that a run was delivered, but for what the store will never take of it."""
    return f"run {run_id}: delivered" + (f" without {refused}" if refused else "")


def report_left_out(run_id: str, refused: str) -> None:
    """Say on standard error what was left out of a run that was delivered on the way."""
    if refused:
        print(printable(f"waymark: {delivered(run_id, refused)}"), file=sys.stderr)


@question
def mark_dead_runs_killed(store: RunStore) -> None:
    """Mark KILLED the runs whose process is gone, so that all see they can be resumed.

    Raises what MLflow raises. One of another host counts as dead after `liveness.DEAD_AFTER_S`.
    """
    until = time.monotonic() + DELIVERY_END_S  # for which delivery processes are waited for
    query = f"attributes.status = 'RUNNING' AND tags.`{names.PROCESS}` LIKE '%'"
    for run in list(store.search(query)):  # all of them first: pages count what still fits
        record = store.record(run)
        if may_be_alive(record):
            continue
        with suppress(Exception):  # a process holds it after all, or the next command can
            if store.database:
                with store.sql(0.1) as database:  # for which MLflow would wait long
                    database.execute("BEGIN IMMEDIATE")
            last = last_activity_ms(record, owner_and_heartbeat(record)[1])
            mark_killed(store, record, last, max(0.0, until - time.monotonic()))


def mark_killed(store: RunStore, record: RunRecord, end: int, patience: float) -> None:
    """Mark KILLED a run whose process is gone; raise RunLocked if a process has it for so long.

    A local run is delivered as well; with a server, where it may take long, resume and sync do so.
    """
    content = outbox.read(record.outbox)
    here = content.is_of(ownership.owner(record.tags))
    if here and not record.remote:
        store.recovered(record.id, deliver_outbox(store, record, ("KILLED", end), patience))
    elif not (here and content.status):
        with run_lock(record, patience) if here else nullcontext():
            run = store.client.get_run(record.id)
            same = all(
                run.data.tags.get(k) == record.tags.get(k)
                for k in (names.PROCESS, names.LEASE, names.HEARTBEAT)
            )
            if not same or run.info.status != "RUNNING":
                return  # it lives after all, or another process has taken it
            for key, value in _killed_tags(record).items():
                store.client.set_tag(record.id, key, value)
            end = max(end, int(record.start_time * 1000))
            store.client.set_terminated(record.id, "KILLED", end)


def _killed_tags(record: RunRecord) -> dict[str, str]:
    lacking = not record.remote and not (record.folder / "config.yaml").exists()
    # A sweep has a command of its own; without its configuration a run cannot go on.
    again = record.tags.get(names.RESUME) or f"waymark resume {record.id}" * (not lacking)
    return {names.REASON: "its process is gone", names.RESUME: again}


def deliver_outbox(
    store: RunStore, record: RunRecord, default: tuple[str, int], patience: float | None = None
) -> str:
    """Deliver all that stands in the outbox of a run that no process trains; return `refusals`.

    `default` is the status (and when, ms) of a run that did not live to record one. Raises
    RunLocked if a process has the run, Deleted if it was deleted, and what MLflow raises.
    """
    with run_lock(record, patience), closing(Outbox(record.outbox)) as box:
        content = outbox.read(record.outbox)
        if not content.status:  # it did not live to record its end
            content.status = default
            if default[0] == "KILLED":
                box.append("tags", _killed_tags(record))
            box.append("status", content.status)
        first = content.creation.tags if content.creation else {}
        lasting = {key: text for key, text in first.items() if key not in names.OWNERSHIP}
        delivery = Delivery(store, record, new=False)
        delivery.tags = lasting | delivery.tags
        delivery.created = lambda made: box.append("ids", [made.id, made.experiment_id])

        def complete_files() -> None:
            """Put what MLflow has into a history that was written without it; draw the run."""
            with suppress(OSError):
                path = record.folder / HISTORY
                known = load(path.read_bytes())
                if known and not known.whole:
                    newer = History(content.metrics()).over(delivery.learned)
                    new = path.with_name(f".{path.name}")
                    new.write_text(newer.over(known).dump(), encoding="utf-8")
                    os.replace(new, path)
            pictures.draw(record.folder)

        delivery.on_connected = complete_files
        delivery.deliver()
        delivery.deliver_models()
        mark_delivered(box, delivery.info, delivery.close(*content.status))
        return delivery.refusals()


@question
def deliver_ended_run(store: RunStore, record: RunRecord) -> None:
    """Deliver what an ended run's outbox holds, and keep no spool of it."""
    if record.outbox.exists() and (record.remote or outbox.is_pending(record.outbox)):
        end = record.status, time.time_ns() // 1_000_000
        store.recovered(record.id, deliver_outbox(store, record, end))
    elif record.remote and record.folder.exists():
        delete_spool(record.folder.parent)


def sync(store: RunStore) -> Iterator[tuple[str, bool]]:
    """Deliver what stands in outboxes; yield a sentence on each run, and whether it went well.

    A run that a local database has lost is made again; one that is being trained is left alone.
    """
    here = [*store.root.glob(f"artifacts/*/*/{outbox.NAME}")] if store.database else []
    known = {}
    if here:
        with store.sql() as database:
            known = dict(database.execute("SELECT run_uuid, lifecycle_stage FROM runs"))
    for path in sorted([*here, *store.root.glob(f"spool/*/{outbox.NAME}")]):
        home, lost = path.parent, path in here and path.parent.name not in known
        if not os.access(path, os.R_OK):  # another user's
            yield f"run {home.name}: left out, {path} cannot be read (Permission denied)", True
            continue
        if path in here and not lost and outbox.is_delivered(path):
            continue
        content = outbox.read(path)
        if content.creation is None:
            continue
        if known.get(home.name) == "deleted":
            yield f"run {home.name}: left out, it was deleted and can be restored", True
            continue
        if lost and (content.creation.id in known or not (home / "artifacts").exists()):
            continue  # a copy of a run's folder, or what MLflow's garbage collection left
        if content.creation.address == store.address.store_key:
            yield from _deliver(store, home, content, lost)
        elif not content.delivered:
            where = content.creation.address or "the store beside it"
            yield f"run {content.creation.id} belongs to {where}: give its tracking.uri", True
    if store.server:
        with suppress(Exception):  # what is wrong with it has been said above, if it matters
            mark_dead_runs_killed(store)


def _deliver(
    store: RunStore, home: Path, content: Content, lost: bool
) -> Iterator[tuple[str, bool]]:
    assert content.creation
    spooled = home.parent.name == "spool"
    ids = content.ids if spooled else (home.name, home.parent.name)
    status = content.status[0] if content.status else "RUNNING"
    record = store.offline(content.creation, ids, status, home)
    end = last_activity_ms(record, 0)
    if status == "RUNNING" and is_held(record):
        return
    try:
        if content.delivered and not lost:
            if store.client.get_run(record.id).info.status == "FINISHED":
                delete_spool(home)  # it was finished on another machine
            return
        if lost:
            record = _rebuilt(store, record, content.creation)
        refused = deliver_outbox(store, record, ("KILLED", end))
    except RunLocked as error:
        yield str(error), True
    except Deleted as error:
        yield f"run {record.id}: left out, {error}", True
    except Exception as error:  # of MLflow, the network, the disk: the outbox stays
        yield f"run {record.id}: {reason_of(error)}", False
    else:
        yield delivered(record.id, refused), True


def _rebuilt(store: RunStore, record: RunRecord, creation: RunCreation) -> RunRecord:
    """Make a run anew that the database has lost, and give its folder the new id."""
    with run_lock(record):
        made = store.record(store.get_or_create(creation, None, may_exist=True))
        if made.outbox.exists():
            raise BadInput(f"{made.folder.parent} is there already; {record.folder.parent} stays.")
        age = record.outbox.stat().st_mtime_ns  # which tells when the run lived last
        with closing(Outbox(record.outbox)) as box:
            box.append("ids", [made.id, made.experiment_id])  # its end is not `delivered` now
        os.utime(record.outbox, ns=(age, age))
        made.folder.parent.parent.mkdir(parents=True, exist_ok=True)
        os.rename(record.folder.parent, made.folder.parent)
    return made
