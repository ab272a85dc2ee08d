"""The pictures of a run, its curves and its confusion matrix, and of several runs together."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from waymark.errors import printable
from waymark.table import elided

MAX_TARGETS = 10  # of a regression, that are drawn


@cache
def prepare() -> None:
    """Load what drawing needs, once in a process, where there is time for it."""
    from matplotlib.figure import Figure

    _save(Figure(), io.BytesIO())


def loss_curve(
    path: Path,
    losses: Mapping[int, float],
    values: Mapping[int, float],
    title: str = "test accuracy",
) -> None:
    """Draw every recorded loss by step and a metric's values over it, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))  # a layout engine would draw everything twice
    left = figure.add_axes((0.11, 0.13, 0.78, 0.77))
    _plot(left, losses, color="tab:blue", linewidth=0.6, alpha=0.8)
    left.set_xlabel("step")
    # Above the axes, where they meet no number, however long it is.
    left.set_title("training loss", loc="left", color="tab:blue", size="medium")
    right = left.twinx()
    _plot(right, values, color="tab:orange", marker="o")
    right.set_title(title, loc="right", color="tab:orange", size="medium", parse_math=False)
    _save(figure, path)


def curves(
    runs: Sequence[tuple[str, Mapping[int, float], Mapping[int, float]]], kind: str, metric: str
) -> bytes:
    """Return a `png` or `svg` of runs' losses and metric by step, one colour for each name."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for name, _, _ in runs))
    colours = colormaps["tab10" if len(names) <= 10 else "turbo"].resampled(len(names))
    figure, lines = Figure(figsize=(11, 4.5), layout="constrained"), {}
    for place, title in enumerate(("training loss", f"{metric} in training")):
        axes = figure.add_subplot(1, 2, place + 1)
        for name, *values in runs:
            colour = colours(names.index(name))
            lines[name] = _plot(axes, values[place], color=colour, linewidth=0.8)
        axes.set_xlabel("step")
        axes.set_ylabel(title)
    if len(names) <= 30:
        # A leading underscore would hide a name, a dollar sign make a formula of it.
        texts = [elided(f" {printable(name)}", 40) for name in lines]
        legend = figure.legend(lines.values(), texts, loc="outside right upper", fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
    file = io.BytesIO()
    _save(figure, file, kind)
    return file.getvalue()


def confusion_matrix(
    path: Path, counts: np.ndarray, classes: Sequence[int], names: Sequence[str] = ()
) -> None:
    """Draw int [N, N] counts of these N classes, true class by row, as a PNG file.

    `names` stand in the place of the classes' numbers, if there are any.
    """
    from matplotlib.figure import Figure

    texts = [elided(printable(name), 14) for name in names] or [str(each) for each in classes]
    wide = max(map(len, texts)) > 2
    figure = Figure(figsize=(6, 5.5) if names else (5, 4.6))
    axes = figure.add_axes((0.24, 0.24, 0.74, 0.74) if names else (0.14, 0.15, 0.84, 0.83))
    axes.imshow(counts, cmap="Blues", norm="symlog")
    if len(classes) <= 20:
        axes.set_xticks(range(len(classes)), texts, parse_math=False)
        axes.set_yticks(range(len(classes)), texts, parse_math=False)
        if wide:
            axes.tick_params(axis="x", rotation=90, labelsize=7)
            axes.tick_params(axis="y", labelsize=7)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if count > counts.max() / 8 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, size=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _save(figure, path)


def label_bars(
    path: Path, names: Sequence[str], shares: Mapping[str, Sequence[float]], most: int = 40
) -> None:
    """Draw shares (0..1) of each label as bars beside each other, as a PNG file.

    Of more than `most` labels those with the lowest last share are drawn.
    """
    from matplotlib.figure import Figure

    *_, last = shares.values()
    shown = sorted(sorted(range(len(names)), key=lambda i: last[i])[:most])
    texts = [elided(printable(names[i]), 20) for i in shown]
    figure = Figure(figsize=(6, max(2.5, 1.2 + 0.4 * len(shown))), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, values) in enumerate(shares.items()):
        at = [row + (place - 1) * 0.27 for row in range(len(shown))]
        axes.barh(at, [values[i] for i in shown], height=0.27, label=name)
    axes.set_yticks(range(len(shown)), texts, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"of {len(names)} labels the worst {most}" if len(names) > most else "")
    figure.legend(loc="outside upper center", ncols=len(shares))
    _save(figure, path)


def predictions(path: Path, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Draw predictions over targets, both [N, T], and where they are equal, as a PNG file."""
    with _points(path, truth, predicted, ("true", "predicted")) as axes:
        axes.axline((0, 0), slope=1, color="black", linewidth=0.8)


def residuals(path: Path, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Draw targets minus predictions over predictions, all [N, T], as a PNG file."""
    with np.errstate(over="ignore", invalid="ignore"):
        errors = truth - predicted
    with _points(path, predicted, errors, ("predicted", "true - predicted")) as axes:
        axes.axhline(0, color="black", linewidth=0.8)


@contextmanager
def _points(
    path: Path, across: np.ndarray, up: np.ndarray, titles: tuple[str, str]
) -> Iterator[Any]:
    """Draw points, both [N, T], in a colour for each target; yield the axes for more."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes, shown = figure.add_subplot(), min(up.shape[1], MAX_TARGETS)
    for target in range(shown):
        columns = across[:, target], up[:, target]
        x, y = (np.where(np.abs(each) < 1e300, each, np.nan) for each in columns)
        axes.plot(x, y, ".", markersize=4, alpha=0.6, label=f"target {target}")
    axes.set_xlabel(titles[0])
    axes.set_ylabel(titles[1])
    if shown > 1:
        figure.legend(loc="outside right upper", fontsize=8)
    yield axes
    _save(figure, path)


def contact_sheet(path: Path, classes: Sequence[tuple[str, np.ndarray]]) -> None:
    """Draw pictures, uint8 [N, H, W, 1 or 3], of each class beside its name, as a PNG file."""
    from matplotlib.figure import Figure

    height, width = classes[0][1].shape[1:3]
    most = max(len(pictures) for _, pictures in classes)
    line, tall = np.full((height, most * (width + 1), 3), 255, np.uint8), 0.8  # inches, a row
    wide, names = min(most * tall * width / height, 50), 2.0
    size = (names + wide, tall * len(classes))
    figure = Figure(figsize=size)
    for row, (name, pictures) in enumerate(classes):
        shown = line.copy()
        for place, picture in enumerate(pictures):
            left = place * (width + 1)
            shown[:, left : left + width] = picture
        low = (len(classes) - 1 - row) / len(classes)
        box = (names / size[0], low, wide / size[0], 0.96 / len(classes))
        axes = figure.add_axes(box)
        axes.imshow(shown, aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        text = elided(printable(name), 26)
        middle = low + 0.5 / len(classes)
        figure.text(0.1 / size[0], middle, text, va="center", size=9, parse_math=False)
    _save(figure, path)


def titled_pictures(
    path: Path, pictures: Sequence[tuple[str, np.ndarray]], columns: int = 5
) -> None:
    """Draw pictures, uint8 [H, W, 1 or 3], each under its lines of text, as a PNG file."""
    from matplotlib.figure import Figure

    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.6 * rows), layout="constrained")
    for place, (text, picture) in enumerate(pictures):
        axes = figure.add_subplot(rows, columns, place + 1)
        shown = np.broadcast_to(picture, (*picture.shape[:2], 3))
        axes.imshow(shown, interpolation="nearest")
        axes.set_axis_off()
        lines = [elided(printable(line), 26) for line in text.splitlines()]
        axes.set_title("\n".join(lines), size=8, parse_math=False)
    _save(figure, path)


def _plot(axes: Any, curve: Mapping[int, float], **style: Any) -> Any:
    """Draw a curve by step; return its line."""
    steps = sorted(curve)
    values = np.array([curve[step] for step in steps], np.float64)
    values[np.abs(values) > 1e300] = np.nan  # a gap in the line: Matplotlib's scale ends there
    marker = "." if len(steps) < 100 else ""  # a point with no neighbour is on no line
    return axes.plot(steps, values, **{"marker": marker, **style})[0]


def _save(figure: Any, target: Path | io.BytesIO, kind: str = "png") -> None:
    """Draw a figure; fitting each letter to the pixels would take longer than all the rest."""
    from matplotlib import rc_context

    with rc_context({"text.hinting": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of scripts that the font has not
        figure.savefig(target, dpi=100, format=kind)
