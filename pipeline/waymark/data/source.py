"""Examples from code of the user's own: any object with `__len__` and `__getitem__`.

    # my_data.py
    def train():
        return datasets.load_dataset("mnist", split="train")

    waymark run data=source data.train=my_data.train data.test=my_data.test

They are never all in memory. Once a process they are read through, for labels and digest; where
the object has a `fingerprint`, as those of Hugging Face have, once for all processes.
"""

import hashlib
import io
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from waymark.config.schema import settings
from waymark.data import digests
from waymark.data.dataset import Dataset, from_arrays
from waymark.data.rows import Rows
from waymark.data.sources import Loader
from waymark.digest import little_endian
from waymark.errors import BadInput, explain

LABELS = ("label", "labels", "y", "target")  # by what names a mapping's label is known
FLOATS = ("float16", "float32", "float64")
KINDS = {"b": "truth values", "i": "numbers", "u": "numbers", "f": "numbers", "U": "texts"}
BLOCK = 1000  # examples whose labels are made an array at a time

_reading = threading.RLock()  # one example at a time is asked for, whatever threads want some
_last: dict[Any, Dataset] = {}  # at most one


@settings
class Source(Loader):
    """Examples by index, from objects that code of the user's own makes."""

    dotted_names: ClassVar[tuple[str, ...]] = ("train", "test")

    train: str
    """the dotted name of your class or function; what it returns has `__len__` and `__getitem__`,
    and its examples are (features, label) or a mapping of both"""
    settings: dict[str, Any] | None
    """`{name: value}` that it, and the one of `data.test`, is called with; null: nothing"""
    features: str | None
    """the entry with the features, where examples are mappings; null: the one beside the label"""
    label: str | None
    """the entry with the label; null: `label`, `labels`, `y` or `target`"""

    @property
    def made(self) -> dict[str, Callable[..., Any]]:
        """Return what makes the objects, for train and, where it is named, test."""
        from hydra.utils import get_method

        names = {"train": self.train, "test": self.test}
        return {part: get_method(name) for part, name in names.items() if isinstance(name, str)}

    @property
    def modules(self) -> list[str]:
        """Return the modules of that code."""
        return [str(make.__module__) for make in self.made.values()]

    def load(self) -> Dataset:
        """Make the objects and read their labels; raise BadInput naming the example."""
        made = self.made
        key = (*made.values(), repr(self))
        if key not in _last:
            _last.clear()
            arrays: dict[str, Any] = {}
            for part, make in made.items():
                x, y = read_source(f"data.{part}={getattr(self, part)}", make, self)
                arrays |= {f"x_{part}": x, f"y_{part}": y}
            _last[key] = from_arrays("source", self.train, arrays)
        return _last[key]

    def reads_test_file(self) -> bool:
        """Tell whether `test` names what makes the test set."""
        return isinstance(self.test, str)


@dataclass(frozen=True)
class Examples:
    """A user's object, whose examples come as an array of features and one of the label."""

    origin: str  # for messages
    source: Any
    features: str | None
    label: str | None

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            with _reading:
                x, y = map(np.asarray, self._pair(index, self.source[index]))
        except BadInput:
            raise
        except Exception as error:
            raise self.refusal(index, f"is not read: {explain(error).removesuffix('.')}") from None
        if x.dtype.kind not in "iu" and x.dtype.name not in FLOATS:
            allowed = "integers, float16, float32 and float64"
            raise self.refusal(index, f"has features of dtype {x.dtype}; allowed are {allowed}")
        if x.ndim == 0 or x.size == 0:
            said = f"has features of shape {list(x.shape)}; allowed are [D], [H, W], [H, W, C] and"
            raise self.refusal(index, f"{said} others, none of them 0")
        if y.dtype.kind not in KINDS:
            allowed = "numbers, texts and arrays of numbers"
            raise self.refusal(index, f"has a label of dtype {y.dtype}; allowed are {allowed}")
        dtype = np.dtype(np.float32) if x.dtype.kind == "f" else x.dtype.newbyteorder("=")
        with np.errstate(over="ignore"):
            return x.astype(dtype, copy=False), y

    def refusal(self, index: int, said: str) -> BadInput:
        """Return what says something of an example."""
        return BadInput(f"{self.origin}: example {index} {said}.")

    def _pair(self, index: int, example: Any) -> tuple[Any, Any]:
        """Return features and label of an example as the object gives it."""
        if isinstance(example, Mapping):
            known = [name for name in LABELS if name in example]
            label = self.label or next(iter(known), None)
            rest = [name for name in example if name != label]
            features = self.features or (rest[0] if len(rest) == 1 else None)
            if {features, label} <= example.keys():
                return example[features], example[label]
            entries = ", ".join(map(str, example))
            said = f"has the entries {entries}; name two with data.features and data.label"
            raise self.refusal(index, said)
        named = self.features or self.label
        if not named and isinstance(example, tuple | list) and len(example) == 2:
            return example[0], example[1]
        kind = type(example).__name__
        if named:
            raise self.refusal(index, f"is a {kind}, which has no entry {named!r}")
        kind += f" of {len(example)}" if isinstance(example, tuple | list) else ""
        said = f"is a {kind}; allowed are (features, label) and a mapping of both"
        raise self.refusal(index, said)


class SourceRows(Rows):
    """The features of an object's examples; `identity` is its fingerprint, or of what was read."""

    def __init__(self, examples: Examples, form: np.ndarray, count: int, identity: str) -> None:
        super().__init__(examples.origin, (count, *form.shape), form.dtype)
        self._examples, self._form, self._identity = examples, form, identity

    @property
    def identity(self) -> str:
        """Return what stands for the content in a digest."""
        return f"{self._identity} {self.dtype} {self.shape}"

    def read_raw(self, rows: np.ndarray) -> np.ndarray:
        """Return rows, by int64 indices; raise BadInput naming one that cannot be read."""
        values = np.empty((len(rows), *self._form.shape), self._form.dtype)
        for place, row in enumerate(rows.tolist()):
            x, _ = self._examples[row]
            refuse_other_form(self._examples, row, x, self._form)
            values[place] = x
        return values


def refuse_other_form(examples: Examples, index: int, x: np.ndarray, form: np.ndarray) -> None:
    """Raise BadInput if features differ from those of the first example in shape or dtype."""
    if (x.shape, x.dtype) != (form.shape, form.dtype):
        now, first = (f"{each.dtype}{list(each.shape)}" for each in (x, form))
        raise examples.refusal(index, f"has features {now}, but example 0 {first}")


def read_source(
    origin: str, make: Callable[..., Any], loader: Source
) -> tuple[SourceRows, np.ndarray]:
    """Return the features of what `make` returns, and its labels, [N, ...]; raise BadInput.

    What a fingerprint was seen with before is not read again.
    """
    try:
        source = make(**(loader.settings or {}))
        count = len(source)
        stated = getattr(source, "fingerprint", None) or getattr(source, "_fingerprint", None)
    except Exception as error:
        raise BadInput(f"{origin}: {explain(error).removesuffix('.')}.") from None
    if count < 1:
        raise BadInput(f"{origin}: holds no example.")
    if not isinstance(stated, str | None):
        kind = type(stated).__name__
        raise BadInput(f"{origin}: its fingerprint is a {kind}, where a text is allowed.")
    examples = Examples(origin, source, loader.features, loader.label)
    facts = [stated, count, loader.features, loader.label]
    place = json.dumps([origin, loader.settings, *facts], default=str)
    kept = f"{hashlib.sha256(place.encode()).hexdigest()}.npz" if stated else None
    found = _recalled(kept, count) if kept else None
    if found is None:
        labels, form, content = _read_through(examples, count)
        if kept:
            held = io.BytesIO()
            np.savez(held, labels=labels, form=form)
            digests.write(kept, held.getvalue())
    else:
        labels, form, content = *found, ""
    return SourceRows(examples, form, count, json.dumps(facts) if stated else content), labels


def _recalled(kept: str, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return labels and an empty array like the features, as they were kept; None if not."""
    with suppress(Exception):  # whatever damage makes NumPy raise: then they are read again
        with np.load(io.BytesIO(digests.read(kept) or b""), allow_pickle=False) as arrays:
            labels, form = arrays["labels"], arrays["form"]
        return (labels, form) if len(labels) == count else None
    return None


def _read_through(examples: Examples, count: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Return all labels, an array like the features, and the SHA-256 of all features."""
    form, first = examples[0]
    total, blocks = hashlib.sha256(), []
    for start in range(0, count, BLOCK):
        labels = []
        for index in range(start, min(start + BLOCK, count)):
            x, y = examples[index]
            refuse_other_form(examples, index, x, form)
            if x.dtype.kind == "f" and not np.isfinite(x).all():
                raise examples.refusal(index, "has a value that is not finite as a float32")
            if (y.shape, KINDS[y.dtype.kind]) != (first.shape, KINDS[first.dtype.kind]):
                now, then = (f"{KINDS[each.dtype.kind]} {list(each.shape)}" for each in (y, first))
                raise examples.refusal(index, f"has a label of {now}, but example 0 of {then}")
            total.update(little_endian(x))
            labels.append(y)
        blocks.append(np.stack(labels))
    return np.concatenate(blocks), np.zeros_like(form), total.hexdigest()
