"""Schedules of the learning rate, by the arithmetic of Keras's classes, without Keras.

Each has one method:

    rate(learning_rate, step)   the rate of a step, float32 []

`learning_rate` is float32 [], what `optimizer.learning_rate` says; `step` is int64 [], how many
steps were taken before, as Keras counts them. Nothing is kept from one step to the next.
"""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationInfo
from pydantic import field_validator as checks
from pydantic_core import PydanticCustomError

from waymark.config.schema import settings
from waymark.errors import BadInput

Tensor = Any
Share = Annotated[float, Field(ge=0, le=1)]


@settings
class Cosine:
    """Half a wave of a cosine, as `keras.optimizers.schedules.CosineDecay`."""

    kind: Literal["cosine"] = "cosine"
    """the schedule's name"""
    decay_steps: PositiveInt | None
    """the steps in which the rate falls; null: all of the run's, recorded as a number"""
    alpha: Share
    """the share of the learning rate that is left at their end"""

    def rate(self, learning_rate: Tensor, step: Tensor) -> Tensor:
        """Return the rate of a step, float32 []."""
        return learning_rate * _cosine(_as_float(step), self.decay_steps, self.alpha)


@settings
class WarmupCosine:
    """A rise from 0 in a straight line, then a cosine: `CosineDecay` with `warmup_target`."""

    kind: Literal["warmup_cosine"] = "warmup_cosine"
    """the schedule's name"""
    warmup_steps: PositiveInt
    """the steps in which the rate rises; that of the first one is 0"""
    decay_steps: PositiveInt | None
    """the steps after them in which it falls; null: the rest of the run's, recorded as a number"""
    alpha: Share
    """the share of the learning rate that is left at their end"""

    def rate(self, learning_rate: Tensor, step: Tensor) -> Tensor:
        """Return the rate of a step, float32 []."""
        import tensorflow as tf

        done, rising = _as_float(step), _as_float(self.warmup_steps)
        falling = _cosine(done - rising, self.decay_steps, self.alpha)
        return tf.where(done < rising, learning_rate * (done / rising), learning_rate * falling)


@settings
class Exponential:
    """A fall by the same factor in as many steps, as `ExponentialDecay`."""

    kind: Literal["exponential"] = "exponential"
    """the schedule's name"""
    decay_steps: PositiveInt | None
    """the steps in which the rate falls by the factor; null: all of the run's, recorded as a
    number"""
    decay_rate: PositiveFloat
    """the factor, above 0"""
    staircase: bool
    """whether it falls at the end of so many steps, and not with each"""

    def rate(self, learning_rate: Tensor, step: Tensor) -> Tensor:
        """Return the rate of a step, float32 []."""
        import tensorflow as tf

        times = _as_float(step) / _as_float(self.decay_steps)
        times = tf.floor(times) if self.staircase else times
        return learning_rate * tf.pow(_as_float(self.decay_rate), times)


@settings
class Piecewise:
    """One rate after another, as `PiecewiseConstantDecay`; the learning rate is not read."""

    kind: Literal["piecewise"] = "piecewise"
    """the schedule's name"""
    boundaries: Annotated[list[PositiveInt], Field(min_length=1)]
    """the steps, rising, after which the next rate holds; they count from 0, as Keras's"""
    values: list[NonNegativeFloat]
    """the rates, one more than there are boundaries"""

    @checks("boundaries")
    @classmethod
    def _rise(cls, boundaries: list[int]) -> list[int]:
        if any(following <= one for one, following in pairwise(boundaries)):
            raise PydanticCustomError("rise", "must rise from one to the next")
        return boundaries

    @checks("values")
    @classmethod
    def _one_more(cls, values: list[float], known: ValidationInfo) -> list[float]:
        count = len(known.data.get("boundaries", values[1:]))
        if len(values) != count + 1:
            raise PydanticCustomError(
                "count", f"must be one more than the boundaries, of which there are {count}"
            )
        return values

    def rate(self, learning_rate: Tensor, step: Tensor) -> Tensor:
        """Return the rate of a step, float32 []."""
        import tensorflow as tf

        passed = tf.cast(step > tf.constant(self.boundaries, tf.int64), tf.int32)
        return tf.constant(self.values, tf.float32)[tf.reduce_sum(passed)]


Schedule = Cosine | WarmupCosine | Exponential | Piecewise


def rate_of(optimizer: Any, learning_rate: Tensor, step: Tensor) -> Tensor:
    """Return the rate, float32 [], that an optimizer is given at a step, int64 [], from 1."""
    schedule = getattr(optimizer, "schedule", None)
    return learning_rate if schedule is None else schedule.rate(learning_rate, step - 1)


def within(schedule: Any, steps: int) -> Any:
    """Return a schedule for a run of so many steps, whose `decay_steps` are a number.

    Raises BadInput where the run has none left for them.
    """
    if getattr(schedule, "decay_steps", steps) is not None:
        return schedule
    rest = steps - getattr(schedule, "warmup_steps", 0)
    if rest < 1:
        raise BadInput(
            f"optimizer.schedule.warmup_steps={schedule.warmup_steps}: leaves none of the run's "
            f"{steps} steps to decay in; fewer do, or optimizer.schedule.decay_steps=N."
        )
    return replace(schedule, decay_steps=rest)


def _as_float(value: Any) -> Tensor:
    import tensorflow as tf

    return tf.cast(value, tf.float32)


def _cosine(step: Tensor, decay_steps: int | None, alpha: float) -> Tensor:
    """Return the share of the learning rate after `step` (float32 []) of the steps."""
    import tensorflow as tf

    last = _as_float(decay_steps)
    wave = 0.5 * (1.0 + tf.cos(math.pi * (tf.minimum(step, last) / last)))
    return (1 - alpha) * wave + alpha
