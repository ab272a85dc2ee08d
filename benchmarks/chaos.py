"""What benchmarks.torture breaks Waymark with, and how it looks at what is left.

The program, in a process of its own or in this one; `End`, how a run ended, wherever it is
recorded; MLflow servers that die, a proxy that misbehaves, files that get damaged.
"""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

REPO = Path(__file__).resolve().parent.parent
FOREIGN = ("MLFLOW_", "HYDRA_", "KERAS_", "TF_", "XDG_", "PYTHON", "WAYMARK_")
BOUND = 120  # seconds that anything may take which is waited for
HOMES = ("artifacts/*/*/artifacts", "spool/*/artifacts")  # of a run's files, below mlruns
HOWS = ("truncate", "flip", "delete", "empty", "swap", "rename")


def pictures(path: Path) -> None:
    """Write 2,000 and 100 noisy pictures, 8x8, of ten things: the CNN is quick on them."""
    draw = np.random.default_rng(4)
    things = draw.integers(0, 200, (10, 8, 8))
    labels = draw.permutation(np.arange(2100) % 10)
    images = (things[labels] + draw.integers(0, 56, (2100, 8, 8))).astype(np.uint8)
    parts = {"x_train": images[:2000], "y_train": labels[:2000]}
    np.savez(path, **parts, x_test=images[2000:], y_test=labels[2000:])


def clean_environment(home: Path) -> None:
    """Give this process, and those it starts, an empty home and no settings of the user's."""
    home.mkdir()
    for key in [key for key in os.environ if key.startswith(FOREIGN)]:
        del os.environ[key]
    os.environ |= {"HOME": str(home), "PYTHONPATH": str(REPO)}
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start `waymark ...` in a folder, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "waymark", *arguments],
        cwd=folder,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: "subprocess.Popen[str]", bound: float = BOUND) -> tuple[int, str, str]:
    """Wait for the end of a program; return its status (-9 too if it took too long), out, err."""
    try:
        out, err = process.communicate(timeout=bound)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err += f"\n(killed: not ended within {bound:.0f} s)"
    return process.returncode, out, err


def newest(folder: Path) -> int:
    """Return the newest step published below a folder where one run was started; 0 if none."""
    mlruns = folder / "mlruns"
    names = [p.stem for home in HOMES for p in mlruns.glob(f"{home}/checkpoints/*-*.json")]
    return max((int(name.rpartition("-")[2]) for name in names if name[0] != "."), default=0)


def watch(process: "subprocess.Popen[str]", folder: Path, step: int) -> int:
    """Wait until a step is published, or the process has ended; return the newest step seen."""
    end, seen = time.monotonic() + BOUND, newest(folder)
    while process.poll() is None and seen < step and time.monotonic() < end:
        time.sleep(0.003)
        seen = max(seen, newest(folder))
    return seen


@dataclass(frozen=True)
class End:
    """How a run ended: all of this must be the same whatever happened on the way."""

    status: str
    digest: str
    points: dict[str, list[tuple[int, float]]]
    checkpoints: dict[int, str]  # step -> digest of the state, as the manifest has it
    files: list[str]  # all artifacts, relative
    damaged: list[str]  # payload that is not what its manifest says

    @classmethod
    def read(cls, client: Any, run_id: str, folder: Path) -> "End":
        """Read what MLflow has of a run whose artifacts lie in `folder`."""
        run = client.get_run(run_id)
        points = {
            key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key))
            for key in run.data.metrics
            if key.startswith(("train/loss", "test/", "restored/"))
        }
        checkpoints, damaged = {}, []
        for path in sorted((folder / "checkpoints").glob("[!.]*-*.json")):
            try:
                manifest = json.loads(path.read_text())
                checkpoints[manifest["step"]] = manifest["digest"]
                payload = {path.with_name(n): f["sha256"] for n, f in manifest["files"].items()}
            except (ValueError, KeyError, TypeError):
                payload = {path: "a manifest that can be read"}
            for file, digest in payload.items():
                if not file.exists() or sha256(file.read_bytes()).hexdigest() != digest:
                    damaged.append(file.name)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        digest = run.data.tags.get("waymark.state_digest", "")
        return cls(run.info.status, digest, points, checkpoints, files, damaged)

    def unlike(self, expected: "End") -> list[str]:
        """Say, one text each, in what this differs from what is expected (of files, if any)."""
        found = [f"{name} is not what its manifest says" for name in self.damaged]
        for name in ("status", "digest"):
            now, right = getattr(self, name), getattr(expected, name)
            found += [f"{name}: {now!r}, not {right!r}"] if now != right else []
        for name in ("checkpoints", "files") if expected.files else ("checkpoints",):
            now, right = set(getattr(self, name)), set(getattr(expected, name))
            if now != right:
                more, less = sorted(now - right), sorted(right - now)
                found.append(f"{name}: {more} too many, {less} missing")
        for step in sorted(self.checkpoints.keys() & expected.checkpoints.keys()):
            if self.checkpoints[step] != expected.checkpoints[step]:
                found.append(f"checkpoint {step} has another state")
        for key in sorted(self.points.keys() | expected.points.keys()):
            now, right = self.points.get(key, []), expected.points.get(key, [])
            if now != right:
                steps = [step for step, _ in now]
                twice = sorted({step for step in steps if steps.count(step) > 1})
                missing = sorted({step for step, _ in right} - set(steps))
                other = sorted({step for step, _ in set(now) - set(right)})
                said = {"missing": missing, "twice": twice, "with another value": other}
                parts = [f"{len(s)} steps {how} {s[:4]}" for how, s in said.items() if s]
                found.append(f"{key}: {', '.join(parts)}")
        return found


def local_end(folder: Path, run_id: str) -> End:
    """Read the end of a run in the local store of a folder."""
    from mlflow.tracking import MlflowClient

    (home,) = folder.glob(f"mlruns/artifacts/*/{run_id}/artifacts")
    return End.read(MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db"), run_id, home)


def server_end(uri: str, run_id: str, scratch: Path) -> End:
    """Read the end of a run on a server, whose artifacts are fetched into a scratch folder."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    folders = [""]
    for folder in folders:
        (scratch / folder).mkdir()
        items = client.list_artifacts(run_id, folder)
        folders += [item.path for item in items if item.is_dir]
        for item in items:  # one by one: an empty folder cannot be fetched
            if not item.is_dir:
                client.download_artifacts(run_id, item.path, str(scratch / folder))
    return End.read(client, run_id, scratch)


def differences(expected: End, read: Callable[..., End], *where: Any) -> list[str]:
    """Say in what a run's end, read where it is recorded, differs from the one expected."""
    try:
        return read(*where).unlike(expected)
    except Exception as error:
        return [f"how it ended cannot be read: {error!r}"]


def left_over(folder: Path) -> list[str]:
    """Return what still waits for delivery in a folder where a run has ended."""
    mlruns = folder / "mlruns"
    paths = [*mlruns.glob("spool/*"), *mlruns.glob("outbox/*.jsonl")]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return [f"left over: {names}"] if names else []


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Server:
    """An MLflow server with proxied artifacts, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Server":
        self.folder.mkdir()
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
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + BOUND
        while time.monotonic() < end:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health"):
                return
            time.sleep(0.1)
        self.kill()
        raise TimeoutError(f"the MLflow server does not answer; see {self.folder / 'log'}")

    def kill(self) -> None:
        """Kill it with all its workers."""
        process, self._process = self._process, None
        if process:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Proxy(ThreadingHTTPServer):
    """Stands before a server and passes everything on, until it is told a fault.

    Faults: `errors` answers 500, `hangs` accepts and never answers, `slow` takes half a second
    for each request, `deaf` passes the request on and loses the answer.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target, self.uri = target, f"http://127.0.0.1:{self.server_port}"
        self.fault, self._grace = "", 0
        self._lock = threading.Lock()

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.fault = ""
        self.shutdown()
        self.server_close()

    def break_down(self, fault: str, grace: int = 0) -> None:
        """Begin a fault after so many more requests."""
        self.fault, self._grace = fault, grace

    def due(self) -> str:
        """Return the fault for the next request."""
        with self._lock:
            self._grace -= 1
            return self.fault if self._grace < 0 else ""

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that went."""


class _Passing(BaseHTTPRequestHandler):
    server: Proxy

    def _pass(self) -> None:
        fault = self.server.due()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while fault == "hangs" and self.server.fault == "hangs":
            time.sleep(0.05)
        if fault == "hangs":
            return
        if fault == "errors":
            self.send_error(500)
            return
        if fault == "slow":
            time.sleep(0.5)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=BOUND)
        with contextlib.closing(connection):
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        if fault == "deaf":
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET: Callable[..., None] = _pass
    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""


@contextlib.contextmanager
def captured() -> Iterator[Callable[[], list[str]]]:
    """Send this process's stdout and stderr to files; give what returns their texts."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        files, saved = (out, err), (os.dup(1), os.dup(2))

        def texts() -> list[str]:
            sys.stdout.flush()
            sys.stderr.flush()
            return [os.pread(file.fileno(), 10**7, 0).decode() for file in files]

        sys.stdout.flush()
        for number, file in zip((1, 2), files, strict=True):
            os.dup2(file.fileno(), number)
        try:
            yield texts
        finally:
            sys.stdout.flush()
            for number, handle in zip((1, 2), saved, strict=True):
                os.dup2(handle, number)
                os.close(handle)


def waymark(*arguments: str) -> tuple[int, str, str]:
    """Run `waymark ...` in this process, where TensorFlow is loaded already."""
    from waymark import __main__ as program

    argv, path = ["waymark", *arguments], list(sys.path)
    with patch.object(sys, "argv", argv), patch.object(sys, "path", path), captured() as texts:
        try:
            status = program.main()
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        except Exception:
            traceback.print_exc()
            status = -1
        return (status, *texts())


def damage_one(draw: random.Random, how: str, path: Path) -> str:
    """Damage one file of a folder of checkpoints; say what was done."""
    body = path.read_bytes()
    others = sorted(other for other in path.parent.iterdir() if other != path)
    if how == "truncate" and body:
        path.write_bytes(body[: draw.randrange(len(body))])
        return f"truncate {path.name} to {path.stat().st_size} of {len(body)} bytes"
    if how == "flip" and body:
        at, bit = draw.randrange(len(body)), draw.randrange(8)
        path.write_bytes(body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :])
        return f"flip bit {bit} of byte {at} of {path.name}"
    if how == "delete":
        path.unlink()
    elif how == "swap" and others:
        other = draw.choice(others)
        path.write_bytes(other.read_bytes())
        other.write_bytes(body)
        return f"swap {path.name} and {other.name}"
    elif how == "rename":
        fake = re.sub(r"-\d+", f"-{draw.randint(1, 70)}", path.name, count=1)
        other = path.with_name(draw.choice(sorted({f"{path.name}.old", fake} - {path.name})))
        path.rename(other)
        return f"rename {path.name} to {other.name}"
    else:
        path.write_bytes(b"")
    return f"{how} {path.name}"
