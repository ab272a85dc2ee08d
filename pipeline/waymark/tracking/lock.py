"""Who has a run: the lock in its folder, and whether its owner may still be alive."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from waymark import names
from waymark.errors import BadInput
from waymark.tracking import outbox, ownership
from waymark.tracking.liveness import is_alive, this_process
from waymark.tracking.runs import RunRecord

LOCK_WAIT_S = 0.3  # to wait for a run's lock: to ask for it is to hold it for a moment


class RunLocked(BadInput):
    """Say that another process has a run."""


@contextlib.contextmanager
def run_lock(record: RunRecord) -> Iterator[None]:
    """Hold a run for this process; raise RunLocked if another one has it."""
    lock = acquire_run_lock(record)
    try:
        yield
    finally:
        lock.release()


def acquire_run_lock(record: RunRecord, patience: float = LOCK_WAIT_S) -> Any:
    """Hold a run until the lock that is returned is released; raise RunLocked as `run_lock` does.

    Raises BadInput if this user may not write to the run.
    """
    from filelock import FileLock, Timeout

    home = record.folder.parent
    lock = FileLock(home / "lock", thread_local=False)
    try:
        record.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(patience, poll_interval=0.02)
        if record.outbox.exists():
            record.outbox.open("ab").close()
    except Timeout:
        raise RunLocked(f"run {record.id}: another process is training it.") from None
    except OSError as error:
        lock.release()
        reason = f"{home}: cannot be written to ({error.strerror})"
        raise BadInput(f"run {record.id}: {reason}.") from None
    return lock


def is_held(record: RunRecord) -> bool | None:
    """Tell whether a process has a run whose outbox is here; None if that cannot be asked."""
    try:
        acquire_run_lock(record, 0).release()
    except RunLocked:
        return True
    except BadInput:  # a store that may only be read
        return None
    return False


def process_tag() -> str:
    """Return what names this process, as a tag."""
    return json.dumps(this_process())


def may_be_alive(record: RunRecord) -> bool:
    """Tell whether the process that owns a run may still run.

    Its lock is certain where it lies here: in the folder of a local store, or of the outbox
    that its owner writes.
    """
    process, beat = owner_and_heartbeat(record)
    held = is_held(record) if record.outbox.exists() else None
    if held and not record.remote:
        return True
    if held is not None and outbox.read(record.outbox).is_of(ownership.owner(record.tags)):
        return held
    return is_own(process) or is_alive(process, beat)


def owner_and_heartbeat(record: RunRecord) -> tuple[dict[str, Any], float]:
    """Return the process that trains a run, and its last sign of life, as far as they are told."""
    process = dict(ownership.owner(record.tags).process)
    try:
        beat = float(record.tags.get(names.HEARTBEAT, ""))
    except ValueError:
        beat = 0.0
    return process, beat if math.isfinite(beat) else 0.0


def is_own(process: Mapping[str, Any]) -> bool:
    """Tell whether a record names this very process."""
    return {key: process.get(key) for key in this_process()} == this_process()


def last_activity_ms(record: RunRecord, beat: float) -> int:
    """Return the latest time (ms) at which a run is known to have lived, by no clock ahead."""
    with contextlib.suppress(OSError):
        beat = max(beat, record.outbox.stat().st_mtime)
    return int(min(beat, time.time()) * 1000)
