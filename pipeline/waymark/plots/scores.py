"""What a test set's predictions are worth: by class, by label, by target."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from waymark.plots.style import HUGE, colours, drawn, shortened, width_of

MAX_TARGETS = 10  # of a regression, that are drawn
LONGEST = 24  # characters of a class's name
WITH_TEXTS = 25  # classes, up to which each field holds its numbers
NAMED = 50  # classes beside the matrix, at most: of more every second, or third, is named
WORST = 3  # errors that are named where there are more classes
SHARES = (0, 0.01, 0.1, 0.25, 0.5, 1)  # that the colour bar names


def confusion_matrix(
    path: Path,
    counts: np.ndarray,
    classes: Sequence[int],
    names: Sequence[str] = (),
    title: str = "Test set",
    among: str = "",
) -> None:
    """Draw int [N, N] counts of these N classes, true class by row, each as a share of its row.

    `names` stand in the place of the classes' numbers, if there are any; `among` says which
    classes these are, if not all.
    """
    texts = [shortened(name, LONGEST) for name in names] or [str(c) for c in classes]
    size, many = 9 if len(classes) <= NAMED else 7, len(classes)
    side = max(3.6, 0.46 * many) if many <= WITH_TEXTS else 9.0
    shown = range(0, many, -(-many // NAMED))
    longest = width_of([texts[i] for i in shown], size)
    upright = longest > 0.9 * side / min(many, NAMED)
    beside = 0.45 + longest
    below = beside if upright else 0.65
    above = 0.45 if many <= WITH_TEXTS else 0.5 + 0.19 * (WORST + 1)
    width, height = beside + side + 1.0, below + side + above
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    with drawn(path, width, height) as figure:
        axes = figure.add_axes((beside / width, below / height, side / width, side / height))
        fields = np.arange(many + 1) - 0.5
        image = axes.pcolormesh(fields, fields, np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
        axes.invert_yaxis()
        axes.set_axis_off()  # ticks would take as long as all the rest
        gap = 0.06 * many / side
        for i in shown:
            axes.text(-0.5 - gap, i, texts[i], size=size, ha="right", va="center")
            axes.text(i, many - 0.5 + gap, texts[i], size=size, ha="center", va="top",
                      rotation=90 * upright)  # fmt: skip
        if many <= WITH_TEXTS:
            _numbers(axes, counts, shares)
        some = f" (one in {shown.step} is named)" if shown.step > 1 else ""
        across, up = (beside + side / 2) / width, (below + side / 2) / height
        which = f"predicted class ({among})" if among else "predicted class"
        figure.text(across, 0.1 / height, which, ha="center")
        figure.text(0.1 / width, up, f"true class{some}", va="center", rotation=90)
        # From the figure's edge on, since there may be fewer than fit the words.
        if many > WITH_TEXTS:
            title = "\n".join([title, *_worst(counts, shares, texts)])
        figure.text(0.1 / width, 1 - 0.12 / height, title, va="top", size=11)
        bar = figure.add_axes(
            ((beside + side + 0.15) / width, below / height, 0.15 / width, side / height)
        )
        figure.colorbar(image, cax=bar)
        bar.set_yticks(np.sqrt(SHARES), [f"{share:.0%}" for share in SHARES])
        bar.set_title("of the row", size=9, loc="center")


def _numbers(axes: Any, counts: np.ndarray, shares: np.ndarray) -> None:
    """Write into each field that holds something its share of the row, and the count."""
    size = 7.5 if len(counts) > 5 else 11
    for (row, column), count in np.ndenumerate(counts):
        if count:
            share = shares[row, column]
            text = f"{share:.0%}" if share >= 0.005 else "<1%"
            colour = "white" if share > 0.3 else "black"
            axes.text(column, row, f"{text}\n{count}", ha="center", va="center", color=colour,
                      size=size)  # fmt: skip


def _worst(counts: np.ndarray, shares: np.ndarray, texts: Sequence[str]) -> list[str]:
    """Return the most frequent errors in words, where there is no room for numbers."""
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    found = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:WORST]:
        row, column = divmod(int(place), len(counts))
        if wrong[row, column]:
            share = f"{wrong[row, column]} ({shares[row, column]:.0%} of the row)"
            found.append(f"   {texts[row]} as {texts[column]}: {share}")
    return ["most frequent errors:", *found] if found else ["no errors"]


def label_bars(
    path: Path, names: Sequence[str], shares: Mapping[str, Sequence[float]], most: int = 40
) -> None:
    """Draw shares (0..1) of each label as bars beside each other.

    Of more than `most` labels those with the lowest last share are drawn.
    """
    *_, last = shares.values()
    shown = sorted(sorted(range(len(names)), key=lambda i: last[i])[:most])
    texts = [shortened(names[i], LONGEST) for i in shown]
    height = 1.6 + 0.42 * max(len(shown), 2)
    with drawn(path, 7, height, layout="constrained") as figure:
        axes = figure.add_subplot()
        for place, (name, values) in enumerate(shares.items()):
            at = [row + (place - 1) * 0.27 for row in range(len(shown))]
            axes.barh(at, [values[i] for i in shown], height=0.25, label=name)
        axes.set_yticks(range(len(shown)), texts)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        axes.set_xlim(0, 1)
        axes.set_xlabel("share (0 to 1)")
        some = f"the worst {most} of {len(names)} labels" if len(names) > most else "each label"
        figure.suptitle(f"Test set: {some}", x=0.01, ha="left", size=11)
        figure.legend(loc="outside lower center", ncols=len(shares))


def predictions(path: Path, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Draw predictions over targets, both [N, T], and where they are equal."""
    title = f"Test set: predictions over targets, {_count(truth)}"
    with _points(path, truth, predicted, ("target", "prediction"), title) as axes:
        axes.axline((0, 0), slope=1, color="black", linewidth=0.9, label="equal")


def residuals(path: Path, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Draw targets minus predictions over predictions, all [N, T]."""
    with np.errstate(over="ignore", invalid="ignore"):
        errors = truth - predicted
    title = f"Test set: residuals, {_count(truth)}"
    with _points(path, predicted, errors, ("prediction", "target - prediction"), title) as axes:
        axes.axhline(0, color="black", linewidth=0.9, label="no error")


def _count(truth: np.ndarray) -> str:
    return f"{len(truth)} example{'s' * (len(truth) != 1)}"


@contextmanager
def _points(
    path: Path, across: np.ndarray, up: np.ndarray, names: tuple[str, str], title: str
) -> Iterator[Any]:
    """Draw points, both [N, T], in a colour for each target; yield the axes for more."""
    shown = min(up.shape[1], MAX_TARGETS)
    with drawn(path, 6.4, 4.8, layout="constrained") as figure:
        axes = figure.add_subplot()
        found = []
        for target, colour in enumerate(colours(shown)):
            columns = across[:, target], up[:, target]
            found.append([np.where(np.abs(each) < HUGE, each, np.nan) for each in columns])
            axes.plot(*found[-1], ".", markersize=5, alpha=0.6, color=colour,
                      label=f"target {target}" if shown > 1 else "an example")  # fmt: skip
        yield axes
        axes.grid(True)
        axes.set_xlabel(f"{names[0]} (in the targets' unit)")
        axes.set_ylabel(f"{names[1]} (in the targets' unit)")
        figure.suptitle(title, x=0.01, ha="left", size=11)
        figure.legend(loc="outside right upper")
