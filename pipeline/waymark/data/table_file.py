"""CSV and Parquet files, read by pandas under rules of their own.

CSV: UTF-8, with or without a byte order mark; the first line that is not blank names the columns;
values may stand in double quotes; spaces after a separator do not count; a value is missing if it
is empty or one of pandas's own texts for that (NA, NaN, null, None, ...). Types are pandas's guess:
a column of numbers, of True and False, or else of texts. Parquet: the columns as they are; what
pandas has stored as a frame's index is left out.
"""

import csv
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waymark.data.sources import reading
from waymark.errors import BadInput

PARQUET = b"PAR1"  # the first bytes of such a file
KIND = "CSV or Parquet file"
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
    import pandas as pd

    with reading(path, KIND):
        start, typed = _start(path)
        if typed:
            frame = pd.read_parquet(path, engine="pyarrow")
            names = [str(name) for name in frame.columns]
        else:
            names = _csv_names(path, start, separator)
            if len(names) == 1:
                raise BadInput(
                    f"{path}: names one column in its first line, {names[0]!r}; a target and a "
                    f"feature are needed, and data.separator tells what stands between two names."
                )
            frame = _checked(pd.read_csv(path, **_csv_options(separator, texts, names)), names)
    _refuse_twice(path, names)
    if not len(frame):
        raise BadInput(f"{path} names columns and has no rows.")
    frame.columns = names
    return TableFile(path, frame, typed)


def read_pieces(
    path: Path, separator: str, texts: Collection[str], count: int
) -> Iterator[TableFile]:
    """Yield what `read_table` would return, `count` rows at a time; raise BadInput as it does.

    The types of a CSV file's columns are guessed for each piece, but for `texts`.
    """
    import pandas as pd

    with reading(path, KIND):
        start, typed = _start(path)
        names = [] if typed else _csv_names(path, start, separator)
        _refuse_twice(path, names)
        frames: Any
        if typed:
            frames = _parquet_pieces(path, count)
        else:
            options = _csv_options(separator, texts, names)
            frames = pd.read_csv(path, **options, chunksize=count)
        found = False
        with closing(frames):
            for frame in frames:
                frame = frame if typed else _checked(frame, names)
                frame.columns = [str(name) for name in frame.columns] if typed else names
                _refuse_twice(path, list(frame.columns))
                if len(frame):
                    found = True
                    yield TableFile(path, frame.reset_index(drop=True), typed)
        if not found:
            raise BadInput(f"{path} names columns and has no rows.")


def _start(path: Path) -> tuple[bytes, bool]:
    """Return the first bytes of a file, and whether they are Parquet's."""
    with path.open("rb") as file:
        start = file.read(LOOKED_AT)
    if not start.strip():
        raise BadInput(f"{path} is empty.")
    return start, start.startswith(PARQUET)


def _refuse_twice(path: Path, names: Sequence[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise BadInput(f"{path}: two columns are named {twice[0]!r}; each needs a name of its own.")


def _parquet_pieces(path: Path, count: int) -> Iterator[Any]:
    """Yield frames of `count` rows, however many the groups of rows in the file have."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        held = file.schema_arrow.empty_table()
        for batch in file.iter_batches(count):
            held = pa.concat_tables([held, pa.Table.from_batches([batch])])
            if len(held) >= count:
                yield held[:count].to_pandas()
                held = held[count:]
        yield held.to_pandas()


def _csv_names(path: Path, start: bytes, separator: str) -> list[str]:
    """Return the names in the first line of a file that is not blank."""
    if b"\0" in start:
        raise ValueError("it holds a zero byte, which no text does")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=separator, skipinitialspace=True)
        return next((row for row in rows if row), [])


def _csv_options(separator: str, texts: Collection[str], names: Sequence[str]) -> dict[str, Any]:
    """Return how pandas reads a CSV file."""
    return {
        "sep": separator,
        "encoding": "utf-8-sig",
        "compression": None,
        "skipinitialspace": True,
        "low_memory": False,  # a type for the whole column, not for pieces of it
        "dtype": dict.fromkeys([name for name in texts if name in names], str),
    }


def _checked(frame: Any, names: Sequence[str]) -> Any:
    """Return a frame; raise ValueError if its rows have other values than the names."""
    import pandas as pd

    if not isinstance(frame.index, pd.RangeIndex) or len(frame.columns) != len(names):
        raise ValueError(f"its rows have more values than its first line has names ({len(names)})")
    return frame
