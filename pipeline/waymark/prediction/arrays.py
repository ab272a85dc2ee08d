"""Arrays in an npz, a folder of npy files, or one: their rows are read in order, never all."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from waymark.data.dataset import Dataset
from waymark.data.rows import Inputs, entries, npy_files, refuse_not_finite
from waymark.data.sources import reading
from waymark.errors import BadInput, listed
from waymark.npz import checked_members, read_header
from waymark.prediction.inputs import Part, rows_of_part, shown

LABELS = ("y_test", "y")


class Stream:
    """An array in a file, of which the header has been read and compared with the file's size."""

    def __init__(self, name: str, opened: Callable[[], AbstractContextManager[Any]], size: int):
        """Read the header; raise what NumPy and zipfile raise, ValueError."""
        self.name, self._opened, self._size = name, opened, size
        with opened() as file:
            self.shape, self._fortran, self.dtype = read_header(file, name, size)

    def pieces(self, count: int) -> Iterator[np.ndarray]:
        """Yield all rows, `count` at a time; raise what zipfile raises, ValueError.

        An array in Fortran order, in which no row lies in one piece, is read whole.
        """
        row, left = self.shape[1:], self.shape[0]
        with self._opened() as file:
            read_header(file, self.name, self._size)
            if self._fortran and row:
                whole = self._read(file, self.shape[::-1]).T
                yield from (whole[start : start + count] for start in range(0, left, count))
                left = 0
            while left > 0:
                piece = self._read(file, (min(count, left), *row))
                left -= len(piece)
                if not left and file.read(1):  # at its end zipfile compares the checksum
                    raise ValueError(f"{self.name!r} holds more than its header promises")
                yield piece

    def _read(self, file: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
        values = np.empty(shape, self.dtype)
        held, at = values.reshape(-1).view(np.uint8).data, 0
        while at < len(held):
            content = file.read(min(len(held) - at, 2**24))
            if not content:
                raise ValueError(f"{self.name!r} ends before what its header promises")
            held[at : at + len(content)] = content
            at += len(content)
        return values


@contextmanager
def _opened_member(path: Path, name: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        yield file


def _begins_as_npy(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX


def _streams(path: Path) -> dict[str, Stream]:
    """Open the arrays at a path; raise BadInput for what is damaged or holds pickled objects."""
    found: dict[str, Stream] = {}
    for file in npy_files(path) if path.is_dir() else [path]:
        with reading(file, "npy file" if path.is_dir() or path.suffix == ".npy" else "npz file"):
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    members = checked_members(archive)
                for name, member in members.items():
                    opened = partial(_opened_member, file, member.filename)
                    found[name] = Stream(name, opened, member.file_size)
            else:
                if file.suffix != ".npy" and not _begins_as_npy(file):
                    raise ValueError("it is cut short, or no zip file")
                found[file.stem] = Stream(file.name, partial(file.open, "rb"), file.stat().st_size)
    return found


class Arrays:
    """The arrays in a file or folder that a model takes, and their labels, if they are there."""

    from_files = False

    def __init__(self, path: Path, form: Dataset) -> None:
        """Choose among the arrays there those that fit `form`; raise BadInput."""
        streams = _streams(path)
        self._path, self.source = path, str(path)
        self._wanted = entries("", form.x_train)
        chosen, truth = _choose(path, streams, list(self._wanted))
        self._inputs = {name: streams[found] for name, found in chosen.items()}
        self._several = isinstance(form.x_train, Inputs)
        first = next(iter(self._inputs.values()))
        for name, stream in self._inputs.items():
            _refuse_other_form(f"{path}: {chosen[name]}", stream, self._wanted[name])
            if stream.shape[0] != first.shape[0]:
                raise BadInput(
                    f"{path}: {chosen[name]} has {stream.shape[0]} rows, but "
                    f"{min(chosen.values())} {first.shape[0]}; each example is a row of all."
                )
        self.count, self._labels = first.shape[0], None
        if truth:
            shape = streams[truth].shape
            if shape[:1] != (self.count,):
                raise BadInput(f"{path}: {truth} is {list(shape)}, for {self.count} examples.")
            with reading(path, "npz or npy file"):
                self._labels = np.concatenate([*streams[truth].pieces(2**20)])
        self.labelled, self.truth = truth is not None, truth or ""
        read = [f"{found} {list(streams[found].shape)}" for found in chosen.values()]
        self.said = f"{listed(read)} of {path}, " + (f"labels {truth}" if truth else "no labels")

    def parts(self) -> Iterator[Part]:
        """Yield the rows; raise BadInput for damage, and for a float that is not finite."""
        sizes = [s.dtype.itemsize * int(np.prod(s.shape[1:])) for s in self._inputs.values()]
        rows = rows_of_part(sum(sizes))
        pieces = {name: stream.pieces(rows) for name, stream in self._inputs.items()}
        with ExitStack() as closing:
            for each in pieces.values():
                closing.callback(each.close)  # type: ignore[attr-defined]
            for first in range(0, self.count, rows):
                features = {}
                for name, each in pieces.items():
                    with reading(self._path, "npz or npy file"):
                        piece = next(each)
                    features[name[1:]] = self._as_form(name, piece, first)
                labels = None if self._labels is None else self._labels[first : first + rows]
                yield Part(first, features if self._several else features[""], labels)

    def _as_form(self, name: str, piece: np.ndarray, first: int) -> np.ndarray:
        wanted = self._wanted[name]
        with np.errstate(over="ignore"):
            values = piece.astype(wanted.dtype).reshape(len(piece), *wanted.shape[1:])
        if values.dtype.kind == "f":
            refuse_not_finite(f"{self._path}: {self._inputs[name].name}", values, first)
        return values


def _choose(
    path: Path, streams: Mapping[str, Stream], inputs: list[str]
) -> tuple[dict[str, str], str | None]:
    """Return which array is each of the inputs ("", or ".NAME"), and which one the labels are."""
    for start, labels in zip(("x_test", "x"), LABELS, strict=True):
        chosen = {name: f"{start}{name}" for name in inputs}
        if streams.keys() >= {*chosen.values()}:
            return chosen, labels if labels in streams else None
    truth = next((name for name in LABELS if name in streams), None)
    others = [name for name in streams if name not in LABELS]
    if inputs == [""] and len(others) == 1:
        return {"": others[0]}, truth
    if inputs != [""] and streams.keys() >= {name[1:] for name in inputs}:
        return {name: name[1:] for name in inputs}, truth
    wanted = [f"x_test{name}" for name in inputs]
    plain = [f"x{name}" for name in inputs]
    there = ", ".join(sorted(streams)[:9]) or "nothing"
    only = "" if inputs != [""] else ", or one array alone"
    raise BadInput(
        f"{path} holds {there}; what is read is {listed(wanted)}, or {listed(plain)}{only}."
    )


def _refuse_other_form(name: str, stream: Stream, wanted: Any) -> None:
    """Raise BadInput unless an array has examples, of the shape and dtype that the model takes."""
    shape, row = stream.shape, wanted.shape[1:]
    fits = shape[1:] == row or (len(row) == 3 and row[-1] == 1 and shape[1:] == row[:-1])
    floats = stream.dtype.kind == wanted.dtype.kind == "f" and stream.dtype.itemsize <= 8
    whole = stream.dtype.kind in "iu" and wanted.dtype.kind in "iu"
    if not (shape and fits and (floats or (whole and np.can_cast(stream.dtype, wanted.dtype)))):
        raise BadInput(
            f"{name} is {stream.dtype}{list(shape)}; the run's model takes {shown(wanted)}."
        )
    if not shape[0]:
        raise BadInput(f"{name} has no example.")
