"""What went wrong, in one line: the kind of an error, its reason, its place in the user's code."""

import re

from waymark.config.settings import Sentence, first_line
from waymark.users_code import place


def explained(error: BaseException) -> str:
    """Return an error's kind, what it says, and the place in the user's code, if it comes there."""
    if isinstance(error, Sentence):
        return str(error)
    said, kind = first_line(error), type(error).__name__
    known = said == kind or re.match(r"\w+(Error|Exception): ", said)
    return f"{said if known else f'{kind}: {said}'}{place(error)}"


class Failed(Sentence):
    """Say in one sentence why the work failed; the command exits 1."""
