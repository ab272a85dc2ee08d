"""Small tables for tests, and what is read of them."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from waymark.config.compose import compose_config
from waymark.config.schema import Config
from waymark.data import splits
from waymark.data.dataset import Dataset
from waymark.data.table import Table


def cars(rows: int = 120) -> pd.DataFrame:
    """Return a frame with each kind of column; `id` tells the rows, `price` is what to find."""
    draw = np.random.default_rng(5)
    size = draw.normal(3, 1, rows).round(3)
    return pd.DataFrame(
        {
            "id": np.arange(rows),
            "size": size,
            "colour": draw.choice(["red", "green, dark", 'the "blue"', "ocker é"], rows),
            "sold": draw.integers(0, 2, rows).astype(bool),
            "doors": draw.choice(["2", "3", "4", "5more"], rows),
            "wheels": 4,
            "price": np.where(size + draw.normal(0, 0.5, rows) > 3, "high", "low"),
        }
    )


def with_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame some of whose values are missing, one of each kind of column."""
    frame = frame.copy()
    frame["sold"] = frame["sold"].astype("boolean")
    for place, name in enumerate(("size", "colour", "sold", "doors", "id")):
        if name != "id":
            frame.loc[frame.index[[3 + place, 30 + 2 * place, 71]], name] = None
    return frame


def written(path: Path, frame: pd.DataFrame, **options: Any) -> Path:
    """Write a frame as the file's ending says."""
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False, **options)
    return path


@cache
def defaults() -> Config:
    """Return the configuration of a table, of which the path is to be replaced."""
    return compose_config(["data=table", "data.path=none.csv", "data.target=price"]).config


def loader(path: Path, **settings: Any) -> Table:
    """Return what reads a table with some settings."""
    return replace(defaults().data, path=str(path), **settings)  # type: ignore[no-any-return]


def table(path: Path, **settings: Any) -> Dataset:
    """Read a table as a run does."""
    return splits.load(loader(path, **settings), defaults().task)
