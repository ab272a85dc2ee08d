"""Keras, where a model or an optimizer asks for it; nothing else in Waymark imports it."""

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from waymark.errors import BadInput
from waymark.processes.process_state import same_environment

T = TypeVar("T")


def import_keras() -> Any:
    """Import Keras and return it; raise BadInput for another backend than TensorFlow."""
    if "keras" not in sys.modules:
        _refuse(_configured_backend())
    with same_environment():
        import keras
    _refuse(keras.config.backend())
    if keras.config.floatx() != "float32":
        raise BadInput(
            f"Keras's floatx is {keras.config.floatx()!r}: Waymark's parameters are float32; "
            f"precision=mixed_bfloat16 computes in less."
        )
    return keras


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
        return str(json.loads((Path(folder) / "keras.json").read_text()).get("backend"))
    return "tensorflow"
