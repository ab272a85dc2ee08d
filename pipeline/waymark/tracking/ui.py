"""MLflow's UI on a store, as a process of its own."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import AbstractContextManager, suppress
from typing import Any, Self

from waymark.errors import BadInput
from waymark.processes.process_state import set_variable
from waymark.tracking.address import location
from waymark.tracking.finder import select
from waymark.tracking.store import RunStore


class Ui(AbstractContextManager[Any]):
    """MLflow's UI: `address` is its page; a `with` block closes it at its end.

    `is_ours` tells whether it was started here, and not by a server's operator.
    """

    def __init__(self, address: str, process: "subprocess.Popen[bytes] | None") -> None:
        self.address = address
        self._process, self.is_ours = process, process is not None

    def wait(self) -> int:
        """Wait for its end; return its exit status, or minus the signal that ended it."""
        return self._process.wait() if self._process else 0

    def stop(self) -> None:
        """Ask it to end."""
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def close(self) -> None:
        """End it, and wait for its end."""
        self.stop()
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_ui(store: RunStore, host: str, port: int) -> Ui:
    """Start MLflow's UI on a local store; raise BadInput where nothing can listen."""
    if store.database is None:
        return Ui(store.address.display_uri, None)
    check_free(host, port)
    newest = select(store, None, None, None, 1)
    page = f"experiments/{newest[0][0].experiment_id}" if newest else "experiments"
    set_variable("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    set_variable("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # ten more processes
    set_variable("PYTHONWARNINGS", "ignore")  # of what MLflow imports, for its authors
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--host", host, "--port", str(port), "--backend-store-uri", store.uri),
        *("--artifacts-destination", location(store.root / "artifacts")),
    ]
    # A session of its own: a terminal's Ctrl-C would reach MLflow's processes one by one, each
    # of which prints a traceback.
    process = subprocess.Popen(command, start_new_session=True)
    return Ui(f"http://{host}:{port}/#/{page}?workflowType=machine_learning", process)


def check_free(host: str, port: int) -> None:
    """Raise BadInput if nothing can listen at an address, as where another program does."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(
            f"--host={host} --port={port}: cannot be listened at ({reason}); "
            f"--port takes another one."
        ) from None
