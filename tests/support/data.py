"""Small data sets for tests and benchmarks."""

import os
from collections.abc import Mapping
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


def write_folder(folder: Path, arrays: Mapping[str, np.ndarray], settled: bool = True) -> Path:
    """Write a folder of .npy files, as if long ago or just now."""
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        if settled:
            age(folder / f"{name}.npy")
    return folder


def age(path: Path) -> None:
    """Let a file's content be an hour old (what changes its name or owner is not)."""
    past = path.stat().st_mtime_ns - 3600 * 10**9
    os.utime(path, ns=(past, past))
