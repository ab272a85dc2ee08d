"""Predictions in a CSV, Parquet or npz file, which is whole or not there."""

import csv
import os
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from waymark.data.sources import expand
from waymark.errors import BadInput
from waymark.files import replacing, writes
from waymark.prediction.results import Answers, Layout

STANDARD_OUTPUT = "-"


class Writer(ABC):
    """A file that answers are added to, part by part, the first of which may have no examples."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout = path, layout

    @abstractmethod
    def add(self, answers: Answers) -> None:
        """Write the answers for some examples."""

    @abstractmethod
    def close(self) -> None:
        """Complete the file."""


class CsvWriter(Writer):
    """A CSV file in UTF-8, or standard output; a float32 has as many digits as tell it."""

    def __init__(self, path: Path, layout: Layout, stream: TextIO | None = None) -> None:
        super().__init__(path, layout)
        self._file = stream or path.open("w", encoding="utf-8", newline="")
        self._rows, self._begun = csv.writer(self._file, lineterminator="\n"), False

    def add(self, answers: Answers) -> None:
        """Write a line for each example, and before the first one the names."""
        columns = self._layout.columns(answers)
        if not self._begun:
            self._begun = True
            self._rows.writerow(columns)
        cells = (each.astype(str).tolist() for each in columns.values())
        self._rows.writerows(zip(*cells, strict=True))

    def close(self) -> None:
        """Write out what is left."""
        if self._file is sys.stdout:
            self._file.flush()
        else:
            self._file.close()


class ParquetWriter(Writer):
    """A Parquet file."""

    def __init__(self, path: Path, layout: Layout) -> None:
        super().__init__(path, layout)
        self._file: Any = None

    def add(self, answers: Answers) -> None:
        """Write a group of rows."""
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter as File

        columns = self._layout.columns(answers)
        table = pa.table({name: pa.array(each) for name, each in columns.items()})
        if self._file is None:
            self._file = File(self._path, table.schema)
        if len(table):
            self._file.write_table(table)

    def close(self) -> None:
        """Write the end of the file."""
        if self._file is not None:
            self._file.close()


class NpzWriter(Writer):
    """An npz: each array grows in a file of its own, and these are put into one at the end."""

    def __init__(self, path: Path, layout: Layout) -> None:
        super().__init__(path, layout)
        self._grown: dict[str, GrowingArray] = {}
        self._files: list[str] = []

    def add(self, answers: Answers) -> None:
        """Append to the arrays."""
        arrays = self._layout.arrays(answers)
        self._files += arrays.pop("files", np.array([], str)).tolist()
        for name, array in arrays.items():
            if name not in self._grown:
                self._grown[name] = GrowingArray(self._path.with_name(f"{name}.npy"), array)
            self._grown[name].append(array)

    def close(self) -> None:
        """Complete the arrays, and put them into the npz, with the names of the classes."""
        texts = {"files": self._files, self._layout.called.names: self._layout.names}
        for name, array in ((name, np.array(each)) for name, each in texts.items() if len(each)):
            self._grown[name] = GrowingArray(self._path.with_name(f"{name}.npy"), array)
            self._grown[name].append(array)
        with zipfile.ZipFile(self._path, "w") as archive:
            for name, grown in self._grown.items():
                grown.close()
                archive.write(grown.path, f"{name}.npy")
                grown.path.unlink()


class GrowingArray:
    """An npy file of which the number of rows is written at the end."""

    def __init__(self, path: Path, like: np.ndarray) -> None:
        self.path, self._like, self._count = path, like[:0], 0
        self._file = path.open("w+b")
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        """Write more rows."""
        self._file.write(np.ascontiguousarray(rows).data if rows.size else b"")
        self._count += len(rows)

    def close(self) -> None:
        """Write the number of rows; NumPy leaves room for it."""
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        header = np.lib.format.header_data_from_array_1_0(self._like)
        shape = (self._count, *self._like.shape[1:])
        np.lib.format.write_array_header_1_0(self._file, {**header, "shape": shape})


WRITERS: dict[str, type[Writer]] = {
    ".csv": CsvWriter,
    ".parquet": ParquetWriter,
    ".npz": NpzWriter,
}


def checked_output(given: str | Path, endings: tuple[str, ...], option: str = "-o") -> Path:
    """Return the path of a file that can be written; raise BadInput."""
    path = expand(str(given))
    if path.suffix.lower() not in endings:
        raise BadInput(f"{option} {path}: must end in {', '.join(endings)}.")
    folder = path.parent
    if path.is_dir():
        raise BadInput(f"{option} {path}: is a folder.")
    if not folder.is_dir():
        raise BadInput(f"{option} {path}: there is no folder {folder}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"{option} {path}: the folder {folder} cannot be written to.")
    return path


@contextmanager
def writing(output: Path | str, layout: Layout) -> Iterator[Callable[[Answers], None]]:
    """Yield what writes answers to a file, of the kind that its ending says, or standard output."""
    if output == STANDARD_OUTPUT:
        printed = CsvWriter(Path(STANDARD_OUTPUT), layout, sys.stdout)
        yield printed.add
        printed.close()
        return
    path = Path(output)
    with replacing(path) as made:
        with writes(path.parent):
            writer = WRITERS[path.suffix.lower()](made, layout)

        def add(answers: Answers) -> None:
            with writes(path.parent):
                writer.add(answers)

        try:
            yield add
        except BaseException:
            with suppress(Exception):
                writer.close()
            raise
        with writes(path.parent):
            writer.close()
