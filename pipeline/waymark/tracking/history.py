"""What a run recorded on its way: every metric at every step, and the digests of its checkpoints.

The values are exact. The run's outbox has them, and so has the artifact history.json, written
when a process ends.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from waymark.config.schema import FORMAT
from waymark.config.values import json_text
from waymark.names import STEPS_PER_SECOND, TRAIN_LOSS
from waymark.tracking import artifacts, outbox
from waymark.tracking.questions import question
from waymark.tracking.runs import RunRecord, RunSummary
from waymark.tracking.store import RunStore

NAME = "history.json"


def is_timing(key: str) -> bool:
    """Tell whether a metric measures the machine, and so is another one each time."""
    return key == STEPS_PER_SECOND or key.startswith("system/")


@dataclass(frozen=True)
class History:
    """The metrics of a run at every step, and the digests of the states that it saved."""

    metrics: Mapping[str, Mapping[int, float]]  # key -> step -> value
    digests: Mapping[int, str] = field(default_factory=dict)  # step -> digest of the state saved
    whole: bool = True  # nothing is known to be missing

    def over(self, other: "History | None") -> "History":
        """Return both histories in one; where they differ, this one holds."""
        if other is None:
            return self
        keys = {**other.metrics, **self.metrics}
        return History(
            {key: {**other.metrics.get(key, {}), **self.metrics.get(key, {})} for key in keys},
            {**other.digests, **self.digests},
            self.whole,
        )

    def dump(self) -> str:
        """Return the text of history.json: of each metric the steps and the values."""
        metrics = {key: [list(known), list(known.values())] for key, known in self.metrics.items()}
        body = {"format": FORMAT, "whole": self.whole, "metrics": metrics, "digests": self.digests}
        return json_text(body)


def load(body: bytes | None) -> History | None:
    """Read the bytes of history.json; None if there are none, or they are damaged."""
    try:
        known = json.loads(body or b"null")
        metrics = {
            str(key): {int(s): float(v) for s, v in zip(steps, values, strict=True)}
            for key, (steps, values) in known["metrics"].items()
        }
        digests = {int(s): str(text) for s, text in known["digests"].items()}
        return History(metrics, digests, known.get("whole", True) is True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


@question
def history(store: RunStore, record: RunRecord) -> History:
    """Return what a run recorded, from the most exact places; raise what MLflow raises."""
    box = outbox.read(record.outbox)
    own = box.metrics()
    here = History(own, box.digests)
    there = load(artifacts.read(store, record, NAME))
    if record.offline or not record.remote:
        if there is None and not (own or record.offline):
            there = foreign(store, record, store.summary(record).metrics)
        return here.over(there)
    far = load(artifacts.read(store, record, NAME, there=True))  # maybe of another machine's life
    newest = far or there
    known = here.over(far.over(there) if far else there)
    facts = store.summary(record)
    if newest and newest.whole and _is_up_to_date(known, facts):
        return known
    return known.over(foreign(store, record, facts.metrics))


def _is_up_to_date(known: History, facts: RunSummary) -> bool:
    """Tell whether a history begins where a run does, a fork late, and ends where MLflow's does.

    A killed process wrote none; one that had not heard of the life before it wrote only its own.
    """
    steps, begin = sorted(known.metrics.get(TRAIN_LOSS, {})), facts.params.get("fork.step", "")
    first = int(begin) if begin.isdecimal() else 0
    late = len(steps) > 1 and steps[0] - first > steps[1] - steps[0]
    ends = {key: values[max(values)] for key, values in known.metrics.items() if values}
    last = facts.metrics.items()
    same = all(repr(ends.get(key)) == repr(x) for key, x in last if not is_timing(key))
    return same and not late


@question
def foreign(store: RunStore, record: RunRecord, keys: Iterable[str]) -> History:
    """Return what MLflow has of metrics of any run; raise what it raises."""
    metrics = {}
    for key in keys:
        points = store.metric_history(record.id, key)
        steps = [step for step, _ in points]
        if not any(steps):  # logged without a step, as MLflow allows: they are in order
            steps = list(range(len(points)))
        metrics[key] = {step: value for step, (_, value) in zip(steps, points, strict=True)}
    return History(metrics)


@question
def last_step(store: RunStore, record: RunRecord, key: str) -> int:
    """Return the last step at which a run recorded a metric, 0 if it did at none."""
    here = [step for p in outbox.read(record.outbox).points if p.key == key for step in p.steps]
    if not here and record.known and not record.offline:
        with suppress(Exception):  # of MLflow, the network: less is told
            here = [step for step, _ in store.metric_history(record.id, key)]
    return max(here, default=0)
