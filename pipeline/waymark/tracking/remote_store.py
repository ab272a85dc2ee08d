"""A store of runs as a process that trains has it: the delivery process answers for MLflow."""

import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from multiprocessing.connection import Connection
from typing import Any, TypeVar, cast

from waymark.errors import BadInput
from waymark.package import FOLDER
from waymark.tracking.address import resolve_address
from waymark.tracking.opening import check_there
from waymark.tracking.questions import PRINT, STATUS, Opening, StoreError
from waymark.tracking.store import RunStore

T = TypeVar("T")
PROGRAM = "waymark.tracking.delivery_process"
ANSWER_S = 300.0  # that an answer is waited for: MLflow itself gives up before
ENDED = "the process that speaks to MLflow has ended"

numbers = itertools.count()  # of questions, stores and runs
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
        self.opened: set[int] = set()  # stores of which it knows how they are opened
        self._waiting: dict[int, Future[Any]] = {}
        self.runs: dict[int, Any] = {}  # the `ActiveRun`s that it delivers, by their numbers
        self.ended = False
        threading.Thread(target=self._read, name="delivery process", daemon=True).start()

    def ask(self, name: str, *arguments: Any, descriptor: int | None = None) -> "Future[Any]":
        """Return the answer to come of a method of `DeliveryServer`; Ended if none can come."""
        number, answer = next(numbers), Future[Any]()
        self._waiting[number] = answer
        self.tell(name, *arguments, number=number, descriptor=descriptor)
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
        with suppress(KeyError):  # there is none left
            while True:
                self._waiting.popitem()[1].set_exception(Ended(ENDED))


def _forget() -> None:
    """Leave the delivery process, and its runs, to the process that this one was forked from."""
    global _process, _mutex
    if _process and not _process.ended:
        _process.let_go()
    _process, _mutex = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


class RemoteStore(RunStore):
    """A store whose questions the delivery process answers; this process has no MLflow."""

    def __init__(self, uri: str | None, create: bool, reading: bool) -> None:
        """See `connect`."""
        self.address = resolve_address(uri)
        check_there(self.address, create)
        self.root, self.database = self.address.root, self.address.database
        self.server, self.uri = self.address.server, self.address.uri
        self.key, self.answer_s = next(numbers), ANSWER_S
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
        """Return the delivery process, started where there is none, which knows of this store."""
        global _process
        with _mutex:
            if _process is None or _process.ended:
                _process = DeliveryProcess()
            process = _process
        if self.key not in process.opened:
            process.opened.add(self.key)
            process.tell("open", self.key, self._opening)
        return process

    def begin(self, question: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Return the answer to come of a question; a method is given as its class has it."""
        name = f"{question.__module__}.{question.__qualname__}"
        return self.process().ask("answer", self.key, name, args, {})

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
        asked = "answer", self.key, name, args, kwargs
        try:
            with suppress(Ended):  # it was killed, or had been without work for long
                return self.process().ask(*asked).result(self.answer_s)
            return self.process().ask(*asked).result(self.answer_s)
        except TimeoutError:
            raise StoreError("no answer in time") from None


def connect(uri: str | None, create: bool = False, reading: bool = False) -> RemoteStore:
    """Return a store of runs for a process that trains; raise BadInput for an unusable address.

    Whatever else is wrong is raised by the first question: until then it is not opened.
    """
    return RemoteStore(uri, create, reading)
