"""What stands in a picture: the figure as Matplotlib has it, and what is wrong with its texts."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


@contextmanager
def figures() -> Iterator[list[Figure]]:
    """Collect the figures that are saved in the block."""
    found: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *arguments: Any, **named: Any) -> None:
        save(figure, *arguments, **named)
        found.append(figure)

    with mock.patch.object(Figure, "savefig", saved):
        yield found


def figure_of(draw: Callable[..., Any], *arguments: Any, **named: Any) -> Figure:
    """Draw a picture; return its figure."""
    with figures() as found:
        draw(*arguments, **named)
    (figure,) = found
    return figure


def faults(figure: Figure) -> list[str]:
    """Return which texts are not whole within the picture, or lie on a neighbour beside an axis."""
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        canvas.draw()
    frame, found = figure.bbox, []

    def box(text: Text) -> Any:
        return text.get_window_extent(canvas.get_renderer())

    beside = [list(labels(axis)) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    ticks = {text for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
             for tick in axis.get_major_ticks() + axis.get_minor_ticks()
             for text in (tick.label1, tick.label2)}  # fmt: skip
    others = [text for text in figure.findobj(Text) if text not in ticks]
    for text in [*others, *(label for line in beside for label in line)]:
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip():
            own = box(text)
            inside = frame.x0 <= own.x0 and own.x1 <= frame.x1
            if not (inside and frame.y0 <= own.y0 and own.y1 <= frame.y1):
                found.append(f"cut: {text.get_text()!r}")
    for line in beside:
        for one, next_one in pairwise(line):
            if one.get_rotation() % 90 == 0 and box(one).overlaps(box(next_one)):
                found.append(f"on each other: {one.get_text()!r} {next_one.get_text()!r}")
    return found


def labels(axis: Any) -> Iterator[Text]:
    """Yield the numbers or names beside an axis, in order."""
    low, high = sorted(axis.get_view_interval())
    for tick in sorted(axis.get_major_ticks(), key=lambda tick: tick.get_loc()):
        for label in (tick.label1, tick.label2):
            if low <= tick.get_loc() <= high and label.get_visible() and label.get_text():
                yield label
