"""What a data set holds, as `waymark data` shows it before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from waymark.data.cache import cached_bytes
from waymark.data.columns import Column
from waymark.data.dataset import PARTS, Dataset
from waymark.data.rows import Array, Inputs, each, entries, is_read, pieces
from waymark.data.sources import MAX_CACHED_BYTES
from waymark.errors import BadInput, printable
from waymark.table import format_table, size

SHOWN_CLASSES = 100  # or labels or targets, of which the text tells; JSON tells of all
SHOWN_CATEGORIES = 60  # characters of the names of a column's categories
SHOWN_PICTURES = 10  # of a class


@dataclass(frozen=True)
class PartSummary:
    """One set of examples."""

    examples: int
    shape: list[int] | dict[str, list[int]]  # of one example; of several inputs, each by its name
    dtype: str | dict[str, str]
    lowest: float | dict[str, float]
    highest: float | dict[str, float]
    classes: Mapping[str, int]  # examples of each class or label, by name or number
    targets: list[tuple[float, float, float]]  # the lowest, mean and highest value of each target
    in_train: int  # examples that stand in the training set as well


@dataclass(frozen=True)
class ColumnSummary:
    """One column of a table, over all rows that were read."""

    name: str
    type: str  # number, boolean or category
    values: str  # from the lowest to the highest number, or the categories
    missing: int


@dataclass(frozen=True)
class DataSummary:
    """What a configuration would read, and how it would be split."""

    name: str
    source: str
    digest: str
    parts: Mapping[str, PartSummary]  # train, val where there is one, test
    columns: Sequence[ColumnSummary] = ()  # of a table, those of its features
    feature_names: Sequence[str] = ()  # what a table's columns became, in order
    cache: str | None = None  # the folder in which is kept what was made of the files
    cached_bytes: int = 0  # that all of it takes

    def plain(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return asdict(self)

    def text(self, width: int | None = None) -> str:
        """Return it as text, tables wider than `width` a row on several lines."""
        sets = [row for name, part in self.parts.items() for row in _rows_of(name, part)]
        columns = ["set", "examples", "shape", "dtype", "values", "also in train"]
        lines = [printable(f"{self.name} from {self.source}"), f"digest {self.digest}"]
        if self.cache:
            lines.append(printable(f"{size(self.cached_bytes)} in the cache {self.cache}"))
        lines.append("")
        lines += [format_table(columns, sets, width), ""]
        if self.columns:
            described = [
                [printable(each.name), each.type, printable(each.values), str(each.missing)]
                for each in self.columns
            ]
            lines += [format_table(["column", "type", "values", "missing"], described, width), ""]
        kind, rows = self._labels()
        lines.append(format_table([kind, *self.parts], rows[:SHOWN_CLASSES], width))
        more = len(rows) - SHOWN_CLASSES
        return "\n".join([*lines, *([f"and {more} more of them"] if more > 0 else [])])

    def _labels(self) -> tuple[str, list[list[str]]]:
        """Return what labels are, and a row for each of them: its name, and what each set has."""
        parts = self.parts.values()
        if names := list(self.parts["train"].classes):
            return "class", [[name, *(str(each.classes[name]) for each in parts)] for name in names]
        words = [["{:g} to {:g}, mean {:g}".format(*t) for t in each.targets] for each in parts]
        return "target", [[str(i), *row] for i, row in enumerate(zip(*words, strict=True))]


def _rows_of(name: str, part: PartSummary) -> list[list[str]]:
    """Return what a set has as a row of a table, or a row for each of its inputs."""
    count, in_train = str(part.examples), str(part.in_train) if name != "train" else ""
    facts: Any = part.shape, part.dtype, part.lowest, part.highest
    found = {name: facts}
    if isinstance(part.shape, dict):
        found = {f"{name}.{key}": tuple(fact[key] for fact in facts) for key in part.shape}
    return [
        [shown, count, str(shape), dtype, f"{low:g} to {high:g}", in_train]
        for shown, (shape, dtype, low, high) in found.items()
    ]


def summarise(data: Dataset, folder: Path | None = None) -> DataSummary:
    """Count and measure what is in each set of a data set, and in the `folder` of its cache."""
    parts: dict[str, PartSummary] = {}
    known: set[int] = set()
    for part in PARTS:
        x, y = data.examples(part)
        if len(x):
            found = {name[1:]: _measure(array) for name, array in entries("", x).items()}
            *ranges, of_inputs = zip(*found.values(), strict=True)
            lowest, highest = (dict(zip(found, ends, strict=True)) for ends in ranges)
            hashes = _of_examples(*of_inputs)
            known = set(hashes) if part == "train" else known
            parts[part] = PartSummary(
                examples=len(x),
                shape=each(lambda array: list(array.shape[1:]), x),
                dtype=each(lambda array: array.dtype.name, x),
                lowest=lowest.get("", lowest),
                highest=highest.get("", highest),
                classes=_counts(data, y),
                targets=_ranges(y) if y.ndim == 2 and y.dtype.kind == "f" else [],
                in_train=sum(each in known for each in hashes),
            )
    columns = [_column(each) for each in data.columns]
    facts = data.name, data.source, data.digest
    kept = (str(folder), cached_bytes(folder)) if folder else (None, 0)
    return DataSummary(*facts, parts, columns, data.feature_names, *kept)


def _column(column: Column) -> ColumnSummary:
    """Return what a column of a table holds."""
    present = column.values[~column.missing]
    if column.kind == "category":
        shown = shorten(", ".join(column.categories), SHOWN_CATEGORIES, placeholder=" ...")
        values = f"{len(column.categories)}: {shown}"
    elif column.kind == "boolean":
        values = f"true in {int(present.sum())}"
    else:
        values = f"{present.min():g} to {present.max():g}" if present.size else ""
    return ColumnSummary(column.name, column.kind, values, int(column.missing.sum()))


def _counts(data: Dataset, labels: np.ndarray) -> dict[str, int]:
    """Return how many examples have each class or label; none if labels are something else."""
    count = data.spec.outputs
    if data.has_classes:
        counts = np.bincount(labels, minlength=count)
    elif labels.ndim == 2 and labels.dtype.kind in "biu":
        counts = labels.sum(axis=0, dtype=np.int64)
    else:
        return {}
    named = len(data.class_names) == len(counts)
    names = data.class_names if named else map(str, range(len(counts)))
    return dict(zip(names, counts.tolist(), strict=True))


def _ranges(targets: np.ndarray) -> list[tuple[float, float, float]]:
    wide = targets.astype(np.float64)
    ends = zip(wide.min(axis=0), wide.mean(axis=0), wide.max(axis=0), strict=True)
    return [(float(low), float(high), float(mean)) for low, mean, high in ends]


def examples_by_class(data: Dataset) -> list[tuple[str, np.ndarray]]:
    """Return of each class its name and some of its pictures in the training set, [N, H, W, C].

    They stand as far apart as they can. Raises BadInput for data that are no pictures.
    """
    x, y = data.examples("train")
    if isinstance(x, Inputs):
        raise BadInput(f"{data.name}: has several inputs; drawn are pictures, of one input.")
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise BadInput(
            f"{data.name}: has features of shape {list(x.shape[1:])}; drawn are pictures "
            f"[H, W], [H, W, 1] and [H, W, 3]."
        )
    if not data.has_classes:
        raise BadInput(f"{data.name}: has no classes, which pictures are drawn by.")
    found = {}
    for label in range(min(data.spec.outputs, SHOWN_CLASSES)):
        rows = np.flatnonzero(y == label)
        if len(rows):
            places = np.linspace(0, len(rows) - 1, min(len(rows), SHOWN_PICTURES)).astype(int)
            name = data.class_names[label] if data.class_names else str(label)
            found[f"{name} ({len(rows)})"] = x[rows[places]]
    if x.dtype != np.uint8:
        low = min(float(each.min()) for each in found.values())
        high = max(float(each.max()) for each in found.values())
        for name, each in found.items():
            found[name] = ((each - low) / ((high - low) or 1) * 255).astype(np.uint8)
    return list(found.items())


def shared_with_training(data: Dataset) -> dict[str, int]:
    """Return how many examples of val and test stand in the training set as well, if any do.

    Nothing is told of data that are not small, or read by index: it would take another pass.
    """
    found: dict[str, int] = {}
    features = [data.examples(part)[0] for part in PARTS]
    if data.nbytes < MAX_CACHED_BYTES and not any(map(is_read, features)):
        train, *others = (_of_examples(*map(_hashes, entries("", x).values())) for x in features)
        known = set(train)
        for part, hashes in zip(("val", "test"), others, strict=True):
            count = sum(each in known for each in hashes)
            found |= {part: count} if count else {}
    return found


def _of_examples(*hashes: list[int]) -> list[int]:
    """Return what tells each example from others, from what tells it of each of its inputs."""
    return [hash(row) for row in zip(*hashes, strict=True)]


def _hashes(examples: Any) -> list[int]:
    """Return what tells each example from others, in this process."""
    return [hash(each.tobytes()) for each in examples]


def _measure(x: Array) -> tuple[float, float, list[int]]:
    """Return the lowest and the highest value, and what tells each example from others."""
    lows, highs, hashes = [], [], []
    for piece in pieces(x):
        lows.append(piece.min())
        highs.append(piece.max())
        hashes += _hashes(piece)
    return float(min(lows)), float(max(highs)), hashes
