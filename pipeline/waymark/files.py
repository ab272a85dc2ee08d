"""Files that are complete or not there, and stay when the machine stops."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

TEMPORARY = ".tmp-"  # how the name of a file begins that is not complete yet


def flush(*paths: Path) -> None:
    """Wait until the contents of files and folders are on disk: for all of them at once."""
    others = [_helpers(os.getpid()).submit(_flush, path) for path in paths[1:]]
    _flush(paths[0])
    for other in others:
        other.result()


@cache
def _helpers(process: int) -> ThreadPoolExecutor:
    """Return a pool of threads for this process, as a fork has none of its parent's threads."""
    return ThreadPoolExecutor(2, thread_name_prefix="flush")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a text or bytes to `path` durably and at once, as one rename.

    The entries of its folder are durable before: a manifest never outlives its payload's names.
    """
    temporary = path.with_name(TEMPORARY + path.name)
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    flush(temporary, path.parent)
    os.replace(temporary, path)
    flush(path.parent)
