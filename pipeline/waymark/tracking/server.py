"""A server of MLflow's, as a process of its own."""

import os
import signal
import socket
import subprocess
from contextlib import AbstractContextManager, suppress
from typing import Any, Self

from waymark.errors import BadInput


class Server(AbstractContextManager[Any]):
    """A server of MLflow's at `address`; a `with` block closes it at its end.

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
            f"--host={host} --port={port}: nothing can listen there ({reason}); "
            f"--port takes another one."
        ) from None
