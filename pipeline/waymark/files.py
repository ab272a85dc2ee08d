"""Files that are complete or not there, and stay when the machine stops."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from waymark.errors import BadInput

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


@contextmanager
def writes(folder: Path) -> Iterator[None]:
    """Raise BadInput where what is written into a folder cannot be."""
    try:
        yield
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written to ({error.strerror or error}).") from None


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield where to write a file or a folder, which takes the place of `target` at the end.

    What else is in `target`'s folder stays; a file takes no folder's place. Raises BadInput where
    it cannot be written.
    """
    folder = target.parent
    with ExitStack() as stack:
        with writes(folder):
            folder.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".waymark-")
            made = Path(stack.enter_context(scratch)) / target.name
        yield made
        with writes(folder):
            _replace(made, target, made.with_name("before"))


def _replace(made: Path, target: Path, before: Path) -> None:
    """Rename `made` to `target`; a folder there, which no rename replaces, becomes `before`."""
    if not made.is_dir() or not target.is_dir() or target.is_symlink():
        os.replace(made, target)
        return
    try:
        os.replace(target, before)
        os.replace(made, target)
    except BaseException:  # a signal's as well
        if before.exists() and not target.exists():
            os.replace(before, target)
        raise
