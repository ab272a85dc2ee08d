"""How an export comes into its folder: whole or not at all, and silently."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from waymark.errors import BadInput


@contextmanager
def written(target: Path) -> Iterator[Path]:
    """Yield where to write a file or a folder, which takes the place of `target` at the end.

    What else is in `target`'s folder stays. Raises BadInput where it cannot be written.
    """
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".waymark-") as scratch:
            made = Path(scratch) / target.name
            yield made
            if target.is_dir() and not target.is_symlink():  # which no rename replaces
                os.replace(target, Path(scratch) / "before")
            os.replace(made, target)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written to ({error.strerror or error}).") from None


@contextmanager
def silence(*loggers: str) -> Iterator[None]:
    """Hold back warnings, and what these loggers say of less than an error."""
    with ExitStack() as after, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("tensorflow", "absl", *loggers):
            logger = logging.getLogger(name)
            after.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield


@contextmanager
def mute() -> Iterator[None]:
    """Drop what is written to file descriptors 1 and 2, by C++ as well."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    saved = os.dup(1), os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        for place in (1, 2):
            os.dup2(nowhere.fileno(), place)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for place, before in zip((1, 2), saved, strict=True):
            os.dup2(before, place)
            os.close(before)
