"""One digest for a mapping of arrays: data sets and training states are compared by it."""

import hashlib
from collections.abc import Mapping

import numpy as np


def little_endian(array: np.ndarray) -> np.ndarray:
    """Return `array` as little-endian, C-ordered values of the same dtype and shape."""
    array = np.asarray(array)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 (hex) of named arrays.

    Over, for each entry in sorted order of names: the name, the dtype's name, the shape as
    Python prints a tuple, each followed by a newline, then the little-endian C-order bytes.
    """
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = little_endian(arrays[name])
        total.update(f"{name}\n{array.dtype.name}\n{array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return total.hexdigest()
