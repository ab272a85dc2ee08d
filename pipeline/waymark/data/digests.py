"""The digest of a data set, made in one pass over what is larger than memory, and remembered.

It is kept in the user's cache folder under names, sizes and times of the files, so that the next
process does not read them again only to know that they are the same.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from waymark.data.cache import DIGESTS, cache_folder
from waymark.data.rows import Array, Rows
from waymark.digest import digest

_known: dict[str, str] = {}  # of this process, whose cache may not be writable


def dataset_digest(arrays: Mapping[str, Array]) -> str:
    """Return the digest of a data set's arrays (see waymark.digest), wherever they are.

    Rows that have an identity go in with that in place of their content. Raises BadInput for what
    cannot be read, and for a float that is not finite.
    """
    streamed = {name: each for name, each in arrays.items() if isinstance(each, Rows)}
    short = {name: _text(each.identity) for name, each in streamed.items() if each.identity}
    entries = {**arrays, **short}
    files = {name: each for name, each in streamed.items() if name not in short}
    if not files or any(each.mark is None for each in files.values()):
        return digest(entries)
    key = digest({**entries, **{name: _text(str(each.mark)) for name, each in files.items()}})
    found = _known.get(key) or (read(f"{key}.txt") or b"").decode(errors="replace")
    if not re.fullmatch("[0-9a-f]{64}", found):
        found = digest(entries)
        write(f"{key}.txt", found.encode())
    _known[key] = found
    return found


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)


def folder() -> Path:
    """Return where digests are kept: a folder in the user's cache folder."""
    return cache_folder(None) / DIGESTS


def read(name: str) -> bytes | None:
    """Return what is kept under a name, None if nothing is."""
    with suppress(OSError, RuntimeError):  # the latter: there is no home
        return (folder() / name).read_bytes()
    return None


def write(name: str, content: bytes) -> None:
    """Keep something under a name, whole or not at all; where nothing can be written, not."""
    with suppress(OSError, RuntimeError):
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=place)
        try:
            with open(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, place / name)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
