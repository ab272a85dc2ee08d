"""Which checkpoints are kept: a pure function of the saves so far and the policy.

`record_save` folds one save into a `RetentionState`, which stands in the save's manifest;
`resume_retention` goes on with it. For `max_to_keep` and `keep_every_n_hours` the outcome is that
of one uninterrupted `tf.compat.v1.train.Saver`, but that hours in which no process ran are not made
up for; keep-best comes on top.
"""

import math
from collections.abc import Iterable, Mapping
from ctypes import c_float
from dataclasses import dataclass, field, replace
from typing import Literal

from waymark.config.schema import EvaluationMetric, settings

Pair = tuple[int, float]  # a checkpoint's step and time


@settings
class KeepBest:
    """By what the best checkpoint is chosen."""

    metric: EvaluationMetric
    """the metric of an evaluation that is compared, `test/accuracy` for example"""
    mode: Literal["max", "min"]
    """`max` or `min`: whether the greatest or the smallest value is the best"""


@dataclass(frozen=True)
class Policy:
    """Which checkpoints stay."""

    max_to_keep: int  # 0: all
    keep_every_n_hours: float | None
    keep_best: KeepBest | None

    @property
    def keep_interval_s(self) -> float | None:
        """Return `keep_every_n_hours` in seconds; Saver holds hours as a float32, so do we."""
        hours = self.keep_every_n_hours
        return None if hours is None else c_float(hours).value * 3600


@dataclass(frozen=True)
class Save:
    """One checkpoint, as far as it matters to retention."""

    step: int
    time: float  # of the state's copy, seconds since the epoch
    metrics: Mapping[str, float] = field(default_factory=dict)  # evaluated at this step, if it was
    on_schedule: bool = True  # every n-th step and the last: Saver would have made it, too


@dataclass(frozen=True)
class BestCheckpoint:
    """The best checkpoint, and by what it is the best."""

    step: int
    value: float
    metric: str
    mode: str


@dataclass(frozen=True)
class RetentionState:
    """What retention knows of the saves so far; its field names stand in manifests."""

    next_hourly: float | None  # seconds since the epoch; Saver's `_next_checkpoint_time`
    recent: tuple[Pair, ...] | None = ()  # oldest first; None: all on schedule are kept
    hourly: tuple[int, ...] = ()
    best: BestCheckpoint | None = None
    resumed: tuple[float, ...] = ()  # when processes went on with the run

    def retained_steps(self) -> set[int] | None:
        """Return the steps whose checkpoints stay; None for all on schedule and the best."""
        if self.recent is None:
            return None
        best = [self.best.step] if self.best else []
        return {step for step, _ in self.recent} | set(self.hourly) | set(best)


def initial_retention(time: float, policy: Policy) -> RetentionState:
    """Return the state of a run that starts at `time` (seconds since the epoch), without saves."""
    due = None if policy.keep_interval_s is None else time + policy.keep_interval_s
    return RetentionState(next_hourly=due, recent=() if policy.max_to_keep else None)


def record_save(state: RetentionState, save: Save, policy: Policy) -> RetentionState:
    """Return the state after a save: one off the schedule only competes as the best."""
    state = replace(state, best=better(state.best, save, policy.keep_best))
    if not save.on_schedule or state.recent is None:
        return state
    others = [pair for pair in state.recent if pair[0] != save.step]
    recent, old = _newest([*others, (save.step, save.time)], policy)
    due, hourly, interval = state.next_hourly, state.hourly, policy.keep_interval_s
    for step, time in old:
        if interval is not None and due is not None and time > due:
            hourly, due = (*hourly, step), due + interval
    return replace(state, next_hourly=due, recent=recent, hourly=hourly)


def resume_retention(
    state: RetentionState, there: Iterable[Save], start: float, now: float, policy: Policy
) -> RetentionState:
    """Return the state of a process that goes on at `now` with the checkpoints that are there.

    `policy` holds for all of them, whatever it was when they were made; where it is the same, only
    an hourly checkpoint that is overdue becomes due now. `start` is when the run started.
    """
    saves = sorted(there, key=lambda save: save.step)
    best = None
    for save in saves:
        best = better(best, save, policy.keep_best)
    all_resumed = (*state.resumed, now)
    times = {save.step: save.time for save in saves if save.on_schedule}
    # What is kept as hourly stays so where its time cannot be read.
    hourly = [(step, times.get(step, math.inf)) for step in state.hourly]
    pairs = [pair for pair in times.items() if pair not in hourly]
    recent, old = _newest(pairs if state.recent is None else state.recent, policy)
    kept, due = [], None
    if policy.keep_interval_s is not None:
        due = start + policy.keep_interval_s
        for step, time in sorted([*hourly, *old]):
            due = max([due, *(t for t in state.resumed if t < time)])
            if time > due:
                kept.append(step)
                due += policy.keep_interval_s
        due = max(due, *all_resumed)
    every = recent if policy.max_to_keep else None
    return RetentionState(due, every, tuple(kept), best, all_resumed)


def _newest(pairs: Iterable[Pair], policy: Policy) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Part pairs into the newest, as many as are kept anyway, and those before."""
    pairs = tuple(pairs)
    old = max(0, len(pairs) - policy.max_to_keep) if policy.max_to_keep else 0
    return pairs[old:], pairs[:old]


def better(best: BestCheckpoint | None, save: Save, rule: KeepBest | None) -> BestCheckpoint | None:
    """Return the better of the best so far and this save; NaN never wins, nor does an equal."""
    if rule is None:
        return None
    value = save.metrics.get(rule.metric, math.nan)
    wins = best is None or (value > best.value if rule.mode == "max" else value < best.value)
    if math.isnan(value) or not wins:
        return best
    return BestCheckpoint(save.step, value, rule.metric, rule.mode)
