"""Where in the user's own code something stands, or came about: file and line."""

import re
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

from waymark.package import FOLDER

OURS = (FOLDER, FOLDER.parent / "hydra_plugins")
PYTHON = Path(sysconfig.get_path("stdlib"))
INSTALLED = {"site-packages", "dist-packages"}
FRAME = re.compile(r'File "([^"\n]+)", line (\d+)')  # in what TensorFlow says


def defined(function: Callable[..., Any]) -> str:
    """Return in brackets where a user's own function stands, nothing of another one."""
    code = getattr(function, "__code__", None)
    return _shown([(code.co_filename, code.co_firstlineno)]) if code else ""


def place(error: BaseException) -> str:
    """Return in brackets file and line of the user's code in which an error came about.

    An operation fails far from there: then it is in the message, where it was defined.
    """
    named = [(name, int(line)) for name, line in FRAME.findall(str(error))]
    frames = traceback.extract_tb(error.__traceback__)
    return _shown(named) or _shown([(frame.filename, frame.lineno or 0) for frame in frames])


def _shown(frames: Sequence[tuple[str, int]]) -> str:
    """Return the innermost of the user's frames; what calls Waymark is not in question."""
    called = list(dropwhile(lambda frame: not _is_ours(frame[0]), frames)) or frames
    for name, line in reversed(called):
        if _is_users(name):
            path, here = Path(name), Path.cwd()
            shown = path.relative_to(here) if path.is_relative_to(here) else path
            return f" ({shown}, line {line})"
    return ""


def _is_ours(name: str) -> bool:
    return any(map(Path(name).is_relative_to, OURS))


def _is_users(name: str) -> bool:
    path = Path(name)
    foreign = path.is_relative_to(PYTHON) or INSTALLED & set(path.parts)
    generated = name.startswith("<") or "__autograph_generated_file" in name
    return not (foreign or generated or _is_ours(name))
