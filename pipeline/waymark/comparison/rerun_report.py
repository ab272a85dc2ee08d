"""Whether two runs are the same, bit for bit, and if not, where they part and what differs."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pydantic

from waymark import names
from waymark.comparison.environment import Difference, format_difference
from waymark.comparison.recorded_run import RecordedRun, all_differences, load_parameters
from waymark.config.values import json_text
from waymark.errors import BadInput
from waymark.table import html_table, metric_value, number
from waymark.tracking.history import History, is_timing
from waymark.tracking.store import RunStore

NAME = "rerun.json"


@dataclass(frozen=True)
class Divergence:
    """The first step at which a metric's values are not the same bits."""

    step: int
    recorded: float
    now: float


@dataclass(frozen=True)
class ArrayDifference:
    """The largest difference between two arrays, absolute and relative to the larger value."""

    absolute: float
    relative: float


@dataclass(frozen=True)
class RerunReport:
    """What the comparison of a rerun with its original found."""

    identical: bool
    run_id: str
    rerun_of: str
    losses: int  # compared, at steps where both runs have one; likewise:
    evaluations: int
    checkpoints: int
    partings: dict[str, Divergence]  # metric -> where it parts first; empty if none does
    checkpoint: int | None  # the first step at which the saved states differ
    weights: dict[str, ArrayDifference]  # by parameter, at the last step saved by both
    accuracy: tuple[float | None, float | None]  # or what else `metric` is: recorded, now
    differences: list[Difference] = field(default_factory=list)  # of data, code, environment
    metric: str = "accuracy"  # by which the runs are judged

    def dump(self, indent: int | None = 1) -> str:
        """Return the text of rerun.json."""
        word = "identical" if self.identical else "different"
        return json_text({"verdict": word, **asdict(self)}, indent)

    def lines(self) -> list[str]:
        """Return the verdict as lines for a terminal."""
        if not (self.losses or self.checkpoints):
            return [f"nothing that run {self.rerun_of} recorded can be compared"]
        compared = f"{self.losses} losses, {self.evaluations} evaluations"
        head = "identical to" if self.identical else "different from"
        counts = f"({compared}, {self.checkpoints} checkpoints compared)"
        lines = [f"{head} run {self.rerun_of} {counts}"]
        if not self.identical:
            lines += self._partings()
        if self.differences:
            lines.append("although these differ:" if self.identical else "what differs:")
        elif not self.identical:
            lines.append("nothing that was recorded of data, code and environment differs")
        return [*lines, *(f"  {format_difference(each)}" for each in self.differences)]

    def _repr_html_(self) -> str:
        return html_table(self.lines()[:1], [[line] for line in self.lines()[1:]])

    def _partings(self) -> list[str]:
        lines = []
        for key, at in self.partings.items():
            values = f"{exact(at.recorded)} recorded, {exact(at.now)} now"
            lines.append(f"{key} first differs at step {at.step}: {values}")
        if names.TRAIN_LOSS not in self.partings:
            lines.append("no loss differs")
        if self.checkpoint is not None:
            lines.append(f"the state first differs at the checkpoint of step {self.checkpoint}")
        for name, apart in self.weights.items():
            far = f"{number(apart.absolute)} apart, {number(apart.relative)} relative"
            lines.append(f"final {name}: at most {far}")
        recorded, now = (metric_value(self.metric, value) for value in self.accuracy)
        lines.append(f"{self.metric} {recorded} recorded, {now} now")
        return lines


def load(text: str) -> RerunReport:
    """Return the verdict that `RerunReport.dump` wrote; raise ValueError for another text."""
    body = json.loads(text)
    del body["verdict"]
    return pydantic.TypeAdapter(RerunReport).validate_python(body)


def exact(value: float) -> str:
    """Return a metric's value, short but telling it from all other float32 values."""
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    same = float(rounded) == value or math.isnan(value)
    return str(rounded) if same else repr(value)


def first_divergences(old: History, new: History) -> tuple[dict[str, Divergence], dict[str, int]]:
    """Return where metrics part, the loss first, and how many values were compared; no timings."""
    found, counts = {}, {}
    keys = [key for key in old.metrics if key in new.metrics and not is_timing(key)]
    for key in sorted(keys, key=lambda key: key != names.TRAIN_LOSS):
        recorded, now = old.metrics[key], new.metrics[key]
        steps = sorted(recorded.keys() & now.keys())
        counts[key] = len(steps)
        # The text of a float tells all of its bits, but a NaN's.
        apart = [s for s in steps if repr(float(recorded[s])) != repr(float(now[s]))]
        if apart:
            found[key] = Divergence(apart[0], recorded[apart[0]], now[apart[0]])
    return found, counts


def array_difference(was: np.ndarray, now: np.ndarray) -> ArrayDifference:
    """Return the largest absolute and relative difference of two float32 arrays."""
    a, b = was.astype(np.float64), now.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        absolute = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
        relative = np.where(absolute == 0, 0, absolute / np.maximum(np.abs(a), np.abs(b)))
    largest = (np.max(np.nan_to_num(x, nan=np.inf), initial=0) for x in (absolute, relative))
    return ArrayDifference(*map(float, largest))


def compare_rerun(
    tracking: RunStore, old: RecordedRun, new: RecordedRun, shapes: Mapping[str, Any]
) -> RerunReport:
    """Compare a rerun with its original: every value and digest that both have, by its bits.

    `shapes` names the model's parameters, whose final values are compared if anything differs.
    """
    parted, counts = first_divergences(old.history, new.history)
    saved = sorted(old.history.digests.keys() & new.history.digests.keys())
    apart = [step for step in saved if old.history.digests[step] != new.history.digests[step]]
    different, weights = bool(parted or apart), {}
    if different and saved:
        with suppress(BadInput):  # one of the checkpoints is gone, or damaged
            was, now = (load_parameters(tracking, r.record, saved[-1], shapes) for r in (old, new))
            weights = {name: array_difference(was[name], now[name]) for name in shapes}
    return RerunReport(
        identical=not different and bool(counts.get(names.TRAIN_LOSS) or saved),
        run_id=new.record.id,
        rerun_of=old.record.id,
        losses=counts.pop(names.TRAIN_LOSS, 0),
        evaluations=sum(n for key, n in counts.items() if key.endswith(f"/{old.metric}")),
        checkpoints=len(saved),
        partings=parted,
        checkpoint=apart[0] if apart else None,
        weights=weights,
        accuracy=(old.judged, new.judged),
        differences=all_differences(old, new),
        metric=old.metric,
    )
