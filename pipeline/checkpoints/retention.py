"""Which checkpoints are kept: a pure function of the saves so far and the policy.

`after` folds one save into a `Memory`; the memory stands in the save's manifest, so a resumed
run goes on as if it had never stopped. For `max_to_keep` and `keep_every_n_hours` the outcome
is that of one uninterrupted `tf.compat.v1.train.Saver`; keep-best comes on top.
"""

import math
from collections.abc import Mapping
from ctypes import c_float
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.config import settings


@settings
class KeepBest:
    metric: Literal["test/accuracy", "test/loss"]
    mode: Literal["max", "min"]


@dataclass(frozen=True)
class Policy:
    max_to_keep: int  # 0: all
    keep_every_n_hours: float | None
    keep_best: KeepBest | None

    @property
    def period(self) -> float | None:
        """Return the hours in seconds; Saver holds hours as a float32, so do we."""
        hours = self.keep_every_n_hours
        return None if hours is None else c_float(hours).value * 3600


@dataclass(frozen=True)
class Best:
    step: int
    value: float
    metric: str
    mode: str


@dataclass(frozen=True)
class Memory:
    """What retention remembers: `recent` is None while every checkpoint is kept."""

    next_hourly: float | None  # seconds since the epoch; Saver's `_next_checkpoint_time`
    recent: tuple[tuple[int, float], ...] | None = ()  # (step, time), oldest first
    hourly: tuple[int, ...] = ()
    best: Best | None = None

    def kept(self) -> set[int] | None:
        """Return the steps whose checkpoints stay, None for all of them."""
        if self.recent is None:
            return None
        best = [self.best.step] if self.best else []
        return {step for step, _ in self.recent} | set(self.hourly) | set(best)


def start(time: float, policy: Policy) -> Memory:
    """Return the memory of a run that starts at `time` and has saved nothing."""
    period = policy.period
    return Memory(next_hourly=None if period is None else time + period)


def after(
    memory: Memory, step: int, time: float, metrics: Mapping[str, float], policy: Policy
) -> Memory:
    """Return the memory after the checkpoint of `step`, whose state was copied at `time`."""
    memory = replace(memory, best=_best(memory.best, step, metrics, policy.keep_best))
    if policy.max_to_keep == 0:
        return replace(memory, recent=None)
    period, due = policy.period, memory.next_hourly
    if period is not None and due is None:  # the policy was turned on by a resume
        due = time + period
    recent = [pair for pair in memory.recent or () if pair[0] != step] + [(step, time)]
    hourly = list(memory.hourly)
    while len(recent) > policy.max_to_keep:
        old, saved = recent.pop(0)
        if period is not None and due is not None and saved > due:
            hourly.append(old)
            due += period
    return replace(memory, next_hourly=due, recent=tuple(recent), hourly=tuple(hourly))


def _best(
    best: Best | None, step: int, metrics: Mapping[str, float], rule: KeepBest | None
) -> Best | None:
    """Return the better of the best so far and this step; NaN never wins, nor does an equal."""
    if rule is None:
        return None
    if best is not None and (best.metric, best.mode) != (rule.metric, rule.mode):
        best = None
    value = metrics.get(rule.metric, math.nan)
    wins = best is None or (value > best.value if rule.mode == "max" else value < best.value)
    if math.isnan(value) or not wins:
        return best
    return Best(step, value, rule.metric, rule.mode)
