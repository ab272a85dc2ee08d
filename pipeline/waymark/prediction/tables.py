"""Rows of a table, which are read and encoded as those of the training set were."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from waymark.config.values import nearest
from waymark.data.columns import EncodedColumn, refuse_infinite
from waymark.data.table import Table
from waymark.data.table_file import TableFile, read_pieces
from waymark.errors import BadInput
from waymark.prediction.inputs import Part, rows_of_part


class Rows:
    """The rows of a CSV or Parquet file; the target's columns, if they are there, are labels."""

    from_files = False

    def __init__(
        self, path: Path, columns: Sequence[EncodedColumn], loader: Table, text_labels: bool
    ) -> None:
        """Look at the first rows; raise BadInput for a column that is missing.

        With `text_labels` the target is read as texts, whatever it looks like.
        """
        self._path, self._columns, self.source = path, columns, str(path)
        several = not isinstance(loader.target, str)
        self._targets = list(loader.target) if several else [str(loader.target)]
        self._several, self._text_labels = several, text_labels
        texts = [each.name for each in columns if each.kind == "category"]
        texts += self._targets if text_labels else []
        separator = "\t" if loader.separator == "tab" else loader.separator
        width = sum(len(each.categories) + 1 for each in columns)
        pieces = read_pieces(path, separator, texts, rows_of_part(16 * width))
        first = next(pieces)
        self._pieces = chain([first], pieces)
        missing = [each.name for each in columns if each.name not in first.names]
        if missing:
            near = nearest(missing[0], first.names)
            raise BadInput(
                f"{path} has no column {missing[0]!r}, which the run's model takes{near}."
            )
        self.truth = ", ".join(self._targets)
        self.labelled = all(name in first.names for name in self._targets)
        truth = f"labels {', '.join(self._targets)}" if self.labelled else "no labels"
        taken = {each.name for each in columns} | {*self._targets}
        others = [name for name in first.names if name not in taken]
        passed = f"; not read: {', '.join(others[:9])}" if others else ""
        self.said = f"{len(columns)} columns of {path}, {truth}{passed}"

    def parts(self) -> Iterator[Part]:
        """Yield the rows, float32 [n, D]; raise BadInput for what the training set had not."""
        first = 0
        for piece in self._pieces:
            blocks = [self._encoded(each, piece, first) for each in self._columns]
            labels = self._labels(piece, first) if self.labelled else None
            yield Part(first, np.concatenate(blocks, axis=1), labels)
            first += len(piece.frame)

    def _encoded(self, column: EncodedColumn, piece: TableFile, first: int) -> np.ndarray:
        """Return the features of a column, float32 [n, features]; raise BadInput."""
        series = piece.frame[column.name]
        if column.kind == "category":
            return self._one_hot(column, series, first)
        values = self._numbers(column.name, column.kind, series, first)
        gaps = np.isnan(values)
        if gaps.any():
            self._refuse_missing(column, int(gaps.argmax()) + first)
            values = np.where(gaps, np.float64(column.fill or 0), values)
        return values.astype(np.float32)[:, None]

    def _numbers(self, name: str, kind: str, series: Any, first: int) -> np.ndarray:
        """Return numbers, or booleans as 0 and 1, float64 [n] with NaN where one is missing."""
        import pandas as pd

        if series.isna().all():
            return np.full(len(series), np.nan)
        found = pd.api.types.infer_dtype(series, skipna=True)
        numeric = found in ("integer", "floating") and pd.api.types.is_numeric_dtype(series.dtype)
        if not (found == "boolean" if kind == "boolean" else numeric):
            value, row = self._odd(series, kind)
            raise BadInput(
                f"{self._path}: column {name!r} has {value!r} in row {row + first}; in the run's "
                f"data it is a {kind}."
            )
        values: np.ndarray = series.to_numpy(np.float64, na_value=np.nan)
        refuse_infinite(name, values, self.source, first)
        return values

    @staticmethod
    def _odd(series: Any, kind: str) -> tuple[Any, int]:
        """Return the first value that is not of a kind, and its place."""
        import pandas as pd

        there = series.notna().to_numpy()
        odd = there & ~series.astype(str).isin(["True", "False"]).to_numpy()
        if kind == "number":
            odd = there & pd.to_numeric(series, errors="coerce").isna().to_numpy()
        there = odd if odd.any() else there
        place = int(there.argmax())
        value = series.iloc[place]
        return getattr(value, "item", lambda: value)(), place

    def _one_hot(self, column: EncodedColumn, series: Any, first: int) -> np.ndarray:
        import pandas as pd

        codes, found = pd.factorize(series)  # -1 where one is missing
        places = {text: place for place, text in enumerate(column.categories)}
        if (codes < 0).any():
            self._refuse_missing(column, int((codes < 0).argmax()) + first)
        count = len(places)
        known = [places.get(str(each), count) for each in found]
        lookup = np.array([*known, places.get(str(column.fill), count)])[codes]
        if column.unknown == "refuse" and (lookup == count).any():
            row = int((lookup == count).argmax())
            raise BadInput(
                f"{self._path}: column {column.name!r} has {str(series.iloc[row])!r} in row "
                f"{row + first}, and in no row of the training set."
            )
        width = count + (column.unknown == "column")
        return (lookup[:, None] == np.arange(width)).astype(np.float32)

    def _refuse_missing(self, column: EncodedColumn, row: int) -> None:
        if column.fill is None:
            raise BadInput(
                f"{self._path}: column {column.name!r} has no value in row {row}; the run fills "
                f"none (data.missing=refuse)."
            )

    def _labels(self, piece: TableFile, first: int) -> np.ndarray:
        """Return the labels as they stand there, [n] or [n, T]; raise BadInput for gaps."""
        for name in self._targets:
            gaps = piece.frame[name].isna().to_numpy()
            if gaps.any():
                raise BadInput(
                    f"{self._path}: column {name!r}, the target, has no value in row "
                    f"{gaps.argmax() + first}; leave the column out where labels are not known."
                )
        if self._text_labels:
            return piece.frame[self._targets[0]].astype(str).to_numpy(np.str_)
        columns = [self._plain(name, piece.frame[name], first) for name in self._targets]
        return np.column_stack(columns) if self._several else columns[0]

    def _plain(self, name: str, series: Any, first: int) -> np.ndarray:
        import pandas as pd

        found = pd.api.types.infer_dtype(series, skipna=True)
        if found == "boolean":
            return series.to_numpy(bool).astype(np.uint8)
        values = self._numbers(name, "number", series, first)
        return values.astype(np.int64) if found == "integer" else values
