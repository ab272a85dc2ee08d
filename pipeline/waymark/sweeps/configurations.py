"""What the configurations of a sweep achieved, and where their values stand beside an axis."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from waymark.errors import printable
from waymark.plots.style import AWAY
from waymark.table import elided, settings_apart

LONGEST = 20  # characters of a value beside an axis
NAME = 32  # characters of a key beside an axis
LARGEST = 1e38  # number, of a setting, that Optuna's trees take: a float32
LEAST = 6  # configurations of which the importance of keys is told
WIDE = 30.0  # a ratio of the largest to the smallest value from which an axis is logarithmic
BESIDE = 0.09  # of an axis's length, that the values named beside it stand apart, at least


@dataclass(frozen=True)
class TrialPoint:
    """What one configuration achieved, the mean over its seeds if there are several."""

    values: list[str]  # of the varied keys, in their order
    mean: float
    half: float | None  # of the 95 % interval of the mean
    mark: str  # * the best, ~ a tie with it


class Axis:
    """One varied key: numbers, on a logarithmic scale where they spread widely, or names."""

    def __init__(self, key: str, texts: Sequence[str]) -> None:
        self.key = key
        self.shown = {k: elided(v, LONGEST) for k, v in settings_apart(texts).items()}
        try:
            values = {text: float(text) for text in texts}
        except ValueError:
            values = {}
        numeric = bool(values) and all(map(math.isfinite, values.values()))
        self.labels = sorted(set(texts), key=(lambda text: values[text]) if numeric else None)
        first, last = self.labels[0], self.labels[-1]
        if not numeric or values[first] == values[last]:
            values = {text: float(place) for place, text in enumerate(self.labels)}
        elif values[first] > 0 and values[last] / values[first] >= WIDE:
            values = {text: math.log10(value) for text, value in values.items()}
        low, width = values[first], values[last] - values[first]
        # Where each value stands: 0 is the first one, 1 the last.
        self.places = {t: (v - low) / width if width else 0.5 for t, v in values.items()}
        self.is_numeric = numeric

    @property
    def some(self) -> list[str]:
        """Return values that stand so far apart that all can be read."""
        kept: list[str] = []
        for text in self.labels:
            if not kept or self.places[text] - self.places[kept[-1]] >= BESIDE:
                kept.append(text)
        return kept

    def named(self, text: str) -> str:
        """Return how a value is written beside the axis."""
        crowded = self.is_numeric and len(self.labels) * BESIDE > 1
        return f"{float(f'{float(text):.2g}'):g}" if crowded else printable(self.shown[text])

    def label(self, axis: Any, texts: Sequence[str], places: Sequence[float]) -> None:
        """Label a Matplotlib axis with the key, and with some values at their places."""
        axis.set_ticks(places, [self.named(text) for text in texts])
        axis.set_label_text(elided(printable(self.key), NAME))
        longest = max(len(self.named(text)) for text in texts)
        if axis.axis_name == "x" and longest * len(texts) > 30:
            axis.set_tick_params(rotation=35)
            for text in axis.get_ticklabels():
                text.set(ha="right", rotation_mode="anchor")


@dataclass(frozen=True)
class Found:
    """What a sweep's pictures show: the configurations, by key, and how good they are."""

    keys: Sequence[str]
    points: Sequence[TrialPoint]
    metric: str
    mode: str  # max or min: which way is better

    def axes(self) -> list[Axis]:
        """Return an axis for each key."""
        return [Axis(key, [p.values[i] for p in self.points]) for i, key in enumerate(self.keys)]

    def range(self) -> tuple[float, float]:
        """Return from where to where the objective goes, without what is far from the usual."""
        known = np.array([point.mean for point in self.points], np.float64)
        known = known[np.isfinite(known)]
        if not len(known):
            return 0.0, 1.0
        usual = float(np.quantile(np.abs(known), 0.5, method="lower"))
        kept = known[np.abs(known) <= max(AWAY * usual, 1.0)]
        return float(kept.min()), float(kept.max())

    def share(self, mean: float) -> float:
        """Return where in the range a mean lies, 0 to 1; of one beyond it its nearer end."""
        low, high = self.range()
        return min(max((mean - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def effects(self) -> list[float]:
        """Return of each key the variance of the means over all that have a value of it."""
        found = []
        for place in range(len(self.keys)):
            groups = defaultdict(list)
            for point in self.points:
                if math.isfinite(point.mean):
                    groups[point.values[place]].append(self.share(point.mean))
            found.append(float(np.var([sum(v) / len(v) for v in groups.values()] or [0.0])))
        return found


def importances(found: Found) -> dict[str, float]:
    """Return each key's share by Optuna, of a study made of the trials, a grid's as well."""
    import warnings

    import optuna

    known = [point for point in found.points if math.isfinite(point.mean)]
    spaces: dict[str, optuna.distributions.BaseDistribution] = {}
    values: dict[str, list[Any]] = {}
    for place, key in enumerate(found.keys):
        axis = Axis(key, [point.values[place] for point in known] or [""])
        numbers = [float(text) for text in axis.labels] if axis.is_numeric else []
        if len(numbers) > 1 and max(map(abs, numbers)) < LARGEST:
            wide = numbers[0] > 0 and numbers[-1] / numbers[0] >= WIDE
            spaces[key] = optuna.distributions.FloatDistribution(numbers[0], numbers[-1], log=wide)
            values[key] = [float(point.values[place]) for point in known]
        elif len(axis.labels) > 1:
            spaces[key] = optuna.distributions.CategoricalDistribution(axis.labels)
            values[key] = [point.values[place] for point in known]
    low, high = found.range()
    if len(known) < LEAST or len(spaces) < 2 or low == high:
        return {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is experimental
            study = optuna.create_study(direction="maximize" if found.mode == "max" else "minimize")
            for at, point in enumerate(known):
                own = {key: each[at] for key, each in values.items()}
                study.add_trial(optuna.trial.create_trial(
                    params=own, distributions=spaces, value=found.share(point.mean)))  # fmt: skip
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    finally:
        optuna.logging.set_verbosity(before)
