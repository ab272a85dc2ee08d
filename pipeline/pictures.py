"""The two pictures of a run: its curves and its confusion matrix."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def loss_curve(path: Path, losses: Mapping[int, float], accuracies: Mapping[int, float]) -> None:
    """Draw every recorded loss by step and the test accuracies over it, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    steps = sorted(losses)
    values = np.array([losses[s] for s in steps], np.float64)
    values[np.isinf(values)] = np.nan  # a gap in the line
    marker = "." if len(steps) < 100 else ""  # a point with no neighbour is on no line
    left.plot(steps, values, color="tab:blue", linewidth=0.6, alpha=0.8, marker=marker)
    left.set_xlabel("step")
    left.set_ylabel("training loss", color="tab:blue")
    right = left.twinx()
    steps = sorted(accuracies)
    right.plot(steps, [accuracies[s] for s in steps], color="tab:orange", marker="o")
    right.set_ylabel("test accuracy", color="tab:orange")
    figure.savefig(path, dpi=100)


def confusion_matrix(path: Path, counts: np.ndarray) -> None:
    """Draw int [classes, classes] counts, true class by row, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues", norm="symlog")
    classes = len(counts)
    if classes <= 20:
        axes.set_xticks(range(classes))
        axes.set_yticks(range(classes))
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if count > counts.max() / 8 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, size=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.savefig(path, dpi=100)
