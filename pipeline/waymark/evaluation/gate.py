"""Gate: is a run's checkpoint worse than another one's, on the same test set, by how much.

runs = "latest", "champion"
one, other = (score_run(run, "latest", {}, ("accuracy",), significant=False) for run in runs)
found = judge(one, other, {"accuracy": 0.002}, significant=False)
print(found.text(), found.passed)
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from waymark.config.schema import Config
from waymark.data.digests import dataset_digest
from waymark.data.images import Images
from waymark.data.rows import entries
from waymark.data.sources import expand
from waymark.data.table import Table
from waymark.digest import file_digest
from waymark.errors import BadInput, printable
from waymark.evaluation import restore
from waymark.evaluation.intervals import DRAWS, paired_intervals
from waymark.table import metric_value
from waymark.tasks.metrics import LOSS, TABLE, measured
from waymark.tasks.resampled import Value, mean
from waymark.training.score import Score

Mode = Literal["max", "min"]
PASSED, WORSE = "passed", "worse"
NOT_SURE = "passed, not significantly worse"
ROUNDING = 8 * np.finfo(np.float64).eps  # of the arithmetic of a difference, relative


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that is compared: of which run, at which step."""

    run_id: str
    name: str  # of the run, or the address by which it was given
    step: int

    def __str__(self) -> str:
        return f"{self.name} ({self.run_id[:8]}, step {self.step})"


@dataclass(frozen=True)
class GatedMetric:
    """One metric of both, and whether the first one is worse by more than is allowed."""

    name: str
    mode: Mode  # which way is better
    value: float
    against: float
    interval: tuple[float, float] | None  # 95 %, of the difference; None: the metric has none
    max_drop: float  # how much worse is allowed, from 0 up
    verdict: str  # passed, worse, or why what is worse has passed

    @property
    def passed(self) -> bool:
        """Tell whether it is not worse by more than is allowed."""
        return self.verdict != WORSE

    @property
    def difference(self) -> float:
        """Return `value` minus `against`."""
        return self.value - self.against

    @property
    def cells(self) -> list[str]:
        """Return both values, difference, interval and `max_drop` as they are shown."""
        low_high = [f"{limit:+.4g}" for limit in self.interval or ()]
        values = [metric_value(self.name, value) for value in (self.value, self.against)]
        return [*values, f"{self.difference:+.4g}", " to ".join(low_high) or "none",
                f"{self.max_drop:g}"]  # fmt: skip


@dataclass(frozen=True)
class GateResult:
    """What a gate found: whether `run` may take the place of `against`."""

    passed: bool
    run: Candidate
    against: Candidate
    examples: int  # of the test set
    significant: bool  # the intervals decide as well
    metrics: list[GatedMetric]

    def plain(self) -> dict[str, Any]:
        """Return all of it as nested plain values."""
        rows = [
            {**asdict(each), "difference": each.difference, "passed": each.passed}
            for each in self.metrics
        ]
        return {**asdict(self), "draws": DRAWS, "metrics": rows}

    def text(self) -> str:
        """Return a line for each metric."""
        return "\n".join(map(self._line, self.metrics))

    def _line(self, metric: GatedMetric) -> str:
        value, against, difference, interval, allowed = metric.cells
        return (
            f"{metric.verdict}: {metric.name} {value} of {self.run}, {against} of {self.against}; "
            f"difference {difference} (95 % interval {interval}), may be worse by {allowed}"
        )

    def markdown(self) -> str:
        """Return a table for a pull request."""
        columns = ["metric", *map(str, (self.run, self.against)), "difference", "95 % interval"]
        rows = [[f"{m.name} ({m.mode})", *m.cells, m.verdict] for m in self.metrics]
        table = [[*columns, "may be worse by", "verdict"], ["---"] * 7, *rows]
        return "\n".join(f"| {' | '.join(each.replace('|', chr(92) + '|') for each in row)} |"
                         for row in table)  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """What a run's checkpoint made of each example of its test set."""

    candidate: Candidate
    task: Any
    metrics: list[str]  # `metrics` of its configuration
    modes: Mapping[str, Mode]  # which way is better, of the metrics that were asked for
    loader: Any
    labels: np.ndarray  # [N, ...], as the task has them
    class_names: tuple[str, ...]
    features: str  # the digest of the test set's
    score: Score

    @property
    def said(self) -> str:
        """Return the run's name in messages."""
        return f"run {self.candidate.run_id}"

    def resampled(self, name: str) -> Value | None:
        """Return a metric of resamples of the examples, None if it has no such form."""
        metric, score = measured(self.task, self.metrics)[name], self.score
        given = score.losses if metric is None else score.predictions
        given = score.outputs if metric and metric.of_outputs else given
        form = metric.resampled if metric else lambda _, losses: mean(losses)
        if form is None or given is None:
            return None
        return None if not np.isfinite(given).all() else form(self.labels, given)


def allowed_drops(max_drop: Mapping[str, float]) -> dict[str, float]:
    """Return how much worse each metric may be; raise BadInput for less than 0 or no number."""
    for name, amount in max_drop.items():
        number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not number or not 0 <= amount < math.inf:
            raise BadInput(f"--max-drop {name}={amount}: must be a finite number from 0 up.")
    return {name: float(amount) for name, amount in max_drop.items()}


def score_run(
    text: str, step: str, overrides: Mapping[str, Any], names: tuple[str, ...], significant: bool
) -> Scored:
    """Score a run's checkpoint on each example of its test set, by the metrics of these names.

    Without names it is the one that the run is judged by. Raises BadInput, CorruptCheckpoint as
    `evaluate_run`, and BadInput for a metric that is not measured, whose direction is not known, or
    that has no interval where it is to decide. The address of a model has a step of its own.
    """
    address = text.startswith("models:/")
    with restore.find_checkpoint(text, "latest" if address else step, overrides) as found:
        config, said = found.config, f"run {found.record.id}"
        config = _measuring(config, names, said)
        names = names or (next(iter(measured(config.task, config.metrics))),)
        modes = {name: _mode(config, name, said, significant) for name in names}
        data = found.data()
        score = restore.score_state(config, data, found.read()[1])
        name = text if address else found.record.name
        return Scored(
            candidate=Candidate(found.record.id, printable(name), found.step),
            task=config.task,
            metrics=config.metrics,
            modes=modes,
            loader=config.data,
            labels=data.y_test,
            class_names=data.class_names,
            features=dataset_digest(entries("x_test", data.x_test)),
            score=score,
        )


def _measuring(config: Config, names: tuple[str, ...], said: str) -> Config:
    """Return a configuration that measures what has these names; raise BadInput if it cannot."""
    there = measured(config.task, config.metrics)
    known = TABLE.get(getattr(config.task, "kind", ""), {})
    for name in names:
        if name not in there and name not in known:
            allowed = ", ".join(dict.fromkeys([*there, *known]))
            raise BadInput(f"--max-drop {name}: {said} has no such metric; there are {allowed}.")
    more = [name for name in names if name not in there]
    return replace(config, metrics=[*config.metrics, *more])


def _mode(config: Config, name: str, said: str, significant: bool) -> Mode:
    """Return which way of a metric is better; raise BadInput if it cannot decide."""
    metric = measured(config.task, config.metrics)[name]
    if significant and metric and metric.resampled is None:
        raise BadInput(f"--significant: {name} has no interval that could decide.")
    mode: Any = metric.mode if metric else "min"
    for rule in (config.objective, config.save.keep_best, config.stop):
        if mode is None and rule and (rule.metric or "").rpartition("/")[2] == name:
            mode = rule.mode  # of a function of the user's own
    if mode is None:
        raise BadInput(
            f"--max-drop {name}: whether more or less of it is better is said by none of {said}'s "
            f"objective, save.keep_best and stop."
        )
    chosen: Mode = mode
    return chosen


def judge(
    one: Scored, other: Scored, max_drop: Mapping[str, float], significant: bool
) -> GateResult:
    """Compare what two runs scored; raise BadInput unless task, metrics and test set are the same.

    A metric fails if it is worse than the other's by more than `max_drop` (0 where that names it
    not), with `significant` only if all of the difference's interval is. What is no number is worse
    than any number.
    """
    _refuse_other_task(one, other)
    _refuse_other_test_set(one, other)
    pairs = {name: (one.resampled(name), other.resampled(name)) for name in one.modes}
    there = {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}
    found = paired_intervals(list(there.values()), len(one.labels))
    intervals = dict(zip(there, found, strict=True))
    metrics = []
    for name, mode in one.modes.items():
        values = one.score.metrics[name], other.score.metrics[name]
        row = *values, intervals.get(name), max_drop.get(name, 0.0)
        metrics.append(GatedMetric(name, mode, *row, _verdict(mode, *row, significant)))
    passed = all(each.passed for each in metrics)
    where = one.candidate, other.candidate, len(one.labels)
    return GateResult(passed, *where, significant, metrics)


def _verdict(
    mode: Mode,
    value: float,
    against: float,
    interval: tuple[float, float] | None,
    allowed: float,
    significant: bool,
) -> str:
    """Return whether a value is worse than another one by more than `allowed`."""
    if math.isnan(value) or math.isnan(against):
        return WORSE if math.isnan(value) else PASSED
    sign = -1 if mode == "max" else 1
    rounding = ROUNDING * max(abs(value), abs(against))  # 0.954 - 0.952 is more than 0.002
    if sign * (value - against) - allowed <= rounding:
        return PASSED
    least = min(sign * limit for limit in interval) if interval else math.inf
    return NOT_SURE if significant and least - allowed <= rounding else WORSE


def _refuse_other_task(one: Scored, other: Scored) -> None:
    """Raise BadInput unless two runs have one task, and the metrics mean the same."""
    tasks = [scored.task for scored in (one, other)]
    kinds = [getattr(task, "kind", type(task).__name__) for task in tasks]
    # Waymark's own are measured alike whatever their settings, but for the loss.
    own = type(tasks[0]).__module__.startswith("waymark.")
    if type(tasks[0]) is not type(tasks[1]) or not (own or tasks[0] == tasks[1]):
        raise BadInput(
            f"gate: {one.said} and {other.said} do not share the task ({kinds[0]} and {kinds[1]}"
            f"{'' if len(set(kinds)) > 1 else ', whose settings differ'})."
        )
    for name in one.modes:
        meant = [set(_meant(name, scored)) for scored in (one, other)]
        if meant[0] != meant[1]:
            shown = [", ".join(sorted(map(str, each))) for each in meant]
            raise BadInput(
                f"gate: {one.said} and {other.said} do not share the metric {name} ({shown[0]} and "
                f"{shown[1]})."
            )


def _meant(name: str, scored: Scored) -> Iterator[str]:
    """Yield what a metric's name stands for: a function of the user's own, a kind of loss."""
    yield from (text for text in scored.metrics if "." in text and text.endswith(f".{name}"))
    if name == LOSS:
        yield getattr(scored.task, LOSS, LOSS)


def _refuse_other_test_set(one: Scored, other: Scored) -> None:
    """Raise BadInput unless two runs have the same test examples, in the same order.

    These have the same labels, by the names of classes, and the same features; or, where settings
    make features of a table or of pictures, the same files, split alike.
    """
    counts = [len(scored.labels) for scored in (one, other)]
    both = f"gate: {one.said} and {other.said} do not share the test set"
    if counts[0] != counts[1]:
        raise BadInput(f"{both}: it has {counts[0]} and {counts[1]} examples.")
    labels = list(zip(_named_labels(one), _named_labels(other), strict=True))
    if not all(np.array_equal(a, b) for a, b in labels):
        raise BadInput(f"{both}: its labels differ.")
    if one.features != other.features and _origin(one.loader) != _origin(other.loader):
        raise BadInput(
            f"{both}: its features differ. data.test=FILE gives runs with other training data the "
            f"same one."
        )


def _named_labels(scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    """Return labels by the names of their classes, and the names of columns of labels."""
    names = np.array(scored.class_names, np.str_)
    if scored.labels.ndim == 1 and len(names):
        return names[scored.labels], names[:0]
    return scored.labels, names


def _origin(loader: Any) -> object:
    """Return what tells the examples of a test set, whatever is made of their files.

    Where nothing does, it equals nothing.
    """
    if not isinstance(loader, Table | Images):
        return object()
    own = isinstance(loader.test, str)
    split = None if own else (loader.test, loader.split, loader.split_seed, loader.group)
    try:
        return split, file_digest([expand(str(loader.test if own else loader.path))])
    except OSError:
        return object()
