"""The delivery process: training imports no MLflow, and either of the two may die."""

import errno
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from mlflow.tracking import MlflowClient
from waymark.config.compose import compose_config
from waymark.errors import BadInput
from waymark.tracking import delivery_process, outbox, remote_store
from waymark.tracking.active_run import create_run
from waymark.tracking.delivery_process import DeliveryServer
from waymark.tracking.finder import find
from waymark.tracking.liveness import DELIVERY_END_S
from waymark.tracking.opening import open_store
from waymark.tracking.questions import Opening
from waymark.tracking.remote_store import connect

from tests.support.data import POINTS
from tests.support.processes import BOUND, THREADS, Main, after_opening, created, poll

PROGRAM = "waymark.tracking.delivery_process"
SHORT = ["steps=40", "batch_size=10", "save=npz", "save.every=10", "eval_every=20"]
SHORT += ["data=arrays", "data.path=small.npz", "progress=false", THREADS]
LONG = [*SHORT, "steps=10000000", "log_every=10", "save.every=1000", "eval_every=1000000"]


def deliverer(process: "subprocess.Popen[str]") -> psutil.Process:
    """Return the delivery process of a command that goes on."""

    def found() -> psutil.Process | None:
        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children():
                if PROGRAM in child.cmdline():
                    return child
        return None

    return poll(found)


def trains(place: Path) -> outbox.Content:
    """Wait until a run in the local store trains; return what its outbox holds so far."""

    def points() -> outbox.Content | None:
        for path in place.glob("mlruns/*/*/*/outbox.jsonl"):
            content = outbox.read(path)
            if content.points and not content.status:
                return content
        return None

    return poll(points)


def gone(process: psutil.Process) -> None:
    """Wait for the end of a process that another one started."""
    poll(
        lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE,
        DELIVERY_END_S + BOUND,
    )


@pytest.fixture
def training(
    place: Path, small: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> Iterator["subprocess.Popen[str]"]:
    """Yield a command that trains for long, in a place with a store."""
    (place / "small.npz").write_bytes(small.read_bytes())
    with start("run", *LONG, cwd=place) as process:
        try:
            trains(place)
            yield process
        finally:
            process.kill()


SCRIPT = """
import sys
import time
import waymark
result = waymark.run(*{overrides!r})
assert not [name for name in sys.modules if name.partition(".")[0] in ("mlflow", "sqlalchemy")]
print("ran", result.run_id)
"""


WAYS = ["a file", *(pytest.param(how, marks=pytest.mark.long)
                    for how in ("-c", "standard input", "a notebook"))]  # fmt: skip


@pytest.mark.parametrize("how", WAYS)
def test_training_imports_no_mlflow_wherever_it_is_called_from(
    how: str, place: Path, small: Path, environment: dict[str, str]
) -> None:
    """A script needs no guard against being imported again."""
    (place / "small.npz").write_bytes(small.read_bytes())
    text = SCRIPT.format(overrides=SHORT)
    (place / "script.py").write_text(text)
    (place / "cells.py").write_text(f"exec({text!r}, {{'__name__': '__main__'}})")
    words = {"a file": ["script.py"], "-c": ["-c", text], "a notebook": ["cells.py"]}.get(how, [])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env=environment,
        input="" if words else text,
        capture_output=True,
        text=True,
        timeout=2 * BOUND,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in after_opening(done.stdout)] == ["ran"]
    assert find(open_store(store_of(place)), "latest").status == "FINISHED"


def test_a_run_can_be_resumed_before_what_is_done_beside_its_creation(place: Path) -> None:
    """TensorFlow is imported meanwhile: a kill then leaves a run with its configuration."""
    store = connect(None, create=True)

    def meanwhile() -> None:
        (config,) = poll(lambda: [*place.glob("mlruns/artifacts/*/*/artifacts/config.yaml")])
        assert outbox.read(config.parents[1] / outbox.NAME).leases

    run = create_run(store, compose_config([THREADS]), {}, POINTS, meanwhile)
    assert run.finish("KILLED") is None


def test_nobody_is_answered_who_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that was killed early leaves no store behind."""
    monkeypatch.chdir(tmp_path)
    opening = Opening(None, True, False, dict(os.environ), str(tmp_path), 0o022)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    near, far = socket.socketpair()
    with Connection(near.detach()) as asking:
        asking.send((None, "open", 0, opening))
        asking.send((1, "answer", 0, "waymark.tracking.finder.find_single", ["latest"], {}))
    server = DeliveryServer(far.detach(), ended.pid)
    server.serve()
    server.close()
    assert not [*tmp_path.iterdir()]


def store_of(place: Path) -> str:
    return f"sqlite:///{place}/mlruns/mlflow.db"


def test_it_has_the_socket_and_the_lock_and_nothing_else(
    training: "subprocess.Popen[str]", place: Path
) -> None:
    process = deliverer(training)
    assert process.cmdline()[1:4] == ["-P", "-m", PROGRAM]
    assert process.cmdline()[5:] == [str(training.pid)]
    folder = Path(f"/proc/{process.pid}/fd")
    if not folder.exists():
        pytest.skip("the system does not tell which files a process has open")
    files = {os.readlink(path) for path in folder.iterdir()}
    files = {name for name in files if not name.endswith(".ttf")}  # that it draws with
    others = {name for name in files if not name.startswith(("socket:", "/dev/null"))}
    assert others
    assert all("mlruns" in name for name in others), others
    assert any(name.endswith("/lock") for name in others)
    assert process.nice() > psutil.Process(training.pid).nice()


def history_of(place: Path, run_id: str) -> list[int]:
    """Return the steps at which MLflow has a loss of a run, each as often as it has one."""
    points = MlflowClient(store_of(place)).get_metric_history(run_id, "train/loss")
    return sorted(point.step for point in points)


@pytest.mark.parametrize("who", [pytest.param("training", marks=pytest.mark.long), "both"])
def test_after_a_kill_a_resume_goes_on_at_once(
    who: str, training: "subprocess.Popen[str]", place: Path, main: Main
) -> None:
    process = deliverer(training)
    if who == "both":
        process.kill()
    training.kill()
    training.wait()
    before = trains(place) if who == "both" else recorded(place)
    reached = max(before.metrics()["train/loss"])
    done = main("resume", "latest", f"steps={reached + 50}", "progress=false")
    assert done.returncode == 0, done
    record = find(open_store(store_of(place)), "latest")
    assert record.status == "FINISHED"
    steps = history_of(place, record.id)
    assert len(steps) == len({*steps})
    assert {*before.metrics()["train/loss"]} <= {*steps}
    gone(process)


def recorded(place: Path) -> outbox.Content:
    """Return what the only outbox holds."""
    (path,) = place.glob("mlruns/artifacts/*/*/outbox.jsonl")
    return outbox.read(path)


def test_of_a_killed_run_all_is_delivered_at_once(
    training: "subprocess.Popen[str]", place: Path
) -> None:
    process = deliverer(training)
    training.kill()
    training.wait()
    gone(process)
    (run,) = MlflowClient(store_of(place)).search_runs(["1"])
    assert run.info.status == "KILLED"
    assert run.data.tags["waymark.resume"] == f"waymark resume {run.info.run_id}"
    assert history_of(place, run.info.run_id) == sorted(recorded(place).metrics()["train/loss"])
    assert recorded(place).delivered


@pytest.mark.parametrize("times", [pytest.param(1, marks=pytest.mark.long), 2])
def test_training_goes_on_without_it(
    times: int, training: "subprocess.Popen[str]", place: Path, main: Main
) -> None:
    """A new one takes over, once; after that the outbox keeps what the next sync delivers."""
    first = deliverer(training)
    first.kill()
    second = poll(lambda: next((p for p in [deliverer(training)] if p != first), None))
    if times == 2:
        second.kill()
        gone(second)
    training.send_signal(signal.SIGTERM)
    _, err = training.communicate(timeout=BOUND)
    assert training.returncode == 143
    (path,) = place.glob("mlruns/artifacts/*/*/outbox.jsonl")
    run_id = path.parent.name
    told = f"waymark: not all of run {run_id} has reached MLflow ({remote_store.ENDED}); it is kept"
    assert (told in err) is (times == 2)
    if times == 2:
        assert main("sync").stdout == f"run {run_id}: delivered\n"
    assert history_of(place, run_id) == sorted(recorded(place).metrics()["train/loss"])
    assert MlflowClient(store_of(place)).get_run(run_id).info.status == "KILLED"


def test_the_end_of_a_terminal_leaves_no_process(
    place: Path, small: Path, environment: dict[str, str]
) -> None:
    """The terminal is closed: SIGHUP comes to the command alone, and all is delivered."""
    (place / "small.npz").write_bytes(small.read_bytes())
    command = [sys.executable, "-m", "waymark", "run", *LONG]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, in the tests as well
        os.execvpe(command[0], command, environment)
    trains(place)
    process = next(child for child in psutil.Process(pid).children() if PROGRAM in child.cmdline())
    os.close(terminal)
    poll(lambda: os.waitpid(pid, os.WNOHANG)[0])
    gone(process)
    (run,) = MlflowClient(store_of(place)).search_runs(["1"])
    assert run.info.status == "KILLED"
    assert history_of(place, run.info.run_id) == sorted(recorded(place).metrics()["train/loss"])


def test_without_work_it_ends_and_is_started_anew(
    place: Path, delivery_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_process, "IDLE_S", 0.1)
    store = connect(None)
    first = store.process()
    poll(lambda: first.ended)
    with pytest.raises(Exception, match="no such run"):
        find(store, "latest")
    assert store.process() is not first


def test_where_no_other_can_be_started_the_outbox_keeps_the_run(
    place: Path, delivery_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = created(open_store(None), "tracking.flush_seconds=30")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patch:
        patch.setattr(remote_store, "start_program", refuse)
        run.record([1], {"train/loss": [0.5]})
        run._process.kill()
        poll(lambda: run.status.done)
    left = run.finish("KILLED")
    assert left and "cannot be started again (Resource temporarily unavailable)" in left
    assert outbox.read(run.info.outbox).metrics() == {"train/loss": {1: 0.5}}


def test_the_environment_is_kept_once_however_many_stores_are_opened(
    place: Path, delivery_here: None
) -> None:
    stores = [connect(None) for _ in range(3)]
    for store in stores:
        with pytest.raises(BadInput, match="no such run"):
            find(store, "latest")
    here: Any = stores[0].process()._process
    assert len(here.server._openings) == 3
    assert len({id(opening) for opening in here.server._openings.values()}) == 1


def test_a_local_store_that_gives_no_answer_is_not_needed(
    place: Path,
    small: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    start_program: Callable[[int], Any],
) -> None:
    """The run is in a spool, which its first line says, until sync brings it to the store."""
    (place / "small.npz").write_bytes(small.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(remote_store, "_process", None)
        patch.setattr(remote_store, "start_program", start_program)
        patch.setattr(remote_store, "PROGRAM", "waymark.no_such_module")
        done = main("run", *SHORT)
    assert done.returncode == 0, done
    first, *_ = done.stdout.splitlines()
    (spool,) = place.glob("mlruns/spool/*")
    assert f"gives no answer: it is kept in {spool}, and waymark sync" in first
    assert main("sync").stdout.endswith(": delivered\n")
    (run,) = MlflowClient(store_of(place)).search_runs(["1"])
    assert (run.info.status, run.data.metrics["train/loss"] > 0) == ("FINISHED", True)
    assert history_of(place, run.info.run_id) == list(range(1, 41))
    assert main("evaluate", "latest").returncode == 0
    assert not list(place.glob("mlruns/spool/*"))


def test_a_sweep_returns_when_all_of_its_trials_has_arrived(
    place: Path, small: Path, main: Main
) -> None:
    """A trial's pictures are drawn while the next one trains."""
    (place / "small.npz").write_bytes(small.read_bytes())
    done = main("run", "-m", *SHORT, "seed=0,1,2")
    assert done.returncode == 0, done
    boxes = [*place.glob("mlruns/artifacts/*/*/outbox.jsonl")]
    assert len(boxes) == 3
    for box in boxes:
        assert outbox.is_delivered(box)
        pictures = {path.name for path in (box.parent / "artifacts" / "evaluation").glob("*.png")}
        assert pictures == {"loss.png", "confusion_matrix.png"}


FORK = """
import os, time
from waymark.tracking.remote_store import connect
store = connect(None)
print(store.process()._process.pid, flush=True)
child = os.fork()
if child == 0:
    time.sleep(600)
print(child, flush=True)
os._exit(0)
"""


def test_it_ends_with_its_process_though_a_fork_of_that_lives(
    place: Path, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    with subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        delivering, forked = (int(process.stdout.readline()) for _ in range(2))
        try:
            poll(lambda: not psutil.pid_exists(delivering))
            assert psutil.pid_exists(forked)
        finally:
            os.kill(forked, signal.SIGKILL)


def test_a_run_takes_few_requests_however_many_checkpoints_it_has(
    small: Path,
    server: tuple[str, Path],
    place: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    delivery_here: None,
) -> None:
    """Of a thousand steps and twenty checkpoints a server hears some thirty times."""
    asked: list[str] = []
    send = requests.Session.send

    def counted(session: Any, request: Any, **options: Any) -> Any:
        if "mlflow-artifacts" not in request.url:
            asked.append(request.url)
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", counted)
    words = ["steps=1000", "batch_size=10", "save=npz", "save.every=50", "save.max_to_keep=3"]
    words += ["data=arrays", f"data.path={small}", "progress=false", THREADS]
    began = time.monotonic()
    with monkeypatch.context() as patch:  # as outside of tests
        patch.setattr(delivery_process, "SEND_INTERVAL_S", 1.0)
        patch.setattr(delivery_process, "MAX_SEND_INTERVAL_S", 10.0)
        done = main("run", *words, f"tracking.uri={server[0]}", f"experiment_name={place.name}")
    seconds = time.monotonic() - began
    assert (done.returncode, done.stderr) == (0, "")
    assert 10 < len(asked) < 30 + seconds, asked
    points = MlflowClient(server[0]).get_metric_history(done.stdout.split()[1], "train/loss")
    assert len(points) == 1000
