"""Stop at a signal: the first asks the work to end in good order, the second ends at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from types import FrameType
from typing import Any, ClassVar, TypeVar

from waymark.processes.process_state import in_notebook

POLL_INTERVAL_S = 1.0  # between two looks whether the process that started this one is alive
T = TypeVar("T")
# By SIGUSR2 Slurm and submitit say that a job's time will be up in a moment.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)


@contextmanager
def handling(numbers: Iterable[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let `handler` have some signals while the context lasts.

    SIGHUP stays ignored where it is, as for a job of `nohup`. Outside the main thread, where
    Python sets no handler, nothing changes.
    """
    old: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            before = signal.getsignal(number)
            hup = number == signal.SIGHUP and before == signal.SIG_IGN
            if before is not None and not hup:  # None: it was not set by Python
                old[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def end_with_parent(first: Callable[[], object]) -> None:
    """When the process that started this one is gone, call `first` and end by SIGTERM."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_INTERVAL_S)
        first()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


class Interrupted(Exception):
    """The work ended early because of a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number

    def _render_traceback_(self) -> list[str]:
        """Return the lines that a notebook shows: the sentence, without a traceback."""
        return [str(self)]

    def __reduce__(self) -> Any:
        return Interrupted, (self.status - 128,)


class GracefulShutdown:
    """Note a signal while the context lasts; end the process unless `can_finish_gracefully`.

    No Python signal handler runs while the main thread is inside a TensorFlow call: so long work
    runs on a worker thread, and the main thread only waits.
    """

    last_signal: ClassVar[int | None] = None  # of this process, seen by work or come after it

    def __init__(self) -> None:
        self.signal: int | None = None
        self.can_finish_gracefully = False  # there is something to be ended in good order
        self._handling = handling(SIGNALS, self._handle)

    def __enter__(self) -> "GracefulShutdown":
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__(None, None, None)

    def signalled(self) -> bool:
        """Tell whether a signal has come."""
        return self.signal is not None

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.signal is not None:
            raise Interrupted(self.signal)

    def run(self, work: Callable[[], T]) -> T:
        """Do `work` on a worker thread; return its result or raise what it raised."""
        with ThreadPoolExecutor(1, thread_name_prefix="work") as pool:
            future = pool.submit(copy_context().run, work)
            # A signal that the system gives to another thread does not wake this one.
            while not wait([future], timeout=0.2).done:
                pass
            return future.result()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        kernel = number == signal.SIGINT and in_notebook()  # which the end would take along
        if kernel and self.signal is not None:
            return
        if kernel and not self.can_finish_gracefully:
            raise KeyboardInterrupt
        if self.signal is not None or not self.can_finish_gracefully:
            os._exit(128 + number)
        self.signal = GracefulShutdown.last_signal = number
        name = signal.Signals(number).name
        more = "" if kernel else "; once more stops at once"
        print(f"\n{name}: stopping after this step{more}", file=sys.stderr)
