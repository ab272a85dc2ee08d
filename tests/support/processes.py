"""The program in tests: how it is started, stopped, killed and waited for."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from waymark import api
from waymark.config.compose import compose_config
from waymark.names import VERSION
from waymark.processes.signals import GracefulShutdown
from waymark.tracking.active_run import ActiveRun, create_run
from waymark.tracking.delivery import Delivery
from waymark.tracking.delivery_process import DeliveryServer
from waymark.tracking.remote_store import RemoteStore, connect
from waymark.tracking.store import RunStore
from waymark.training import streaming
from waymark.training.loop import Trainer
from waymark.training.progress import NoProgress

from tests.support.data import POINTS

REPO = Path(__file__).resolve().parents[2]
BOUND = 60  # seconds that anything may take which is waited for
THREADS = "runtime.intra_op_threads=2"  # as in the tests' own process
FOREIGN = ("MLFLOW_", "HYDRA_", "KERAS_", "TF_", "XDG_", "PYTHON", "WAYMARK_")

Done = subprocess.CompletedProcess[str]
Main = Callable[..., Done]
Open = Callable[[Path], Any]  # the fixture `client`: MLflow's, of a folder's store
T = TypeVar("T")


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, as somebody who may commit; return what it prints, stripped."""
    who = ["-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def poll(condition: Callable[[], T], bound: float = BOUND) -> T:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + bound
    while not (answer := condition()):
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.02)
    return answer


def readers() -> list[threading.Thread]:
    """Return the threads that read ahead of training or scoring."""
    return [thread for thread in threading.enumerate() if thread.name == streaming.THREAD]


def free_port() -> int:
    """Return a port of this machine at which nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        return int(taken.getsockname()[1])


def answers(address: str) -> bytes | None:
    """Return what stands at an address, None if nobody answers there."""
    with (
        suppress(urllib.error.URLError, ConnectionError),
        urllib.request.urlopen(address, timeout=5) as answer,
    ):
        return bytes(answer.read())
    return None


class StopAt(NoProgress):
    """End training at a step by a signal, as a reporter of progress."""

    def __init__(self, target: int) -> None:
        super().__init__(0, 0)
        self.target = target

    def on_steps(self, step: int, loss: float) -> None:
        if step >= self.target:
            self.target = 10**9  # a second signal would end this process
            GracefulShutdown.last_signal = None
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            poll(lambda: GracefulShutdown.last_signal)  # steps may be faster than the main thread


def created(tracking: RunStore, *overrides: str) -> ActiveRun:
    """Begin the record of a run that trains nothing."""
    return create_run(
        remote(tracking), compose_config([THREADS, *overrides]), {VERSION: "test"}, POINTS
    )


def remote(tracking: RunStore) -> RemoteStore:
    """Return a store as a process that trains has it."""
    return connect(tracking.uri)


def end_sending(run: ActiveRun) -> None:
    """End the delivery process, as a kill does, and with it this process's hold on the run."""
    run.give_up()
    run._close()


def delivers(run: ActiveRun, delivery: Delivery) -> bool:
    """Tell whether a delivery, in the fixture `delivery_here`, is that of a run."""
    here: Any = run._process._process
    known = here.server._runs.get(run._number)
    return known is delivery


def delivery_of(run: ActiveRun) -> Delivery:
    """Return what delivers a run where the fixture `delivery_here` is."""
    here: Any = run._process._process
    return poll(lambda: here.server._runs.get(run._number))


STEPPING = threading.Lock()  # of the thread that delivers, held in each of its steps


def has_arrived(run: ActiveRun) -> bool:
    """Tell whether MLflow has all that a run recorded, where the fixture `delivery_here` is."""
    delivery = delivery_of(run)
    with STEPPING:  # the delivery is that thread's alone: this reads the outbox with its reader
        return delivery.complete


class DeliveryHere:
    """The delivery process as a thread of this process, whose parts a test can replace."""

    def __init__(self, descriptor: int) -> None:
        self.server = DeliveryServer(os.dup(descriptor), os.getppid())
        self.server._end_alone = self.server.close  # type: ignore[method-assign]
        self._socket = self.server._socket
        self._thread = threading.Thread(target=self.server.serve, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        with suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self) -> None:
        self._thread.join(BOUND)


class Killed(BaseException):
    """What no code here catches, as none can catch SIGKILL."""


def killed_and_resumed(
    folder: Path, empty_store: Path, words: list[str], *resume: str, step: int = 17
) -> str:
    """Let a run in a folder die in training at a step, and finish it; return its id."""
    shutil.copytree(empty_store, folder / "mlruns")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        key = killed(step, *words)
        assert api.resume(key, *resume, "progress=false")
    return key


def killed(step: int, *overrides: str, **recorded: Any) -> str:
    """Start a run and let it die in training at a step, as of SIGKILL; return its id."""
    started: list[ActiveRun] = []
    hold, run_steps = ActiveRun.__init__, Trainer.run_steps

    def held(run: ActiveRun, *arguments: Any, **named: Any) -> None:
        hold(run, *arguments, **named)
        started.append(run)

    def dying(trainer: Trainer, steps: int) -> Any:
        if trainer.step >= step:
            raise Killed
        return run_steps(trainer, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActiveRun, "__init__", held)
        patch.setattr(Trainer, "run_steps", dying)
        with pytest.raises(Killed):
            api.run(*overrides, **recorded)
    end_sending(started[0])
    return started[0].info.id


def kept_checkpoints(printed: str) -> list[int]:
    """Return the steps of the checkpoints that a run says it has kept."""
    found = re.search(r"(?m)^checkpoints +([0-9, ]+) \(", printed)
    assert found, printed
    return [int(step) for step in found[1].split(", ")]


def after_opening(printed: str) -> list[str]:
    """Return the lines that a run prints, but for those with which every run begins."""
    first = ("run ", "data ", "model ", "environment ")
    return [line for line in printed.splitlines() if not line.startswith(first)]
