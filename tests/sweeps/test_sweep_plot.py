"""The pictures of a sweep: points stand where their values are, and what they mean is said."""

import io
import itertools
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from matplotlib.figure import Figure
from waymark.plots.style import COLOURS
from waymark.sweeps import configurations, sweep_plot
from waymark.sweeps.configurations import Found, TrialPoint, importances
from waymark.sweeps.sweep_plot import draw_sweep, heat_map, importance, parallel, slices

from tests.support.figures import faults, figure_of

RATES, SIZES = ("0.001", "0.01", "0.1"), ("50", "100")
LINEAR = TrialPoint(["1", "2"], 0.5, None, "")


def grid(half: float | None = None) -> Found:
    """Return configurations of which the rate decides nearly all; the best has a tie."""
    points = []
    for rate, size in itertools.product(RATES, SIZES):
        mean = 0.9 - 0.1 * abs(math.log10(float(rate)) + 2) - 0.001 * (size == "100")
        mark = {"0.01 50": "*", "0.01 100": "~"}.get(f"{rate} {size}", "")
        points.append(TrialPoint([rate, size], mean, half, mark))
    return Found(["optimizer.learning_rate", "batch_size"], points, "restored/accuracy", "max")


def random(count: int) -> Found:
    """Return as many configurations as a random search would try; one has no number."""
    rng = np.random.default_rng(0)
    points = []
    for i in range(count):
        rate, keep = 10 ** rng.uniform(-5, 1), rng.uniform()
        mean = math.nan if i == 3 else 0.9 - 0.1 * abs(math.log10(rate) + 2) - 0.01 * keep
        points.append(TrialPoint([repr(rate), repr(keep), "adam"], mean, None, ""))
    best = max(range(count), key=lambda i: np.nan_to_num(points[i].mean))
    points[best] = TrialPoint(points[best].values, points[best].mean, None, "*")
    return Found(["lr", "keep", "optimizer"], points, "restored/accuracy", "max")


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_slices_have_a_panel_a_key_and_explain_what_is_marked() -> None:
    found = grid(half=0.01)
    figure = figure_of(slices, io.BytesIO(), found)
    assert faults(figure) == []
    assert [axes.get_xlabel() for axes in figure.axes] == found.keys
    assert legend_of(figure) == [
        "the best",
        "not told apart from the best",
        "a configuration",
        "median of those with the value",
        "95 % interval of the mean over seeds",
    ]
    shown = {
        (line.get_marker(), *point)
        for line in figure.axes[0].lines
        for point in zip(line.get_xdata(), line.get_ydata(), strict=True)
        if line.get_marker() in "*Do"
    }
    places = dict(zip(RATES, (0.0, 0.5, 1.0), strict=True))  # by the logarithm
    signs = {"*": "*", "~": "D", "": "o"}
    assert shown == {(signs[p.mark], places[p.values[0]], p.mean) for p in found.points}


def test_two_keys_that_make_a_grid_are_a_heat_map() -> None:
    figure = figure_of(heat_map, io.BytesIO(), grid())
    assert faults(figure) == []
    (image,) = figure.axes[0].images
    cells = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_allclose(cells, [[0.8, 0.799], [0.9, 0.899], [0.8, 0.799]])
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"0.8000", "0.7990", "0.9000 ★", "0.8990 ~"}
    assert "★ the best;  ~ not told apart from the best" in {t.get_text() for t in figure.texts}


def test_keys_of_a_random_search_are_points_with_the_best_marked() -> None:
    found = random(40)
    figure = figure_of(heat_map, io.BytesIO(), found)
    assert faults(figure) == []
    sizes = [len(each.get_offsets()) for each in figure.axes[0].collections]
    assert sizes == [38, 0, 1]  # the one without a number is told of
    assert "1 of them without a number" in str(figure.get_suptitle())
    assert faults(figure_of(parallel, io.BytesIO(), found)) == []


def test_what_diverged_flattens_nothing() -> None:
    found = grid()
    usual = figure_of(slices, io.BytesIO(), found).axes[0].get_ylim()
    points = [*found.points, TrialPoint(["1000", "50"], 1e9, None, "")]
    more = Found(found.keys, points, "test/loss", "min")
    figure = figure_of(slices, io.BytesIO(), more)
    assert figure.axes[0].get_ylim() == usual
    assert "1 beyond this range" in str(figure.get_suptitle())


def test_importance_is_told_of_a_grid_as_well() -> None:
    shares = importances(grid())
    with mock.patch.object(sweep_plot, "importances", lambda _: shares):
        figure = figure_of(importance, io.BytesIO(), grid())
    assert faults(figure) == []
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == sorted(shares.values())
    assert max(shares, key=lambda key: shares[key]) == "optimizer.learning_rate"
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(Found(["a", "b"], [LINEAR] * 9, "x", "max")) == {}  # nothing varies
    equal = [replace(point, mean=1.0) for point in grid().points]
    assert importances(Found(grid().keys, equal, "x", "max")) == {}
    large = [replace(point, values=[f"{point.values[0]}e300", "x"]) for point in grid().points]
    assert set(importances(Found(grid().keys, large, "x", "max"))) <= {"optimizer.learning_rate"}


def test_a_sweep_has_the_pictures_that_say_something() -> None:
    found = grid()
    with mock.patch.object(configurations, "LEAST", 7):  # of which nothing is told
        few = draw_sweep(found.keys, found.points, found.metric)
    assert list(few) == ["slices", "heat_map", "parallel"]
    one = [TrialPoint([text], float(text), 0.5, "") for text in ("3", "1", "2")]
    assert list(draw_sweep(["x"], one, "m")) == ["slices"]
    (axes,) = figure_of(slices, io.BytesIO(), Found(["x"], one, "m", "max")).axes
    assert list(axes.lines[0].get_ydata()) == [1.0, 2.0, 3.0]
    assert axes.lines[0].get_color() == COLOURS[0]
    nothing = [TrialPoint([text, "a"], math.nan, None, "") for text in ("1", "2")]
    assert "slices" in draw_sweep(["x", "y"], nothing, "m")
    huge = [TrialPoint([text, "a"], sign * 1.7e308, 1e308, "") for text in "12" for sign in (1, -1)]
    assert "slices" in draw_sweep(["x", "y"], huge, "m")
