"""Start TensorFlow: quiet, with a fixed number of threads, with the settings that a run needs."""

import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from waymark.errors import BadInput
from waymark.processes import process_state
from waymark.processes.process_state import collecting_later, same_environment, set_variable

# What TensorFlow's C++ start-up writes to file descriptor 2 whatever TF_CPP_MIN_LOG_LEVEL says.
NOISE = re.compile(
    rb"WARNING: All log messages before absl|[IWE]\d{4} \d\d:\d\d:|To enable the following instr"
)

_forked = False  # from a process that had imported TensorFlow, whose threads are not here


def _after_fork() -> None:
    global _forked
    _forked = "tensorflow" in sys.modules


os.register_at_fork(after_in_child=_after_fork)


class NeedsNewProcess(BadInput):
    """Say why TensorFlow, as this process has it, would not compute what it should."""


def start_tensorflow(intra_op_threads: int, deterministic: bool = False) -> Any:
    """Import TensorFlow and fix its intra-op threads and op determinism; return the module.

    The bits of a result depend on both, and TensorFlow takes them once per process. Raises
    NeedsNewProcess as `check_tensorflow` does.
    """
    check_tensorflow(intra_op_threads, deterministic)
    if "tensorflow" in sys.modules and _is_running():
        return sys.modules["tensorflow"]
    tf = _import_quietly()
    with quiet():
        tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads)
        if deterministic:
            tf.config.experimental.enable_op_determinism()
        tf.config.list_logical_devices()  # starts the devices, with the noise they make
    return tf


def import_tensorflow() -> None:
    """Import TensorFlow while there is time for it; its start is to follow."""
    if "tensorflow" not in sys.modules:
        _import_quietly()


def start_if_imported(intra_op_threads: int, deterministic: bool = False) -> None:
    """Start TensorFlow, if it is imported, before anything else computes; raise NeedsNewProcess."""
    start = start_tensorflow if "tensorflow" in sys.modules else check_tensorflow
    start(intra_op_threads, deterministic)


def check_tensorflow(intra_op_threads: int, deterministic: bool = False) -> None:
    """Raise NeedsNewProcess if this process has TensorFlow otherwise than a run needs it.

    Op determinism is not turned on in a caller's process: it would stay on for the caller's work.
    """
    if _forked:
        raise NeedsNewProcess("TensorFlow does not outlive the fork that made this process.")
    if deterministic and not process_state.command_line:
        raise NeedsNewProcess("runtime.deterministic=true: op determinism is for a whole process.")
    if "tensorflow" not in sys.modules:
        return
    import tensorflow as tf
    from tensorflow.python.framework import ops

    if not (tf.executing_eagerly() and tf.compat.v1.executing_eagerly_outside_functions()):
        raise NeedsNewProcess("TensorFlow does not execute eagerly in this process.")
    options = tf.config.optimizer
    with quiet():  # it looks for devices
        changed = {  # what changes bits, and can be changed late
            "run_functions_eagerly set": tf.config.functions_run_eagerly(),
            "NumPy's types enabled": ops.is_auto_dtype_conversion_enabled(),
            "control flow of version 1": not tf.compat.v1.control_flow_v2_enabled(),
            "XLA's JIT set": options.get_jit(),
            "graph optimizations changed": any(options.get_experimental_options().values()),
        }
    found = [name for name, is_changed in changed.items() if is_changed]
    if found:
        raise NeedsNewProcess(f"TensorFlow in this process has {found[0]}.")
    _check_determinism(deterministic)
    usual = _default_threads() if _is_running() else intra_op_threads
    threads = tf.config.threading.get_intra_op_parallelism_threads() or usual  # 0: never set
    if threads != intra_op_threads:
        raise NeedsNewProcess(
            f"runtime.intra_op_threads={intra_op_threads}: "
            f"TensorFlow in this process has {threads} threads."
        )


def _check_determinism(deterministic: bool) -> None:
    """Raise NeedsNewProcess unless op determinism is as it must be, or can still be turned on."""
    from tensorflow.python.framework.config import is_op_determinism_enabled

    asked = os.environ.get("TF_DETERMINISTIC_OPS", "").lower() in ("1", "true")  # TensorFlow itself
    needed, enabled = deterministic or asked, is_op_determinism_enabled()
    if needed != enabled and (enabled or _is_running()):
        raise NeedsNewProcess(
            f"runtime.deterministic={str(deterministic).lower()}: TensorFlow in this process has "
            f"op determinism {'enabled' if enabled else 'disabled'}."
        )


def _is_running() -> bool:
    """Tell whether TensorFlow has begun to compute here: its threads are fixed from then on."""
    from tensorflow.python.eager import context

    return bool(context.context()._initialized)


def _default_threads() -> int:
    """Return how many threads TensorFlow takes where none are asked for."""
    given = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _import_quietly() -> Any:
    """Import TensorFlow, which sets variables of the environment.

    The command line spares itself half of it, Keras, which no model here uses. Whoever imports
    it later gets it, `tensorflow.keras` as well.
    """
    set_variable("TF_CPP_MIN_LOG_LEVEL", "2")  # errors; it warns of what it raises, too
    eager = "keras.src.optimizers"  # through which TensorFlow imports it, without a use for it
    skipped = process_state.command_line and not {"tensorflow", "keras"} & sys.modules.keys()
    with quiet(), same_environment(), collecting_later() if skipped else nullcontext():
        if skipped:
            sys.modules[eager] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("tensorflow")
        finally:
            if skipped:
                del sys.modules[eager]


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
            os.write(2, b"".join(line for line in held if not NOISE.match(line)))
