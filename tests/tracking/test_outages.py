"""A tracking server that goes away, at any time and in any way: nothing waits, nothing is lost."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from waymark.execution import execute
from waymark.plots import curves
from waymark.tracking.active_run import ActiveRun
from waymark.tracking.delivery import Delivery
from waymark.tracking.finder import find
from waymark.tracking.history import History, history, load
from waymark.tracking.opening import open_store
from waymark.tracking.outbox import read
from waymark.tracking.store import RunStore
from waymark.training.progress import NoProgress

from tests.support.ends import End, points_of
from tests.support.processes import THREADS, Main, poll
from tests.support.proxy import Proxy

pytestmark = pytest.mark.usefixtures("delivery_here")

SHORT = ["data=arrays", "save=npz", "steps=40", "save.every=5", "save.max_to_keep=2", THREADS]
SHORT += ["eval_every=20", "batch_size=10", "progress=false", "tracking.flush_seconds=30"]


@pytest.fixture
def proxy(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with Proxy(server[0]) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: Proxy) -> str:
    """Return the override for the server behind the proxy."""
    return f"tracking.uri={proxy.uri}"


@pytest.fixture
def short(small: Path, tmp_path: Path) -> list[str]:
    """Return the overrides of a short run; every test has an experiment of its own."""
    return [*SHORT, f"data.path={small}", f"experiment_name={tmp_path.name}"]


@pytest.fixture
def expected(undisturbed: Callable[..., End]) -> End:
    """Return how a short run on a local store ends."""
    return undisturbed(*SHORT)


def the_run(uri: str, experiment: str) -> Any:
    """Return the one run of an experiment."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    return run


ENDS = ("json", "npz")


@pytest.fixture
def arrived(server: tuple[str, Path], tmp_path: Path, expected: End) -> Callable[[], None]:
    """Return what checks that there is one run, finished, and that it holds what it should."""

    def arrived() -> None:
        client, run = MlflowClient(server[0]), the_run(server[0], tmp_path.name)
        assert run.info.status == "FINISHED"
        assert run.info.end_time >= run.info.start_time
        assert points_of(client, run.info.run_id) == expected.points
        assert run.data.tags["waymark.state_digest"] == expected.digest
        assert run.data.params["steps"] == "40"
        assert len(client.get_run(run.info.run_id).inputs.dataset_inputs) == 1
        kept = [file.path for file in client.list_artifacts(run.info.run_id, "checkpoints")]
        assert sorted(kept) == [f"checkpoints/weights-{n}.{end}" for n in (35, 40) for end in ENDS]
        top = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "environment.json", "evaluation", "checkpoints"} <= top
        assert not [path for path in Path("mlruns").rglob("*") if path.is_file()]

    return arrived


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Measure how long the training code waits in what it calls of a tracked run (seconds)."""
    seconds: list[float] = []

    def timed(name: str) -> None:
        real = getattr(ActiveRun, name)

        def measured(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return real(*arguments, **named)
            finally:
                seconds.append(time.perf_counter() - began)

        monkeypatch.setattr(ActiveRun, name, measured)

    for name in ("__init__", "wait_for_creation", "record", "flush", "set_tags"):
        timed(name)
    timed("mark_artifacts_dirty")
    return seconds


@pytest.mark.parametrize("mode", ["refuse", pytest.param("hang", marks=pytest.mark.long)])
def test_gone_from_start_to_end(
    mode: str,
    proxy: Proxy,
    store: str,
    short: list[str],
    server: tuple[str, Path],
    tmp_path: Path,
    main: Main,
    arrived: Callable[[], None],
    waited: list[float],
) -> None:
    proxy.set(mode)
    done = main("run", *short, "tracking.flush_seconds=1", store)
    assert done.returncode == 0
    assert 0.4 < sum(waited) < 10, waited  # a request that is not answered takes 20 seconds
    local = done.stdout.split()[1]
    assert done.stdout.startswith(f"run {local} (offline)\n")
    assert done.stderr.startswith(f"waymark: not all of run {local} has reached MLflow (")
    assert done.stderr.endswith(", and waymark sync delivers it\n")
    assert done.stderr.count("\n") == 1
    assert read(tmp_path / "mlruns" / "spool" / local / "outbox.jsonl").creation.id == local

    evaluated = main("evaluate", local[:8], "--step", "35", store)
    assert (evaluated.returncode, evaluated.stdout[:9]) == (0, "accuracy ")
    # What was being sent when the run gave up holds it for a moment, here in one process.
    failed = poll(lambda: next((d for d in [main("sync", store)] if d.returncode), None))
    assert (failed.returncode, failed.stderr) == (1, "")
    assert failed.stdout.startswith(f"run {local}: ")

    proxy.set("pass")
    poll(lambda: main("sync", store).stdout == f"run {local}: delivered\n")
    arrived()
    tags = the_run(server[0], tmp_path.name).data.tags
    assert tags["waymark.local_id"] == local
    assert f"`waymark rerun {local} {store}`" in tags["mlflow.note.content"]
    assert tags["mlflow.note.content"].startswith("- test accuracy **")
    again = main("sync", store)
    assert (again.returncode, again.stdout) == (0, "nothing left to deliver\n")
    arrived()
    by_local_id = main("evaluate", local, store)
    assert by_local_id.returncode == 0, by_local_id


class Switch(NoProgress):
    """Change how the server fails when training reaches given steps."""

    def __init__(self, proxy: Proxy, modes: dict[int, str]) -> None:
        super().__init__(0, 0)
        self.proxy, self.modes = proxy, dict(modes)

    def on_steps(self, step: int, loss: float) -> None:
        for at in [at for at in self.modes if at <= step]:
            self.proxy.set(self.modes.pop(at))
            time.sleep(0.3)  # so that the failure meets something that is being sent


@pytest.mark.parametrize(
    "modes",
    [
        {1: "drop", 20: "pass", 25: "refuse", 35: "pass"},
        {10: "hang", 30: "pass"},
        {10: "error", 20: "slow"},
        {10: "deaf", 20: "pass", 30: "deaf", 35: "pass"},
    ],
    ids=lambda modes: "-".join(modes.values()),
)
def test_gone_for_a_while(
    modes: dict[int, str],
    proxy: Proxy,
    store: str,
    short: list[str],
    main: Main,
    arrived: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("waymark.execution.execute.make_progress", lambda *_: Switch(proxy, modes))
    done = main("run", *short, store)
    assert (done.returncode, done.stderr) == (0, "")
    arrived()


def test_no_checkpoint_arrives_ahead_of_its_losses(
    short: list[str],
    server: tuple[str, Path],
    tmp_path: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another machine goes on from what has arrived, should this one be lost at any moment."""
    monkeypatch.chdir(tmp_path)
    arrivals: list[tuple[int, int]] = []  # a checkpoint's step, the last loss there by then
    real, artifacts = Delivery._send_points, RunStore.artifacts

    def saved(delivery: Delivery) -> int:
        return len(list((delivery.info.folder / "checkpoints").glob("*.json")))

    def sent_while_training_goes_on(delivery: Delivery) -> None:
        real(delivery)
        before, end = saved(delivery), time.monotonic() + 1
        while saved(delivery) == before and time.monotonic() < end:
            time.sleep(0.01)

    def watched(tracking: RunStore, record: Any) -> Any:
        repository = artifacts(tracking, record)
        log = repository.log_artifact

        def log_artifact(file: str, folder: str | None) -> None:
            if folder == "checkpoints" and file.endswith(".json"):
                history = tracking.client.get_metric_history(record.id, "train/loss")
                step = int(Path(file).stem.rpartition("-")[2])
                arrivals.append((step, max((point.step for point in history), default=0)))
            log(file, folder)

        repository.log_artifact = log_artifact
        return repository

    monkeypatch.setattr(Delivery, "_send_points", sent_while_training_goes_on)
    monkeypatch.setattr(RunStore, "artifacts", watched)
    monkeypatch.setattr("waymark.execution.execute.make_progress", lambda *_: Slow(40, 0))
    assert main("run", *short, f"tracking.uri={server[0]}").returncode == 0
    assert arrivals
    assert [pair for pair in arrivals if pair[0] > pair[1]] == []


class Slow(NoProgress):
    """Let training take its time."""

    def on_steps(self, step: int, loss: float) -> None:
        time.sleep(0.1)


def test_back_only_after_the_end(
    proxy: Proxy,
    store: str,
    short: list[str],
    server: tuple[str, Path],
    tmp_path: Path,
    main: Main,
    arrived: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "waymark.execution.execute.CONNECT_GRACE_S", 30
    )  # the server knows the run before it goes
    monkeypatch.setattr(
        "waymark.execution.execute.make_progress", lambda *_: Switch(proxy, {30: "refuse"})
    )
    done = main("run", *short, "tracking.flush_seconds=1", store)
    assert done.returncode == 0
    run_id = done.stdout.split()[1]
    run = the_run(server[0], tmp_path.name)
    assert run_id in (run.info.run_id, run.data.tags["waymark.local_id"])
    assert run.info.status == "RUNNING"
    proxy.set("pass")
    # Resuming a finished run delivers it, too.
    again = main("resume", run_id, store)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("already finished at step ")
    arrived()


def test_offline_interrupted_and_resumed_offline(
    proxy: Proxy,
    store: str,
    short: list[str],
    main: Main,
    arrived: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy.set("refuse")

    def crash(*_: Any) -> None:
        raise RuntimeError("no more power")

    with monkeypatch.context() as broken:
        broken.setattr(execute.RunExecution, "restore_and_evaluate", crash)
        failed = main("run", *short, "tracking.flush_seconds=0.2", store)
    assert failed.returncode == 1
    local = failed.stdout.split()[1]
    assert failed.stderr.endswith(f"; resume with: waymark resume {local} {store}\n")
    for newer in (f"{local[:6]}", "latest"):
        assert main("evaluate", newer, store).returncode == 0
    done = main("resume", local, "tracking.flush_seconds=0.2", store)
    assert done.returncode == 0, done
    proxy.set("pass")
    assert main("sync", store).stdout == f"run {local}: delivered\n"
    arrived()


def test_syncing_may_die_at_any_call(
    proxy: Proxy,
    store: str,
    short: list[str],
    main: Main,
    arrived: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server takes a request, and its answer is lost: the next sync makes no second run."""
    proxy.set("refuse")
    assert main("run", *short, "tracking.flush_seconds=0.1", store).returncode == 0
    proxy.set("pass")
    for call in ("create_run", "log_batch", "log_inputs", "set_terminated"):
        real = getattr(MlflowClient, call)

        def unheard(*arguments: Any, real: Any = real, **named: Any) -> Any:
            real(*arguments, **named)
            raise ConnectionError("[Errno 104] Connection reset by peer")

        with monkeypatch.context() as broken:
            broken.setattr(MlflowClient, call, unheard)
            done = main("sync", store)
        assert done.returncode == 1
        assert done.stdout.endswith(": Connection reset by peer\n")
    assert main("sync", store).returncode == 0
    arrived()


def test_runs_of_another_store_are_left_alone(
    proxy: Proxy, short: list[str], main: Main, place: Path
) -> None:
    proxy.set("refuse")
    password = secrets.token_hex(8)
    own = f"tracking.uri=http://me:{password}@127.0.0.1:{proxy.port}"
    assert main("run", *short, "tracking.flush_seconds=0.1", own).returncode == 0
    done = main("sync")
    said = f"belongs to http://127.0.0.1:{proxy.port}: give its tracking.uri\n"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(said)
    assert MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db").search_runs(["0"]) == []
    files = [path for path in place.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if password.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "case", ["killed", *(pytest.param(x, marks=pytest.mark.long) for x in ("finished", "late"))]
)
def test_an_extended_run_on_a_slow_server_keeps_its_earlier_life(
    case: str,
    short: list[str],
    server: tuple[str, Path],
    place: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its history and pictures hold all steps, though MLflow tells of the first ones at the end.

    A killed process leaves no history.json; and where waiting comes to nothing, what was there
    stays, and sync brings the rest.
    """
    uri = server[0]
    client, store = MlflowClient(uri), f"tracking.uri={uri}"
    done = main("run", *short, store)
    run = the_run(uri, place.name)
    run_id = run.info.run_id
    assert done.returncode == 0
    if case != "finished":
        open_store(uri).artifacts(find(open_store(uri), run_id)).delete_artifacts("history.json")
    over, drawn = threading.Event(), []
    train, learn = execute.train, Delivery.drop_already_logged

    def trained(*arguments: Any, **named: Any) -> Any:
        try:
            return train(*arguments, **named)
        finally:
            over.set()

    def late(delivery: Delivery, run: Any) -> None:
        assert over.wait(60)
        if case == "late":
            raise ConnectionError("[Errno 104] Connection reset by peer")
        time.sleep(0.5)
        learn(delivery, run)

    def curve(path: Path, losses: Any, **more: Any) -> None:
        drawn.append(set(losses))
        draw(path, losses, **more)

    draw = curves.loss_curve
    with monkeypatch.context() as slow:
        slow.setattr(execute, "train", trained)
        slow.setattr(Delivery, "drop_already_logged", late)
        slow.setattr(curves, "loss_curve", curve)
        seconds = ["tracking.flush_seconds=0.3"] if case == "late" else []
        assert main("resume", run_id, "steps=50", *seconds, store).returncode == 0
    every = set(range(1, 51))
    if case == "late":
        kept = load(next(place.glob("mlruns/spool/*/artifacts/history.json")).read_bytes())
        assert kept is not None and not kept.whole
        assert main("sync", store).stdout == f"run {run_id}: delivered\n"
    else:
        assert drawn == [every]
    there = load(Path(client.download_artifacts(run_id, "history.json")).read_bytes())
    assert there is not None and there.whole
    assert set(there.metrics["train/loss"]) == every
    assert {p.step for p in client.get_metric_history(run_id, "train/loss")} == every
    # Whatever history.json holds, a comparison takes what is missing from MLflow.
    part = History({k: {s: x for s, x in v.items() if s > 40} for k, v in there.metrics.items()})
    (place / "history.json").write_text(part.dump())
    tracking = open_store(uri)
    tracking.artifacts(find(tracking, run_id)).log_artifact(str(place / "history.json"))
    found = history(tracking, find(tracking, run_id))
    assert found.metrics["train/loss"] == there.metrics["train/loss"]
