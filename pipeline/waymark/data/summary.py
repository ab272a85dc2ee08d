"""What a data set holds, as `waymark data` shows it before anything is trained."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from waymark.data.dataset import PARTS, Dataset
from waymark.errors import printable
from waymark.table import format_table

SHOWN_CLASSES = 100  # of which the text gives the counts; JSON has those of all


@dataclass(frozen=True)
class PartSummary:
    """One set of examples."""

    examples: int
    shape: list[int]  # of one example
    dtype: str
    lowest: float
    highest: float
    classes: Mapping[str, int]  # examples of each class, by name or number
    in_train: int  # examples that stand in the training set as well


@dataclass(frozen=True)
class DataSummary:
    """What a configuration would read, and how it would be split."""

    name: str
    source: str
    digest: str
    parts: Mapping[str, PartSummary]  # train, val where there is one, test

    def plain(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return asdict(self)

    def text(self, width: int | None = None) -> str:
        """Return it as text, tables wider than `width` a row on several lines."""
        sets = [
            [name, str(each.examples), str(each.shape), each.dtype,
             f"{each.lowest:g} to {each.highest:g}", str(each.in_train) if name != "train" else ""]
            for name, each in self.parts.items()
        ]  # fmt: skip
        columns = ["set", "examples", "shape", "dtype", "values", "also in train"]
        lines = [printable(f"{self.name} from {self.source}"), f"digest {self.digest}", ""]
        lines += [format_table(columns, sets, width), ""]
        names = list(self.parts["train"].classes)
        rows = [
            [name, *(str(each.classes[name]) for each in self.parts.values())]
            for name in names[:SHOWN_CLASSES]
        ]
        lines.append(format_table(["class", *self.parts], rows, width))
        more = len(names) - SHOWN_CLASSES
        return "\n".join([*lines, *([f"and {more} more classes"] if more > 0 else [])])


def summarise(data: Dataset) -> DataSummary:
    """Count and measure what is in each set of a data set."""
    classes = range(data.spec.classes)
    names = [data.class_names[i] if data.class_names else str(i) for i in classes]
    known = set(_digests(data.x_train))
    parts = {}
    for part in PARTS:
        x, y = data.examples(part)
        if len(x):
            counts = np.bincount(y, minlength=len(names)).tolist()
            parts[part] = PartSummary(
                examples=len(x),
                shape=list(x.shape[1:]),
                dtype=x.dtype.name,
                lowest=float(x.min()),
                highest=float(x.max()),
                classes=dict(zip(names, counts, strict=True)),
                in_train=sum(each in known for each in _digests(x)),
            )
    return DataSummary(data.name, data.source, data.digest, parts)


def _digests(examples: np.ndarray) -> Iterator[bytes]:
    """Return what tells each example from others."""
    return (blake2b(example.tobytes(), digest_size=16).digest() for example in examples)
