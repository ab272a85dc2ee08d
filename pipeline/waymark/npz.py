"""NumPy archives from anywhere: nothing in them is executed or believed unchecked."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

PACKINGS = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA"}
NUMPY_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the only ways in which NumPy packs
MAX_EXPANSION = 100  # a file may unpack to so many times its size
EXPANSION_ALLOWANCE = 2**28  # and so many bytes more


class PickledObjects(ValueError):
    """Say that an archive holds objects that only pickle could load."""


def read_npz(file: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file; raise what zipfile and NumPy raise, or ValueError.

    What it promises is compared with what it holds before memory is taken for it.
    """
    with zipfile.ZipFile(file) as archive:
        promised = sum(member.file_size for member in archive.infolist())
        if promised > MAX_EXPANSION * file.stat().st_size + EXPANSION_ALLOWANCE:
            raise ValueError(f"it promises {promised:,} bytes, far more than the file holds")
        return {name: _read_member(archive, m) for name, m in checked_members(archive).items()}


def checked_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the entries of an npz by the names of their arrays; raise ValueError.

    They must be as NumPy writes them, of which nothing has been read yet.
    """
    members = archive.infolist()
    if any(member.comment for member in members):  # which zipfile takes for one entry's text
        raise ValueError("an entry bears a comment, which NumPy never writes: it hides others")
    for member in members:
        if not member.filename.endswith(".npy"):
            raise ValueError(f"{member.filename!r} is not an array as NumPy writes it")
        if member.compress_type not in NUMPY_COMPRESSION:
            packing = PACKINGS.get(member.compress_type, f"method {member.compress_type}")
            raise ValueError(
                f"{member.filename!r} is compressed by {packing}; only what NumPy writes is read: "
                f"stored or deflated"
            )
    found = {member.filename.removesuffix(".npy"): member for member in members}
    if len(found) < len(members):
        raise ValueError("it holds two entries of one name")
    return found


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read one array, whose header must promise the bytes that follow it, no more and no less."""
    name = member.filename
    with archive.open(member) as stream:
        read_header(stream, name, member.file_size)
    with archive.open(member) as stream:  # read to its end, where zipfile compares the checksum
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def read_header(stream: Any, name: str, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether in Fortran order, and dtype of an npy of `size` bytes.

    The stream stands at the values then. Raises ValueError unless they are as many bytes as the
    header promises, PickledObjects, and what NumPy does.
    """
    form = np.lib.format
    first = form.read_magic(stream) == (1, 0)
    header = form.read_array_header_1_0 if first else form.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    promised, present = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if dtype.hasobject:
        raise PickledObjects(f"{name!r} holds pickled objects, which are never loaded")
    if promised != present:
        raise ValueError(f"{name!r} promises {promised:,} bytes and holds {present:,}")
    return shape, fortran, dtype
