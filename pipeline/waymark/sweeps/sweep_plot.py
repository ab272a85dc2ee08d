"""One picture of a sweep: its objective over what was varied."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from waymark.table import elided, number, settings_apart

LONGEST = 20  # characters of a value beside an axis
CELLS = 20  # along each side of a heat map, at most
WIDE = 30.0  # a ratio of the largest to the smallest value from which an axis is logarithmic


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
        self.some = self.labels[:: max(1, len(self.labels) // 10)]  # so that they can be read
        first, last = self.labels[0], self.labels[-1]
        if not numeric or values[first] == values[last]:
            values = {text: float(place) for place, text in enumerate(self.labels)}
        elif values[first] > 0 and values[last] / values[first] >= WIDE:
            values = {text: math.log10(value) for text, value in values.items()}
        low, width = values[first], values[last] - values[first]
        # Where each value stands: 0 is the first one, 1 the last.
        self.places = {t: (v - low) / width if width else 0.5 for t, v in values.items()}

    def label(self, axis: Any, texts: Sequence[str], places: Sequence[float]) -> None:
        """Label a Matplotlib axis with the key, and with some values at their places."""
        axis.set_ticks(places, [self.shown[text] for text in texts], parse_math=False)
        axis.set_label_text(self.key, parse_math=False)


def draw_sweep(keys: Sequence[str], points: Sequence[TrialPoint], metric: str) -> bytes:
    """Draw what was achieved by the values of `keys`; return the bytes of a PNG file.

    One key: a curve with 95 % intervals. Two whose values make a grid: a heat map. Otherwise
    parallel coordinates (Inselberg, 1985): one axis a key, one line a configuration.
    """
    from matplotlib.figure import Figure

    axes = [Axis(key, [point.values[i] for point in points]) for i, key in enumerate(keys)]
    figure = Figure(figsize=(max(7, 1.8 * len(keys) + 3), 4.5), layout="constrained")
    sides = [len(axis.labels) for axis in axes]
    if len(keys) == 1:
        _curve(figure, axes[0], points, metric)
    elif len(keys) == 2 and max(sides) <= CELLS and 2 * len(points) > sides[0] * sides[1]:
        _heat_map(figure, axes, points, metric)
    else:
        _parallel(figure, axes, points, metric)
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    return file.getvalue()


def _curve(figure: Any, axis: Axis, points: Sequence[TrialPoint], metric: str) -> None:
    plot = figure.subplots()
    ordered = sorted(points, key=lambda point: axis.places[point.values[0]])
    places = [axis.places[point.values[0]] for point in ordered]
    halves = [point.half or 0.0 for point in ordered]
    plot.errorbar(places, [p.mean for p in ordered], halves, marker="o", capsize=4)
    for place, point in zip(places, ordered, strict=True):
        plot.annotate(point.mark, (place, point.mean), (6, 4), textcoords="offset points")
    axis.label(plot.xaxis, axis.some, [axis.places[text] for text in axis.some])
    plot.set_ylabel(metric, parse_math=False)


def _heat_map(figure: Any, axes: Sequence[Axis], points: Sequence[TrialPoint], metric: str) -> None:
    plot, (down, across) = figure.subplots(), axes
    grid = np.full((len(down.labels), len(across.labels)), np.nan)
    for point in points:
        row, column = (axis.labels.index(v) for axis, v in zip(axes, point.values, strict=True))
        grid[row, column] = point.mean
        half = "" if point.half is None else f"\n± {number(point.half)}"
        text = f"{number(point.mean)}{point.mark}{half}"
        light = {"boxstyle": "round", "facecolor": "white", "alpha": 0.6, "linewidth": 0}
        if grid.size <= 100:
            plot.text(column, row, text, ha="center", va="center", size=8, bbox=light)
    image = plot.imshow(grid, aspect="auto", cmap="viridis")
    figure.colorbar(image, label=metric)
    for side, axis in ((plot.xaxis, across), (plot.yaxis, down)):
        axis.label(side, axis.labels, range(len(axis.labels)))


def _parallel(figure: Any, axes: Sequence[Axis], points: Sequence[TrialPoint], metric: str) -> None:
    from matplotlib import colormaps

    plot, colours = figure.subplots(), colormaps["viridis"]
    known = [point.mean for point in points if math.isfinite(point.mean)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    for point in points:
        share = (point.mean - low) / (high - low) if high > low else 0.5
        heights = [axis.places[v] for axis, v in zip(axes, point.values, strict=True)]
        width = 2.5 if point.mark else 1.0
        plot.plot([*heights, share], color=colours(share), linewidth=width, alpha=0.8)
    for place, axis in enumerate(axes):
        plot.axvline(place, color="black", linewidth=0.8)
        for text in axis.some:
            plot.text(place, axis.places[text], f" {axis.shown[text]}", size=7, parse_math=False)
    plot.axvline(len(axes), color="black", linewidth=0.8)
    for share in (0.0, 0.5, 1.0):
        plot.text(len(axes), share, f" {number(low + share * (high - low))}", size=7)
    names = [*(axis.key for axis in axes), metric]
    plot.xaxis.set_ticks(range(len(names)), names, parse_math=False)
    plot.yaxis.set_ticks([])
    plot.set_xlim(0, len(axes) + 0.4)
