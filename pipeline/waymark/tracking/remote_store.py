"""A store of runs as a process that trains has it: the delivery process answers for MLflow."""

import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from copy import copy
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

from waymark.errors import BadInput
from waymark.package import FOLDER
from waymark.tracking.address import resolve_address
from waymark.tracking.delivery import DeliveryStatus
from waymark.tracking.lock import RunLock
from waymark.tracking.opening import check_there
from waymark.tracking.outbox import Outbox
from waymark.tracking.questions import PRINT, STATUS, Opening, StoreError
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore

T = TypeVar("T")
PROGRAM = "waymark.tracking.delivery_process"
ANSWER_S = 300.0  # that an answer is waited for: MLflow itself gives up before
ENDED = "the process that speaks to MLflow has ended"

_numbers = itertools.count()
_mutex = threading.Lock()
_process: "DeliveryProcess | None" = None  # of this process


class Ended(StoreError):
    """Say that the delivery process has ended before it answered."""


def start_program(descriptor: int) -> "subprocess.Popen[bytes]":
    """Start the delivery process, which serves by a socket."""
    path = [str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", PROGRAM, str(descriptor), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        pass_fds=[descriptor],
        start_new_session=True,  # a terminal's signals are for the work, which ends it
    )


class DeliveryProcess:
    """The delivery process, as the one that started it sees it."""

    def __init__(self) -> None:
        """Start it; it imports MLflow while this process goes on."""
        here, there = socket.socketpair()
        with there:
            try:
                self._process = start_program(there.fileno())
            except OSError as error:
                here.close()
                reason = error.strerror
                raise BadInput(f"{sys.executable}: cannot be started again ({reason}).") from None
        self._socket = here
        self._connection = Connection(os.dup(here.fileno()))
        self._sending = threading.Lock()
        self._opened: set[int] = set()
        self._waiting: dict[int, Future[Any]] = {}
        self.runs: dict[int, RemoteDelivery] = {}  # by the number of the question that began each
        self.ended = False
        threading.Thread(target=self._read, name="delivery process", daemon=True).start()

    def ask(self, name: str, *arguments: Any) -> "Future[Any]":
        """Return the answer to come of a method of `DeliveryServer`; Ended if none can come."""
        return self._ask(next(_numbers), name, *arguments)

    def track(self, run: "RemoteDelivery", lock: int, *arguments: Any) -> "tuple[int, Future[Any]]":
        """Have a run delivered; return its number, and the status to come."""
        number = next(_numbers)
        self.runs[number] = run
        return number, self._ask(number, "track", *arguments, descriptor=lock)

    def _ask(self, number: int, *message: Any, descriptor: int | None = None) -> "Future[Any]":
        answer: Future[Any] = Future()
        self._waiting[number] = answer
        self.tell(*message, number=number, descriptor=descriptor)
        if self.ended:
            self._give_up()
        return answer

    def tell(
        self, name: str, *arguments: Any, number: int | None = None, descriptor: int | None = None
    ) -> None:
        """Call a method of `DeliveryServer` without an answer."""
        with suppress(OSError), self._sending:
            self._connection.send((number, name, *arguments))
            if descriptor is not None:
                socket.send_fds(self._socket, [b"\0"], [descriptor])

    def open(self, key: int, opening: Opening) -> None:
        """Say how a store is opened, once."""
        if key not in self._opened:
            self._opened.add(key)
            self.tell("open", key, opening)

    def let_go(self) -> None:
        """Close, in a process that was forked, what would look as if that one were alive."""
        self._socket.close()
        self._connection.close()
        for run in self.runs.values():
            run.lock.release()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        """Take what it says, until it ends."""
        with suppress(Exception):  # EOFError at its end; whatever else it is, no more can follow
            while True:
                number, value, error = self._connection.recv()
                if number == PRINT:
                    with suppress(OSError, ValueError):
                        print(value, end="", file=sys.stderr, flush=True)
                elif number == STATUS:
                    if value in self.runs:
                        self.runs[value].take(error)
                elif error is not None:
                    self._waiting.pop(number).set_exception(error)
                else:
                    self._waiting.pop(number).set_result(value)
        self.ended = True
        with self._sending:
            self._socket.close()
            self._connection.close()
        self.kill()
        for run in list(self.runs.values()):
            run.restart()
        self._give_up()

    def _give_up(self) -> None:
        for number in list(self._waiting):
            answer = self._waiting.pop(number, None)
            if answer:
                answer.set_exception(Ended(ENDED))


def delivery_process() -> DeliveryProcess:
    """Return this process's delivery process, started where there is none."""
    global _process
    with _mutex:
        if _process is None or _process.ended:
            _process = DeliveryProcess()
        return _process


def _forget() -> None:
    """Leave the delivery process, and its runs, to the process that this one was forked from."""
    global _process, _mutex
    if _process and not _process.ended:
        _process.let_go()
    _process, _mutex = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


class RemoteDelivery:
    """The delivery of a run that this process trains: the delivery process does it."""

    def __init__(
        self,
        store: "RemoteStore",
        record: RunRecord,
        new: bool,
        lock: RunLock,
        box: Outbox,
        system_metrics: bool,
    ) -> None:
        """Begin it; raise RunLocked if another process has taken the run.

        What a local store holds of a run is known from then on.
        """
        self.status = DeliveryStatus(record, False, "", None)
        self.arrived: Future[str | None] = Future()  # the run's end; or why not, so far
        self._store, self.lock, self._box = store, lock, box
        self._system_metrics = system_metrics
        self._end: tuple[str, int] | None = None
        self._restarts = 1  # that are left
        self._begin(new, at_once=not (store.server or new))
        if not store.server:
            for _ in range(2):
                with suppress(Ended, TimeoutError):
                    self._begun.result(ANSWER_S)
                    break

    def _begin(self, new: bool, at_once: bool) -> None:
        """Hand the run and its lock over; what is known of it comes with the answer.

        `at_once`: only then what the store holds.
        """
        self._process = self._store.process()
        how = self._store.key, self.status.info, new, at_once, self._system_metrics
        self._number, self._begun = self._process.track(self, self.lock.descriptor, *how)
        self._begun.add_done_callback(self._take_first)

    def _take_first(self, answer: "Future[DeliveryStatus]") -> None:
        error = answer.exception()
        if error is None:
            self.take(answer.result())
        elif not isinstance(error, Ended):
            self.forget()
            self._stop(str(error))

    def _stop(self, reason: str) -> None:
        self.status = replace(self.status, error=reason)
        with suppress(InvalidStateError):
            self.arrived.set_result(reason)

    def take(self, status: DeliveryStatus) -> None:
        """Take note of how the delivery stands."""
        before, self.status = self.status.info, status
        if status.info.id != before.id:
            with suppress(OSError, ValueError):  # a full disk; a run that has ended
                self._box.append("ids", [status.info.id, status.info.experiment_id])

    def restart(self) -> None:
        """Begin again in a new delivery process, once."""
        self.forget()
        if not self._restarts:
            self._stop(ENDED)
            return
        self._restarts -= 1
        try:
            self._begin(new=False, at_once=False)
        except BadInput as error:  # the system starts no process
            self._stop(str(error))
            return
        if self._end:
            self._finish(*self._end)

    @property
    def has_answer(self) -> bool:
        """Tell whether what MLflow held of the run is known, or nothing of it will be."""
        return self.status.connected or self.status.deleted or self.arrived.done()

    def forget(self) -> None:
        """Take no more note of the delivery."""
        self._process.runs.pop(self._number, None)

    def changed(self, files: bool = False) -> None:
        """Say that there is more in the outbox, or that `files` of the run are other ones now."""
        self._process.tell("changed", self._number, files)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Have tags sent that the disk did not take."""
        self._process.tell("set_tags", self._number, tags)

    def finish(self, status: str, end: int) -> None:
        """End the run as soon as all has been sent; `end` is when it ended (ms)."""
        self._end = status, end
        self._finish(status, end)

    def _finish(self, status: str, end: int) -> None:
        self._process.ask("finish", self._number, status, end).add_done_callback(self._ended)

    def _ended(self, answer: "Future[str | None]") -> None:
        if answer.exception() is None:
            self.forget()
            with suppress(InvalidStateError):
                self.arrived.set_result(answer.result())

    def give_up(self) -> str | None:
        """Send no more; return why not all was sent, if so."""
        if self.arrived.done():
            return self.arrived.result()
        self.forget()
        self._process.kill()
        return self.status.error or "no answer in time"


class RemoteStore(RunStore):
    """A store whose questions the delivery process answers; this process has no MLflow."""

    def __init__(self, uri: str | None, create: bool, reading: bool) -> None:
        """See `connect`."""
        self.address = resolve_address(uri)
        check_there(self.address, create)
        self.root, self.database = self.address.root, self.address.database
        self.server, self.uri = self.address.server, self.address.uri
        self.key, self.answer_s = next(_numbers), ANSWER_S
        umask = os.umask(0)
        os.umask(umask)
        self._opening = Opening(uri, create, reading, dict(os.environ), os.getcwd(), umask)
        self.process()

    def with_bound(self, seconds: float) -> "RemoteStore":
        """Return this store with another bound on the wait for each answer."""
        store = copy(self)
        store.answer_s = seconds
        return store

    def process(self) -> DeliveryProcess:
        """Return the delivery process, which knows of this store."""
        process = delivery_process()
        process.open(self.key, self._opening)
        return process

    def begin(self, question: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Return the answer to come of a question; a method is given as its class has it."""
        return self._begin(f"{question.__module__}.{question.__qualname__}", args, {})

    def _begin(self, name: str, args: Any, kwargs: Any) -> "Future[Any]":
        return self.process().ask("answer", self.key, name, args, kwargs)

    def ask(self, meanwhile: Callable[[], Any], question: Callable[..., T], *args: Any) -> T:
        """Return the answer to a question; do other work while the other process looks for it."""
        answer = self.begin(question, *args)
        meanwhile()
        try:
            return cast(T, answer.result(ANSWER_S))
        except (Ended, TimeoutError):
            return question(self, *args)

    def answer(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Have a question answered, by its name; raise StoreError if nobody answers."""
        try:
            with suppress(Ended):  # it was killed, or had been without work for long
                return self._begin(name, args, kwargs).result(self.answer_s)
            return self._begin(name, args, kwargs).result(self.answer_s)
        except TimeoutError:
            raise StoreError("no answer in time") from None


def connect(uri: str | None, create: bool = False, reading: bool = False) -> RemoteStore:
    """Return a store of runs for a process that trains, and start the delivery process.

    Raises BadInput for an address that cannot be used. Whatever else is wrong with the store is
    raised by the first question: until then it is not opened.
    """
    return RemoteStore(uri, create, reading)
