"""Who owns a run: the process that its tags in the store name.

Every process that trains a run takes a lease of it, with a number that grows by one.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from waymark import names

SINCE = "since"  # when a lease was taken (ns): one process may have a run twice


@dataclass(frozen=True)
class Lease:
    """The time in which one process has a run."""

    number: int = 0  # grows by one; 0: an older Waymark's, or nothing tells
    from_step: int = 0  # at which the run went on
    process: Mapping[str, Any] = field(default_factory=dict)  # what names it
    finished: bool = False  # so was the run when this was written

    def is_named_by(self, there: "Lease") -> bool:
        """Tell whether what a store says of a run, maybe not all of it, means this lease."""
        exact = SINCE in self.process and SINCE in there.process
        keys = ("pid", SINCE) if exact else ("host", "boot", "pid", "started")
        same = [self.process.get(key) == there.process.get(key) for key in keys]
        return there.number in (0, self.number) and (not there.process or all(same))

    def tags(self) -> dict[str, str]:
        """Return the tags that make its process the run's owner."""
        return {
            names.PROCESS: json.dumps(dict(self.process)),
            names.LEASE: str(self.number),
            names.FROM_STEP: str(self.from_step),
        }

    def dump(self) -> dict[str, Any]:
        """Return what `load` reads, a dictionary that holds what names the process too."""
        own = {"life": self.number, "from_step": self.from_step, "finished": self.finished}
        return {**self.process, **own}


def new_lease(process: Mapping[str, Any], after: Lease, from_step: int) -> Lease:
    """Return the lease that a process takes after another one."""
    return Lease(after.number + 1, from_step, {**process, SINCE: time.time_ns()})


def load(value: Mapping[str, Any]) -> Lease:
    """Return the lease that `dump` wrote, or an older Waymark; raise ValueError or TypeError."""
    process = dict(value)
    number, step = (int(process.pop(key, 0)) for key in ("life", "from_step"))
    return Lease(number, step, process, process.pop("finished", False) is True)


def owner(tags: Mapping[str, str], finished: bool = False) -> Lease:
    """Return the lease that owns a run, as far as its tags tell."""
    try:
        process = dict(json.loads(tags.get(names.PROCESS, "")))
    except (ValueError, TypeError, RecursionError):
        process = {}
    number, step = (_number(tags.get(key, "")) for key in (names.LEASE, names.FROM_STEP))
    return Lease(number, step, process, finished)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 20 else 0
