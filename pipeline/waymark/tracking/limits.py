"""What a store of MLflow's takes and gives: names, lengths, numbers, and answers that refuse."""

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from waymark.config.masking import without_password
from waymark.errors import BadInput, first_line
from waymark.tracking.local_store import other_version

NAME_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 8000  # characters: of a name, of values
# What older stores take of a value; of a metric there is no shorter one.
SHORTER = {"params": 500, "tags": 5000}
COUNT = {"metrics": 1000, "params": 100, "tags": 100}  # in one request
SIZE = 900_000  # bytes of one request, of which MLflow takes 1,000,000
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # MLflow's words
STATUSES = (400, 405, 413, 414, 422, 501)  # of HTTP


class Deleted(BadInput):
    """Say that a run or its experiment was deleted in MLflow."""


def is_refusal(error: BaseException) -> bool:
    """Tell whether a store has answered that it will never take what it was sent."""
    if getattr(error, "error_code", None) in REFUSALS:
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = re.search(r"failed with error code (\d+) != ", str(error))
    return (int(said[1]) if said else status) in STATUSES


def param_name(key: str) -> str:
    """Return a key as MLflow takes it: `conv@1` is `conv:40:1`, by the character's number."""
    name = re.sub(r"[^/\w.\- :]", lambda match: f":{ord(match[0]):x}:", key)
    if posixpath.normpath(name) != name or name.startswith("/"):  # MLflow takes it for a path
        name = name.replace("/", ":2f:")
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:8]
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 9]}:{digest}"


def fitted(text: str, most: int) -> str:
    """Return a text as every database takes it, and no longer; a digest tells apart what is cut."""
    text = text.encode(errors="backslashreplace").decode().replace("\0", r"\x00")
    if len(text) <= most:
        return text
    end = f"... ({len(text)} characters, SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:12]})"
    return text[: most - len(end)] + end


def restore_infinity(value: float) -> float:
    """Return a value as it was recorded: MLflow gives infinity back as 1.8e308."""
    return math.copysign(math.inf, value) if abs(value) > 1e300 else value


def params(settings: Mapping[str, str]) -> dict[str, str]:
    """Return settings as params."""
    return {param_name(key): fitted(value, PARAM_LENGTH) for key, value in settings.items()}


def requests(kind: str, items: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield `metrics`, `params` or `tags` in parts that fit into one request each."""
    part: list[Any] = []
    size = 0
    for item in items:
        more = 150 + len(json.dumps([item.key, item.value]))
        if part and (len(part) == COUNT[kind] or size + more > SIZE):
            yield part
            part, size = [], 0
        part.append(item)
        size += more
    if part:
        yield part


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn whatever MLflow, the network or the disk raises into BadInput: `what` (reason)."""
    try:
        yield
    except Exception as error:
        raise BadInput(f"{what} ({reason_of(error)}).") from None


def reason_of(error: BaseException) -> str:
    """Say in a few words what is wrong with a store, without any password."""
    text = str(error)
    revision = re.search(r"found version (\w+)|identified by '(\w+)'", text)
    if revision:
        return other_version(revision[1] or revision[2])
    if "database is locked" in text:
        return "another program has locked it for long"
    if re.search(r"file is not a database|disk image is malformed", text):
        return "it is damaged; move it away, and waymark sync makes its runs from their folders"
    inside = re.search(r"\[Errno -?\d+\] ([^'\")]+)|\(sqlite3\.\w+\) ([^\n]+)|(timed out)", text)
    if inside:  # of a long chain
        return inside[1] or inside[2] or "no answer in time"
    return without_password(first_line(error)) or ""
