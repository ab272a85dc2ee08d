"""Who has a run: the lock in its folder, and whether its owner may still be alive."""

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from waymark import names
from waymark.errors import BadInput
from waymark.tracking import outbox, ownership
from waymark.tracking.liveness import DELIVERY_END_S, is_alive, is_gone, this_process
from waymark.tracking.runs import RunRecord

LOCK_WAIT_S = 0.3  # to wait for a run's lock: to ask for it is to hold it for a moment


class RunLocked(BadInput):
    """Say that another process has a run."""


class RunLock(contextlib.AbstractContextManager["RunLock"]):
    """The lock of a run's folder, held until every process that has its descriptor has let go."""

    def __init__(self, path: Path, patience: float) -> None:
        """Hold the lock; raise BlockingIOError if it is not free for `patience` seconds."""
        end = time.monotonic() + patience
        while True:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(self.descriptor).st_nlink:  # else its folder has just been removed
                    return
                os.close(self.descriptor)
            except OSError as error:
                os.close(self.descriptor)
                if not isinstance(error, BlockingIOError) or time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def release(self) -> None:
        """Let go of the lock, which another process may hold on to."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __exit__(self, *_: object) -> None:
        self.release()


def run_lock(record: RunRecord, patience: float | None = None) -> RunLock:
    """Hold a run until the lock returned is released, or left; raise RunLocked if it is not free.

    It is waited for `patience` seconds; of an owner that has died the delivery process, which is
    about to end, unless that is given. Raises BadInput if this user may not write to the run.
    """
    if patience is None:
        patience = DELIVERY_END_S if _owner_is_gone(record) else LOCK_WAIT_S
    home = record.folder.parent
    lock = None
    try:
        record.folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(home / "lock", patience)
        if record.outbox.exists():
            record.outbox.open("ab").close()
    except BlockingIOError:
        raise RunLocked(f"run {record.id}: another process is training it.") from None
    except OSError as error:
        if lock:
            lock.release()
        reason = f"{home}: cannot be written to ({error.strerror})"
        raise BadInput(f"run {record.id}: {reason}.") from None
    return lock


def is_held(record: RunRecord) -> bool | None:
    """Tell whether a process has a run whose outbox is here; None if that cannot be asked."""
    try:
        run_lock(record, 0).release()
    except RunLocked:
        return True
    except BadInput:  # a store that may only be read
        return None
    return False


def may_be_alive(record: RunRecord) -> bool:
    """Tell whether the process that owns a run may still run.

    Its lock is certain where it lies here: in the folder of a local store, or of the outbox
    that its owner writes.
    """
    process, beat = owner_and_heartbeat(record)
    if _owner_is_gone(record):  # its delivery process may hold the lock for a while
        return False
    held = is_held(record) if record.outbox.exists() else None
    if held and not record.remote:
        return True
    if held is not None and outbox.read(record.outbox).is_of(ownership.owner(record.tags)):
        return held
    return is_own(process) or is_alive(process, beat)


def _owner_is_gone(record: RunRecord) -> bool:
    """Tell whether the process that owns a run, by its outbox if that is newer, has ended."""
    owner = ownership.owner(record.tags)
    leases = outbox.read(record.outbox).leases
    if any(lease.is_named_by(owner) for lease in leases):
        owner = leases[-1]
    return is_gone(owner.process)


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
