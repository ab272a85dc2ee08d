"""Runs whose process is gone are found and can go on; those of the living are left alone."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from mlflow.tracking import MlflowClient
from waymark.config.compose import compose_config
from waymark.errors import BadInput
from waymark.tracking import liveness, lock, outbox, recovery
from waymark.tracking.active_run import ActiveRun, reopen_run
from waymark.tracking.finder import find
from waymark.tracking.liveness import is_alive, this_process
from waymark.tracking.opening import open_store
from waymark.tracking.recovery import sync
from waymark.tracking.store import RunStore

from tests.support.processes import BOUND, Done, Main, after_opening, remote

Process = dict[str, Any]

NOW = 1_700_000_000.0
HOUR = 3600

# Whether a process is alive.


@pytest.fixture(params=["/proc", "psutil"])
def system(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Ask Linux's /proc, then what is asked where there is none."""
    if request.param == "psutil":
        monkeypatch.setattr(liveness, "Path", lambda text: tmp_path / text.lstrip("/"))
    return str(request.param)


def started(pid: int, system: str) -> float:
    """Return when a process started, as the program writes it down, found in another way."""
    seconds = psutil.Process(pid).create_time()
    if system == "psutil":
        return seconds
    return float(round((seconds - psutil.boot_time()) * os.sysconf("SC_CLK_TCK")))


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


def test_a_process_lives_until_it_ends(
    system: str, sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    own = this_process()
    assert json.loads(json.dumps(own)) == own
    child = {**own, "pid": sleeper.pid, "started": started(sleeper.pid, system)}
    now = time.time()
    for process in (own, child):
        for heartbeat in (now, 0.0, now + HOUR, math.nan):  # no clock is asked
            assert is_alive(process, heartbeat)
    assert not is_alive({**child, "started": child["started"] + 1}, now)  # its pid was given away
    sleeper.kill()
    end = time.monotonic() + BOUND
    while psutil.Process(sleeper.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not is_alive(child, now)  # ended, and nobody has waited for it
    sleeper.wait(BOUND)
    assert not is_alive(child, now)
    assert is_alive(own, now)


@pytest.mark.parametrize("name", ["a) Z 1 (", "R (x", " ", "((("])
def test_a_programs_name_may_hold_anything(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "300"]) as process:
        named = {**this_process(), "pid": process.pid, "started": started(process.pid, "/proc")}
        assert is_alive(named, 0)
        process.kill()


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0, True),
        (liveness.DEAD_AFTER_S - 0.001, True),
        (liveness.DEAD_AFTER_S + 0.001, False),
        (10 * HOUR, False),
        (NOW, False),  # none at all
        (-liveness.HEARTBEAT_S + 0.001, True),  # by a clock that is a little ahead
        (-liveness.HEARTBEAT_S - 0.001, False),  # from the future: no sign of life
        (-1e12, False),
        (-math.inf, False),
        (math.inf, False),
        (math.nan, False),
    ],
)
def test_elsewhere_only_the_age_of_its_heartbeat_counts(
    monkeypatch: pytest.MonkeyPatch, age: float, expected: bool
) -> None:
    monkeypatch.setattr(liveness.time, "time", lambda: NOW)
    own = this_process()
    for other in ("elsewhere", None, 5, [own["host"]]):
        assert is_alive({**own, "host": other}, NOW - age) is expected
    # A container may have this host's name, and its processes this one's numbers.
    for key in ("boot", "pids"):
        for other in ("other", 5, [own[key]], {"a": 1}):
            assert is_alive({**own, key: other}, NOW - age) is expected
    assert is_alive({**own, "boot": None}, NOW - age) is expected
    gone = {**own, "host": "elsewhere", "pid": None, "started": None, "boot": ""}
    assert is_alive(gone, NOW - age) is expected
    assert is_alive({}, NOW - age) is expected


NO_PIDS = (None, "", "1", 0, -1, 2**22 + 1, 10**30, True, False, math.nan, math.inf, [], {})
GARBAGE: dict[str, Any] = {
    **{repr(pid): pid for pid in (*NO_PIDS, "../self")},
    "beyond all digits": 10**5000,
    "own, as text": str(os.getpid()),
    "own, as a fraction": float(os.getpid()),
    "own, in a list": [os.getpid()],
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_pid_is_no_living_process(system: str, name: str) -> None:
    pid = GARBAGE[name]
    own = this_process()
    for start in (own["started"], None, "", math.nan):
        assert is_alive({**own, "pid": pid, "started": start}, time.time()) is False
    without = {"host": own["host"], "boot": own["boot"], "pid": pid}
    assert is_alive(without, time.time()) is False


@pytest.mark.parametrize("value", [None, "", "x", -1, math.nan, [], {}])
def test_what_names_another_process_is_not_this_one(value: Any) -> None:
    own = this_process()
    assert is_alive({**own, "started": value}, time.time()) is False
    assert is_alive({k: v for k, v in own.items() if k != "started"}, time.time()) is False


def test_a_record_that_tells_of_no_pid_namespace_is_as_certain_as_it_was(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    own = {key: value for key, value in this_process().items() if key != "pids"}
    child = {**own, "pid": sleeper.pid, "started": started(sleeper.pid, "/proc")}
    assert is_alive(child, 0.0)
    assert not is_alive({**child, "started": 1.0}, time.time())


# Dead runs in a store.

SHORT = ["data=arrays", "save=npz", "steps=40", "save.every=10", "save.max_to_keep=2"]
SHORT += ["eval_every=20", "batch_size=10", "progress=false", "runtime.intra_op_threads=2"]

# One process leaves runs of all kinds behind, the last one in the middle of training.
CHILD = """
import json, os, signal, sys, time
from mlflow.tracking import MlflowClient
import waymark.execution.execute
from waymark.execution import execute
from waymark.config.compose import compose_config
from waymark.training.progress import NoProgress
from waymark.tracking.active_run import create_run
from waymark.tracking.remote_store import connect
from waymark.tracking import remote_store
from tests.support.data import POINTS
from tests.support.processes import DeliveryHere

remote_store.start_program = DeliveryHere

class KillAt(NoProgress):
    def on_steps(self, step, loss):
        if step >= 23:
            os.kill(os.getpid(), signal.SIGKILL)

def refusing(real):
    def refuse(self, run_id, *arguments, **named):
        if run_id in ids.values():
            raise ConnectionError("gone")
        return real(self, run_id, *arguments, **named)
    return refuse

overrides = sys.argv[1:]
settings = compose_config([*overrides, "tracking.flush_seconds=0.1", "+tags.colour=blue"])
ids = {"whole": execute.run(compose_config([*overrides, "run_name=whole"])).run_id}
tracking = connect(None)
made = {name: create_run(tracking, settings, {"waymark.version": "test"}, POINTS)
        for name in ("silent", "FINISHED", "FAILED", "KILLED")}
for name, run in made.items():
    run.record([1, 2], {"train/loss": [0.5, 0.25]})
    ids[name] = run.info.id
for run in made.values():
    while len(tracking.metric_history(run.info.id, "train/loss")) < 2:
        time.sleep(0.01)
MlflowClient.log_batch = refusing(MlflowClient.log_batch)
for name, run in made.items():
    run.record([2, 3, 4], {"train/loss": [9.0, 0.125, float("nan")]})
    run.set_tags({"colour": "red"})
    run.flush() if name == "silent" else run.finish(name)
print(json.dumps(ids), flush=True)
waymark.execution.execute.make_progress = lambda *_: KillAt(0, 0)
execute.run(compose_config([*overrides, "run_name=training"]))
"""

ENDS = {name: name for name in ("FINISHED", "FAILED", "KILLED")}
ENDS |= {"whole": "FINISHED", "silent": "KILLED", "training": "KILLED"}
REAL = ("whole", "training")  # those that have trained


@dataclass(frozen=True)
class DeadRuns:
    """A store that a process left when it died an hour ago, and the ids of its runs by name."""

    mlruns: Path
    ids: dict[str, str]
    died: float  # seconds since the epoch


@pytest.fixture(scope="module")
def dead_runs(
    shared_once: Callable[..., tuple[Path, Any]],
    empty_store: Path,
    small: Path,
    environment: dict[str, str],
) -> DeadRuns:
    def make(folder: Path) -> tuple[dict[str, str], float]:
        shutil.copytree(empty_store, folder / "mlruns")
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *SHORT, f"data.path={small}"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * BOUND,
        )
        died = time.time()
        assert done.returncode == -signal.SIGKILL, done
        (ids,) = after_opening(done.stdout)
        training = [line for line in done.stdout.splitlines() if line.startswith("run ")][-1]
        database = folder / "mlruns/mlflow.db"
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(f"UPDATE runs SET start_time = start_time - {HOUR * 1000}")
            change = f"UPDATE tags SET value = value - {HOUR} WHERE key = 'waymark.heartbeat'"
            connection.execute(change)
        for path in folder.glob("mlruns/artifacts/*/*/outbox.jsonl"):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - HOUR))
        return {**json.loads(ids), "training": training.split()[1]}, died - HOUR

    folder, (ids, died) = shared_once("dead-runs", make)
    return DeadRuns(folder / "mlruns", ids, died)


@pytest.fixture
def here(dead_runs: DeadRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder of this test, with a copy of the store that was left."""
    shutil.copytree(dead_runs.mlruns, tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def home(run_id: str) -> Path:
    """Return the folder of a run in the store of the current folder."""
    (found,) = Path("mlruns/artifacts").glob(f"*/{run_id}")
    return found


def mlflow() -> MlflowClient:
    return MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db")


def seen(run_id: str) -> dict[str, Any]:
    """Return what MLflow knows of a run."""
    client = mlflow()
    run = client.get_run(run_id)
    points = {
        key: sorted((p.step, repr(p.value), p.timestamp) for p in history)
        for key in run.data.metrics
        for history in [client.get_metric_history(run_id, key)]
    }
    info = run.info
    times = (info.start_time, info.end_time)
    return {"status": info.status, "times": times, "tags": run.data.tags, "points": points}


def losses(facts: dict[str, Any]) -> list[tuple[int, str]]:
    return [point[:2] for point in facts["points"]["train/loss"]]


def refused(done: Done, run_id: str) -> None:
    """Check that a command did nothing and said so in one sentence."""
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith(f"waymark: run {run_id}: ")
    assert done.stderr.count("\n") == 1


COMMANDS = {
    "evaluate": ["evaluate", "whole"],
    "resume": ["resume", "whole"],
    "sync": ["sync"],
    "run": ["run", *SHORT],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_any_command_finds_the_dead(
    dead_runs: DeadRuns, here: Path, small: Path, main: Main, command: str
) -> None:
    ids = dead_runs.ids
    assert {name: seen(ids[name])["status"] for name in ENDS} == {
        **dict.fromkeys(ENDS, "RUNNING"),
        "whole": "FINISHED",
    }
    for name in set(ENDS) - set(REAL):
        assert losses(seen(ids[name])) == [(1, "0.5"), (2, "0.25")]
    ended = {name: outbox.read(home(ids[name]) / "outbox.jsonl").status for name in ENDS}
    last = {name: (home(ids[name]) / "outbox.jsonl").stat().st_mtime for name in ENDS}

    done = main(*COMMANDS[command], *[f"data.path={small}"] * (command == "run"))
    assert done.returncode == 0, done

    after = {name: seen(run_id) for name, run_id in ids.items()}
    assert {name: facts["status"] for name, facts in after.items()} == ENDS
    for name in ("silent", "training"):
        start, end = after[name]["times"]
        assert max(start, int(last[name] * 1000)) <= end <= dead_runs.died * 1000
        tags = after[name]["tags"]
        assert tags["waymark.reason"] == "its process is gone"
        assert tags["waymark.resume"] == f"waymark resume {ids[name]}"
    for name in ("FINISHED", "FAILED", "KILLED"):  # it recorded its end, so nothing else is said
        assert ended[name] == (name, after[name]["times"][1])
        assert not {"waymark.reason", "waymark.resume"} & set(after[name]["tags"])
    for name in set(ENDS) - set(REAL):
        assert losses(after[name]) == [(1, "0.5"), (2, "0.25"), (3, "0.125"), (4, "nan")]
        assert after[name]["tags"]["colour"] == "red"
    whole, training = losses(after["whole"]), losses(after["training"])
    assert 23 <= len(training) < len(whole) == 40
    assert training == whole[: len(training)]
    assert [key for key in after["training"]["points"] if key.startswith("test/")]

    open_store(None)
    list(sync(open_store(None)))
    assert {name: seen(run_id) for name, run_id in ids.items()} == after


def test_a_dead_run_goes_on_as_its_tag_says(dead_runs: DeadRuns, here: Path, main: Main) -> None:
    open_store(None)
    run_id = dead_runs.ids["training"]
    words = shlex.split(seen(run_id)["tags"]["waymark.resume"])
    assert words[0] == "waymark"
    done = main(*words[1:])
    assert (done.returncode, done.stderr) == (0, ""), done
    now, whole = seen(run_id), seen(dead_runs.ids["whole"])
    assert now["status"] == "FINISHED"
    assert now["tags"]["waymark.state_digest"] == whole["tags"]["waymark.state_digest"]
    assert (now["tags"]["waymark.reason"], now["tags"]["waymark.resume"]) == ("", "")
    for key in set(whole["points"]) - {"train/steps_per_second"}:
        assert [p[:2] for p in now["points"][key]] == [p[:2] for p in whole["points"][key]]


# The living.


@pytest.fixture
def living(sleeper: "subprocess.Popen[bytes]") -> Process:
    return {**this_process(), "pid": sleeper.pid, "started": started(sleeper.pid, "/proc")}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["lock", "tag", "elsewhere"])
def test_a_run_that_another_process_has_is_left_to_it(
    dead_runs: DeadRuns,
    here: Path,
    main: Main,
    living: Process,
    how: str,
    delivery_here: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (lock, recovery):
        monkeypatch.setattr(module, "DELIVERY_END_S", 0.2)
    run_id = dead_runs.ids["training"]
    with ExitStack() as stack:
        if how == "lock":
            stack.enter_context(FileLock(home(run_id) / "lock", timeout=0))
        else:
            process = {**living, "host": "elsewhere"} if how == "elsewhere" else living
            mlflow().set_tag(run_id, "waymark.process", json.dumps(process))
            if how == "elsewhere":
                mlflow().set_tag(run_id, "waymark.heartbeat", str(int(time.time()) - HOUR // 60))
        facts, files = seen(run_id), tree(home(run_id))
        assert facts["status"] == "RUNNING"
        for words in (["steps=60"], []):
            refused(main("resume", run_id, *words), run_id)
        assert main("evaluate", run_id).returncode == 0
        if how == "lock":
            assert main("sync").returncode == 0
        assert seen(run_id) == facts
        files.setdefault(str(home(run_id) / "lock"), b"")
        assert tree(home(run_id)) == files
        if how == "elsewhere":  # until that is silent for long
            beat = str(int(time.time()) - liveness.DEAD_AFTER_S - 1)
            mlflow().set_tag(run_id, "waymark.heartbeat", beat)
    if how != "tag":
        done = main("resume", run_id)
        assert done.returncode == 0, done
        assert seen(run_id)["status"] == "FINISHED"


@pytest.mark.parametrize("key", ["boot", "pids", "host"])
def test_the_lock_is_asked_first(
    dead_runs: DeadRuns, here: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the tag says of boot and container: who holds the lock delivers, nobody else."""
    for module in (lock, recovery):
        monkeypatch.setattr(module, "DELIVERY_END_S", 0.2)
    run_id = dead_runs.ids["training"]
    process = json.loads(mlflow().get_run(run_id).data.tags["waymark.process"])
    mlflow().set_tag(run_id, "waymark.process", json.dumps({**process, key: "other"}))
    for beat in (0, int(time.time()) + 9 * HOUR, int(time.time())):
        mlflow().set_tag(run_id, "waymark.heartbeat", str(beat))
        with FileLock(home(run_id) / "lock", timeout=0):
            facts = seen(run_id)
            open_store(None)
            assert seen(run_id) == facts
            assert facts["status"] == "RUNNING"
    open_store(None)  # its heartbeat is a fresh one
    assert seen(run_id)["status"] == "KILLED"
    assert losses(seen(run_id))[-1][0] >= 23


def test_no_clock_that_is_ahead_makes_an_end_in_the_future(dead_runs: DeadRuns, here: Path) -> None:
    run_id, ahead = dead_runs.ids["silent"], int(time.time()) + 9 * HOUR
    mlflow().set_tag(run_id, "waymark.heartbeat", str(ahead))
    os.utime(home(run_id) / "outbox.jsonl", (ahead, ahead))
    open_store(None)
    facts = seen(run_id)
    assert (facts["status"], facts["times"][1] <= time.time() * 1000) == ("KILLED", True)


def test_a_run_that_began_in_the_future_is_not_the_latest(place: Path, main: Main) -> None:
    client, ids = mlflow(), {}
    for name, start in {
        "past": -HOUR,
        "ahead": liveness.DEAD_AFTER_S - 60,
        "future": 10**9,
    }.items():
        made = client.create_run("0", int((time.time() + start) * 1000), {"waymark.version": "1"})
        client.set_terminated(made.info.run_id)
        ids[name] = made.info.run_id
    tracking = open_store(None)
    assert find(tracking, "latest").id == ids["ahead"]
    lines = {line.split()[0]: line for line in main("runs").stdout.splitlines()[1:]}
    told = {name: "in the future" in lines[ids[name][:8]] for name in ids}
    assert told == {"past": False, "ahead": True, "future": True}
    assert not [line for line in lines.values() if re.search(r"-\d+\.\d s", line)]
    for name in ("past", "ahead"):
        client.delete_run(ids[name])
    assert find(tracking, "latest").id == ids["future"]


def test_of_several_at_once_one_gets_the_run(dead_runs: DeadRuns, here: Path, small: Path) -> None:
    config = compose_config([*SHORT, f"data.path={small}"]).config
    trackings = [open_store(None) for _ in range(4)]
    barrier = threading.Barrier(len(trackings))
    got: list[ActiveRun] = []
    sentences: list[str] = []

    def reopen(tracking: RunStore) -> None:
        record = find(tracking, dead_runs.ids["silent"])
        barrier.wait(BOUND)
        try:
            got.append(reopen_run(remote(tracking), record, config))
        except BadInput as error:
            sentences.append(str(error))

    threads = [threading.Thread(target=reopen, args=[tracking]) for tracking in trackings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)
    (one,) = got
    assert one.finish("KILLED") is None
    run_id = dead_runs.ids["silent"]
    assert sentences == [f"run {run_id}: another process is training it."] * 3
    assert [step for step, _ in losses(seen(run_id))] == [1, 2, 3, 4]


def test_only_a_dead_processs_run_is_touched(place: Path, living: Process) -> None:
    """Rows: which process, which heartbeat, the status before; what is expected after."""
    now = time.time()
    gone, other = {**living, "started": 1.0}, {**living, "host": "elsewhere"}
    fresh, old = (
        str(int(now) - liveness.DEAD_AFTER_S + 60),
        str(int(now) - liveness.DEAD_AFTER_S - 60),
    )
    alone, dead = "RUNNING", "KILLED"
    rows: dict[str, tuple[Any, str | None, str, str]] = {
        "foreign": (None, None, alone, alone),
        "foreign with a heartbeat": (None, old, alone, alone),
        "living": (living, fresh, alone, alone),
        "living, silent for long": (living, old, alone, alone),
        "living, heartbeat unreadable": (living, "x", alone, alone),
        "living, without a heartbeat": (living, None, alone, alone),
        "this one": (this_process(), old, alone, alone),
        "elsewhere": (other, fresh, alone, alone),
        "elsewhere, a little ahead": (other, str(int(now) + 20), alone, alone),
        "elsewhere, ahead": (other, str(int(now) + 9 * HOUR), alone, dead),
        "another container": ({**gone, "pids": "pid:[1]"}, fresh, alone, alone),
        "another container, silent": ({**living, "pids": "pid:[1]"}, old, alone, dead),
        "elsewhere, silent for long": (other, old, alone, dead),
        "elsewhere, without a heartbeat": (other, None, alone, dead),
        "gone": (gone, fresh, alone, dead),
        "gone, ahead": (gone, str(int(now) + 9 * HOUR), alone, dead),
        "another boot": ({**gone, "boot": "1"}, fresh, alone, alone),
        "gone before a restart": ({**living, "boot": "1"}, old, alone, dead),
        "gone, heartbeat nan": (gone, "nan", alone, dead),
        "gone, heartbeat inf": (gone, "inf", alone, dead),
        "gone, heartbeat unreadable": (gone, "x", alone, dead),
        "gone, without a heartbeat": (gone, None, alone, dead),
        "nonsense": ("nonsense", old, alone, dead),
        "null": ("null", old, alone, dead),
        "a list": ("[1]", old, alone, dead),
        "ended": (gone, old, "FINISHED", "FINISHED"),
        "failed": (gone, old, "FAILED", "FAILED"),
    }
    client = mlflow()
    experiment, ids, before = client.create_experiment("x", "mlflow-artifacts:/x"), {}, {}
    for name, (process, beat, status, _) in rows.items():
        text = process if isinstance(process, str) else json.dumps(process)
        tags = {"waymark.process": text} if process else {}
        tags |= {"waymark.heartbeat": beat} if beat else {}
        # Two hours ahead: the clock has jumped back since.
        start = int((now + 2 * HOUR) * 1000)
        ids[name] = client.create_run(experiment, start, tags, name).info.run_id
        if status != "RUNNING":
            client.set_terminated(ids[name], status, start + 1)
        before[name] = seen(ids[name])
    open_store(None)
    after = {name: seen(run_id) for name, run_id in ids.items()}
    assert {name: facts["status"] for name, facts in after.items()} == {
        name: row[3] for name, row in rows.items()
    }
    for name, (_, _, status, expected) in rows.items():
        if status == expected:
            assert after[name] == before[name]
            assert not [*place.glob(f"mlruns/**/{ids[name]}*")]
        else:
            start, end = after[name]["times"]
            assert start <= end
            assert after[name]["tags"]["waymark.reason"] == "its process is gone"


def test_a_dead_run_without_its_configuration_names_no_command(
    dead_runs: DeadRuns, here: Path
) -> None:
    run_id = dead_runs.ids["silent"]
    (home(run_id) / "artifacts" / "config.yaml").unlink()
    open_store(None)
    facts = seen(run_id)
    assert (facts["status"], facts["tags"]["waymark.resume"]) == ("KILLED", "")


def test_a_deleted_run_is_left_alone(dead_runs: DeadRuns, here: Path) -> None:
    run_id = dead_runs.ids["silent"]
    mlflow().delete_run(run_id)
    before = seen(run_id)
    open_store(None)
    assert seen(run_id) == before
    assert mlflow().get_run(run_id).info.lifecycle_stage == "deleted"


def test_a_run_whose_artifacts_are_elsewhere_ends_no_earlier_than_it_began(
    place: Path, living: Process
) -> None:
    client = mlflow()
    experiment = client.create_experiment("x", "s3://nowhere/x")
    process = json.dumps({**living, "started": 1.0})
    tags = {"waymark.process": process, "waymark.heartbeat": str(int(time.time()) - HOUR)}
    start = int(time.time() * 1000)  # the clock has jumped back since
    run_id = client.create_run(experiment, start, tags).info.run_id
    open_store(None)
    facts = seen(run_id)
    assert facts["status"] == "KILLED"
    assert facts["tags"]["waymark.resume"] == f"waymark resume {run_id}"
    assert facts["times"][1] >= start


@pytest.mark.parametrize("key", ["waymark.process", "waymark.heartbeat"])
def test_no_tag_stops_a_command(place: Path, living: Process, key: str) -> None:
    client = mlflow()
    tags = {"waymark.process": json.dumps({**living, "started": 1.0}), "waymark.heartbeat": "1"}
    for text in ("[" * 5000, '{"a":' * 900, "1e999", "9" * 5000, "\0", "NaN"):
        client.create_run("0", tags={**tags, key: text})
    run_id = client.create_run("0", tags=tags).info.run_id
    open_store(None)
    assert client.get_run(run_id).info.status == "KILLED"


def test_one_dead_run_is_found_among_many_living(place: Path, living: Process) -> None:
    """The living are of another host, all of them started after the dead one."""
    client = mlflow()
    beat = {"waymark.heartbeat": str(int(time.time()))}

    def create(start: int, process: Process) -> str:
        tags = {**beat, "waymark.process": json.dumps(process)}
        return str(client.create_run("0", start, tags).info.run_id)

    dead = create(1, {**living, "started": 1.0})
    alike = create(2, {**living, "host": "elsewhere"})
    with closing(sqlite3.connect("mlruns/mlflow.db")) as database, database:
        for table in ("runs", "tags"):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            others = ", ".join(column for column in columns if column != "run_uuid")
            for number in range(120):
                database.execute(
                    f"INSERT INTO {table} (run_uuid, {others}) "
                    f"SELECT ?, {others} FROM {table} WHERE run_uuid = ?",
                    (f"{number:032}", alike),
                )
    open_store(None)
    assert client.get_run(dead).info.status == "KILLED"
    assert {client.get_run(f"{number:032}").info.status for number in range(120)} == {"RUNNING"}
