"""Features that are larger than memory: they stay where they are and are read by index.

from pathlib import Path
from waymark.data.rows import read_folder

images = read_folder(Path("pictures"))["x_train"]  # x_train.npy
print(images.shape, images[:100].mean(), images.read(np.array([7, 3, 7])).shape)
"""

import os
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from waymark.digest import SETTLED
from waymark.errors import BadInput
from waymark.npz import read_header

T = TypeVar("T")
PIECE = 2**24  # bytes that are read at a time where all are read in order


class Rows(ABC):
    """An array [N, ...] that is read by index: `rows[3]`, `rows[:100]`, `rows[indices]`."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype

    @property
    def mark(self) -> str | None:
        """Return what is the same as long as the content is; None where nothing tells."""
        return None

    @property
    def identity(self) -> str | None:
        """Return what stands for the content in a digest; None: the content itself does."""
        return None

    @abstractmethod
    def read_raw(self, rows: np.ndarray) -> np.ndarray:
        """Return rows, by int64 indices, as they are stored; raise BadInput."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return rows [n, ...], by int64 indices [n], in this shape and dtype; raise BadInput."""
        with np.errstate(over="ignore"):
            values = self.read_raw(rows).astype(self.dtype, copy=False)
        return values.reshape(len(rows), *self.shape[1:])

    def pieces(self) -> Iterator[np.ndarray]:
        """Read all rows once, in order; raise BadInput for a float that is not finite."""
        size = max(1, PIECE // max(1, self.row_bytes))
        for start in range(0, len(self), size):
            piece = self.read(np.arange(start, min(start + size, len(self))))
            if self.dtype == np.float32:
                refuse_not_finite(self.name, piece, start)
            yield piece

    def as_images(self, name: str) -> "Rows":
        """Return the same rows as Dataset has them: native, floats as float32, [N, H, W, 1]."""
        changed, dtype = copy(self), self.dtype
        changed.dtype = np.dtype(np.float32) if dtype.kind == "f" else dtype.newbyteorder("=")
        changed.shape = (*self.shape, 1) if len(self.shape) == 3 else self.shape
        changed.name = name
        return changed

    def choose(self, rows: np.ndarray) -> "Rows":
        """Return some of the rows, by int64 indices, without reading them."""
        return ChosenRows(self, rows)

    @property
    def row_bytes(self) -> int:
        """Return how many bytes one row takes in memory."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Return the number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, slice):
            places = range(len(self))[key]
            return self.read(np.arange(places.start, places.stop, places.step))
        if isinstance(key, int | np.integer):
            row: np.ndarray = self.read(np.array([range(len(self))[key]]))[0]
            return row
        key = np.asarray(key)
        return self.read(np.flatnonzero(key) if key.dtype == bool else key.astype(np.int64))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


Array = np.ndarray | Rows


class Inputs:
    """Features of several inputs by name, each an array or Rows, all of as many rows.

    The names are in sorted order. What is read of them is a mapping of arrays.
    """

    def __init__(self, named: Mapping[str, Array]) -> None:
        self.named = {name: named[name] for name in sorted(named)}

    def choose(self, rows: np.ndarray) -> "Inputs":
        """Return some of the rows, by int64 indices; those of Rows are not read."""
        return Inputs({name: choose(array, rows) for name, array in self.named.items()})

    def __len__(self) -> int:
        return len(next(iter(self.named.values())))

    def __getitem__(self, key: Any) -> Any:
        return {name: array[key] for name, array in self.named.items()}


Features = Array | Inputs


def each(function: Callable[[Any], T], features: Features) -> T | dict[str, T]:
    """Return what a function makes of features, or of each of several inputs by its name."""
    if isinstance(features, Inputs):
        return {name: function(array) for name, array in features.named.items()}
    return function(features)


def entries(name: str, features: Features) -> dict[str, Array]:
    """Return features as entries of a data set: `name`, or `name.INPUT` for each input."""
    if isinstance(features, Inputs):
        return {f"{name}.{of_input}": array for of_input, array in features.named.items()}
    return {name: features}


def is_read(features: Features) -> bool:
    """Tell whether features, or some inputs of them, are read by index."""
    return any(isinstance(array, Rows) for array in entries("", features).values())


def pieces(array: Array) -> Iterator[np.ndarray]:
    """Return all rows in order, those that are larger than memory in pieces; raise BadInput."""
    return iter([array]) if isinstance(array, np.ndarray) else array.pieces()


def choose(features: Any, rows: np.ndarray) -> Any:
    """Return some rows, by int64 indices; those that are larger than memory are not read."""
    return features[rows] if isinstance(features, np.ndarray) else features.choose(rows)


def refuse_not_finite(name: str, values: np.ndarray, first: int = 0) -> None:
    """Raise BadInput naming a row, counted from `first`, of a float32 that is not finite."""
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if not finite.all():
        raise BadInput(
            f"{name} has a value in row {first + finite.argmin()} that is not finite as a float32."
        )


class ChosenRows(Rows):
    """Some of the rows of others, in an order of their own."""

    def __init__(self, whole: Rows, rows: np.ndarray) -> None:
        super().__init__(whole.name, (len(rows), *whole.shape[1:]), whole.dtype)
        self._whole, self._rows = whole, rows

    def read_raw(self, rows: np.ndarray) -> np.ndarray:
        """Return rows, by int64 indices."""
        return self._whole.read(self._rows[rows])

    def choose(self, rows: np.ndarray) -> Rows:
        """Return some of the rows."""
        return ChosenRows(self._whole, self._rows[rows])


class NpyRows(Rows):
    """An npy file, of which rows are read: not mapped, where a cut file would end the process."""

    def __init__(self, path: Path) -> None:
        """Open a file; raise OSError, and ValueError for damage and for pickled objects."""
        self.path, opened = path, time.time()
        self._handle = _Handle(path)
        facts = os.fstat(self._handle.number)
        with open(self._handle.number, "rb", closefd=False) as stream:
            header = read_header(stream, path.name, facts.st_size)
            self._start = stream.tell()
        self._shape, self._fortran, self._dtype = header
        super().__init__(str(path), self._shape, self._dtype)
        self._known = (facts.st_size, facts.st_mtime_ns)
        # Just after one change another one could bear the same time.
        settled = opened - max(facts.st_mtime, facts.st_ctime) > SETTLED
        changed = f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"
        self._mark = f"{path.absolute()} {changed}" if settled else None

    @property
    def mark(self) -> str | None:
        """Return name, size and times of the file, None if it has only just been changed."""
        return self._mark and f"{self._mark} {self.dtype} {self.shape}"

    def as_images(self, name: str) -> Rows:
        """Return the same rows as Dataset has them; raise BadInput if they lie in Fortran order."""
        if self._fortran and len(self.shape) > 1:
            raise BadInput(
                f"{self.path} is in Fortran order, in which no example lies in one piece; save it "
                f"in C order, with numpy.ascontiguousarray."
            )
        return super().as_images(name)

    def read_raw(self, rows: np.ndarray) -> np.ndarray:
        """Return rows as they are in the file; raise BadInput if it has changed, or fails."""
        values = np.empty((len(rows), *self._shape[1:]), self._dtype)
        size = values.nbytes // max(1, len(rows))
        held = values.reshape(-1).view(np.uint8).data
        with self._reading():
            if len(rows) and (np.diff(rows) == 1).all():
                self._fill(held, self._start + int(rows[0]) * size)
            else:
                at = 0
                for start in (self._start + rows * size).tolist():
                    self._fill(held[at : at + size], start)
                    at += size
        return values

    def whole(self) -> np.ndarray:
        """Return the array in the file as it is; raise BadInput if it has changed, or fails."""
        values = np.empty(self._shape[::-1] if self._fortran else self._shape, self._dtype)
        with self._reading():
            self._fill(values.reshape(-1).view(np.uint8).data, self._start)
        return values.T if self._fortran else values

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            facts = os.fstat(self._handle.number)
            if (facts.st_size, facts.st_mtime_ns) != self._known:
                raise BadInput(f"{self.path} has changed since it was opened.")
            yield
        except OSError as error:
            raise BadInput(f"{self.path} cannot be read: {error.strerror}.") from None

    def _fill(self, held: memoryview, start: int) -> None:
        count = os.preadv(self._handle.number, [held], start)
        while count < len(held):  # the system gives at most 2 GB at a time
            more = os.preadv(self._handle.number, [held[count:]], start + count)
            if more == 0:
                raise BadInput(f"{self.path} has become shorter since it was opened.")
            count += more


class _Handle:
    """An open file, closed when nothing reads it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)


def npy_files(folder: Path) -> list[Path]:
    """Return the npy files of a folder."""
    return sorted(path for path in folder.glob("*.npy") if path.is_file())
