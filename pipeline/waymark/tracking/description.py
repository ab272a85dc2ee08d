"""A run's description in MLflow: Markdown, of which only what Waymark wrote is written over.

It ends with a comment, which MLflow does not show, that holds the text's checksum: what a person
has typed, added or taken away is told from what stood there.
"""

import re
import zlib
from collections.abc import Mapping

from waymark.errors import printable
from waymark.names import DESCRIPTION
from waymark.table import elided
from waymark.tracking.limits import SHORTER, fitted

MOST = SHORTER["tags"] - 50  # characters of a description, beside the checksum
LONGEST = 300  # characters of a text that may be of any length, as a reason
_SIGNED = re.compile(r"(.*)\n\n<!-- waymark ([0-9a-f]{8}) -->", re.DOTALL)


def signed(*lines: str) -> str:
    """Return the description of these paragraphs, lists or tables, known as Waymark's."""
    text = fitted("\n\n".join(filter(None, lines)), MOST)
    return f"{text}\n\n<!-- waymark {_checksum(text)} -->"


def without_typed_over(new: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    """Return new tags of a run, without the description if a person wrote what is `there`."""
    before = there.get(DESCRIPTION)
    typed = before is not None and not is_signed(before)
    return {key: text for key, text in new.items() if not (typed and key == DESCRIPTION)}


def is_signed(text: str) -> bool:
    """Tell whether a description is as Waymark wrote it."""
    found = _SIGNED.fullmatch(text.replace("\r\n", "\n"))
    return found is not None and found[2] == _checksum(found[1])


def escaped(text: str, most: int = LONGEST) -> str:
    """Return a text in one line, of so many characters, that means nothing in Markdown or HTML."""
    line = elided(printable(" ".join(text.split())), most)
    line = re.sub(r"([\\`*_{}\[\]|~#$>])", r"\\\1", line.replace("&", "&amp;"))
    return re.sub(r"^(\d*)([-+.)])", r"\1\\\2", line).replace("<", "&lt;")  # no list begins


def code(command: str) -> str:
    """Return a command line, of several lines if need be, as Markdown that shows it as it is."""
    fence = "`" * (1 + max(map(len, re.findall("`+", command)), default=0))
    if "\n" in command:
        fence = fence.ljust(3, "`")
        return f"{fence}\n{command}\n{fence}"
    space = " " * (fence != "`")
    return f"{fence}{space}{command}{space}{fence}"


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode(errors='backslashreplace')):08x}"
