"""MLflow and the outbox: runs, metrics, artifacts. Nothing else imports mlflow.

Every point of a metric is first appended to the run's outbox, a file in `mlruns/outbox`, and
sent to MLflow by a background thread in batches. The outbox is flushed to disk before a
checkpoint is published, and stays until all of a finished run has arrived; the same key,
value, timestamp and step are one point to MLflow, so sending twice changes nothing.
"""

import contextlib
import getpass
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.config import BadInput, Resolved, first_line, without_password

BATCH = 1000  # MLflow's limit of metrics per request
PAUSE = 1.0  # seconds between two sendings
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")


@dataclass(frozen=True)
class Points:
    """Values of one metric at some steps, all with one timestamp (ms since the epoch)."""

    key: str
    steps: Sequence[int]
    values: Sequence[float]
    time: int


class Outbox:
    """An append-only file of points, one line each with a checksum in front."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
        self._file = path.open("a", encoding="utf-8")
        if not whole:  # a kill tore the last line; close it so that the next one stands alone
            self._file.write("\n")

    def append(self, points: Points) -> None:
        body = json.dumps([points.key, list(points.steps), list(points.values), points.time])
        self._file.write(f"{zlib.crc32(body.encode()):08x} {body}\n")
        self._file.flush()

    def flush(self) -> None:
        """Wait until everything appended is on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def read(path: Path) -> Iterator[Points]:
        """Yield the points of an outbox; a torn or damaged line is passed over."""
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError:
            return
        for line in lines:
            crc, _, body = line.partition(b" ")
            if crc != b"%08x" % zlib.crc32(body):
                continue
            try:
                key, steps, values, at = json.loads(body)
                yield Points(key, [int(s) for s in steps], [float(v) for v in values], int(at))
            except (ValueError, TypeError, OverflowError, RecursionError):
                continue


@dataclass(frozen=True)
class RunRecord:
    """What is recorded of a run; `folder` is where its artifacts lie on this machine."""

    id: str
    name: str
    experiment_id: str
    status: str
    start_time: float  # seconds since the epoch
    tags: dict[str, str]
    folder: Path
    remote: bool  # the artifacts' home is elsewhere; `folder` is a spool


class Tracking:
    """A store of runs: a local SQLite file beside its artifacts, or whatever MLflow reaches."""

    def __init__(self, uri: str | None, create: bool = False) -> None:
        """Open the store, creating a local one if asked; raise BadInput if it cannot be used."""
        from_where = "tracking.uri" if uri else "MLFLOW_TRACKING_URI"
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlruns/mlflow.db"
        scheme = urlsplit(uri).scheme.partition("+")[0]
        if scheme not in SCHEMES:
            raise BadInput(
                f"{from_where}={without_password(uri)!r}: cannot be used; give sqlite:///FILE, "
                f"an http(s):// server, or a database that MLflow knows."
            )
        self.database = Path(uri.partition(":///")[2]).absolute() if scheme == "sqlite" else None
        self.uri = f"sqlite:///{self.database}" if self.database else uri
        self.address = without_password(self.uri)
        self.root = self.database.parent if self.database else Path("mlruns").absolute()
        if self.database and not create and not self.database.exists():
            raise BadInput(f"there are no runs here: {self.database} does not exist.")
        if self.database:
            self._check_root()
        try:
            self._client = self._open()
            self._client.search_experiments(max_results=1)
        except Exception as error:
            reason = without_password(first_line(error))
            raise BadInput(
                f"{from_where}={without_password(uri)!r}: cannot be used ({reason})."
            ) from None

        if create:
            self._check_root()

    def _check_root(self) -> None:
        """Create the folder for everything that runs write, where needed, and try to write."""
        probe = self.root / f".write-{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise BadInput(f"{self.root}: cannot be written to ({error.strerror}).") from None

    def _open(self) -> Any:
        _mlflow_defaults()
        if self.database:
            from filelock import FileLock
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            # Two processes that both create the schema break each other, hence the lock.
            with FileLock(self.root / "mlflow.lock"):
                self._local = SqlAlchemyStore(self.uri, str(self.root / "artifacts"))
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.uri)

    def create(self, resolved: Resolved, tags: Mapping[str, str], data: Any) -> "TrackedRun":
        """Create a run with its params, tags and data set, and start to track it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param
        from mlflow.exceptions import MlflowException

        config = resolved.config
        started = time.time()
        all_tags = {
            "mlflow.user": _user(),
            "mlflow.source.name": "waymark",
            **{key: str(value) for key, value in resolved.values["tags"].items()},
            **tags,
        }
        run = self._client.create_run(
            self._experiment(config.experiment_name),
            start_time=int(started * 1000),
            tags=all_tags,
            run_name=config.run_name,
        )
        shape = json.dumps({"x_train": data.x_train.shape, "x_test": data.x_test.shape})
        entry = Dataset(data.name, data.digest[:36], "local", data.source, profile=shape)
        self._client.log_batch(
            run.info.run_id,
            params=[Param(key, value) for key, value in resolved.params().items()],
        )
        context = [InputTag("mlflow.data.context", "training")]
        inputs = [DatasetInput(entry, context)]
        try:
            self._client.log_inputs(run.info.run_id, inputs)
        except MlflowException:  # another process made the data set's row at the same moment
            self._client.log_inputs(run.info.run_id, inputs)
        return self._track(self._record(run), config)

    def reopen(self, record: RunRecord, config: Any) -> "TrackedRun":
        """Go on with a run: replay its outbox, and skip from now on what is recorded.

        Raises BadInput if another process has the run.
        """
        tracked = self._track(record, config)
        self._client.update_run(record.id, status="RUNNING")
        return tracked

    def undelivered(self, record: RunRecord) -> bool:
        """Tell whether something of a run may still be on its way to MLflow."""
        return self._outbox(record.id).exists()

    def _track(self, record: RunRecord, config: Any) -> "TrackedRun":
        record.folder.mkdir(parents=True, exist_ok=True)
        return TrackedRun(self._client, self.uri, record, config.tracking, self._outbox(record.id))

    def _outbox(self, run_id: str) -> Path:
        return self.root / "outbox" / f"{run_id}.jsonl"

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                # The local store makes <mlruns>/artifacts/<experiment id>; the client alone
                # would make ./mlruns/<experiment id>.
                maker = self._local if self.database else self._client
                return str(maker.create_experiment(name))
            except MlflowException:  # another process made it meanwhile
                found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise BadInput(f"experiment_name={name!r}: this experiment was deleted in MLflow.")
        return str(found.experiment_id)

    def _record(self, run: Any) -> RunRecord:
        info = run.info
        below = f"{info.experiment_id}/{info.run_id}/artifacts"
        place = urlsplit(info.artifact_uri)
        own = place.path.endswith(f"artifacts/{below}") or place.scheme == "mlflow-artifacts"
        if self.database and own:
            # Never the absolute place that MLflow stored: the folder may have moved.
            folder, remote = self.root / "artifacts" / below, False
        elif place.scheme in ("", "file"):
            folder, remote = Path(url2pathname(place.path)), False
        else:
            folder, remote = self.root / "spool" / info.run_id / "artifacts", True
        return RunRecord(
            info.run_id,
            info.run_name,
            info.experiment_id,
            info.status,
            info.start_time / 1000,
            dict(run.data.tags),
            folder,
            remote,
        )

    def find(self, text: str) -> RunRecord:
        """Find RUN: an id, a unique prefix of one, a unique name, or `latest`.

        Raises BadInput if there is none, or more than one.
        """
        quote = '"' if "'" in text else "'"  # MLflow's filters know no escape
        if text == "latest":
            runs = self._search("tags.`waymark.version` != ''", ["attributes.start_time DESC"])
            found = [run for run in runs if run.data.tags.get("waymark.kind") != "sweep"][:1]
        else:
            found = []
            if len(text) >= 4 and text.isalnum():
                found = self._search(f"attributes.run_id LIKE '{text}%'")
            if not found and text and quote not in text:
                found = self._search(f"attributes.run_name = {quote}{text}{quote}")
        if not found:
            raise BadInput(f"RUN={text!r}: there is no such run in {self.address}.")
        if len(found) > 1:
            ids = ", ".join(run.info.run_id[:12] for run in found[:5])
            raise BadInput(f"RUN={text!r}: more than one run fits ({ids}); give more of its id.")
        return self._record(found[0])

    def _search(self, query: str, order: list[str] | None = None) -> list[Any]:
        experiments = [e.experiment_id for e in self._client.search_experiments()]
        return list(self._client.search_runs(experiments, query, order_by=order, max_results=50))

    def fetch(self, record: RunRecord, name: str, target: Path) -> None:
        """Bring an artifact, or a folder of them, of a remote run below `target`."""
        from mlflow.exceptions import MlflowException

        target.mkdir(parents=True, exist_ok=True)
        try:
            self._client.download_artifacts(record.id, name, str(target))
        except (MlflowException, OSError) as error:
            reason = first_line(error)
            raise BadInput(f"run {record.id}: {name} cannot be fetched ({reason}).") from None

    def link(self, record: RunRecord) -> str:
        """Return the page that shows the run in MLflow's UI, and how to open a local store's."""
        page = (
            f"#/experiments/{record.experiment_id}/runs/{record.id}?workflowType=machine_learning"
        )
        if self.database:
            return f"waymark ui, then http://127.0.0.1:5000/{page}"
        return f"{self.address}/{page}"


class TrackedRun:
    """One run being tracked; the training code sees record, flush, upload and finish."""

    def __init__(
        self,
        client: Any,
        uri: str,
        record: RunRecord,
        settings: Any,
        outbox: Path,
    ) -> None:
        self.info = record
        self._client, self._uri, self._settings = client, uri, settings
        self._lock = _locked(outbox.with_suffix(".lock"), record.id)
        kept = list(Outbox.read(outbox))
        self._outbox = Outbox(outbox)
        self.points: dict[str, dict[int, float]] = {}  # key -> step -> value, all recorded
        self._waiting = list(kept)
        self._jobs: list[Callable[[], None]] = []
        self._error: Exception | None = None
        for key in client.get_run(record.id).data.metrics:
            history = client.get_metric_history(record.id, key)
            self.points[key] = {point.step: point.value for point in history}
        for points in kept:
            values = zip(points.steps, points.values, strict=True)
            self.points.setdefault(points.key, {}).update(values)
        self._wake, self._closing = threading.Event(), False
        self._sender = threading.Thread(target=self._send, name="tracking", daemon=True)
        self._sender.start()
        self._monitor = _system_metrics(uri, record.id) if settings.system_metrics else None

    def record(self, steps: Sequence[int], metrics: Mapping[str, Sequence[float]]) -> None:
        """Record values of metrics at steps; steps that are recorded already are skipped."""
        now = time.time_ns() // 1_000_000
        for key, values in metrics.items():
            seen = self.points.setdefault(key, {})
            new = [(s, v) for s, v in zip(steps, values, strict=True) if s not in seen]
            if new:
                points = Points(key, [s for s, _ in new], [v for _, v in new], now)
                seen.update(new)
                self._outbox.append(points)
                self._waiting.append(points)

    def flush(self) -> None:
        """Make everything recorded so far durable on this machine."""
        self._outbox.flush()

    def upload(self, paths: Sequence[Path]) -> None:
        """Copy artifacts to the run's remote home, if it has one, in the background."""
        if self.info.remote:
            for path in paths:
                self._later(lambda path=path: self._copy(path))  # type: ignore[misc]

    def remove(self, names: Sequence[str]) -> None:
        """Delete artifacts (relative names) in the run's remote home, if it has one."""
        if self.info.remote:
            self._later(lambda: self._delete(names))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags, in the background."""
        for key, value in tags.items():
            self._later(
                lambda key=key, value=value: self._client.set_tag(  # type: ignore[misc]
                    self.info.id, key, value[:5000]
                )
            )

    def finish(self, status: str) -> str | None:
        """Deliver what is left and end the run; return what could not be delivered, if any."""
        if self._monitor:
            self._monitor.finish()
        self._later(lambda: self._client.set_terminated(self.info.id, status))
        self._closing = True
        self._wake.set()
        self._sender.join(self._settings.flush_seconds)
        self._lock.release()
        delivered = not self._sender.is_alive() and not self._waiting and not self._jobs
        self._outbox.flush()
        self._outbox.close()
        if delivered and status == "FINISHED":
            self._outbox.path.unlink(missing_ok=True)
            self._outbox.path.with_suffix(".lock").unlink(missing_ok=True)
        if delivered and self.info.remote:  # a spool that stayed would be older one day
            shutil.rmtree(self.info.folder.parent, ignore_errors=True)
        if delivered:
            return None
        reason = first_line(self._error) if self._error else "no answer in time"
        return f"{without_password(reason)}; what is left stands in {self._outbox.path}"

    def _later(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        self._wake.set()

    def _send(self) -> None:
        patience = time.monotonic() + 3600 * 24 * 365
        while True:
            self._wake.wait(PAUSE)
            self._wake.clear()
            if self._closing:
                patience = min(patience, time.monotonic() + self._settings.flush_seconds)
            try:
                self._deliver()
                if self._closing and not self._waiting and not self._jobs:
                    return
            except Exception as error:  # whatever it is, training goes on and the outbox keeps
                self._error = error
                if time.monotonic() > patience:
                    return
                time.sleep(0.5)

    def _deliver(self) -> None:
        from mlflow.entities import Metric

        waiting = list(self._waiting)
        flat = [
            Metric(p.key, value, p.time, step)
            for p in waiting
            for step, value in zip(p.steps, p.values, strict=True)
        ]
        for first in range(0, len(flat), BATCH):
            self._client.log_batch(self.info.id, metrics=flat[first : first + BATCH])
        del self._waiting[: len(waiting)]
        while self._jobs:
            self._jobs[0]()
            del self._jobs[0]

    def _copy(self, path: Path) -> None:
        below = path.relative_to(self.info.folder).parent.as_posix()
        if path.exists():  # else retention was quicker, and its removal comes later
            self._client.log_artifact(self.info.id, str(path), None if below == "." else below)

    def _delete(self, names: Sequence[str]) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        run = self._client.get_run(self.info.id)
        repository = get_artifact_repository(run.info.artifact_uri, self._uri)
        for name in names:
            with contextlib.suppress(FileNotFoundError, MlflowException):  # gone is what we want
                repository.delete_artifacts(name)


def _locked(path: Path, run_id: str) -> Any:
    """Hold a run for this process; raise BadInput if another one has it."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput(f"run {run_id}: another process is training it.") from None
    return lock


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _mlflow_defaults() -> None:
    """Keep MLflow from retrying for minutes and from reporting usage, unless the user asks."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def _system_metrics(uri: str, run_id: str) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor


def ui_command(tracking: Tracking, host: str, port: int) -> list[str]:
    """Return the command line of MLflow's server on a local store."""
    import sys

    _mlflow_defaults()
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # ten more processes
    options = {
        "--backend-store-uri": tracking.uri,
        "--artifacts-destination": str(tracking.root / "artifacts"),
        "--host": host,
        "--port": str(port),
        "--workers": "1",
    }
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *(x for pair in options.items() for x in pair),
    ]
