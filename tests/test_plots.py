"""Pictures of a run and of compared runs: every point is shown, whatever the numbers are."""

import html.parser
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from waymark.comparison.report import Comparison
from waymark.names import STATE_DIGEST
from waymark.plots import confusion_matrix, label_bars, loss_curve, predictions, residuals

from tests.support.comparisons import HARM, compared, made, printable, shown_in

# Of one run


def pixels(path: Path) -> np.ndarray:
    """Check that a file is a whole PNG; return its pixels, 0 to 255 [H, W, 3]."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    image = matplotlib.image.imread(path)
    assert image.ndim == 3
    assert min(image.shape[:2]) > 200
    return np.rint(image[..., :3] * 255).astype(int)


def drawn(image: np.ndarray) -> tuple[bool, bool]:
    """Tell whether there is something blue (losses) and orange (accuracies) in the frame."""
    height, width = image.shape[:2]
    inside = image[int(height * 0.11) : int(height * 0.9), int(width * 0.05) : int(width * 0.95)]
    more_blue = inside[..., 2] - inside[..., 0]
    return bool((more_blue > 40).sum() > 4), bool((more_blue < -60).sum() > 10)


@pytest.mark.parametrize(
    ("losses", "accuracies"),
    [
        ({step: 1 / step for step in range(1, 1001)}, {200: 0.5, 1000: 0.9}),
        ({step: 1 / step for step in range(1, 20_001)}, {}),
        ({1: 2.3, 2: 2.2}, {1: 0.1}),
        ({1: 2.3}, {}),
        ({1: 0.0, 2: 0.0}, {2: 0.0}),
        ({3: 1.0, 1: 2.0, 2: math.nan}, {3: 0.3}),
        ({1: 2.0, 2: math.nan, 3: 1.0, 4: math.nan}, {4: math.nan}),
        ({1: 2.0, 2: math.inf, 3: -math.inf, 4: 1.0}, {4: 0.1}),
        ({1: 2.0, 2: 1.7976931348623157e308, 3: 1.0, 4: -1.7976931348623157e308}, {4: 0.1}),
        ({1: 3.4e38, 2: 1.0}, {2: 0.1}),
    ],
)
def test_loss_curve(losses: dict[int, float], accuracies: dict[int, float], tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    loss_curve(path, losses, accuracies)
    assert drawn(pixels(path)) == (True, any(math.isfinite(value) for value in accuracies.values()))


@pytest.mark.parametrize(
    ("losses", "accuracies"),
    [
        ({1: 2.3, 1000: 0.3}, {200: 0.877, 1000: 0.903}),
        ({1: 3.4e38, 2: -3.4e38}, {1: 0.900001, 2: 0.900002}),
        ({1: 123456.78, 2: 123456.79}, {1: 0.90025, 2: 0.90075}),
    ],
)
def test_no_text_is_cut_off_at_the_edge(
    losses: dict[int, float], accuracies: dict[int, float], tmp_path: Path
) -> None:
    path = tmp_path / "loss.png"
    loss_curve(path, losses, accuracies)
    image = pixels(path)
    for edge in (image[:2], image[-2:], image[:, :2], image[:, -2:]):
        assert (edge == 255).all()


@pytest.mark.parametrize(
    ("losses", "accuracies"),
    [({}, {}), ({1: math.nan, 2: math.nan}, {}), ({5: math.inf}, {5: math.nan})],
)
def test_nothing_to_draw_is_a_picture_too(
    losses: dict[int, float], accuracies: dict[int, float], tmp_path: Path
) -> None:
    path = tmp_path / "loss.png"
    loss_curve(path, losses, accuracies)
    assert drawn(pixels(path)) == (False, False)


def test_a_run_of_one_step(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    loss_curve(path, {1: 2.3}, {1: 0.1})
    assert drawn(pixels(path)) == (False, True)  # the accuracy's point lies on the loss's


@pytest.mark.parametrize("classes", [2, 20, 50])
@pytest.mark.parametrize("kind", ["usual", "one image", "large"])
def test_confusion_matrix(classes: int, kind: str, tmp_path: Path) -> None:
    diagonal = np.eye(classes, dtype=np.int64)
    counts = {
        "usual": diagonal * 900 + np.random.default_rng(0).integers(0, 30, (classes, classes)),
        "one image": np.pad([[1]], (0, classes - 1)),
        "large": diagonal * 10**9 + 1,
    }[kind]
    path = tmp_path / "confusion_matrix.png"
    confusion_matrix(path, counts, range(len(counts)))
    image = pixels(path)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10


def test_a_higher_count_is_darker(tmp_path: Path) -> None:
    counts = np.full((30, 30), 1)  # so many classes that no numbers stand in the fields
    counts[:15], counts[15:] = 1000, 2
    path = tmp_path / "confusion_matrix.png"
    confusion_matrix(path, counts, range(len(counts)))
    image = pixels(path)
    height, width = image.shape[:2]
    upper, lower = (image[int(height * y), width // 2].sum() for y in (0.25, 0.65))
    assert upper < lower


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    path.write_bytes(b"x" * 10**6)
    loss_curve(path, {1: 1.0}, {})
    pixels(path)


def test_classes_of_many_are_named(tmp_path: Path) -> None:
    counts, path = np.eye(20, dtype=np.int64), tmp_path / "confusion_matrix.png"
    images = []
    for classes in (range(20), range(65_516, 65_536)):
        confusion_matrix(path, counts, classes)
        images.append(pixels(path))
    assert (images[0] != images[1]).any()


# Of compared runs


class Page(html.parser.HTMLParser):
    """Take a page apart: tags, their attributes, the cells' texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {"td": [], "th": [], "li": []}
        self.at = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        self.at = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.at = ""

    def handle_data(self, data: str) -> None:
        if self.at in self.texts:
            self.texts[self.at][-1] += data


@dataclass
class Drawn:
    """What a plot shows: of each of the two axes the lines, and the names in the legend."""

    lines: list[list[tuple[list[float], list[float], str]]]
    names: list[str]


def plotted(found: Comparison, path: Path) -> Drawn:
    """Plot a comparison; return what is in the picture, as Matplotlib has it."""
    figures: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *arguments: Any, **named: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **named)

    with mock.patch.object(Figure, "savefig", saved):
        found.plot(path)
    (figure,) = figures
    lines = [
        [
            ([*line.get_xdata()], [*line.get_ydata()], to_hex(line.get_color()))
            for line in axes.lines
        ]
        for axes in figure.axes
    ]
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return Drawn(lines, texts)


def test_a_plot_has_every_curve(tmp_path: Path) -> None:
    losses = [{step: 1 / (step + i) for step in range(1, 20 + i)} for i in range(4)]
    accuracies = [{10: 0.1 * i, 15: 0.2 * i} for i in range(4)]
    runs = [
        made(
            i,
            {"lr": str(i // 2), "seed": str(i)},
            {"train/loss": losses[i], "test/accuracy": accuracies[i]},
        )
        for i in range(4)
    ]
    found = compared(*runs)
    drawn = plotted(found, tmp_path / "x.png")
    for lines, known in zip(drawn.lines, (losses, accuracies), strict=True):
        points = [(x, y) for x, y, _ in lines]
        assert points == [([*curve], [*curve.values()]) for curve in known]
        colours = [colour for _, _, colour in lines]
        assert colours[0] == colours[1] != colours[2] == colours[3]  # a row, a colour
    assert [name.strip() for name in drawn.names] == [row.label for row in found.rows]
    picture = shown_in(tmp_path / "x.png")
    found.plot(tmp_path / "x.html")
    page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
    columns, rows = found.table()
    assert page.texts["th"] == columns
    assert page.texts["td"] == [text for row in rows for text in row]
    assert page.texts["li"] == found.notes()
    # Without one run's curves it is another picture.
    runs[3] = made(3, {"lr": "1", "seed": "3"}, {"train/loss": losses[3]})
    compared(*runs).plot(tmp_path / "y.png")
    other = shown_in(tmp_path / "y.png")
    assert picture.shape != other.shape or (picture != other).any()


def test_rows_have_colours_of_their_own_however_many(tmp_path: Path) -> None:
    for count in (9, 10, 25):
        runs = [made(i, {"lr": str(i)}, {"train/loss": {1: 1.0, 2: i + 1.0}}) for i in range(count)]
        drawn = plotted(compared(*runs), tmp_path / "x.png")
        assert [len(lines) for lines in drawn.lines] == [count, count]
        assert len({colour for _, _, colour in drawn.lines[0]}) == count
        assert [name.split()[0] for name in drawn.names] == [f"run-{i}" for i in range(count)]


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    runs = [
        made(i, {"lr": str(i), "<b>": harm}, {"train/loss": {1: 1.0}}, {STATE_DIGEST: harm}, harm)
        for i, harm in enumerate(HARM)
        if len(harm) < 100
    ]
    found = compared(*runs)
    found.plot(tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "b", "img", "link", "iframe", "object", "image"} & set(page.tags)
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    fetched = [v for k, v in page.attributes if k in ("href", "xlink:href", "src", "data")]
    assert not [value for value in fetched if not value.startswith("#")]
    for key, value in page.attributes:
        assert not value.startswith(("http", "//")) or key.startswith(("xmlns", "rdf:"))
    assert not re.search(r"@import|url\((?!#|'#|\"#)", text)
    assert "<script" not in text
    assert text.count("<svg") == 1
    assert all(map(str.isprintable, [t for texts in page.texts.values() for t in texts]))


@pytest.mark.parametrize("kind", ["png", "html"])
def test_every_name_stands_in_the_legend(kind: str, tmp_path: Path) -> None:
    curve = {"train/loss": {1: 1.0, 2: 0.5}, "test/accuracy": {2: 0.5}}
    runs = [made(i, {"lr": str(i)}, curve, name=harm) for i, harm in enumerate(HARM)]
    drawn = plotted(compared(*runs), tmp_path / f"x.{kind}")
    assert [len(lines) for lines in drawn.lines] == [len(HARM)] * 2
    assert len(drawn.names) == len(HARM)
    for i, (name, harm) in enumerate(zip(drawn.names, HARM, strict=True)):
        assert printable(name) and "\n" not in name
        plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in harm)
        assert name.strip()[:10] == f"{plain} {i:08x}".strip()[:10]
    if kind == "png":
        shown_in(tmp_path / "x.png")


def test_whatever_the_numbers_are_there_is_a_picture(tmp_path: Path) -> None:
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
    for some in (runs, runs[2:4], runs[:2], runs[:1] + runs[-1:]):
        found = compared(*some)
        for name in ("x.png", "x.html") if some is runs else ("x.png",):
            drawn = plotted(found, tmp_path / name)
            assert [len(lines) for lines in drawn.lines] == [len(some)] * 2
        shown_in(tmp_path / "x.png")
    assert re.search(
        r"first differs at step 1: inf in .*, 1\.7e\+308 in ", compared(*runs[2:4]).text()
    )


@pytest.mark.parametrize("targets", [1, 3, 12])
@pytest.mark.parametrize("draw", [predictions, residuals])
def test_pictures_of_a_regression(draw: Any, targets: int, tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "picture.png"
    truth = rng.normal(size=(200, targets)) * 1e6
    given = truth + rng.normal(size=truth.shape)
    draw(path, truth, given)
    whole = pixels(path)
    given[::2], given[1::4], truth[1] = np.inf, np.nan, -1.7e308
    draw(path, truth, given)
    half = pixels(path)
    assert (whole != 255).sum() > (half != 255).sum() > 10_000
    for edge in (whole[:2], whole[-2:], whole[:, :2], whole[:, -2:]):
        assert (edge == 255).all()


@pytest.mark.parametrize("count", [1, 5, 60])
def test_bars_of_labels(count: int, tmp_path: Path) -> None:
    path, worst = tmp_path / "labels.png", [i / count for i in range(count)]
    names = [f"a label $_{i} of some length" for i in range(count)]
    label_bars(path, names, dict.fromkeys(("precision", "recall", "f1"), worst))
    image = pixels(path)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10
    for edge in (image[:2], image[-2:], image[:, :2], image[:, -2:]):
        assert (edge == 255).all()
