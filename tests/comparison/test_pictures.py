"""Pictures: valid PNG files that show every point, whatever a run's numbers look like."""

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from waymark.comparison.plots import confusion_matrix, loss_curve


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
