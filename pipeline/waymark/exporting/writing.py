"""How an export is written silently."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


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
