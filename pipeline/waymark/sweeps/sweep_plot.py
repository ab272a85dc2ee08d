"""The pictures of a sweep: its objective over what was varied.

`slices` has one panel a key; `heat_map` two keys at once; `parallel` all of them, one line a
configuration (Inselberg, 1985); `importance` how much of the objective each key decides, where
Optuna is installed: the numbers are its own, but its pictures are made by pyplot, in other styles.
"""

import io
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from waymark.errors import printable
from waymark.plots.style import COLOURS, GREY, HUGE, drawn, tick_texts
from waymark.sweeps.configurations import Axis, Found, TrialPoint, importances
from waymark.table import elided, number

CELLS = 20  # along each side of a heat map, at most
ACROSS = 3  # panels of slices beside each other
MARKS = {"*": "the best", "~": "not told apart from the best", "": "a configuration"}
STYLES = {  # marker, size, colour
    "*": ("*", 15, COLOURS[1]),
    "~": ("D", 7, COLOURS[4]),
    "": ("o", 5, COLOURS[0]),
}


def draw_sweep(
    keys: Sequence[str], points: Sequence[TrialPoint], metric: str, mode: str = "max"
) -> dict[str, bytes]:
    """Draw what was achieved by the values of `keys`; return PNG files by name."""
    found = Found(keys, [_drawable(point) for point in points], metric, mode)
    pictures: dict[str, Callable[[io.BytesIO, Found], None]] = {"slices": slices}
    if len(keys) > 1:
        pictures |= {"heat_map": heat_map, "parallel": parallel}
        if find_spec("optuna"):
            pictures["importance"] = importance
    files = {}
    for name, draw in pictures.items():
        file = io.BytesIO()
        draw(file, found)
        if file.tell():
            files[name] = file.getvalue()
    return files


def _drawable(point: TrialPoint) -> TrialPoint:
    """Return a configuration with numbers that Matplotlib's scales take, others as NaN."""
    half = point.half if point.half is not None and point.half < HUGE else None
    return replace(point, mean=point.mean if abs(point.mean) < HUGE else math.nan, half=half)


def slices(file: io.BytesIO, found: Found) -> None:
    """Draw the objective over each key, one panel a key."""
    axes, across = found.axes(), min(ACROSS, len(found.keys))
    down = -(-len(axes) // across)
    with drawn(file, max(6.4, 4.0 * across), 3.6 * down + 0.5, layout="constrained") as figure:
        handles: dict[str, Any] = {}
        for place, axis in enumerate(axes):
            plot = figure.add_subplot(down, across, place + 1)
            handles |= _slice(plot, axis, place, found)
            axis.label(plot.xaxis, axis.some, [axis.places[text] for text in axis.some])
            if place % across == 0:
                plot.set_ylabel(printable(found.metric))
            _limit(plot, found)
        _titled(figure, found, "by each setting")
        order = sorted(handles, key=_rank)
        figure.legend([handles[name] for name in order], order, loc="outside lower center",
                      ncols=2 if across < 3 else 5)  # fmt: skip


def _slice(plot: Any, axis: Axis, place: int, found: Found) -> dict[str, Any]:
    """Draw one panel; return what its legend explains."""
    handles: dict[str, Any] = {}
    groups = defaultdict(list)
    for point in found.points:
        if math.isfinite(point.mean):
            groups[point.values[place]].append(point.mean)
    several = 2 * len(groups) <= sum(map(len, groups.values()))
    if len(groups) > 1 and (several or len(found.keys) == 1):
        ordered = sorted(groups, key=lambda text: axis.places[text])
        x, y = [axis.places[t] for t in ordered], [float(np.median(groups[t])) for t in ordered]
        (line,) = plot.plot(x, y, color=GREY if several else COLOURS[0], linewidth=1.2, zorder=1)
        if several:
            handles["median of those with the value"] = line
    halves = [p for p in found.points if p.half is not None and math.isfinite(p.half)]
    if halves:
        at, means = [axis.places[p.values[place]] for p in halves], [p.mean for p in halves]
        bars = plot.errorbar(at, means, [p.half for p in halves], fmt="none", ecolor="#666666",
                             capsize=4, linewidth=1)  # fmt: skip
        handles["95 % interval of the mean over seeds"] = bars
    for mark, (marker, size, colour) in reversed(STYLES.items()):
        own = [point for point in found.points if point.mark == mark]
        if own:
            at, means = [axis.places[p.values[place]] for p in own], [p.mean for p in own]
            (handles[MARKS[mark]],) = plot.plot(at, means, marker, markersize=size, color=colour)
    return handles


def _rank(name: str) -> int:
    return [*MARKS.values(), name].index(name)


def _limit(plot: Any, found: Found) -> None:
    """Let the objective's axis show what is not far from the usual."""
    low, high = found.range()
    kept = [p for p in found.points if math.isfinite(p.mean) and low <= p.mean <= high]
    halves = [p.half if p.half and math.isfinite(p.half) else 0.0 for p in kept]
    ends = [end for p, h in zip(kept, halves, strict=True) for end in (p.mean - h, p.mean + h)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    more = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    plot.set_ylim(low - more, high + more)
    plot.yaxis.set_major_formatter(lambda value, _: tick_texts([value])[0])


def _titled(figure: Any, found: Found, what: str) -> None:
    """Write above a figure what it shows, and how many configurations it does not."""
    low, high = found.range()
    unknown = sum(not math.isfinite(point.mean) for point in found.points)
    beyond = sum(math.isfinite(p.mean) and not low <= p.mean <= high for p in found.points)
    parts = [f"{len(found.points)} configurations"]
    parts += [f"{unknown} of them without a number"] if unknown else []
    parts += [f"{beyond} beyond this range"] if beyond else []
    which = "more" if found.mode == "max" else "less"
    title = f"{printable(found.metric)} {what} ({which} is better)"
    figure.suptitle(f"{title}\n{', '.join(parts)}", x=0.01, ha="left", size=11)


def _scale(found: Found) -> tuple[Any, Any]:
    """Return colours and their range; the brighter one is the better one."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    low, high = found.range()
    return (
        colormaps["viridis" if found.mode == "max" else "viridis_r"],
        Normalize(low, high if high > low else low + 1),
    )


def heat_map(file: io.BytesIO, found: Found) -> None:
    """Draw the objective over the two keys that change it most: a grid's cells, else points."""
    order = sorted(range(len(found.keys)), key=lambda i: -found.effects()[i])
    first, second = sorted(order[:2])
    axes = found.axes()
    down, across = axes[first], axes[second]
    cells = defaultdict(list)
    for point in found.points:
        cells[point.values[first], point.values[second]].append(point)
    sides = len(down.labels), len(across.labels)
    with drawn(file, 7.2, 5, layout="constrained") as figure:
        plot = figure.add_subplot()
        plot.grid(False)
        is_grid = max(sides) <= CELLS and 2 * len(cells) > sides[0] * sides[1]
        if is_grid:
            image = _cells(plot, (down, across), cells, found)
            for side, axis in ((plot.xaxis, across), (plot.yaxis, down)):
                axis.label(side, axis.labels, range(len(axis.labels)))
        else:
            image = _scattered(plot, (down, across), (first, second), found)
            for side, axis in ((plot.xaxis, across), (plot.yaxis, down)):
                axis.label(side, axis.some, [axis.places[text] for text in axis.some])
        bar = figure.colorbar(image, label=f"{printable(found.metric)} (brighter is better)")
        bar.ax.yaxis.set_major_formatter(lambda value, _: tick_texts([value])[0])
        mean = ", means over the other settings" if is_grid and len(found.keys) > 2 else ""
        _titled(figure, found, f"by two settings{mean}")
        each = not is_grid or len(found.keys) == 2  # a mark is of one configuration
        signs = {point.mark for point in found.points if each} & {"*", "~"}
        told = [f"{'★' if mark == '*' else '~'} {MARKS[mark]}" for mark in sorted(signs)]
        told += (
            ["± half of the 95 % interval"] if each and any(p.half for p in found.points) else []
        )
        if told:
            figure.supxlabel(";  ".join(told), size=9)


def _cells(plot: Any, axes: Sequence[Axis], cells: Any, found: Found) -> Any:
    down, across = axes
    colours, scale = _scale(found)
    grid = np.full((len(down.labels), len(across.labels)), np.nan)
    for (row_text, column_text), points in cells.items():
        row, column = down.labels.index(row_text), across.labels.index(column_text)
        mean = float(np.mean([point.mean for point in points]))
        grid[row, column] = mean
        if grid.size > 100:
            continue
        mark = "".join({"*": " ★", "~": " ~"}.get(point.mark, "") for point in points[:1])
        half = points[0].half if len(points) == 1 else None
        text = number(mean) + (mark if len(points) == 1 else "")
        text += f"\n± {number(half)}" if half is not None else ""
        bright = np.dot(colours(scale(mean))[:3], (0.3, 0.6, 0.1)) if math.isfinite(mean) else 1
        plot.text(column, row, text, ha="center", va="center", size=9,
                  color="black" if bright > 0.5 else "white")  # fmt: skip
    plot.set_facecolor("#eeeeee")
    return plot.imshow(grid, aspect="auto", cmap=colours, norm=scale)


def _scattered(plot: Any, axes: Sequence[Axis], places: tuple[int, int], found: Found) -> Any:
    colours, scale = _scale(found)
    down, across = axes
    for mark, size in (("", 60), ("~", 60), ("*", 260)):
        own = [p for p in found.points if p.mark == mark and math.isfinite(p.mean)]
        x, y = (
            [across.places[p.values[places[1]]] for p in own],
            [down.places[p.values[places[0]]] for p in own],
        )
        edge = COLOURS[1] if mark else "#444444"
        shown = {
            "marker": STYLES[mark][0],
            "s": size,
            "edgecolors": edge,
            "linewidths": 1.5 if mark else 0.5,
        }
        image = plot.scatter(x, y, c=[p.mean for p in own], cmap=colours, norm=scale, **shown)
    return image


def parallel(file: io.BytesIO, found: Found) -> None:
    """Draw one axis a key, the objective's last, and one line a configuration."""
    axes, (colours, scale) = found.axes(), _scale(found)
    low, high = found.range()
    ends = len(axes)
    with drawn(file, max(7.0, 2.0 * ends + 3), 4.6, layout="constrained") as figure:
        plot = figure.add_subplot()
        plot.grid(False)
        plot.spines[:].set_visible(False)
        lines: dict[str, Any] = {}
        for point in sorted(found.points, key=lambda p: p.mark):
            if not math.isfinite(point.mean):
                continue
            heights = [axis.places[v] for axis, v in zip(axes, point.values, strict=True)]
            width, dashes = {"*": (4.0, "-"), "~": (3.0, "--")}.get(point.mark, (1.1, "-"))
            (lines[MARKS[point.mark]],) = plot.plot(
                [*heights, found.share(point.mean)], color=colours(scale(point.mean)),
                linewidth=width, linestyle=dashes, alpha=0.9,
            )  # fmt: skip
        light = {"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
        for place, axis in enumerate(axes):
            plot.axvline(place, color="black", linewidth=0.8)
            for text in axis.some:
                plot.text(place + 0.03, axis.places[text], axis.named(text), size=9,
                          va="center", bbox=light)  # fmt: skip
        plot.axvline(ends, color="black", linewidth=0.8)
        for share in (0.0, 0.5, 1.0):
            plot.text(ends + 0.03, share, number(low + share * (high - low)), size=9, va="center")
        names = [*(axis.key for axis in axes), found.metric]
        plot.xaxis.set_ticks(range(len(names)), [elided(printable(n), 24) for n in names])
        plot.yaxis.set_ticks([])
        plot.set_xlim(-0.05, ends + 0.35)
        plot.set_ylim(-0.06, 1.06)
        _titled(figure, found, "and all settings")
        order = sorted(lines, key=_rank)
        figure.legend([lines[n] for n in order], order, loc="outside lower center", ncols=3,
                      title="brighter is better", title_fontsize=9)  # fmt: skip


def importance(file: io.BytesIO, found: Found) -> None:
    """Draw how much of the objective each key decides, by Optuna's fANOVA; nothing if unknown."""
    shares = importances(found)
    if not shares:
        return
    names = sorted(shares, key=lambda key: shares[key])
    with drawn(file, 7, 1.6 + 0.4 * len(names), layout="constrained") as figure:
        plot = figure.add_subplot()
        bars = plot.barh([elided(printable(n), 40) for n in names], [shares[n] for n in names])
        plot.bar_label(bars, [f"{shares[name]:.0%}" for name in names], padding=4, size=9)
        plot.set_xlim(0, 1.1)
        plot.grid(axis="y", visible=False)
        plot.grid(axis="x")
        plot.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        plot.set_xlabel("importance: share of the variance (fANOVA)")
        _titled(figure, found, "by setting")
