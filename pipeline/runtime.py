"""Start TensorFlow: quiet, without Keras, with a fixed number of threads."""

import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What TensorFlow's C++ start-up writes to file descriptor 2 whatever TF_CPP_MIN_LOG_LEVEL says.
NOISE = re.compile(
    rb"WARNING: All log messages before absl|[IWE]\d{4} \d\d:\d\d:|To enable the following instr"
)


def start_tensorflow(intra_op_threads: int) -> Any:
    """Import TensorFlow and fix its intra-op threads; return the module.

    The bits of a result depend on this number, and TensorFlow takes it once per process.
    Raises RuntimeError if this process already runs with another number.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors; it warns of what it raises, too
    with quiet():
        if "tensorflow" not in sys.modules and "keras" not in sys.modules:
            # Half of the import is Keras, which no model here uses; TensorFlow tolerates its
            # absence. Whoever imports it later gets it.
            sys.modules["keras"] = None  # type: ignore[assignment]
            try:
                importlib.import_module("tensorflow")
            finally:
                del sys.modules["keras"]
        import tensorflow as tf

        if tf.config.threading.get_intra_op_parallelism_threads() != intra_op_threads:
            try:
                tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads)
            except RuntimeError:
                now = tf.config.threading.get_intra_op_parallelism_threads() or "all"
                raise RuntimeError(
                    f"runtime.intra_op_threads={intra_op_threads}: this process already runs "
                    f"TensorFlow with {now} threads; use a new process."
                ) from None
        tf.config.list_logical_devices()  # starts the devices, with the noise they make
    return tf


def can_start(intra_op_threads: int) -> bool:
    """Tell whether this process can run TensorFlow with so many threads."""
    if "tensorflow" not in sys.modules:
        return True
    try:
        start_tensorflow(intra_op_threads)
    except RuntimeError:
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what is written to file descriptor 2; pass on what is not TensorFlow's noise."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            rest = b"".join(line for line in held if not NOISE.match(line))
            os.write(2, rest)
