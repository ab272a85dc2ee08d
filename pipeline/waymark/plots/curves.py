"""Losses and metrics by step: of one run, and of many together."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from waymark.errors import printable
from waymark.plots.groups import (
    FEW,
    SMOOTHED,
    Panel,
    Run,
    blocks,
    limits,
    panels,
    thinned,
    titled,
)
from waymark.plots.style import (
    COLOURS,
    DASHES,
    GREY,
    Curve,
    beside,
    colours,
    drawn,
    finite,
    is_wide,
    numbered,
    range_of,
    scaled,
    shortened,
    tell_of_nothing,
)
from waymark.table import elided, number

SMOOTH_FROM = 200  # points of a curve, from which a smoothed line is drawn over them
RAW = 2000  # blocks of steps of which the lowest and the highest value are drawn
LEGEND = 20  # names in the legend, at most
LEADING = 10  # of more of them, those first ones that have a colour
OTHERS = "others"
HEADROOM = 0.35  # of what a panel shows, above it for the legend


def loss_curve(
    path: Path,
    losses: Curve,
    values: Curve,
    metric: str = "accuracy",
    part: str = "test",
    evaluated: Curve | None = None,
) -> None:
    """Draw losses by step, and a metric's values beside them.

    `evaluated` are losses on the set that is called `part`, on which the metric was measured, too.
    """
    with drawn(path, 8, 3.4) as figure:
        left, right = figure.add_axes((0, 0, 1, 1)), figure.add_axes((0, 0, 1, 1))
        steps, raw = finite(losses)
        noisy = len(steps) >= SMOOTH_FROM
        if noisy:
            _line(left, *_envelope(steps, raw), COLOURS[0], alpha=0.3, linewidth=0.7,
                  label="training, each step")  # fmt: skip
            every = round((steps[-1] - steps[0] + 1) / SMOOTHED)
            steps, raw = thinned(losses, SMOOTHED)
        name = f"training, mean of {every} steps" if noisy else "training"
        _line(left, steps, raw, COLOURS[0], label=name)
        if evaluated:
            _line(left, *finite(evaluated), COLOURS[1], marker="o", label=part)
        _line(right, *finite(values), COLOURS[1], marker="o")
        left.set_title(titled("loss"))
        right.set_title(elided(printable(f"{part} {titled(metric)}"), 48))
        if values:
            last = f"{number(values[max(values)])} at step {max(values)}"
            right.set_xlabel(f"step (last: {last})")
        together = np.concatenate([raw, finite(evaluated or {})[1]])
        if range_of(together):
            left.legend(loc="upper right")
        for place, (axes, shown) in enumerate(((left, together), (right, finite(values)[1]))):
            is_log = is_wide(shown)
            low, high = limits(shown, finite(losses)[1] if axes is left else shown, is_log)
            if axes is left:  # so that the legend lies on no line
                high = high * (high / low) ** HEADROOM if is_log else high + HEADROOM * (high - low)
            if range_of(shown):
                scaled(axes.yaxis, low, high, is_log)
                axes.set_ylim(low, high)
            else:
                tell_of_nothing(axes)
            numbered(axes.xaxis)
            axes.set_xlabel(axes.get_xlabel() or "step")
            _place(axes, place)


def _envelope(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what looks like a curve on a picture, of few points."""
    if len(steps) <= 2 * RAW:
        return steps, values
    _, low, high = blocks(values, RAW)
    return np.repeat(blocks(steps, RAW)[0], 2), np.stack([low, high], axis=1).ravel()


def _place(axes: Any, place: int) -> None:
    """Give one of two panels its half of the figure, less what its numbers take.

    Matplotlib's layout engines would draw everything twice.
    """
    width, height = axes.figure.get_size_inches()
    left = place / 2 + (0.25 + beside(axes.yaxis)) / width
    right = (place + 1) / 2 - 0.25 / width
    axes.set_position((left, 0.55 / height, right - left, 1 - 0.95 / height))


def _line(axes: Any, steps: np.ndarray, values: np.ndarray, colour: str, **style: Any) -> Any:
    """Draw a line; a point with no neighbour is on none, so that few points are marked."""
    known = np.isfinite(values)
    beside_one = np.zeros(len(values), bool)
    beside_one[:-1] |= known[1:]
    beside_one[1:] |= known[:-1]
    lonely = (known & ~beside_one).any()
    marker = "." if len(steps) < 25 or lonely else ""
    return axes.plot(steps, values, **{"marker": marker, "color": colour, **style})[0]


def draw_curves(
    target: Path | io.BytesIO, runs: Sequence[Run], metric: str, kind: str = ""
) -> None:
    """Draw runs' losses and metric by step; runs of one name are one line, with a band.

    Of more than LEGEND names the first LEADING have colours and names, the others are grey.
    """
    names = list(dict.fromkeys(name for name, _, _ in runs))
    looks = looks_of(names)
    # A leading underscore would hide a name.
    texts = {name: f" {shortened(name, 60)}" for name in looks}
    others = len(names) - len(looks)
    columns = max(1, 120 // (8 + max(map(len, texts.values()), default=1)))
    rows = -(-(len(looks) + (others > 0)) // columns)
    with drawn(target, 11, 4.4 + 0.22 * rows, kind, layout="constrained") as figure:
        handles: dict[str, Any] = {}
        for place, panel in enumerate(panels(runs, metric)):
            handles |= _panel(figure.add_subplot(1, 2, place + 1), panel, looks)
        if others:
            texts[OTHERS] = f" {others} others"
        figure.legend(
            [handles[name] for name in texts if name in handles],
            [text for name, text in texts.items() if name in handles],
            loc="outside lower center",
            ncols=columns,
            title=_band(runs, names),
            title_fontsize=9,
        )


def looks_of(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return colour and dashes of the names that have some of their own; the others are GREY."""
    shown = names if len(names) <= LEGEND else names[:LEADING]
    dashes = DASHES if len(shown) > len(COLOURS) else DASHES[:1]
    found = zip(shown, colours(len(shown)), strict=True)
    return {name: (colour, dashes[i % len(dashes)]) for i, (name, colour) in enumerate(found)}


def _band(runs: Sequence[Run], names: Sequence[str]) -> str | None:
    """Return what the legend says of lines and bands."""
    if len(runs) > len(names):
        return "line: mean over seeds; band: from the lowest to the highest seed"
    longest = max((losses for _, losses, _ in runs), key=len, default={})
    if len(longest) <= SMOOTHED or len(names) > FEW:
        return None
    every = round((max(longest) - min(longest) + 1) / SMOOTHED)
    return f"line: mean of {every} steps; band: from the lowest to the highest of them"


def _panel(axes: Any, panel: Panel, looks: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Draw one panel; return a line of each name that has a look of its own, and of OTHERS."""
    lines = {}
    for group in reversed(panel.groups):  # the first ones on top
        own = looks.get(group.name)
        colour, dashes = own or (GREY, "-")
        if own and (panel.has_bands or group.seeds > 1) and len(group.steps) > 1:
            axes.fill_between(group.steps, group.low, group.high, color=colour, alpha=0.15, lw=0)
        width = 1.6 if own else 0.8
        line = _line(axes, group.steps, group.mean, colour, linewidth=width, linestyle=dashes)
        lines[group.name if own else OTHERS] = line
    scaled(axes.yaxis, panel.low, panel.high, panel.is_log)
    axes.set_ylim(panel.low, panel.high)
    if not any(range_of(group.mean) for group in panel.groups):
        tell_of_nothing(axes)
    numbered(axes.xaxis)
    axes.set_title(elided(printable(panel.title), 56))
    text, away = "step", panel.outside()
    if away:
        name, own_range = away[0]
        values = " to ".join(dict.fromkeys(map(number, own_range)))
        one = f"\n{shortened(name, 42)} ({values})"
        text += f"\nnot all in this range: {one if len(away) == 1 else f'{len(away)} runs'}"
    axes.set_xlabel(text, size=9 if away else None)
    return lines
