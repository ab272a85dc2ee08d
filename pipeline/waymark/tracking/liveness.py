"""Tell whether the process that trains a run is still there."""

import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HEARTBEAT_S = 30  # seconds between two signs of life of a run
DELIVERY_END_S = 10  # that a delivery process stays at most when the one that trained is gone
DEAD_AFTER_S = 300  # seconds without one after which a run of another machine counts as dead


def this_process() -> dict[str, Any]:
    """Return what names this process among all that ever were."""
    pid = os.getpid()
    return {**_place(), "pid": pid, "started": _started(pid)}


def is_alive(process: Mapping[str, Any], heartbeat: float) -> bool:
    """Tell whether a process may still run; `heartbeat` is its last one, seconds since the epoch.

    Where this process sees that one's number the answer is certain and no clock is asked: on the
    same host since the same boot, in the same PID namespace (older records tell of none). Of
    another host or container only the age of the heartbeat is known; one further in the future
    than the next one may be is no sign of life.
    """
    if not _is_near(process):
        return -HEARTBEAT_S <= time.time() - heartbeat < DEAD_AFTER_S
    pid, started = process.get("pid"), process.get("started")
    if type(pid) is not int or started is None:
        return False
    return _started(pid) == started


def is_gone(process: Mapping[str, Any]) -> bool:
    """Tell whether a process is certain to have ended."""
    return _is_near(process) and not is_alive(process, 0)


def _is_near(process: Mapping[str, Any]) -> bool:
    """Tell whether this process sees that one's number."""
    place = {key: x for key, x in _place().items() if key != "pids" or process.get("pids")}
    return all(process.get(key) == value for key, value in place.items())


def _place() -> dict[str, str | None]:
    """Return what names the set of processes in which this one's number means it."""
    place: dict[str, str | None] = {"host": platform.node(), "boot": None, "pids": None}
    try:  # what is another after every start of the machine
        place["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        import psutil

        place["boot"] = str(int(psutil.boot_time()))
    with suppress(OSError):  # not Linux
        place["pids"] = os.readlink("/proc/self/ns/pid")
    return place


def _started(pid: int) -> float | None:
    """Return when a process started, in units of its own; None if it is gone."""
    try:
        # The second field is the program's name in brackets, which may hold anything.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else float(fields[18])
    except (OSError, ValueError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    import psutil  # not Linux

    try:
        process = psutil.Process(pid)
        gone = process.status() == psutil.STATUS_ZOMBIE
        return None if gone else float(process.create_time())
    except (psutil.Error, ValueError, OverflowError):  # gone, or no number of a process
        return None
