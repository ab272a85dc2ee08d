"""Digests: of a mapping of arrays, by which data sets and states are compared, and of files."""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

SETTLED = 3  # seconds after which a file's times are those of its last change


def digest(arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of named arrays, or of what gives one in `pieces()`, row by row.

    Over, for each entry in sorted order of names: the name, the dtype's name, the shape as
    Python prints a tuple, each followed by a newline, then the little-endian C-order bytes.
    """
    total = hashlib.sha256()
    for name in sorted(arrays):
        array: Any = arrays[name]
        pieces = getattr(array, "pieces", None)
        array = array if pieces else np.asarray(array)
        total.update(f"{name}\n{array.dtype.name}\n{array.shape}\n".encode())
        for piece in pieces() if pieces else [array]:
            total.update(little_endian(piece))
    return total.hexdigest()


def little_endian(array: np.ndarray) -> Any:
    """Return the bytes of an array, little-endian and in C order."""
    values = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    return values.view(np.uint8).data if array.size else b""


def file_digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 (hex) of files, and of names and contents in folders; raise OSError."""
    total = hashlib.sha256()
    for path in files:
        if path.is_dir():
            inner = [Path(top, name) for top, _, names in os.walk(path) for name in names]
            for each in sorted(filter(os.path.isfile, inner)):
                name = os.fsencode(each.relative_to(path))
                total.update(name + b"\0" + _content(each).encode())
        else:
            total.update(_content(path).encode())
    return total.hexdigest()


def _content(path: Path) -> str:
    """Return the SHA-256 of one file; while the file is the same, what it was last time."""
    facts, now = path.stat(), time.time()
    marks = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    # Just after one change another one could bear the same time.
    settled = now - max(facts.st_mtime, facts.st_ctime) > SETTLED
    return (_hashed if settled else _hashed.__wrapped__)(path, marks)


@lru_cache(10_000)
def _hashed(path: Path, marks: object) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
