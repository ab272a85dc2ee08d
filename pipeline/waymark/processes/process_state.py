"""What Waymark changes in its process; a function of the library takes it back at its end."""

import gc
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

command_line = False  # the process is Waymark's own, and no caller's

_lock = threading.Lock()
_calls = 0  # of the library's functions, that go on now
_undo = ExitStack()


def set_variable(name: str, value: str) -> None:
    """Set a variable of the environment unless the user has."""
    if name not in os.environ:
        os.environ[name] = value
        _undo.callback(os.environ.pop, name, None)


def set_level(name: str, level: int) -> None:
    """Set the level of a logger."""
    logger = logging.getLogger(name)
    if logger.level != level:
        _undo.callback(logger.setLevel, logger.level)
        logger.setLevel(level)


def on_taking_back(undo: Callable[[], object]) -> None:
    """Let something be called when what is changed now is taken back."""
    _undo.callback(undo)


@contextmanager
def taken_back() -> Iterator[None]:
    """Take back what is changed meanwhile; of calls that overlap the last one does."""
    global _calls, _undo
    with _lock:
        if not _calls:
            _undo = ExitStack()
            _undo.enter_context(warnings.catch_warnings())  # packages that are imported add to them
        _calls += 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if not _calls:
                _undo.close()


def in_notebook() -> bool:
    """Tell whether this process is a notebook's kernel."""
    found = sys.modules.get("IPython")
    return hasattr(found and found.get_ipython(), "kernel")


@contextmanager
def same_environment() -> Iterator[None]:
    """Take back at once what a package that is imported meanwhile sets in the environment."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def collecting_later() -> Iterator[None]:
    """Search for no garbage while packages are imported: nothing of what they make is any.

    For a process that is Waymark's own: what is there at the end is never searched again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
