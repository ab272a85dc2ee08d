"""The program of the delivery process: it speaks to MLflow for the process that trains.

    python -P -m waymark.tracking.delivery_process DESCRIPTOR PROCESS

A process that trains (PROCESS is its number) starts it in `remote_store`, with a socket as its
only descriptor, and asks by that; what is asked and answered is in `DeliveryServer`. It ends when
the other one does, or after a minute without work.
"""

import gc
import io
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from waymark import plots
from waymark.errors import BadInput
from waymark.tracking import finder, history, parent_run, pictures  # noqa: F401  (questions)
from waymark.tracking.delivery import Delivery, DeliveryStatus
from waymark.tracking.limits import Deleted, reason_of
from waymark.tracking.liveness import DELIVERY_END_S
from waymark.tracking.lock import RunLocked
from waymark.tracking.opening import import_mlflow, open_store
from waymark.tracking.outbox import Outbox
from waymark.tracking.questions import PRINT, STATUS, Opening, StoreError
from waymark.tracking.recovery import deliver_outbox, mark_dead_runs_killed
from waymark.tracking.runs import RunRecord, mark_delivered
from waymark.tracking.store import RunStore

SEND_INTERVAL_S = 1.0  # between two sendings
RETRY_INTERVAL_S = 0.5
IDLE_S = 60.0  # without work, after which the process ends
NICENESS = 5  # of this process, whose work is never urgent, to the one that trains
STORES = 8  # that are kept open


class RunDelivery:
    """The delivery of one run that the other process trains, until its end has arrived."""

    def __init__(
        self, store: RunStore, record: RunRecord, new: bool, at_once: bool, system_metrics: bool
    ) -> None:
        """Begin it; deliver `at_once`, or raise RunLocked if another process has taken the run."""
        self.delivery = Delivery(store, record, new)
        self.delivery.training = True
        self.end: tuple[str, int] | None = None  # status and time (ms), once the run has ended
        self.due = 0.0  # the next try, by the monotonic clock
        self.store, self._system_metrics = store, system_metrics
        self._monitor: Any = None
        self._looked = not store.server
        self._error: Exception | None = None  # of the last try
        self.ended = ""  # the status at the end, once the store has it
        if at_once:
            self.delivery.deliver()
            if self.delivery.owner:
                raise RunLocked(f"run {record.id}: another process has taken it meanwhile.")

    @property
    def status(self) -> DeliveryStatus:
        """Return what the process that trains hears."""
        error = self._error
        deleted = isinstance(error, Deleted)
        return replace(
            self.delivery.status,
            error=reason_of(error) if error else "",
            ended=bool(self.ended),
            deleted=deleted,
        )

    def step(self) -> bool:
        """Send what is waiting; tell whether all of a run that has ended has arrived.

        The pictures of a run that has ended are a step of their own, the last one.
        """
        try:
            self.delivery.deliver()
            if not self._looked:
                mark_dead_runs_killed(self.store)
                self._looked = True
            self._watch_machine()
            self._error = None
            self.due = time.monotonic() + SEND_INTERVAL_S * self.delivery.connected
            if not self.end:
                plots.prepare()
            elif self.delivery.complete:
                self.due = 0.0
                return self._complete(*self.end)
        except Exception as error:  # whatever it is, training goes on and the outbox keeps
            self._error = error
            self.due = time.monotonic() + RETRY_INTERVAL_S
        return False

    def _complete(self, status: str, at: int) -> bool:
        """End a run of which the store has all else; draw it; tell whether it is complete."""
        delivery = self.delivery
        if not self.ended:
            self.ended = delivery.close(status, at)
            delivery.training = False
            return False
        if pictures.draw(delivery.info.folder) and delivery.info.remote:
            delivery.changed = True
            return False
        box = Outbox(delivery.info.outbox)
        try:
            mark_delivered(box, delivery.info, self.ended)
        finally:
            box.close()
        return True

    def stop_monitor(self) -> None:
        """Measure CPU and memory no more."""
        if self._monitor:
            self._monitor.finish()
            self._monitor = None

    def _watch_machine(self) -> None:
        """Let MLflow measure CPU and memory as long as the run is the trainer's."""
        if self.delivery.owner or self.end:
            self.stop_monitor()
        elif self._system_metrics and not self._monitor:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(
                self.delivery.info.id, resume_logging=True, tracking_uri=self.store.uri
            )
            self._monitor.start()


class DeliveryServer:
    """Answers one process that trains, and delivers its runs between two questions.

    A message to it is (number, name of a method, arguments); to a number other than None it
    answers with (number, result, None) or (number, None, what was raised). What it tells
    unasked is (STATUS, run, its DeliveryStatus) and (PRINT, text, None).
    """

    def __init__(self, descriptor: int, parent: int) -> None:
        self._parent = parent  # the number of the process that trains
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._connection = Connection(descriptor)
        self._runs: dict[int, RunDelivery] = {}  # by the number of the question that began it
        self._locks: dict[int, int] = {}  # the descriptors of their locks
        self._ends: dict[int, int] = {}  # run -> the question that waits for its end
        self._sent: dict[int, Any] = {}
        self._nice = False
        self._openings: dict[int, Opening] = {}
        self._current: Opening | None = None
        self._made: set[int] = set()  # stores with a new run that is not tracked yet
        self._stores: dict[int, RunStore] = {}

    def serve(self) -> None:
        """Answer and deliver until the other process has ended, or there is no work."""
        while True:
            now = time.monotonic()
            wait = min((run.due - now for run in self._runs.values()), default=IDLE_S)
            try:
                if self._connection.poll(max(0.0, wait)):
                    self._handle(*self._connection.recv())
                elif not self._runs:
                    return self.close()
                self._deliver()
            except (EOFError, OSError):  # of the connection: all others are answers
                return self._end_alone()

    def _handle(self, number: int | None, name: str, *arguments: Any) -> None:
        methods: dict[str, Callable[..., Any]] = {
            "open": self.open,
            "answer": self.answer,
            "track": self.track,
            "changed": self.changed,
            "set_tags": self.set_tags,
            "finish": self.finish,
        }
        first = [number] if name in ("track", "finish") else []
        try:
            result = methods[name](*first, *arguments)
        except Exception as error:
            if number is not None:
                self._tell(number, None, _portable(error))
        else:
            if number is not None and name != "finish":
                self._tell(number, result, None)

    def _parent_is_gone(self) -> bool:
        return os.getppid() != self._parent

    def print(self, text: str) -> None:
        """Let the other process print on standard error."""
        self._tell(PRINT, text, None)

    def _tell(self, *message: Any) -> None:
        self._connection.send(message)

    def open(self, key: int, opening: Opening) -> None:
        """Note how a store is opened, at the first question to it."""
        last = next(reversed(self._openings.values()), None)
        same = opening == last  # as for the trials of a sweep: one copy serves all
        self._openings[key] = last if same and last else opening

    def _store(self, key: int) -> RunStore:
        """Return an open store, and be as the process that trains is when it asks."""
        opening = self._openings[key]
        if opening is not self._current:
            self._current = opening
            os.umask(opening.umask)
            if opening.environment != os.environ:
                os.environ.clear()
                os.environ.update(opening.environment)
                import_mlflow()  # which has defaults there
            with suppress(OSError):
                os.chdir(opening.folder)
        if key not in self._stores:
            while len(self._stores) >= STORES:
                del self._stores[next(iter(self._stores))]
            self._stores[key] = open_store(opening.uri, opening.create, opening.reading)
        return self._stores[key]

    def answer(self, key: int, question: str, arguments: Any, named: Any) -> Any:
        """Answer a question to a store, unless nobody waits for the answer any more."""
        if self._parent_is_gone():
            raise EOFError
        store = self._store(key)
        if question.endswith(".create"):
            self._made.add(key)
        return store.answer(question, *arguments, **named)

    def track(self, number: int, key: int, record: RunRecord, *how: bool) -> DeliveryStatus:
        """Begin to deliver a run, whose lock follows as a descriptor."""
        (lock,) = socket.recv_fds(self._socket, 1, 1)[1]
        try:
            run = RunDelivery(self._store(key), record, *how)
        except BaseException:
            os.close(lock)
            raise
        self._runs[number], self._locks[number] = run, lock
        run.delivery.created = lambda _: self._tell_status(number)  # a command waits for its id
        self._made.discard(key)
        return run.status

    def changed(self, run: int, files: bool) -> None:
        """Look at once into a run's outbox, and at its `files` if they are other ones now."""
        if run in self._runs:
            self._runs[run].due = 0.0
            self._runs[run].delivery.changed |= files

    def set_tags(self, run: int, tags: Mapping[str, str]) -> None:
        """Send tags that the disk did not take."""
        if run in self._runs:
            self._runs[run].delivery.set_tags(tags)

    def finish(self, number: int, run: int, status: str, end: int) -> None:
        """End a run as soon as all has been sent; the answer comes when it has arrived."""
        self._runs[run].end, self._ends[run] = (status, end), number
        self._runs[run].stop_monitor()
        self._runs[run].due = 0.0

    def _deliver(self) -> None:
        """Deliver the runs for which it is time."""
        for number, run in list(self._runs.items()):
            late = run.ended and self._connection.poll()  # its pictures can wait
            if late or run.due > time.monotonic():
                continue
            arrived = run.step()
            if not self._nice:  # until then the other process waits
                self._nice = bool(os.nice(NICENESS))
            status = self._tell_status(number)
            if number in self._ends and (arrived or status.deleted):
                run.stop_monitor()
                del self._runs[number], self._sent[number]
                os.close(self._locks.pop(number))
                self._tell(self._ends.pop(number), None if arrived else status.error, None)

    def _tell_status(self, number: int) -> DeliveryStatus:
        """Return how a delivery stands, and tell it if that is new."""
        status, known = self._runs[number].status, id(self._runs[number].delivery.learned)
        new = replace(status, learned=None), known  # another object when there is more
        if new != self._sent.get(number):
            self._sent[number] = new
            self._tell(STATUS, number, status)
        return status

    def close(self) -> None:
        """Let go of the other process, and of its runs."""
        for run in self._runs.values():
            run.stop_monitor()
        for lock in self._locks.values():
            os.close(lock)
        self._runs, self._locks = {}, {}
        self._socket.close()
        self._connection.close()

    def _end_alone(self) -> None:
        """Deliver what is left of runs whose process is gone; they are KILLED unless they ended."""
        if not (self._runs or self._made):
            return
        threading.Thread(target=_exit_late, daemon=True).start()
        while not self._parent_is_gone():  # it closes its files before it has ended
            time.sleep(0.02)
        for run in self._runs.values():
            run.stop_monitor()
        for lock in self._locks.values():
            os.close(lock)
        left = list(self._runs.values())
        while left:
            run = left.pop()
            end = run.end or ("KILLED", time.time_ns() // 1_000_000)
            try:
                deliver_outbox(run.store, run.delivery.info, end)
            except BadInput:  # it was deleted, or another process has it, which delivers
                continue
            except Exception:
                left.insert(0, run)
                time.sleep(RETRY_INTERVAL_S)
        for key in self._made:
            with suppress(Exception):
                mark_dead_runs_killed(self._store(key))


def _exit_late() -> None:
    time.sleep(DELIVERY_END_S)
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """Return an error as the other process can have it, which knows no class of MLflow's."""
    if type(error).__module__.startswith("waymark."):
        with suppress(Exception):
            return pickle.loads(pickle.dumps(error))
    return StoreError(reason_of(error))


class _Printer(io.TextIOBase):
    """Standard error of this process, whose text the other one prints."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._tell(text)
        return len(text)


def main() -> NoReturn:
    """Serve by the socket whose descriptor is the program's argument, and end the process."""
    gc.set_threshold(100_000, 50, 100)  # MLflow makes a million objects, none of them garbage
    server = DeliveryServer(*map(int, sys.argv[1:]))
    sys.stderr = sys.stdout = _Printer(server.print)
    import_mlflow()
    try:
        server.serve()
    finally:
        os._exit(0)  # taking MLflow down piece by piece would take a second


if __name__ == "__main__":
    main()
