"""Differences bit by bit: where metrics first differ, and how far arrays are apart."""

import math
from dataclasses import dataclass

import numpy as np

from waymark import names
from waymark.tracking.history import History, is_timing


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
