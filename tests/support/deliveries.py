"""Delivery processes of the tests' own process: forks of one that has imported all they need.

A test that lets a run die ends its delivery process, and importing MLflow and matplotlib anew would
take the next run three seconds. Programs that tests start begin theirs as users' do.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import psutil

from tests.support.processes import BOUND, REPO


class Forked:
    """A delivery process that was forked, as `subprocess.Popen` has one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(self.pid).wait(BOUND)


class Deliveries:
    """Start delivery processes, as `remote_store.start_program` does."""

    def __init__(self) -> None:
        self._socket, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.support.deliveries", str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(REPO)},
                pass_fds=[there.fileno()],
                start_new_session=True,
            )

    def start(self, descriptor: int) -> Forked:
        settings = pickle.dumps((dict(os.environ), os.getcwd()))
        self._socket.sendall(len(settings).to_bytes(4, "little"))
        socket.send_fds(self._socket, [settings[:1]], [descriptor])
        self._socket.sendall(settings[1:])
        return Forked(int.from_bytes(self._socket.recv(4, socket.MSG_WAITALL), "little"))

    def close(self) -> None:
        self._socket.close()
        self._process.wait(BOUND)


def main() -> None:
    """Fork for each request that comes through the socket, until it is closed."""
    from sqlalchemy.orm import configure_mappers
    from waymark.plots import style
    from waymark.tracking import delivery_process
    from waymark.tracking.local_store import needed_revision
    from waymark.tracking.opening import import_mlflow

    import_mlflow()
    configure_mappers()
    needed_revision()
    style.prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    requests = socket.socket(fileno=int(sys.argv[1]))
    while size := requests.recv(4, socket.MSG_WAITALL):
        first, (descriptor,), *_ = socket.recv_fds(requests, 1, 1)
        rest = requests.recv(int.from_bytes(size, "little") - 1, socket.MSG_WAITALL)
        environment, folder = pickle.loads(first + rest)
        pid = os.fork()
        if pid == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(folder)
            sys.argv[1:] = [str(descriptor), str(os.getppid())]
            delivery_process.main()
        os.close(descriptor)
        requests.sendall(pid.to_bytes(4, "little"))


if __name__ == "__main__":
    main()
