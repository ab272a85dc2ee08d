"""The columns of a table: what each holds, and the features that are made of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from waymark.errors import BadInput

MAX_CATEGORIES = 1000  # of one column: each is a feature
# A column of numbers must spread over this share of its largest one (some 100 float32 values), or
# be the same number but for what float64 rounds.
LEAST_SPREAD, ROUNDING = 1e-5, 1e-13
Kind = Literal["number", "boolean", "category"]
Missing = Literal["refuse", "mean", "median", "most_frequent"]

# What pandas calls the kinds of values that are not read.
DATES = ("date", "datetime", "datetime64", "time", "timedelta", "timedelta64", "period")
# What a text in a CSV file, where no type is written down, may be in truth.
NUMBER = r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*"
DISGUISED = (
    (NUMBER, "a number among texts"),
    (r"\s*[-+]?\d+,\d+\s*", "a number with a decimal comma; write it with a point"),
    (r"\d{4}-\d\d-\d\d([ T].*)?", "a date; write it as a number, such as its year or days"),
)


@dataclass(frozen=True, eq=False)
class Column:
    """One column of a table of N rows, those of the test set's file last, if there is one."""

    name: str
    kind: Kind
    values: np.ndarray
    """[N]: numbers and booleans as they were read, NaN where one is missing; categories as int32
    places among `categories`, -1 where one is missing"""
    categories: tuple[str, ...] = ()
    """sorted, each once"""

    @property
    def missing(self) -> np.ndarray:
        """Tell for each row, bool [N], whether its value is missing."""
        if self.kind == "category":
            return self.values < 0
        return np.isnan(self.values) if self.values.dtype.kind == "f" else np.zeros(len(self), bool)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a digest of this column is made of."""
        found = {f"{self.kind} {self.name}": self.values}
        if self.kind == "category":
            found[f"categories {self.name}"] = np.array(self.categories, np.str_)
        return found

    def plain(self) -> np.ndarray:
        """Return numbers as they are, booleans as uint8 0 and 1, categories as texts, [N].

        Nothing may be missing.
        """
        if self.kind == "category":
            return np.array(self.categories, np.str_)[self.values]
        return self.values.astype(np.uint8) if self.kind == "boolean" else self.values

    def refuse_missing(self, source: str, hint: str = "") -> None:
        """Raise BadInput with how many values are missing, if any are."""
        rows = np.flatnonzero(self.missing)
        if rows.size:
            values = "value" if rows.size == 1 else "values"
            raise BadInput(
                f"{source}: column {self.name!r} has {rows.size} missing {values}, "
                f"the first in row {rows[0]}{hint}."
            )


def read_column(name: str, series: Any, source: str, guessed: bool, category: bool) -> Column:
    """Return a pandas Series as a column, of categories if so asked; raise BadInput.

    Its type was `guessed` if it comes from a CSV file: texts must not hold numbers or dates then.
    """
    import pandas as pd

    inferred = pd.api.types.infer_dtype(series, skipna=True)
    if category or inferred in ("string", "categorical"):
        return _categories(name, series, source, guessed and not category)
    gaps = bool(series.isna().any())
    if inferred == "boolean":
        values = series.to_numpy(np.float64, na_value=np.nan) if gaps else series.to_numpy(bool)
        return Column(name, "boolean", values)
    if inferred == "empty":  # no type at all: all are missing
        return Column(name, "number", np.full(len(series), np.nan))
    if not (inferred in ("integer", "floating") and pd.api.types.is_numeric_dtype(series.dtype)):
        if inferred in DATES:
            held = "dates or times; write them as numbers, such as years or days"
        else:
            held = f"{inferred} values; allowed are numbers, booleans, texts and categories"
        raise BadInput(f"{source}: column {name!r} holds {held}, or leave it out of data.features.")
    dtype = getattr(series.dtype, "numpy_dtype", series.dtype)
    if gaps:
        dtype = dtype if dtype.kind == "f" else np.dtype(np.float64)
    values = series.to_numpy(dtype, na_value=np.nan) if gaps else series.to_numpy(dtype)
    refuse_infinite(name, values, source)
    return Column(name, "number", values)


def refuse_infinite(name: str, values: np.ndarray, source: str, first: int = 0) -> None:
    """Raise BadInput for a number [n] that float32 does not hold; the first row is row `first`."""
    with np.errstate(over="ignore"):
        infinite = np.flatnonzero(np.isinf(values.astype(np.float32)))
    if infinite.size:
        row = infinite[0]
        raise BadInput(
            f"{source}: column {name!r} has {values[row]} in row {first + row}, which is not "
            f"finite as a float32."
        )


def _categories(name: str, series: Any, source: str, guessed: bool) -> Column:
    """Return texts, or what pandas has as categories already, as a column of categories."""
    import pandas as pd

    codes, found = pd.factorize(series)  # -1 where one is missing
    texts = [str(each) for each in found]
    if guessed:
        _refuse_disguised(name, codes, texts, source)
    categories = tuple(sorted(set(texts)))
    places = {text: place for place, text in enumerate(categories)}
    lookup = np.array([*(places[text] for text in texts), -1], np.int32)
    return Column(name, "category", lookup[codes], categories)


def _refuse_disguised(name: str, codes: np.ndarray, texts: Sequence[str], source: str) -> None:
    """Raise BadInput if texts [K], of rows with int codes [N], hold numbers or dates.

    Where most rows have a number, it names the first one that has none.
    """
    for pattern, what in DISGUISED:
        if not any(re.fullmatch(pattern, text) for text in texts[: MAX_CATEGORIES + 1]):
            continue
        wrong = np.array([bool(re.fullmatch(pattern, text)) for text in texts], bool)
        if pattern == NUMBER and not wrong.all() and wrong[codes[codes >= 0]].mean() > 0.5:
            wrong, what = ~wrong, "no number, as most others are; leave it empty if it is missing"
        row = np.flatnonzero(wrong[codes] & (codes >= 0))[0]
        raise BadInput(
            f"{source}: column {name!r} is read as texts, but {texts[codes[row]]!r} in row {row} "
            f"is {what}, or take the values as texts with 'data.categories=[{name}]'."
        )


def joined(first: Column, second: Column, sources: tuple[str, str]) -> Column:
    """Return a column with the rows of two files; raise BadInput if they hold different kinds."""
    if first.kind != second.kind:
        raise BadInput(
            f"{sources[1]}: column {first.name!r} is a {second.kind}, in {sources[0]} it is a "
            f"{first.kind}; both must be the same."
        )
    if first.kind != "category":
        return replace(first, values=np.concatenate([first.values, second.values]))
    categories = tuple(sorted({*first.categories, *second.categories}))
    places = {text: place for place, text in enumerate(categories)}
    parts = [
        np.array([*(places[text] for text in each.categories), -1], np.int32)[each.values]
        for each in (first, second)
    ]
    return Column(first.name, "category", np.concatenate(parts), categories)


@dataclass(frozen=True)
class EncodedColumn:
    """How the values of one column become features, by what the training set held."""

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    """that have a feature each, in this order"""
    fill: float | str | None = None
    """what takes the place of a missing value; None: one is refused"""
    unknown: Literal["refuse", "column"] = "refuse"
    """what becomes of another category: the last feature tells it, or it is refused"""

    @property
    def features(self) -> list[str]:
        """Return the names of the features."""
        if self.kind != "category":
            return [self.name]
        names = [f"{self.name}={text}" for text in self.categories]
        return [*names, f"{self.name} unknown"] if self.unknown == "column" else names


@dataclass(frozen=True)
class Encoder:
    """How columns become features: fitted on the rows of the training set alone."""

    files: Sequence[tuple[str, int]]  # that the rows come from, each with how many
    missing: Missing
    unknown: Literal["refuse", "column"]

    @property
    def source(self) -> str:
        """Return the file of the training set."""
        return self.files[0][0]

    def encode(
        self, column: Column, rows: Mapping[str, np.ndarray]
    ) -> tuple[EncodedColumn, dict[str, np.ndarray]]:
        """Return how a column is encoded, and its features' values, float32 [rows, features].

        `rows` names the rows of each set, int64, the training set's under `train`. Raises BadInput
        for a column without a value in the training set, for numbers there that float32 does not
        tell apart, for too many categories there, and for a category that is unknown.
        """
        fill, filled = self._fill(column, rows["train"]), column.values
        if column.missing.any():
            filled = np.where(column.missing, fill, filled).astype(filled.dtype)
        if column.kind == "number":
            self._refuse_too_close(column, filled[rows["train"]])
        if column.kind != "category":
            made = EncodedColumn(
                column.name, column.kind, fill=None if fill is None else float(fill)
            )
            return made, {
                part: filled[each].astype(np.float32)[:, None] for part, each in rows.items()
            }
        known = np.unique(filled[rows["train"]])
        if len(known) > MAX_CATEGORIES:
            raise BadInput(
                f"{self.source}: column {column.name!r} has {len(known)} categories in the "
                f"training set; allowed are {MAX_CATEGORIES}: leave it out of data.features."
            )
        made = EncodedColumn(
            column.name,
            column.kind,
            tuple(column.categories[place] for place in known),
            None if fill is None else column.categories[fill],
            self.unknown,
        )
        lookup = np.full(len(column.categories), len(known))
        lookup[known] = np.arange(len(known))
        count = len(made.features)
        encoded = {}
        for part, each in rows.items():
            places = lookup[filled[each]]
            if self.unknown == "refuse":
                self._refuse_unknown(column, part, each[places == len(known)])
            encoded[part] = (places[:, None] == np.arange(count)).astype(np.float32)
        return made, encoded

    def _fill(self, column: Column, train: np.ndarray) -> Any:
        """Return what fills a column's missing values, by the training set's; None: nothing."""
        if self.missing == "refuse":
            return None
        present = column.values[train][~column.missing[train]]
        if not present.size:
            raise BadInput(
                f"{self.source}: column {column.name!r} has no value in the training set, by which "
                f"data.missing={self.missing} could fill: leave it out of data.features."
            )
        if column.kind == "number" and self.missing in ("mean", "median"):
            fill = np.mean if self.missing == "mean" else np.median
            value = fill(present.astype(np.float64))
            return value.astype(column.values.dtype) if column.values.dtype.kind == "f" else value
        found, counts = np.unique(present, return_counts=True)
        return found[counts.argmax()]  # the least of several

    def _refuse_too_close(self, column: Column, values: np.ndarray) -> None:
        """Raise BadInput if numbers [N] of the training set become too few as float32."""
        low, high = values.min().item(), values.max().item()
        spread, largest = high - low, max(abs(low), abs(high))
        rounding = ROUNDING * largest if values.dtype.kind == "f" else 0
        if not rounding < spread < LEAST_SPREAD * largest:
            return
        before, after = len(np.unique(values)), len(np.unique(values.astype(np.float32)))
        if after < before:
            raise BadInput(
                f"{self.source}: column {column.name!r} has {before} numbers from {low} to {high} "
                f"in the training set, of which float32 tells {after} apart; subtract a constant, "
                f"such as {low}, from the column."
            )

    def _refuse_unknown(self, column: Column, part: str, rows: np.ndarray) -> None:
        if not rows.size:
            return
        row, text = int(rows[0]), column.categories[column.values[rows[0]]]
        source, count = self.files[0]
        if row >= count:
            source, row = self.files[1][0], row - count
        kind = "test" if part == "test" else "validation"
        raise BadInput(
            f"{source}: column {column.name!r} has {text!r} in row {row}, of the {kind} set, and "
            f"in no row of the training set; data.unknown=column gives such values a feature of "
            f"their own."
        )
