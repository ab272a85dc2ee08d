"""Pictures of a run and of compared runs: nothing is cut, whatever the numbers and names are."""

import math
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from waymark.comparison.report import Comparison
from waymark.plots.curves import LEADING, loss_curve
from waymark.plots.groups import blocks, panels
from waymark.plots.pictures import contact_sheet, titled_pictures
from waymark.plots.scores import confusion_matrix, label_bars, predictions, residuals
from waymark.plots.style import COLOURS, tick_texts

from tests.support.comparisons import HARM, compared, made, printable, shown_in
from tests.support.figures import faults, figure_of

# Of one run


def pixels(path: Path) -> np.ndarray:
    """Check that a file is a whole PNG; return its pixels, 0 to 255 [H, W, 3]."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    image = matplotlib.image.imread(path)
    assert image.ndim == 3
    assert min(image.shape[:2]) > 400
    return np.rint(image[..., :3] * 255).astype(int)


LOSSES: list[tuple[dict[int, float], dict[int, float], bool]] = [
    ({step: 1 / step for step in range(1, 1001)}, {200: 0.5, 1000: 0.9}, True),
    ({step: 2 - step / 1000 for step in range(1, 1001)}, {200: 0.5, 1000: 0.9}, False),
    ({3: 1.0, 1: 2.0, 2: math.nan}, {3: 0.3}, False),
    ({1: 123456.78, 2: 123456.79}, {1: 0.90025, 2: 0.90075}, False),
    ({}, {}, False),
]
MORE: list[tuple[dict[int, float], dict[int, float], bool]] = [
    ({step: 1 / step for step in range(1, 20_001)}, {}, True),
    ({1: 2.3, 2: 2.2}, {1: 0.1}, False),
    ({1: 2.3}, {}, False),
    ({1: 0.0, 2: 0.0}, {2: 0.0}, False),
    ({1: 2.0, 2: math.nan, 3: 1.0, 4: math.nan}, {4: math.nan}, False),
    ({1: 2.0, 2: math.inf, 3: -math.inf, 4: 1.0}, {4: 0.1}, False),
    ({1: 2.0, 2: 1.7976931348623157e308, 3: 1.0, 4: -1.7976931348623157e308}, {4: 0.1}, False),
    ({1: 3.4e38, 2: 1.0}, {2: 0.1}, True),
    ({1: 3.4e38, 2: -3.4e38}, {1: 0.900001, 2: 0.900002}, False),
    ({1: math.nan, 2: math.nan}, {}, False),
    ({5: math.inf}, {5: math.nan}, False),
]


@pytest.mark.parametrize(
    ("losses", "values", "is_log"),
    [*LOSSES, *(pytest.param(*case, marks=pytest.mark.long) for case in MORE)],
)
def test_loss_curve(
    losses: dict[int, float], values: dict[int, float], is_log: bool, tmp_path: Path
) -> None:
    path = tmp_path / "loss.png"
    evaluated = dict(list(losses.items())[-1:])
    figure = figure_of(loss_curve, path, losses, values, evaluated=evaluated)
    assert pixels(path).shape[:2] == (680, 1600)  # 200 to the inch
    left, right = figure.axes
    assert left.get_yscale() == ("log" if is_log else "linear")
    (drawn,) = right.lines
    shown = dict(zip(drawn.get_xdata(), drawn.get_ydata(), strict=True))
    assert {k: v for k, v in shown.items() if np.isfinite(v)} == {
        k: v for k, v in values.items() if math.isfinite(v)
    }
    assert faults(figure) == []


def test_many_losses_are_a_smoothed_line_over_faint_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    losses = dict(enumerate((1 + rng.normal(size=1000) / 10).tolist(), 1))
    raw, smooth = figure_of(loss_curve, tmp_path / "x.png", losses, {}).axes[0].lines
    assert list(raw.get_ydata()) == list(losses.values()) and raw.get_alpha() < 0.5
    expected = np.reshape(list(losses.values()), (100, 10)).mean(axis=1)
    np.testing.assert_allclose(smooth.get_ydata(), expected, rtol=1e-12)
    assert raw.get_color() == smooth.get_color()


def test_the_legend_of_losses_lies_on_no_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for curve in (lambda s: 2.0 + s / 400, lambda s: math.exp(s / 100), lambda s: -1.0):
        losses = {step: 0.5 * rng.random() * curve(step) for step in range(1, 401)}
        evaluated = {step: curve(step) for step in range(100, 401, 100)}
        figure = figure_of(loss_curve, tmp_path / "x.png", losses, {}, evaluated=evaluated)
        axes = figure.axes[0]
        box = axes.get_legend().get_window_extent()
        _, smooth, points = axes.lines
        for line in (smooth, points):
            at = axes.transData.transform(np.stack(line.get_data(), axis=1))
            assert not any(box.contains(*point) for point in at)


def test_noise_near_zero_does_not_decide_what_is_shown_of_losses(tmp_path: Path) -> None:
    losses = {step: 1e-9 if step % 50 == 0 else 10 / step for step in range(1, 1001)}
    axes = figure_of(loss_curve, tmp_path / "x.png", losses, {}).axes[0]
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] > 1e-3


def test_a_panel_without_numbers_says_so(tmp_path: Path) -> None:
    figure = figure_of(loss_curve, tmp_path / "x.png", {1: math.nan}, {1: 0.5})
    assert [[t.get_text() for t in each.texts] for each in figure.axes] == [["no finite value"], []]


def test_blocks_leave_out_what_is_no_number() -> None:
    values = np.array([1.0, np.nan, np.nan, np.inf, 3.0, 5.0])
    mean, low, high = blocks(values, 3)
    np.testing.assert_array_equal(mean, [1, np.nan, 4])
    np.testing.assert_array_equal(low, [1, np.nan, 3])
    np.testing.assert_array_equal(high, [1, np.nan, 5])


def test_numbers_beside_an_axis_are_told_apart() -> None:
    assert tick_texts([0.1 + 0.2, 0.4, 1000.0]) == ["0.3", "0.4", "1000"]
    assert tick_texts([0.900000001, 0.900000002]) == ["0.900000001", "0.900000002"]


OTHERS = [(2, 90), (10, 0), (25, 5), (26, 90), (100, 30), (200, 9)]  # classes, letters in a name


def named(count: int, length: int) -> list[str]:
    return [f"{'WOMBATS IN MEADOWS ' * 9}"[: length - 4].strip() + f" {i}" for i in range(count)]


@pytest.mark.parametrize(
    ("count", "length"),
    [(2, 0), (10, 90), *(pytest.param(*case, marks=pytest.mark.long) for case in OTHERS)],
)
def test_confusion_matrix(count: int, length: int, tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "confusion_matrix.png"
    counts = np.eye(count, dtype=np.int64) * 900 + rng.integers(0, 3, (count, count))
    counts[1] = 0  # of a class without examples there is no share
    counts[0, 1], names = 50, named(count, length) if length else []
    title = "Test set: 10,000 examples, accuracy 0.9034"
    figure = figure_of(confusion_matrix, path, counts, range(count), names, title=title)
    matrix, bar = figure.axes
    assert faults(figure) == []
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    (mesh,) = matrix.collections
    np.testing.assert_allclose(np.square(mesh.get_array()), shares, atol=1e-12)
    assert [text.get_text() for text in bar.get_yticklabels()][-1] == "100%"
    texts = [text.get_text() for text in figure.texts]
    (above,) = [text for text in texts if text.startswith("Test set")]
    assert above.splitlines()[0] == title
    shown = [text.get_text() for text in matrix.texts]
    if count <= 25:
        assert f"{shares[0, 1]:.0%}\n50" in shown
        assert sum("\n" in text for text in shown) == np.count_nonzero(counts)
    else:
        assert "1: 50 (" in above
    known = [text for text in shown if "\n" not in text]
    assert len(known) == 2 * len(set(known)) >= 2 * min(count, 50)
    (side,) = [text for text in figure.texts if text.get_text().startswith("true class")]
    assert not any(side.get_window_extent().overlaps(t.get_window_extent()) for t in matrix.texts)
    pixels(path)


@pytest.mark.parametrize("draw", [predictions, residuals])
def test_pictures_of_a_regression(draw: Any, tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "picture.png"
    for targets in (1, 12):
        truth = rng.normal(size=(200, targets)) * 1e6
        given = truth + rng.normal(size=truth.shape)
        given[::2], given[1::4], truth[1] = np.inf, np.nan, -1.7e308
        figure = figure_of(draw, path, truth, given)
        assert faults(figure) == []
        points = figure.axes[0].lines[: min(targets, 10)]
        assert len({to_hex(line.get_color()) for line in points}) == len(points)
        shown = np.isfinite(points[0].get_xdata()) & np.isfinite(points[0].get_ydata())
        assert shown.sum() == 50
        pixels(path)


@pytest.mark.parametrize("count", [1, pytest.param(60, marks=pytest.mark.long)])
def test_bars_of_labels(count: int, tmp_path: Path) -> None:
    worst = [i / count for i in range(count)]
    names = [f"a label $_{i} of some length" for i in range(count)]
    shares = dict.fromkeys(("precision", "recall", "f1"), worst)
    figure = figure_of(label_bars, tmp_path / "labels.png", names, shares)
    assert faults(figure) == []
    assert len(figure.axes[0].patches) == 3 * min(count, 40)


def test_pictures_of_examples_have_their_names(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 1), np.uint8)
    sheet = figure_of(contact_sheet, tmp_path / "x.png", [("a $_class", pictures)] * 2)
    lines = [("true: a long class name\npredicted: $_x\n0.9", picture) for picture in pictures]
    mistakes = figure_of(titled_pictures, tmp_path / "x.png", lines)
    assert (faults(sheet), faults(mistakes)) == ([], [])
    assert [text.get_text() for text in sheet.texts] == ["a $_class"] * 2
    assert [axes.get_title() for axes in mistakes.axes] == [text for text, _ in lines]


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    path.write_bytes(b"x" * 10**6)
    loss_curve(path, {1: 1.0}, {})
    pixels(path)


# Of compared runs


def plotted(found: Comparison, path: Path) -> Figure:
    return figure_of(found.plot, path)


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text().strip() for legend in figure.legends for text in legend.get_texts()]


def lines_of(figure: Figure) -> list[list[tuple[list[float], list[float], str]]]:
    """Return of each of the two panels the lines, in the order of the legend."""
    return [
        [([*x.get_xdata()], [*x.get_ydata()], to_hex(x.get_color())) for x in axes.lines[::-1]]
        for axes in figure.axes
    ]


def test_a_plot_has_means_over_seeds_with_bands(tmp_path: Path) -> None:
    losses = [{step: (i + 1) / step for step in range(1, 20 + i)} for i in range(4)]
    accuracies = [{10: 0.1 * i, 15: 0.2 * i} for i in range(4)]
    runs = [
        made(
            i,
            {"optimizer.lr": str(i // 2), "seed": str(i), "model": "softmax"},
            {"train/loss": losses[i], "test/accuracy": accuracies[i]},
        )
        for i in range(4)
    ]
    figure = plotted(compared(*runs), tmp_path / "x.png")
    assert faults(figure) == []
    assert legend_of(figure) == ["lr=0", "lr=1"]  # nothing but what differs
    for lines, known in zip(lines_of(figure), (losses, accuracies), strict=True):
        for place, (x, y, colour) in enumerate(lines):
            one, two = known[2 * place : 2 * place + 2]
            assert x == [step for step in one if step in two]
            np.testing.assert_allclose(y, [(one[s] + two[s]) / 2 for s in x])
            assert colour == COLOURS[place].lower()
    band = figure.axes[0].collections[-1].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == (1 / 19, 2.0)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "training loss (mean over examples)",
        "test accuracy (share of examples)",
    ]


@pytest.mark.parametrize("bad", [1e3, 1e30, math.nan, math.inf])
def test_one_diverged_run_leaves_the_others_their_range(bad: float) -> None:
    good = [
        (f"lr={i}", {s: 2.3 / s + 0.1 * i for s in range(1, 61)}, {60: 0.8 + 0.05 * i})
        for i in range(3)
    ]
    diverged = {step: 2.3 if step < 3 else bad for step in range(1, 61)}
    alone = panels(good, "accuracy")
    together = panels([*good, ("lr=1000", diverged, {60: 0.1})], "accuracy")
    for one, other in zip(alone, together, strict=True):
        assert (one.low, one.high, one.is_log) == (other.low, other.high, other.is_log)
    assert [name for name, _ in together[1].outside()] == ["lr=1000"]
    assert panels([good[0], ("b", *good[1][1:])], "x")[1].outside() == []


def test_rows_have_colours_of_their_own_and_the_first_ones_of_many(tmp_path: Path) -> None:
    for count in (16, 60):
        runs = [
            made(
                i,
                {"lr": str(i), "batch_size": str(i % 7)},
                {"train/loss": {1: 1.0, 2: i + 1.0}, "test/accuracy": {2: i / 100}},
            )
            for i in range(count)
        ]
        figure = plotted(compared(*runs), tmp_path / "x.png")
        assert faults(figure) == []
        lines, names = lines_of(figure), legend_of(figure)
        assert [len(each) for each in lines] == [count, count]
        shown = count if count <= 20 else LEADING
        assert len({colour for _, _, colour in lines[0][:shown]}) == shown
        assert names[0] == f"lr={count - 1} bs={(count - 1) % 7}"  # the best
        assert names[shown:] == ([f"{count - shown} others"] if count > shown else [])


def test_names_and_numbers_may_be_any(tmp_path: Path) -> None:
    curve = {"train/loss": {1: 1.0, 2: 0.5}, "test/accuracy": {2: 0.5}}
    runs = [made(i, {}, curve, name=harm) for i, harm in enumerate(HARM)]
    figure = plotted(compared(*runs), tmp_path / "x.png")
    assert faults(figure) == []
    names = legend_of(figure)
    assert len(names) == len(set(names)) == len(HARM)
    assert all(printable(name) and "\n" not in name for name in names)
    drawn_from: list[dict[int, float]] = [
        {},
        {1: math.nan},
        {1: math.inf, 2: -math.inf, 3: 1.0},
        {1: 1.7e308, 2: -1.7e308, 3: 3.4e38, 4: 1.0},
        {-5: 1.0, 2**62: 2.0},
        {0: 0.0, 1: -0.0},
    ]
    runs = [
        made(i, {"lr": str(i)}, {"train/loss": curve, "test/accuracy": curve})
        for i, curve in enumerate(drawn_from)
    ]
    for some in (runs, runs[:2]):
        figure = plotted(compared(*some), tmp_path / "x.png")
        assert faults(figure) == []
        assert [len(lines) for lines in lines_of(figure)] == [len(some)] * 2
        shown_in(tmp_path / "x.png")


@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<?xml"), ("pdf", b"%PDF-")])
def test_a_plot_is_of_the_kind_that_its_name_says(
    ending: str, begins: bytes, tmp_path: Path
) -> None:
    runs = [made(i, {"lr": str(i)}, {"train/loss": {1: 1.0, 2: 0.5}}) for i in range(2)]
    compared(*runs).plot(tmp_path / f"x.{ending}")
    assert (tmp_path / f"x.{ending}").read_bytes().startswith(begins)
