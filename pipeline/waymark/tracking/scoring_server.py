"""MLflow's scoring server on a model, as a process of its own."""

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

from waymark.errors import Failed
from waymark.processes.process_state import set_variable
from waymark.tracking.questions import question
from waymark.tracking.server import Server, check_free
from waymark.tracking.store import RunStore

START_S = 300.0  # that it may take to answer: it imports TensorFlow
INLINE = 400  # characters of an example that stands in the line itself
STANDARD_ERROR = 2  # the descriptor, also where sys.stderr is no file
EXAMPLE = "serving_input_example.json"  # of a model, as MLflow writes it


class ScoringServer(Server):
    """MLflow's scoring server: `address` takes requests.

    `curl` is a line for the shell that asks it about the model's example.
    """

    def __init__(
        self, address: str, process: "subprocess.Popen[bytes]", curl: str, files: ExitStack
    ) -> None:
        super().__init__(address, process)
        self.curl, self._files = curl, files

    def wait_until_ready(self) -> bool:
        """Wait until it answers; return False if it ends before, or takes too long."""
        end, ping = time.monotonic() + START_S, self.address.replace("/invocations", "/ping")
        while time.monotonic() < end and self._process and self._process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(ping, timeout=5):
                return True
            time.sleep(0.1)
        return False

    def wait(self) -> int:
        """Wait for its end; return its exit status, or minus the signal that ended it."""
        status = super().wait()
        self._files.close()
        return status


@question
def scoring_command(
    store: RunStore, model: Path, host: str, port: int
) -> tuple[list[str], dict[str, str]]:
    """Return the program that serves a model, by MLflow, with its arguments and variables."""
    from mlflow.pyfunc.scoring_server import get_cmd

    command, variables = get_cmd(str(model), port, cast(Any, host), nworkers=1)
    return shlex.split(command), dict(variables.items() - os.environ.items())


def start_scoring(
    store: RunStore, model: Path, host: str, port: int, files: ExitStack
) -> ScoringServer:
    """Start MLflow's scoring server, one worker, on a folder that holds a model of MLflow's.

    What `files` holds is let go at its end. Raises BadInput where nothing can listen.
    """
    check_free(host, port)
    (program, *arguments), variables = scoring_command(store, model, host, port)
    set_variable("MLFLOW_DISABLE_TELEMETRY", "true")
    set_variable("PYTHONWARNINGS", "ignore")  # of what MLflow imports, for its authors
    # Its log goes to standard error; a session of its own, as with MLflow's UI.
    process = subprocess.Popen(
        [sys.executable, "-m", program, *arguments],
        cwd=model,  # where no file of the user's stands in the place of a package
        stdin=subprocess.DEVNULL,
        stdout=STANDARD_ERROR,
        start_new_session=True,
        env={**os.environ, **variables},
    )
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{port}/invocations"
    return ScoringServer(address, process, _curl(address, model / EXAMPLE), files.pop_all())


def _curl(address: str, example: Path) -> str:
    """Return a line that asks about a model's example, by its file if it is long."""
    body = json.dumps(json.loads(example.read_bytes()))
    data = body if len(body) <= INLINE else f"@{example}"
    return shlex.join(["curl", "-s", address, "-H", "Content-Type: application/json", "-d", data])


def answering(server: ScoringServer) -> ScoringServer:
    """Return a server that answers; raise Failed, with nothing left of it, if it does not."""
    try:
        if server.wait_until_ready():
            return server
    except BaseException:
        server.close()
        raise
    server.close()
    raise Failed(f"MLflow's server at {server.address} has ended, or gives no answer; see above.")
