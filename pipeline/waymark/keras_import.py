"""Keras, where a model or an optimizer asks for it; nothing else in Waymark imports it."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from waymark.errors import BadInput
from waymark.processes import process_state
from waymark.processes.process_state import same_environment

T = TypeVar("T")

# Those that a model is built and computed by, and what their values may be.
SETTINGS: Mapping[str, Callable[[Any], bool]] = {
    "floatx": lambda value: value == "float32",
    "image_data_format": lambda value: value in ("channels_last", "channels_first"),
    "epsilon": lambda value: isinstance(value, float) and 0 < value < 1,
}


def import_keras(floatx: bool = True) -> Any:
    """Import Keras and return it; raise BadInput for another backend than TensorFlow.

    So is another `floatx` than float32 refused, unless that is still to be set.
    """
    if "keras" not in sys.modules:
        _refuse(_configured_backend())
    with same_environment():
        import keras
    _refuse(keras.config.backend())
    if floatx and keras.config.floatx() != "float32":
        raise BadInput(
            f"Keras's floatx is {keras.config.floatx()!r}: Waymark's parameters are float32; "
            f"precision=mixed_bfloat16 computes in less."
        )
    return keras


def use_recorded_settings(facts: object) -> None:
    """Set Keras's settings as a run's environment.json, `facts`, has them; say what was otherwise.

    They are taken back with all else that this work changes.
    """
    recorded = facts.get("keras") if isinstance(facts, Mapping) else None
    if not isinstance(recorded, Mapping):
        return
    recorded = {"floatx": "float32", **recorded}  # which records did not tell once
    keras = import_keras(floatx=False)
    for name, allowed in SETTINGS.items():
        value, now = recorded.get(name), getattr(keras.config, name)()
        if value != now and allowed(value):
            change = getattr(keras.config, f"set_{name}")
            change(value)
            process_state.on_taking_back(partial(change, now))
            said = f"Keras's {name} is {value}, as recorded, and not {now}"
            print(f"waymark: {said}", file=sys.stderr)


def named_afresh(build: Callable[[], T]) -> T:
    """Return what a function builds of Keras's parts, named as if nothing had been built before.

    Keras counts its names, and keeps its policy of dtypes, by thread: in one of its own they depend
    on nothing that was built before, and change nothing of what the user builds later.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(build).result()


def _refuse(backend: str) -> None:
    if backend != "tensorflow":
        raise BadInput(
            f"Keras's backend is {backend!r} (KERAS_BACKEND, or keras.json in Keras's folder): "
            f"Waymark trains with tensorflow."
        )


def _configured_backend() -> str:
    """Return the backend that Keras would take, which it imports at once."""
    if given := os.environ.get("KERAS_BACKEND"):
        return given
    folder = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    with suppress(OSError, ValueError, AttributeError):
        given = json.loads((Path(folder) / "keras.json").read_text())
        return str(given.get("backend", "tensorflow"))
    return "tensorflow"
