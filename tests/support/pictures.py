"""Folders of pictures for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def pixels(count: int, label: int, seed: int = 0) -> np.ndarray:
    """Return noisy pictures, uint8 [count, 9, 12, 3], of which a bar tells the label."""
    noise = np.random.default_rng([seed, label]).integers(0, 60, (count, 9, 12, 3))
    noise[:, label * 3 : label * 3 + 3] += 150
    return noise.astype(np.uint8)


def write_folder(folder: Path, count: int, seed: int = 0) -> Path:
    """Write so many pictures of each of three classes, PNG (whose pixels are those written)."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pixels(count, label, seed)):
            Image.fromarray(picture).save(folder / name / f"{number:03}.png")
    return folder
