"""Pictures of examples: some of each class, and those that a model takes for another one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from waymark.errors import printable
from waymark.plots.style import drawn
from waymark.table import elided


def contact_sheet(path: Path, classes: Sequence[tuple[str, np.ndarray]]) -> None:
    """Draw pictures, uint8 [N, H, W, 1 or 3], of each class beside its name."""
    height, width = classes[0][1].shape[1:3]
    most = max(len(pictures) for _, pictures in classes)
    line, tall = np.full((height, most * (width + 1), 3), 255, np.uint8), 0.8  # inches, a row
    wide, names = min(most * tall * width / height, 50), 2.0
    size = (names + wide, tall * len(classes))
    with drawn(path, *size) as figure:
        for row, (name, pictures) in enumerate(classes):
            shown = line.copy()
            for place, picture in enumerate(pictures):
                left = place * (width + 1)
                shown[:, left : left + width] = picture
            low = (len(classes) - 1 - row) / len(classes)
            axes = figure.add_axes((names / size[0], low, wide / size[0], 0.96 / len(classes)))
            axes.imshow(shown, aspect="auto", interpolation="nearest")
            axes.set_axis_off()
            middle = low + 0.5 / len(classes)
            text = elided(printable(name), 26)
            figure.text(0.1 / size[0], middle, text, va="center", size=9)


def titled_pictures(
    path: Path, pictures: Sequence[tuple[str, np.ndarray]], columns: int = 5
) -> None:
    """Draw pictures, uint8 [H, W, 1 or 3], each under its lines of text."""
    rows = -(-len(pictures) // columns)
    with drawn(path, 2.2 * columns, 2.6 * rows, layout="constrained") as figure:
        for place, (text, picture) in enumerate(pictures):
            axes = figure.add_subplot(rows, columns, place + 1)
            shown = np.broadcast_to(picture, (*picture.shape[:2], 3))
            axes.imshow(shown, interpolation="nearest")
            axes.set_axis_off()
            lines = [elided(printable(line), 26) for line in text.splitlines()]
            axes.set_title("\n".join(lines), size=8, loc="center")
