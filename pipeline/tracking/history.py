"""What a run recorded on its way: every metric at every step, and the digests of its checkpoints.

The values are exact. The run's outbox has them, and the artifact history.json, written when a
process ends, for those who have only the artifacts.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.config import FORMAT, json_text
from pipeline.tracking import outbox
from pipeline.tracking.tracked import RunRecord, exact

if TYPE_CHECKING:
    from pipeline.tracking import Tracking

NAME = "history.json"
PACE = "train/steps_per_second"


def is_timing(key: str) -> bool:
    """Tell whether a metric measures the machine, and so is another one each time."""
    return key == PACE or key.startswith("system/")


@dataclass(frozen=True)
class History:
    metrics: Mapping[str, Mapping[int, float]]  # key -> step -> value
    digests: Mapping[int, str] = field(default_factory=dict)  # step -> digest of the state saved

    def dump(self) -> str:
        """Return the text of history.json: of each metric the steps and the values."""
        metrics = {key: [list(known), list(known.values())] for key, known in self.metrics.items()}
        return json_text({"format": FORMAT, "metrics": metrics, "digests": self.digests})


def load(body: bytes | None) -> History | None:
    """Read the bytes of history.json; None if there are none, or they are damaged."""
    try:
        known = json.loads(body or b"null")
        metrics = {
            str(key): {int(s): float(v) for s, v in zip(steps, values, strict=True)}
            for key, (steps, values) in known["metrics"].items()
        }
        return History(metrics, {int(s): str(text) for s, text in known["digests"].items()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def history(tracking: "Tracking", record: RunRecord) -> History:
    """Return what a run recorded, from the most exact places there are.

    Raises what MLflow raises.
    """
    here = outbox.read(record.outbox)
    own: dict[str, dict[int, float]] = {}
    for points in here.points:
        own.setdefault(points.key, {}).update(zip(points.steps, points.values, strict=True))
    there = None if record.offline else load(tracking.artifact(record, NAME))
    if there is None and (record.offline or (own and not record.remote)):
        return History(own, here.digests)
    there = there or foreign(tracking, record, tracking.facts(record).metrics)
    metrics = {
        key: {**there.metrics.get(key, {}), **own.get(key, {})} for key in {**there.metrics, **own}
    }
    return History(metrics, {**there.digests, **here.digests})


def foreign(tracking: "Tracking", record: RunRecord, keys: Iterable[str]) -> History:
    """Return what MLflow has of metrics of any run; raise what it raises."""
    metrics = {}
    for key in keys:
        points = tracking.client.get_metric_history(record.id, key)
        steps = [point.step for point in points]
        if not any(steps):  # logged without a step, as MLflow allows: they are in order
            steps = list(range(len(points)))
        metrics[key] = {step: exact(p.value) for step, p in zip(steps, points, strict=True)}
    return History(metrics)
