"""An MLflow server with proxied artifacts, which can be killed and started again."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import answers, free_port, poll

BOUND = 120  # seconds until it must answer


class Server:
    """Serve the store of a folder, while the body of `with` runs."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.port, self.environment = folder, free_port(), environment
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Server":
        self.folder.mkdir(exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it unless it runs; wait until it answers."""
        if self._process:
            return
        options = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        options += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options, "--port", str(self.port)],
                cwd=self.folder,
                env={
                    **(self.environment or os.environ),
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            poll(lambda: answers(f"{self.uri}/health"), BOUND)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill it with all its workers: asked to end, it waits for what still talks to it."""
        process, self._process = self._process, None
        if process:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
