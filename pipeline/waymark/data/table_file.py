"""CSV and Parquet files, read by pandas under rules of their own.

CSV: UTF-8, with or without a byte order mark; the first line that is not blank names the columns;
values may stand in double quotes; spaces after a separator do not count; a value is missing if it
is empty or one of pandas's own texts for that (NA, NaN, null, None, ...). Types are pandas's guess:
a column of numbers, of True and False, or else of texts. Parquet: the columns as they are; what
pandas has stored as a frame's index is left out.
"""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waymark.data.sources import reading
from waymark.errors import BadInput

PARQUET = b"PAR1"  # the first bytes of such a file
LOOKED_AT = 2**16  # bytes, for what no text holds


@dataclass(frozen=True, eq=False)
class TableFile:
    """What a file holds."""

    path: Path
    frame: Any  # pandas's, columns named by unique texts, one row or more
    typed: bool  # whether the file says itself what type a column is

    @property
    def names(self) -> list[str]:
        """Return the names of the columns."""
        return list(self.frame.columns)


def read_table(path: Path, separator: str, texts: Collection[str]) -> TableFile:
    """Read a file; the columns `texts` of a CSV file are texts, whatever they look like.

    Raises BadInput for a file that is neither, empty, or without unique names.
    """
    with reading(path, "CSV or Parquet file"):
        with path.open("rb") as file:
            start = file.read(LOOKED_AT)
        if not start.strip():
            raise BadInput(f"{path} is empty.")
        typed = start.startswith(PARQUET)
        frame, names = _parquet(path) if typed else _csv(path, start, separator, texts)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise BadInput(f"{path}: two columns are named {twice[0]!r}; each needs a name of its own.")
    if not len(frame):
        raise BadInput(f"{path} names columns and has no rows.")
    frame.columns = names
    return TableFile(path, frame, typed)


def _parquet(path: Path) -> tuple[Any, list[str]]:
    import pandas as pd

    frame = pd.read_parquet(path, engine="pyarrow")
    return frame, [str(name) for name in frame.columns]


def _csv(path: Path, start: bytes, separator: str, texts: Collection[str]) -> tuple[Any, list[str]]:
    import pandas as pd

    if b"\0" in start:
        raise ValueError("it holds a zero byte, which no text does")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=separator, skipinitialspace=True)
        names = next((row for row in rows if row), [])
    if len(names) == 1:
        raise BadInput(
            f"{path}: names one column in its first line, {names[0]!r}; a target and a feature are "
            f"needed, and data.separator tells what stands between two names."
        )
    frame = pd.read_csv(
        path,
        sep=separator,
        encoding="utf-8-sig",
        compression=None,
        skipinitialspace=True,
        low_memory=False,  # a type for the whole column, not for pieces of it
        dtype=dict.fromkeys([name for name in texts if name in names], str),
    )
    if not isinstance(frame.index, pd.RangeIndex) or len(frame.columns) != len(names):
        raise ValueError(f"its rows have more values than its first line has names ({len(names)})")
    return frame, names
