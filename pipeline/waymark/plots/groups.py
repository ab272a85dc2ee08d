"""The curves of many runs as they are drawn: means over seeds, thinned, and the range shown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from waymark.plots.style import AWAY, Curve, finite, is_wide, range_of

SMOOTHED = 100  # points of a smoothed line
NEAR = 2.0  # times the range of the others, that what has diverged may make it
FEW = 7  # curves, up to which each has its band

Run = tuple[str, Curve, Curve]  # what stands in the legend, losses, the metric's values

# What is measured in what, where that is known.
UNITS = {"loss": "mean over examples", "accuracy": "share of examples"}
UNITS |= {"binary_accuracy": "share of labels"}
UNITS |= dict.fromkeys(("rmse", "mae"), "in the unit of the targets")


def titled(metric: str) -> str:
    """Return a metric's name with its unit, if that is known."""
    unit = UNITS.get(re.split("[/ ]", metric)[-1])
    return f"{metric} ({unit})" if unit else metric


def blocks(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, lowest and highest number of so many blocks of values [..., N], each [..., n].

    A block without a number has NaN. Of no more than `count` values each is a block.
    """
    size = values.shape[-1]
    if size <= count:
        return values, values, values
    starts = np.linspace(0, size, count, endpoint=False).astype(int)
    known = np.isfinite(values)
    many = np.add.reduceat(known, starts, axis=-1, dtype=np.int64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.add.reduceat(np.where(known, values, 0.0), starts, axis=-1)
        mean = np.divide(total, many, out=np.full(many.shape, np.nan), where=many > 0)
    low = np.minimum.reduceat(np.where(known, values, np.inf), starts, axis=-1)
    high = np.maximum.reduceat(np.where(known, values, -np.inf), starts, axis=-1)
    return mean, np.where(many > 0, low, np.nan), np.where(many > 0, high, np.nan)


def thinned(curve: Curve, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `count` steps and values of a curve, each the mean of its neighbours."""
    steps, values = finite(curve)
    return blocks(steps, count)[0], blocks(values, count)[0]


@dataclass(frozen=True)
class Group:
    """The curves of one row of a comparison: one run, or the mean over several seeds."""

    name: str
    seeds: int
    steps: np.ndarray  # float64 [n]
    mean: np.ndarray
    low: np.ndarray  # of the seeds; of one run its own values, not smoothed
    high: np.ndarray

    @property
    def has_ended_in_nan(self) -> bool:
        """Tell whether its last value is no number."""
        return bool(len(self.mean)) and not np.isfinite(self.mean[-1])


def _by_name(runs: Sequence[Run], place: int) -> dict[str, list[Curve]]:
    """Return the losses (place 1), or the metric's values (2), of the runs of each name."""
    found: dict[str, list[Curve]] = {}
    for run in runs:
        found.setdefault(run[0], []).append(run[place])  # type: ignore[arg-type]
    return found


def grouped(name: str, curves: Sequence[Curve], count: int = SMOOTHED) -> Group:
    """Return the mean over curves of at most `count` points, at the steps that they share.

    Where one of them has no number the mean has none.
    """
    known = [curve for curve in curves if curve]
    shared = sorted(set.intersection(*map(set, known))) if known else []
    if not shared:
        return Group(name, len(known), *[np.zeros(0)] * 4)
    values = np.stack([finite({step: curve[step] for step in shared})[1] for curve in known])
    steps, (mean, low, high) = blocks(np.array(shared, float), count)[0], blocks(values, count)
    if len(known) == 1:
        return Group(name, 1, steps, mean[0], low[0], high[0])
    return Group(name, len(known), steps, mean.mean(axis=0), mean.min(axis=0), mean.max(axis=0))


def beyond(groups: Sequence[Group]) -> list[Group]:
    """Return those whose numbers are AWAY times as large as those of half of all, and above 1."""
    sizes = [range_of(np.abs(group.mean)) for group in groups]
    largest = sorted(size[1] for size in sizes if size)
    usual = largest[(len(largest) - 1) // 2] if largest else 0.0
    most = max(AWAY * usual, 1.0)
    return [group for group, size in zip(groups, sizes, strict=True) if size and size[1] > most]


@dataclass(frozen=True)
class Panel:
    """One of the pictures beside each other, of losses or a metric: what is drawn, and where."""

    title: str
    groups: Sequence[Group]
    is_log: bool
    low: float  # the range that is shown
    high: float

    @property
    def has_bands(self) -> bool:
        """Tell whether all groups have their bands, and not only the means over seeds."""
        return len(self.groups) <= FEW

    def outside(self) -> list[tuple[str, tuple[float, float]]]:
        """Return name and range of each group that is not all in the range shown."""
        ranges = [(group.name, own) for group in self.groups if (own := range_of(group.mean))]
        return [(name, own) for name, own in ranges if own[0] < self.low or self.high < own[1]]


def panels(runs: Sequence[Run], metric: str, count: int = SMOOTHED) -> list[Panel]:
    """Return two panels, losses and metric, in which runs of one name are a group.

    What has diverged, by its losses or its metric, counts for neither range if it would double it,
    unless all have.
    """
    both = [
        [grouped(name, curves, count) for name, curves in _by_name(runs, place).items()]
        for place in (1, 2)
    ]
    diverged = {group.name for group in both[0] if group.has_ended_in_nan}
    for groups in both:
        diverged |= {group.name for group in beyond(groups)}
    found = []
    for title, groups in zip(("training loss", metric), both, strict=True):
        kept = [group for group in groups if group.name not in diverged] or groups
        near = [group for group in groups if group.name in diverged and _is_near(group, kept)]
        kept = kept if kept is groups else [*kept, *near]
        means = np.concatenate([np.zeros(0), *(group.mean for group in kept)])
        few = len(groups) <= FEW
        bands = [edge for g in kept if few or g.seeds > 1 for edge in (g.low, g.high)]
        is_log = is_wide(means)
        low, high = limits(means, np.concatenate([np.zeros(0), *bands]), is_log)
        found.append(Panel(titled(title), groups, is_log, low, high))
    return found


def _is_near(group: Group, others: Sequence[Group]) -> bool:
    """Tell whether others can be read as well where a group is shown with them."""
    own, known = (
        range_of(np.concatenate([each.mean for each in some])) for some in ([group], others)
    )
    if own is None or known is None:
        return False
    together = max(own[1], known[1]) - min(own[0], known[0])
    return together <= NEAR * (known[1] - known[0])


def limits(means: np.ndarray, bands: np.ndarray, is_log: bool) -> tuple[float, float]:
    """Return the range of these means, most of their bands, and a little more on both sides."""
    known, around = means[np.isfinite(means)], bands[np.isfinite(bands)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    if len(around):
        usual = np.quantile(around, [0.02, 0.98])
        low, high = min(low, float(usual[0])), max(high, float(usual[1]))
    if is_log:
        low = max(low, float(known.min()) / 2)
        return low / (high / low) ** 0.05, high * (high / low) ** 0.05
    more = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - more, high + more
