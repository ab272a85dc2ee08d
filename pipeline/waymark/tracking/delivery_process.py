"""The program of the delivery process: it speaks to MLflow for the process that trains.

    python -P -m waymark.tracking.delivery_process DESCRIPTOR PROCESS

`remote_store` starts it for the process whose number is PROCESS, with a socket as its only
descriptor. It ends when the other one does, or after a minute without work.
"""

import gc
import io
import os
import pickle
import socket
import sys
import threading
import time
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from waymark.errors import BadInput
from waymark.plots import style
from waymark.processes.process_state import collecting_later
from waymark.tracking import (  # noqa: F401  (questions)
    finder,
    history,
    logged_models,
    parent_run,
    pictures,
    registry,
    scoring_server,
)
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

SEND_INTERVAL_S, MAX_SEND_INTERVAL_S = 1.0, 10.0  # between two sendings: at first, and later
RETRY_INTERVAL_S = 0.5
IDLE_S = 60.0  # without work, after which the process ends
NICENESS = 5  # of this process, whose work is never urgent, to the one that trains
STORES = 8  # that are kept open


class RunDelivery(Delivery):
    """The delivery of one run that the other process trains, until its end has arrived."""

    def __init__(
        self, store: RunStore, record: RunRecord, lock: int, new: bool, at_once: bool, watch: bool
    ) -> None:
        """Begin it; deliver `at_once`, or raise RunLocked if another process has taken the run.

        `lock` is the descriptor of the run's lock, which `let_go` closes; `watch`: CPU and memory.
        """
        super().__init__(store, record, new)
        self.training = True
        self.end: tuple[str, int] | None = None  # status and time (ms), once the run has ended
        self.due = 0.0  # the next try, by the monotonic clock
        self._pause = SEND_INTERVAL_S  # until the next sending but one
        self.told: Any = None  # its last status that the other process was told
        self._lock, self._watch = lock, watch
        self._monitor: Any = None
        self._looked = not store.server
        self._error: Exception | None = None  # of the last try
        self.ended = ""  # the status at the end, once the store has it
        self._arrived = False  # all of a run that has ended
        if at_once:
            self.deliver()
            if self.owner:
                raise RunLocked(f"run {record.id}: another process has taken it meanwhile.")

    @property
    def status(self) -> DeliveryStatus:
        """Return what the process that trains hears."""
        error = self._error
        deleted = isinstance(error, Deleted)
        known = self.info, self.connected, self.refusals(), self.learned
        done = self._arrived or (deleted and self.end is not None)
        reason = reason_of(error) if error else ""
        return DeliveryStatus(*known, reason, bool(self.ended), deleted, done)

    def look(self, files: bool) -> None:
        """Look at once into the outbox; at the run's `files`, if they are other ones now, in turn.

        Other processes wait for tags, and not for files, of which many are gone a second later.
        """
        self.changed |= files
        if not files:
            self.due = 0.0

    def finish(self, status: str, end: int) -> None:
        """End the run as soon as all has been sent."""
        self.end, self.due = (status, end), 0.0
        self.stop_monitor()

    def step(self) -> None:
        """Send what is waiting; the pictures of a run that has ended are the last step."""
        try:
            self.deliver()
            if not self._looked:
                mark_dead_runs_killed(self.store)
                self._looked = True
            self._watch_machine()
            self._error = None
            self.due = time.monotonic() + self._pause * self.connected
            # So a short run is seen at once, and a long one takes few requests.
            self._pause = min(2 * self._pause, MAX_SEND_INTERVAL_S)
            if not self.end:
                style.prepare()
            elif self.complete:
                self.due = 0.0
                self._arrived = self._end_and_draw(*self.end)
        except Exception as error:  # whatever it is, training goes on and the outbox keeps
            self._error = error
            self.due = time.monotonic() + RETRY_INTERVAL_S

    def _end_and_draw(self, status: str, at: int) -> bool:
        """End a run of which the store has all else; draw it; tell whether it is complete."""
        if not self.ended:
            self.deliver_models()
            self.ended = self.close(status, at)
            self.training = False
            return False
        if pictures.draw(self.info.folder) and self.info.remote:
            self.changed = True
            return False
        with closing(Outbox(self.info.outbox)) as box:
            mark_delivered(box, self.info, self.ended)
        return True

    def let_go(self) -> None:
        """Release the run's lock, and measure CPU and memory no more."""
        self.stop_monitor()
        os.close(self._lock)

    def stop_monitor(self) -> None:
        """Measure CPU and memory no more."""
        if self._monitor:
            self._monitor.finish()
            self._monitor = None

    def _watch_machine(self) -> None:
        """Let MLflow measure CPU and memory as long as the run is the trainer's."""
        if self.owner or self.end:
            self.stop_monitor()
        elif self._watch and not self._monitor:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(
                self.info.id, resume_logging=True, tracking_uri=self.store.uri
            )
            self._monitor.start()


class DeliveryServer:
    """Answers one process that trains, and delivers its runs between two questions.

    A message to it is (number, name of a public method, arguments); to a number other than None
    it answers with (number, result, None) or (number, None, what was raised). What it tells
    unasked is (STATUS, run, its DeliveryStatus) and (PRINT, text, None).
    """

    def __init__(self, descriptor: int, parent: int) -> None:
        self._parent = parent  # the number of the process that trains
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._connection = Connection(descriptor)
        self._runs: dict[int, RunDelivery] = {}  # by the numbers that the other process gave them
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
        result = error = None
        try:
            result = getattr(self, name)(*arguments)
        except Exception as raised:
            error = _portable(raised)
        if number is not None:
            self.tell(number, result, error)

    def tell(self, *message: Any) -> None:
        """Send a message to the other process."""
        self._connection.send(message)

    def open(self, key: int, opening: Opening) -> None:
        """Note how a store is opened, at the first question to it."""
        last = next(reversed(self._openings.values()), opening)
        self._openings[key] = last if last == opening else opening  # one copy for a sweep's trials

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
            if len(self._stores) == STORES:
                del self._stores[next(iter(self._stores))]
            self._stores[key] = open_store(opening.uri, opening.create, opening.reading)
        return self._stores[key]

    def answer(self, key: int, question: str, arguments: Any, named: Any) -> Any:
        """Answer a question to a store, unless nobody waits for the answer any more."""
        if os.getppid() != self._parent:
            raise EOFError
        store = self._store(key)
        if question.endswith(".create"):
            self._made.add(key)
        return store.answer(question, *arguments, **named)

    def track(self, run: int, key: int, record: RunRecord, *how: bool) -> None:
        """Begin to deliver a run, whose lock follows as a descriptor."""
        (lock,) = socket.recv_fds(self._socket, 1, 1)[1]
        try:
            delivery = RunDelivery(self._store(key), record, lock, *how)
        except BaseException:
            os.close(lock)
            raise
        self._runs[run] = delivery
        delivery.created = lambda _: self._tell_status(run, delivery)  # a command waits for it
        self._made.discard(key)
        self._tell_status(run, delivery)

    def call(self, run: int, name: str, *arguments: Any) -> None:
        """Call a method of the delivery of a run."""
        getattr(self._runs[run], name)(*arguments)

    def _deliver(self) -> None:
        """Deliver the runs for which it is time."""
        for number, run in list(self._runs.items()):
            late = run.ended and self._connection.poll()  # its pictures can wait
            if late or run.due > time.monotonic():
                continue
            run.step()
            if not self._nice:  # until then the other process waits
                self._nice = bool(os.nice(NICENESS))
            if run.status.done:
                del self._runs[number]
                run.let_go()
            self._tell_status(number, run)

    def _tell_status(self, number: int, run: RunDelivery) -> None:
        """Tell how a delivery stands, if that is new."""
        new = run.status, id(run.learned)  # another object when there is more
        if new != run.told:
            run.told = new
            self.tell(STATUS, number, run.status)

    def close(self) -> None:
        """Let go of the other process, and of its runs."""
        while self._runs:
            self._runs.popitem()[1].let_go()
        self._socket.close()
        self._connection.close()

    def _end_alone(self) -> None:
        """Deliver what is left of runs whose process is gone; they are KILLED unless they ended."""
        if not (self._runs or self._made):
            return
        late = threading.Timer(DELIVERY_END_S, os._exit, [1])
        late.daemon = True
        late.start()
        while os.getppid() == self._parent:  # it closes its files before it has ended
            time.sleep(0.02)
        left = list(self._runs.values())
        for run in left:
            run.let_go()
        while left:
            run = left.pop()
            end = run.end or ("KILLED", time.time_ns() // 1_000_000)
            try:
                deliver_outbox(run.store, run.info, end)
            except BadInput:  # it was deleted, or another process has it, which delivers
                continue
            except Exception:
                left.insert(0, run)
                time.sleep(RETRY_INTERVAL_S)
        for key in self._made:
            with suppress(Exception):
                mark_dead_runs_killed(self._store(key))


def _portable(error: Exception) -> Exception:
    """Return an error as the other process can have it, which knows no class of MLflow's."""
    if type(error).__module__.startswith("waymark."):
        with suppress(Exception):
            return pickle.loads(pickle.dumps(error))
    return StoreError(reason_of(error))


class _Printer(io.TextIOBase):
    """Standard error of this process, whose text the other one prints."""

    def __init__(self, server: DeliveryServer) -> None:
        self._server = server

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._server.tell(PRINT, text, None)
        return len(text)


def main() -> NoReturn:
    """Serve by the socket whose descriptor is the program's argument, and end the process."""
    gc.set_threshold(100_000, 50, 100)  # for what is imported later, to draw for example
    server = DeliveryServer(*map(int, sys.argv[1:]))
    sys.stderr = sys.stdout = _Printer(server)
    with collecting_later():
        import_mlflow()
    try:
        server.serve()
    finally:
        os._exit(0)  # taking MLflow down piece by piece would take a second


if __name__ == "__main__":
    main()
