"""Tables: CSV and Parquet files, read by pandas; columns of numbers, booleans and categories.

    wine = Table(path="wine.csv", target="quality", sampling="epoch", ...)
    data = hold_out(wine.load(), wine)
    print(data.feature_names, data.statistics)

What `load` returns has as its features the numbers of the rows, int64 [N, 1], so that a set is
held out by its rows; `encode` then turns rows into features, float32 [N, D], by what the training
set's rows hold, in the order of the columns.

The digest is that of all columns that are used, in their order, as they were read: name, kind,
dtype, values, categories; and how many rows are the training file's. A CSV and a Parquet file with
the same columns of the same types have the same one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from waymark.config.schema import settings
from waymark.config.values import nearest
from waymark.data.columns import Column, EncodedColumn, Encoder, Missing, joined, read_column
from waymark.data.dataset import MEAN, PARTS, SCALE, Dataset, from_arrays
from waymark.data.sources import Loader, expand
from waymark.data.table_file import TableFile, read_table
from waymark.digest import digest
from waymark.errors import BadInput

FILL = "; data.missing=mean, median or most_frequent fills them, by the training set"

Names = Annotated[list[str], Field(min_length=1)]


@settings
class Table(Loader):
    """The user's own table, a row for each example."""

    path: str
    """a CSV file in UTF-8 with the names of the columns in its first line, or a Parquet file"""
    target: str | Names
    """the column of the labels, or a list of columns"""
    features: Names | None
    """the columns that a model is given; null: all but target, group and weight"""
    categories: list[str]
    """columns whose values are categories although they look like numbers; texts always are"""
    missing: Missing
    """a missing feature is refused, or filled by the training set's `mean`, `median` or
    `most_frequent` value of its column; categories and booleans always by the most frequent one"""
    unknown: Literal["refuse", "column"]
    """a category that no row of the training set has is refused, or has one more feature of its
    column, which is 0 in training"""
    standardise: bool
    """numbers are standardised by mean and standard deviation of the training set, which are part
    of the run's state"""
    separator: Literal[",", ";", "|", "tab"]
    """what stands between the values in a CSV file"""
    weight: str | None = None
    """the column that tells what each row of the training set counts in its loss, at least 0"""

    def load(self) -> Dataset:
        """Read the file, and the test set's if one is named; raise BadInput for what is wrong."""
        if self.scale == 255:
            raise BadInput("data.scale=255: is for pictures; a table has data.standardise.")
        file, tested = self._read(self.path), None
        features = self._features(file)
        used = dict.fromkeys([*features, *self._targets, *self._groups, *self._weights])
        columns = {name: self._column(file, name) for name in used}
        count = len(file.frame)
        if isinstance(self.test, str):
            tested = self._read(self.test)
            self._refuse_other_columns(tested, file, used)
            sources = str(file.path), str(tested.path)
            for name in [*features, *self._targets]:
                columns[name] = joined(columns[name], self._column(tested, name), sources)
            if self.group in tested.names:
                group = columns[str(self.group)]
                _refuse_shared(group, self._column(tested, group.name), sources)
        labels = self._labels([columns[name] for name in self._targets])
        rows = np.arange(len(labels))[:, None]
        arrays = {"x_train": rows[:count], "y_train": labels[:count]}
        if tested:
            arrays |= {"x_test": rows[count:], "y_test": labels[count:]}
        if self.group:
            arrays["groups"] = columns[self.group].plain()
        if self.weight is not None:
            arrays["sample_weight"] = _checked_weights(columns[self.weight], str(file.path))
        read: dict[str, np.ndarray] = {"rows": np.array(count)}
        for place, column in enumerate(columns.values()):
            read |= {f"{place:06} {key}": array for key, array in column.arrays.items()}
        data = from_arrays("table", str(file.path), arrays)
        return replace(
            data, columns=tuple(columns[name] for name in features), read_digest=digest(read)
        )

    def reads_test_file(self) -> bool:
        """Tell that `test` may name a file."""
        return True

    def encode(self, data: Dataset) -> Dataset:
        """Return the data set with features float32 [N, D] in the place of the rows.

        Categories, what fills missing values, mean and standard deviation are those of the
        training set. Raises BadInput as `Encoder.encode` does.
        """
        rows = {part: data.examples(part)[0][:, 0] for part in PARTS if len(data.examples(part)[0])}
        tested = isinstance(self.test, str)
        files = [(data.source, int(rows["test"][0]) if tested else len(data.columns[0]))]
        files += [(str(expand(str(self.test))), len(rows["test"]))] if tested else []
        encoder = Encoder(files, self.missing, self.unknown)
        encoding: list[EncodedColumn] = []
        numbers: list[bool] = []
        blocks: dict[str, list[np.ndarray]] = {part: [] for part in rows}
        for column in data.columns:
            made, values = encoder.encode(column, rows)
            encoding.append(made)
            numbers += [column.kind == "number"] * len(made.features)
            for part, block in values.items():
                blocks[part].append(block)
        features: dict[str, Any] = {
            f"x_{part}": np.concatenate(found, axis=1) for part, found in blocks.items()
        }
        with_statistics = self.standardise and any(numbers)
        return replace(
            data,
            **features,
            encoding=tuple(encoding),
            feature_names=tuple(name for made in encoding for name in made.features),
            statistics=measured(features["x_train"], numbers) if with_statistics else {},
        )

    @property
    def _targets(self) -> list[str]:
        return [self.target] if isinstance(self.target, str) else self.target

    @property
    def _groups(self) -> list[str]:
        return [self.group] if self.group is not None else []

    @property
    def _weights(self) -> list[str]:
        return [self.weight] if self.weight is not None else []

    def _read(self, path: str) -> TableFile:
        separator = "\t" if self.separator == "tab" else self.separator
        return read_table(expand(path), separator, self.categories)

    def _features(self, file: TableFile) -> list[str]:
        """Return the names of the columns of features; raise BadInput for a name that is wrong."""
        named = {
            "data.target": self._targets,
            "data.features": self.features or [],
            "data.categories": self.categories,
            "data.group": self._groups,
            "data.weight": self._weights,
        }
        roles = {"the target": self._targets, "data.group": self._groups}
        roles["data.weight"] = self._weights
        for setting, names in named.items():
            for name in names:
                if names.count(name) > 1:
                    raise BadInput(f"{setting}: names the column {name!r} twice.")
                if name not in file.names:
                    near = nearest(name, file.names)
                    raise BadInput(f"{setting}={name!r}: {file.path} has no such column{near}.")
                for role, others in roles.items():
                    counts = setting not in ("data.target", "data.categories", role)
                    if counts and name in others:
                        raise BadInput(f"{setting}: names the column {name!r}, which is {role}.")
        apart = [*self._targets, *self._groups, *self._weights]
        features = self.features or [name for name in file.names if name not in apart]
        if not features:
            raise BadInput(f"{file.path}: has no column beside {', '.join(apart)}: no feature.")
        if "" in features:
            raise BadInput(
                f"{file.path}: column {file.names.index('')} has no name; if it counts the rows, "
                f"write the file without it (index=False), else name data.features."
            )
        return features

    def _refuse_other_columns(
        self, tested: TableFile, file: TableFile, used: Iterable[str]
    ) -> None:
        """Raise BadInput unless the test set's file has the same columns, as far as they count."""
        free = [*self._groups, *self._weights]
        less = [name for name in used if name not in [*tested.names, *free]]
        if less:
            near = nearest(less[0], tested.names)
            raise BadInput(
                f"data.test: {tested.path} has no column {less[0]!r}, as {file.path} has{near}."
            )
        more = [name for name in tested.names if name not in file.names]
        if more and self.features is None:
            raise BadInput(
                f"data.test: {tested.path} has a column {more[0]!r}, which {file.path} has not."
            )

    def _column(self, file: TableFile, name: str) -> Column:
        guessed = not file.typed and name not in self._groups
        series, asked = file.frame[name], name in self.categories
        column = read_column(name, series, str(file.path), guessed, asked)
        needed = name in [*self._targets, *self._groups, *self._weights]
        if needed or self.missing == "refuse":
            column.refuse_missing(str(file.path), "" if needed else FILL)
        return column

    def _labels(self, columns: Sequence[Column]) -> np.ndarray:
        """Return the values of one target [N], or of several that are numbers [N, T]."""
        if isinstance(self.target, str):
            return columns[0].plain()
        texts = [column.name for column in columns if column.kind == "category"]
        if texts:
            raise BadInput(
                f"data.target: column {texts[0]!r} holds texts; where a list of columns is the "
                f"target, they must be numbers or booleans."
            )
        return np.column_stack([column.plain() for column in columns])


def _checked_weights(column: Column, source: str) -> np.ndarray:
    """Return what each row counts, numbers [N]; raise BadInput for texts, and for less than 0."""
    where = f"{source}: column {column.name!r}, which is data.weight,"
    values = column.plain()
    if column.kind == "category":
        raise BadInput(f"{where} has the text {values[0].item()!r} in row 0; allowed are numbers.")
    negative = np.flatnonzero(values < 0)
    if negative.size:
        raise BadInput(
            f"{where} has {values[negative[0]]} in row {negative[0]}; allowed are finite numbers "
            f"from 0 up."
        )
    return values


def _refuse_shared(first: Column, second: Column, sources: tuple[str, str]) -> None:
    """Raise BadInput if a group's value stands in the files of both sets."""
    joined(first, second, sources)  # refuses what cannot be compared
    others = {value: row for row, value in reversed([*enumerate(second.plain().tolist())])}
    for row, value in enumerate(first.plain().tolist()):
        if value in others:
            raise BadInput(
                f"data.group={first.name!r}: {value!r} stands in row {row} of {sources[0]} and in "
                f"row {others[value]} of {sources[1]}; a group must be in one of the two files."
            )


def measured(features: np.ndarray, numbers: Sequence[bool]) -> dict[str, np.ndarray]:
    """Return mean and scale, float32 [D], of float32 features [N, D] of the training set.

    They are computed in float64. Where `numbers` says that a feature is none, they are 0 and 1;
    the scale is the standard deviation (of N, not N - 1), or 1 where all values are the same.
    """
    chosen = np.flatnonzero(numbers)
    values = features[:, chosen].astype(np.float64)
    mean, scale = np.zeros(len(numbers), np.float32), np.ones(len(numbers), np.float32)
    mean[chosen] = values.mean(axis=0)
    deviation = values.std(axis=0).astype(np.float32)
    constant = (values.min(axis=0) == values.max(axis=0)) | (deviation == 0)
    scale[chosen] = np.where(constant, np.float32(1), deviation)
    return {MEAN: mean, SCALE: scale}
