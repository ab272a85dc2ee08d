"""The picture of a sweep: its points stand where their values are."""

from unittest import mock

import numpy as np
from matplotlib.figure import Figure
from waymark.sweeps.sweep_plot import TrialPoint, draw_sweep


def drawn(keys: list[str], points: list[TrialPoint]) -> Figure:
    """Draw a sweep; return the figure, as Matplotlib has it."""
    figures: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *arguments: object, **named: object) -> None:
        figures.append(figure)
        save(figure, *arguments, **named)  # type: ignore[arg-type]

    with mock.patch.object(Figure, "savefig", saved):
        assert draw_sweep(keys, points, "test/accuracy").startswith(b"\x89PNG")
    (figure,) = figures
    return figure


def test_two_keys_that_make_a_grid_are_a_heat_map() -> None:
    values = {("1", "b"): 0.25, ("1", "a"): 0.5, ("2", "b"): 0.75}
    points = [TrialPoint([*key], mean, None, "*" * (mean == 0.75)) for key, mean in values.items()]
    figure = drawn(["x", "y"], points)
    axes = figure.axes[0]
    (image,) = axes.images
    grid = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_array_equal(grid, [[0.5, 0.25], [np.nan, 0.75]])
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("x", "y")
    assert {text.get_text() for text in axes.texts} == {"0.5000", "0.2500", "0.7500*"}


def test_one_key_is_a_curve_in_the_values_order() -> None:
    figure = drawn(["x"], [TrialPoint([text], float(text), 0.5, "") for text in ("3", "1", "2")])
    (axes,) = figure.axes
    assert list(axes.lines[0].get_ydata()) == [1.0, 2.0, 3.0]
