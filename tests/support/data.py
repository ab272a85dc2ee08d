"""Small data sets for tests and benchmarks."""

from pathlib import Path

import numpy as np
from waymark.data.sources import Dataset

# What a run's record needs of a data set, where nothing is trained.
POINTS = Dataset(
    name="points",
    source="test",
    x_train=np.zeros((3, 2)),
    y_train=np.zeros(3),
    x_test=np.zeros((1, 2)),
    y_test=np.zeros(1),
    read_digest="d" * 64,
)


def pictures(train: int, test: int, size: int = 8) -> dict[str, np.ndarray]:
    """Return noisy pictures [N, size, size] of ten things, and what they are of."""
    draw, count = np.random.default_rng(4), train + test
    things = draw.integers(0, 200, (10, size, size))
    labels = draw.permutation(np.arange(count) % 10)
    images = (things[labels] + draw.integers(0, 56, (count, size, size))).astype(np.uint8)
    parts = {"x_train": images[:train], "y_train": labels[:train]}
    return {**parts, "x_test": images[train:], "y_test": labels[train:]}


def write_pictures(path: Path, train: int, test: int) -> Path:
    """Write an npz of noisy pictures, 8x8, of ten things: the CNN is quick on it."""
    np.savez(path, **pictures(train, test))
    return path
