"""Errors that are one sentence for the user: escaped, without secrets, with their place."""

import re
from collections.abc import Sequence

from waymark.users_code import place

SHORTEST = 4  # characters of a secret that is looked for in error messages

_known: dict[str, str] = {}  # texts with a secret in them that this process has read -> masked


def without_secrets(text: str) -> str:
    """Return a message, not a setting, with the secrets masked that this process has read."""
    for known in sorted(_known, key=len, reverse=True):
        text = text.replace(known, _known[known])
    return text


def remember_secret(text: str, mask: str) -> None:
    """Let messages of this process hold `mask` where a text stands that holds a secret."""
    if len(text) >= SHORTEST and text != mask:
        _known[text] = mask


def printable(text: object) -> str:
    """Return a text without secrets, in which is escaped what a terminal would act on."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in without_secrets(str(text)))


class UserMessage(Exception):
    """One sentence for the user, printable and without secrets."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))

    def _render_traceback_(self) -> list[str]:
        """Return the lines that a notebook shows: the sentence, without a traceback."""
        return [f"{type(self).__name__}: {self}"]


class BadInput(UserMessage):
    """Say in one sentence what is wrong with what the user gave; the command exits 2."""


class Failed(UserMessage):
    """Say in one sentence why the work failed; the command exits 1."""


# What stands before the reason in errors of TensorFlow, AutoGraph and Keras, and their tracebacks.
HEADING = re.compile(
    r"Graph execution error:|Detected at node |<stack traces|\d+ root error"
    r"|in user code:|Exception encountered when calling |\s"
)


def listed(words: Sequence[str]) -> str:
    """Return words as they stand in a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's reason, without secrets; its kind if it says nothing."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()  # Keras prints in bold
    text = re.sub(r"(?m)^ {2}(?=\(\d+\) )|^ {4}(?=\S*(Error|Exception): )", "", text)
    lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    said = [line for line in lines if not HEADING.match(line)]
    return without_secrets(re.sub(r"^\(\d+\) [A-Z_]+: +", "", (said or lines)[0]))


def explain(error: BaseException) -> str:
    """Return an error's kind, what it says, and the place in the user's code, if it comes there."""
    if isinstance(error, UserMessage):
        return str(error)
    said, kind = first_line(error), type(error).__name__
    known = said == kind or re.match(r"\w+(Error|Exception): ", said)
    return f"{said if known else f'{kind}: {said}'}{place(error)}"
