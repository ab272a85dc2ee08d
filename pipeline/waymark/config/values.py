"""Nested plain values: flat, as JSON, and the nearest of their names."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON that every reader takes: NaN and infinities stand in it as texts."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=indent, allow_nan=False)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; the nearest is X' for the known name closest to `word`, or nothing."""
    known, (parent, _, last) = list(known), word.rpartition(".")
    tails = [name for name in known if name.rpartition(".")[2] == last]
    siblings = [n.rpartition(".")[2] for n in known if parent and n.rpartition(".")[0] == parent]
    if siblings and not tails:
        short = [n for n in siblings if last == "".join(w[:1] for w in n.split("_"))]  # as lr
        close = short or difflib.get_close_matches(last, siblings, 1, 0.25)
        close = [f"{parent}.{name}" for name in close]
    else:
        close = tails or difflib.get_close_matches(word, known, n=1)
    return f"; the nearest is {close[0]}" if close else ""
