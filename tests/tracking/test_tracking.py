"""Tracking: the outbox loses nothing, nothing is recorded twice, local and remote stores work."""

import inspect
import json
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from waymark.api import compare
from waymark.config.compose import compose_config
from waymark.errors import BadInput
from waymark.execution.execute import run
from waymark.listing import list_runs
from waymark.tracking import artifacts
from waymark.tracking.active_run import ActiveRun, reopen_run
from waymark.tracking.delivery import Delivery
from waymark.tracking.finder import find, select
from waymark.tracking.history import foreign
from waymark.tracking.opening import open_store
from waymark.tracking.outbox import Content, Outbox, Points, is_pending, read
from waymark.tracking.parent_run import open_parent
from waymark.tracking.recovery import mark_dead_runs_killed
from waymark.tracking.store import RunStore

from tests.support.processes import (
    BOUND,
    THREADS,
    Main,
    answers,
    created,
    free_port,
    kept_checkpoints,
    poll,
    remote,
)

pytestmark = pytest.mark.usefixtures("delivery_here")


def bits(points: Points) -> tuple[str, list[int], list[bytes], int]:
    values = [struct.pack("<d", value) for value in points.values]
    return points.key, list(points.steps), values, points.time


# The outbox, a file.

steps_and_values = st.lists(st.tuples(st.integers(0, 2**62), st.floats()), max_size=5)
some_points = st.builds(
    lambda key, pairs, at: Points(key, [s for s, _ in pairs], [v for _, v in pairs], at),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=9),
    steps_and_values,
    st.integers(0, 2**62),
)
several = st.lists(some_points, min_size=1, max_size=4)


def written(path: Path, points: list[Points]) -> bytes:
    path.unlink(missing_ok=True)
    outbox = Outbox(path)
    for one in points:
        outbox.add(one)
    outbox.flush()
    outbox.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outbox") / "run.jsonl"


@settings(deadline=None)
@given(points=several)
def test_points_come_back_bit_for_bit(file: Path, points: list[Points]) -> None:
    written(file, points)
    found = [bits(one) for one in read(file).points]
    nan = struct.pack("<d", float("nan"))

    def one_nan(one: tuple[str, list[int], list[bytes], int]) -> Any:
        # JSON has one NaN; which of the many patterns it was, says nothing.
        return *one[:2], [nan if np.isnan(struct.unpack("<d", v)[0]) else v for v in one[2]], one[3]

    assert [one_nan(one) for one in found] == [one_nan(bits(one)) for one in points]


@settings(deadline=None)
@given(points=several, later=some_points, cut=st.integers(1, 40))
def test_a_torn_tail_costs_only_itself(
    file: Path, points: list[Points], later: Points, cut: int
) -> None:
    whole = written(file, points)
    kept = whole[: max(0, len(whole) - cut)]
    file.write_bytes(kept)
    complete = kept.count(b"\n")
    # A line that lacks nothing but its end of line still counts.
    complete += kept != b"" and whole[len(kept) :][:1] == b"\n"
    outbox = Outbox(file)
    outbox.add(later)
    outbox.close()
    found = list(map(repr, read(file).points))
    assert found == list(map(repr, [*points[:complete], later]))


@settings(deadline=None)
@given(points=several, data=st.data())
def test_a_damaged_line_is_passed_over(file: Path, points: list[Points], data: Any) -> None:
    lines = written(file, points).split(b"\n")[:-1]
    index = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[index]) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != lines[index][place]))
    lines[index] = lines[index][:place] + bytes([other]) + lines[index][place + 1 :]
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    expected = points[:index] + points[index + 1 :]
    assert list(map(repr, read(file).points)) == list(map(repr, expected))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)
checked_lines = json_values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)


@settings(deadline=None)
@given(lines=st.lists(st.binary(max_size=30) | checked_lines.map(lambda b: (b,)), max_size=5))
def test_no_bytes_break_the_reader(file: Path, lines: list[bytes | tuple[bytes]]) -> None:
    with_checksums = [
        b"%08x %s" % (zlib.crc32(line[0]), line[0]) if isinstance(line, tuple) else line
        for line in lines
    ]
    file.write_bytes(b"\n".join(with_checksums))
    for points in read(file).points:
        assert isinstance(points.key, str)
        assert len(points.steps) == len(points.values)
        assert {type(step) for step in points.steps} <= {int}
        assert {type(value) for value in points.values} <= {float}


def test_an_outbox_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == Content()


# One run on a store of SQLite.


def history(tracking: RunStore, tracked: ActiveRun, key: str) -> list[tuple[int, float]]:
    points = MlflowClient(tracking.uri).get_metric_history(tracked.info.id, key)
    return sorted((point.step, point.value) for point in points)


def test_recorded_steps_are_skipped(tracking: RunStore) -> None:
    tracked = created(tracking)
    tracked.record([1, 2], {"train/loss": [0.5, 0.25], "test/loss": [3.0, 4.0]})
    tracked.record([2, 3], {"train/loss": [9.0, 0.125]})
    assert tracked.finish("FINISHED") is None
    assert history(tracking, tracked, "train/loss") == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert history(tracking, tracked, "test/loss") == [(1, 3.0), (2, 4.0)]


def test_a_reopened_run_skips_what_is_recorded_and_sends_what_is_not(tracking: RunStore) -> None:
    tracked = created(tracking)
    tracked.record([1, 2], {"train/loss": [0.5, 0.25]})
    tracked.finish("KILLED")
    box = tracked.info.outbox
    assert [point.steps for point in read(box).points] == [[1, 2]]
    # As if the process had died before it could send this.
    outbox = Outbox(box)
    outbox.add(Points("train/loss", [3], [0.125], 1_700_000_000_000))
    outbox.close()
    again = reopen_run(
        remote(tracking), find(tracking, tracked.info.id), compose_config([THREADS]).config
    )
    assert again.points["train/loss"] == {1: 0.5, 2: 0.25, 3: 0.125}
    again.record([2, 3, 4], {"train/loss": [7.0, 7.0, 0.0625]})
    assert again.finish("FINISHED") is None
    # Steps 1 and 2 were sent twice, with one timestamp each: one point each to MLflow.
    assert history(tracking, again, "train/loss") == [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.0625)]
    record = find(tracking, tracked.info.id)
    assert record.status == "FINISHED"
    assert not is_pending(record.outbox)
    assert sorted(step for p in read(box).points for step in p.steps) == [1, 2, 3, 4]


def test_values_that_are_not_finite_arrive(tracking: RunStore) -> None:
    tracked = created(tracking)
    tracked.record([1, 2], {"train/loss": [float("nan"), float("inf")]})
    assert tracked.finish("FINISHED") is None
    points = MlflowClient(tracking.uri).get_metric_history(tracked.info.id, "train/loss")
    assert [point.step for point in points] == [1, 2]
    assert np.isnan(points[0].value)
    assert points[1].value > 1e308  # MLflow keeps infinity as the largest float


def test_a_store_that_fails_costs_nothing(
    tracking: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked = created(tracking, "tracking.flush_seconds=0.3")

    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("http://me:secret@server is gone")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", gone)
        tracked.record(range(1, 2501), {"train/loss": [1 / n for n in range(1, 2501)]})
        tracked.flush()
        left = tracked.finish("FINISHED")
    box = tracked.info.outbox
    assert left == "http://me:***@server is gone"
    assert box.exists()
    record = find(tracking, tracked.info.id)
    assert is_pending(record.outbox)
    assert (
        reopen_run(remote(tracking), record, compose_config([THREADS]).config).finish("FINISHED")
        is None
    )
    assert history(tracking, tracked, "train/loss") == [(n, 1 / n) for n in range(1, 2501)]
    assert find(tracking, tracked.info.id).status == "FINISHED"
    assert not is_pending(record.outbox)


def test_a_slow_store_does_not_hold_up_recording(
    tracking: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, asked, real = threading.Event(), threading.Event(), MlflowClient.log_batch

    def slow(self: MlflowClient, *arguments: Any, **named: Any) -> None:
        asked.set()
        assert answered.wait(BOUND)
        real(self, *arguments, **named)

    tracked = created(tracking)
    monkeypatch.setattr(MlflowClient, "log_batch", slow)
    tracked.record([1], {"train/loss": [1.0]})
    assert asked.wait(BOUND)
    for step in range(2, 200):  # nothing here waits for the answer, or the test would hang
        tracked.record([step], {"train/loss": [1 / step]})
    tracked.flush()
    answered.set()
    assert tracked.finish("FINISHED") is None
    assert history(tracking, tracked, "train/loss") == [(n, 1 / n) for n in range(1, 200)]


@pytest.fixture
def pages_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the store give one thing a page, whatever it is asked for."""
    for name in ("search_experiments", "_search_runs", "get_metric_history"):
        real = getattr(SqlAlchemyStore, name)
        names = list(inspect.signature(real).parameters)

        def one(*given: Any, real: Any = real, names: list[str] = names, **named: Any) -> Any:
            named |= dict(zip(names, given, strict=False))
            return real(**{**named, "max_results": 1})

        monkeypatch.setattr(SqlAlchemyStore, name, one)


def test_every_list_is_read_to_its_last_page(tracking: RunStore, pages_of_one: None) -> None:
    runs = []
    for i in range(3):
        tracked = created(tracking, f"experiment_name=e{i % 2}", f"run_name=run{i}")
        tracked.record([1, 2, 3], {"train/loss": [3.0, 2.0, 1.0]})
        assert tracked.finish("FINISHED" if i else "KILLED") is None
        runs.append(tracked.info)
    sweep, _ = open_parent(tracking, "e0", "sweep", {"waymark.kind": "sweep", "k": "v"}, "k")
    again, _ = open_parent(tracking, "e0", "sweep", {"waymark.kind": "sweep", "k": "v"}, "k")
    assert again.id == sweep.id
    # The newest is a sweep's parent, and every experiment but one is on a later page.
    ids = [one.id for one in runs]
    assert find(tracking, "latest").id == ids[2]
    assert [find(tracking, one[:9]).id for one in ids] == ids
    assert [find(tracking, f"run{i}").id for i in range(3)] == ids
    found = [record.id for record, _ in select(tracking, None, None, None)]
    assert found == [sweep.id, *reversed(ids)]
    assert [r.id for r, _ in select(tracking, None, None, None, 2)] == [sweep.id, runs[2].id]
    assert [r.id for r, _ in select(tracking, "e1", None, None)] == [runs[1].id]
    with pytest.raises(BadInput, match="there is no such experiment"):
        select(tracking, "e2", None, None)
    # All that MLflow has of a run whose outbox is gone.
    assert foreign(tracking, runs[0], ["train/loss"]).metrics["train/loss"] == {1: 3, 2: 2, 3: 1}
    runs[0].outbox.unlink()
    again = reopen_run(remote(tracking), find(tracking, "run0"), compose_config([THREADS]).config)
    assert again.points["train/loss"] == {1: 3.0, 2: 2.0, 3: 1.0}
    assert again.finish("FINISHED") is None
    # The dead ones are all marked.
    for one in runs:
        tracking.client.set_tag(one.id, "waymark.process", "{}")
        tracking.client.set_tag(one.id, "waymark.heartbeat", "0")
        tracking.client.update_run(one.id, status="RUNNING")
        one.outbox.unlink()
    mark_dead_runs_killed(tracking)
    assert {find(tracking, one).status for one in ids} == {"KILLED"}


def test_a_run_belongs_to_one_process(tracking: RunStore) -> None:
    tracked = created(tracking)
    config = compose_config([THREADS]).config
    with pytest.raises(BadInput, match=f"run {tracked.info.id}: another process is training it"):
        reopen_run(remote(tracking), find(tracking, tracked.info.id), config)
    tracked.finish("KILLED")
    reopen_run(remote(tracking), find(tracking, tracked.info.id), config).finish("FINISHED")


def test_a_clock_that_jumps_back_does_no_harm(
    tracking: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked, now, now_ns = created(tracking), time.time, time.time_ns
    tracked.record([1], {"train/loss": [0.5]})
    day = 24 * 3600
    monkeypatch.setattr(time, "time", lambda: now() - day)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() - day * 10**9)
    tracked.record([2, 3], {"train/loss": [0.25, 0.125]})
    assert tracked.finish("KILLED") is None
    again = reopen_run(remote(tracking), find(tracking, "latest"), compose_config([THREADS]).config)
    assert again.info.id == tracked.info.id
    again.record([3, 4], {"train/loss": [9.0, 0.0625]})
    assert again.finish("FINISHED") is None
    assert history(tracking, again, "train/loss") == [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.0625)]
    run = MlflowClient(tracking.uri).get_run(again.info.id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time


# What is imported is shared by the four, the store is opened by each.
FOUR = """
import os, sys, threading
from waymark.config.compose import compose_config
from waymark.tracking.active_run import create_run
from waymark.tracking.remote_store import connect
from types import SimpleNamespace

resolved = compose_config(["runtime.intra_op_threads=2"])
data = SimpleNamespace(profile={}, schema={}, name="points", digest="d" * 64, source="test")

def work():
    tracked = create_run(connect(None, create=True), resolved, {"waymark.version": "test"}, data)
    for first in range(1, 1001, 100):
        steps = range(first, first + 100)
        tracked.record(steps, {"train/loss": [1 / step for step in steps]})
    print(tracked.info.id, tracked.finish("FINISHED"), flush=True)

assert threading.active_count() == 1
closed, barrier = os.pipe()
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        os.close(barrier)
        os.read(closed, 1)  # until the parent lets go
        work()
        sys.exit()
    children.append(child)
os.close(barrier)
sys.exit(max(os.waitpid(child, 0)[1] for child in children) > 0)
"""


@pytest.mark.long
def test_four_processes_on_a_fresh_store(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FOUR],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * BOUND,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    answers = [line.split() for line in done.stdout.splitlines()]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    assert len({run_id for run_id, _ in answers}) == 4
    for run_id, left in answers:
        points = client.get_metric_history(run_id, "train/loss")
        assert left == "None"
        assert sorted((p.step, p.value) for p in points) == [(n, 1 / n) for n in range(1, 1001)]
        assert len(client.get_run(run_id).inputs.dataset_inputs) == 1
    assert len(client.search_runs(["1"])) == 4


# Which run is meant.


SWEEP = {"waymark.kind": "sweep", "waymark.command": "waymark run -m seed=0,1 data.path=a\x1b[2J"}
SWEEP["waymark.resume"] = SWEEP["waymark.command"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> dict[str, str]:
    """Return a store's URI and the ids of runs in it by what they are there for."""
    folder = tmp_path_factory.mktemp("found") / "mlruns"
    shutil.copytree(empty_store, folder)
    uri = f"sqlite:///{folder}/mlflow.db"
    client, tags = MlflowClient(uri), {"waymark.version": "1"}
    experiment = client.create_experiment("waymark")
    ids = {}
    for at, (key, name, more) in enumerate([
        ("alone", "alone", tags),
        ("quoted", "it's 100% mine", tags),
        ("both", """it's "100 %" mine""", tags),
        ("alike", """it_s "100 x" mine""", tags),
        ("twin", "twin", tags),
        ("other", "twin", tags),
        ("newest", "newest", tags),
        ("sweep", "a sweep's parent", {**tags, **SWEEP}),
        ("foreign", "not Waymark's", {}),
    ]):  # fmt: skip
        run = client.create_run(experiment, start_time=at + 1, tags=more, run_name=name)
        ids[key] = run.info.run_id
    gone = client.create_run(experiment, start_time=99, tags=tags, run_name="alone").info.run_id
    client.delete_run(gone)
    # MLflow draws its ids, and two that begin alike are needed.
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        for key in ("twin", "other"):
            changed = "abcd" + ids[key][4:]
            for table in ("runs", "tags"):
                change = f"UPDATE {table} SET run_uuid = ? WHERE run_uuid = ?"
                database.execute(change, (changed, ids[key]))
            ids[key] = changed
    return {"uri": uri, "gone": gone, **ids}


def test_runs_are_found_by_id_prefix_name_and_latest(store: dict[str, str]) -> None:
    tracking = open_store(store["uri"])
    for key in ("alone", "quoted", "twin", "newest", "sweep", "foreign"):
        assert find(tracking, store[key]).id == store[key]
        assert find(tracking, store[key][:12]).id == store[key]
    assert find(tracking, store["alone"][:4]).id == store["alone"]
    assert find(tracking, "alone").id == store["alone"]  # the deleted one of this name is gone
    assert find(tracking, "it's 100% mine").id == store["quoted"]
    assert find(tracking, """it's "100 %" mine""").id == store["both"]
    assert find(tracking, "latest").id == store["newest"]


def test_runs_that_are_not_meant_clearly_are_refused(store: dict[str, str]) -> None:
    tracking = open_store(store["uri"])
    for text in ("twin", "abcd"):
        with pytest.raises(BadInput, match=f"RUN='{text}': more than one run fits") as refused:
            find(tracking, text)
        assert {store["twin"][:12], store["other"][:12]} <= {*re.findall(r"\w{12}", str(refused))}
    unknown = [
        store["alone"][:3],
        store["gone"],
        "",
        "%",
        "a%",
        "____",
        "' OR 1=1 --",
        "é",
        "x" * 99,
    ]
    for text in unknown:
        with pytest.raises(BadInput, match="there is no such run"):
            find(tracking, text)


@pytest.mark.parametrize(
    "words", [["resume"], ["rerun"], ["evaluate"], ["run", "--config-from"], ["compare", "alone"]]
)
def test_a_sweep_is_no_run_of_its_own(
    store: dict[str, str], main: Callable[..., Any], words: list[str]
) -> None:
    """Its command is told, not carried out; `waymark runs` offers no resume."""
    done = main(*words, store["sweep"], f"tracking.uri={store['uri']}")
    assert (done.returncode, done.stdout) == (2, "")
    shown = SWEEP["waymark.command"].replace("\x1b", "\\x1b")
    assert done.stderr.startswith(f"waymark: run {store['sweep']} is a sweep; ")
    assert done.stderr.endswith(f"this command completes it: {shown}\n")
    client = MlflowClient(store["uri"])
    client.set_terminated(store["sweep"], "KILLED")
    rows = {run.id: run for run in list_runs(store["uri"], 20)}
    assert rows[store["sweep"]].model == "sweep"
    assert not any(run.resumable for run in rows.values())


def test_a_sweep_is_left_out_of_a_comparison(store: dict[str, str]) -> None:
    found = compare(experiment="waymark", tracking_uri=store["uri"])
    assert store["sweep"] not in found.names and store["alone"] in found.names


# A server somewhere else.

SHORT = ["data=arrays", "save=npz", "steps=8", "save.every=2", "save.max_to_keep=2"]
SHORT += ["eval_every=4", "batch_size=10", "progress=false", THREADS]


def remote_files(client: MlflowClient, run_id: str, folder: str | None = None) -> set[str]:
    found = client.list_artifacts(run_id, folder)
    below = [remote_files(client, run_id, file.path) for file in found if file.is_dir]
    return {file.path for file in found if not file.is_dir}.union(*below)


def password(uri: str) -> str:
    return str(urllib.parse.urlsplit(uri).password)


def holding(text: str, paths: list[Path]) -> list[Path]:
    """Return the files among `paths` in which a text stands."""
    return [path for path in paths if path.is_file() and text.encode() in path.read_bytes()]


def test_a_run_moves_between_folders_through_a_server(
    server: tuple[str, Path],
    tmp_path: Path,
    small: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, home = server
    here, there, yonder = (tmp_path / name for name in ("here", "there", "yonder"))
    for folder in (here, there, yonder):
        folder.mkdir()
    short = [*SHORT, f"data.path={small}"]
    store = f"tracking.uri={uri}"

    monkeypatch.chdir(here)
    first = main("run", *short, store)
    assert (first.returncode, first.stderr) == (0, "")
    run_id = first.stdout.split("\nrun ")[1].split()[0]
    client = MlflowClient(uri)
    kept = {"weights-6.npz", "weights-6.json", "weights-8.npz", "weights-8.json"}
    files = remote_files(client, run_id)
    assert {f.removeprefix("checkpoints/") for f in files if f.startswith("checkpoints/")} == kept
    others = {"config.yaml", "environment.json", "history.json", "evaluation/metrics.json"}
    others |= {"evaluation/classes.csv", "signature.json"}
    pictures = {"evaluation/loss.png", "evaluation/confusion_matrix.png"}
    assert {f for f in files if not f.startswith("checkpoints/")} - {"changes.patch"} == (
        others | pictures
    )
    assert re.search(r"(?m)^in the UI +http://me:\*\*\*@127\.0\.0\.1:", first.stdout)

    monkeypatch.chdir(there)
    evaluated = main("evaluate", run_id, "--json", store)
    assert evaluated.returncode == 0, evaluated
    answer = json.loads(evaluated.stdout)
    assert answer["step"] == 8
    assert re.search(f"test accuracy, restored +{answer['accuracy']:.4f}", first.stdout)
    assert list(there.iterdir()) == []

    monkeypatch.chdir(yonder)
    second = main("resume", run_id[:8], "steps=12", store)
    assert second.returncode == 0, second
    assert kept_checkpoints(second.stdout) == [10, 12]
    files = remote_files(client, run_id)
    kept = {"weights-10.npz", "weights-10.json", "weights-12.npz", "weights-12.json"}
    assert {f.removeprefix("checkpoints/") for f in files if f.startswith("checkpoints/")} == kept
    record = client.get_run(run_id)
    assert (record.info.status, record.data.tags["waymark.steps"]) == ("FINISHED", "12")
    losses = client.get_metric_history(run_id, "train/loss")
    assert sorted(point.step for point in losses) == list(range(1, 13))

    local = tmp_path / "local"
    local.mkdir()
    monkeypatch.chdir(local)
    undisturbed = run(
        compose_config([*short, "steps=12", f"tracking.uri=sqlite:///{local}/own.db"])
    )
    assert record.data.tags["waymark.state_digest"] == undisturbed.state_digest

    # Where the run began, its spool is older than what the server holds.
    monkeypatch.chdir(here)
    assert json.loads(main("evaluate", run_id, "--json", store).stdout)["step"] == 12

    everything = [path for folder in (here, yonder, home) for path in folder.rglob("*")]
    assert holding(password(uri), everything) == []
    said = [done.stdout + done.stderr for done in (first, evaluated, second)]
    assert not [text for text in said if password(uri) in text]
    assert record.data.params["tracking.uri"] == uri.replace(password(uri), "***")


def test_the_remote_home_follows_the_folder(
    server: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    tracking = open_store(server[0], create=True)
    tracked = created(tracking)
    poll(lambda: tracked.info.known)
    client, run_id, folder = MlflowClient(server[0]), tracked.info.id, tracked.info.folder
    (folder / "checkpoints").mkdir()

    def put(text: str, *names: str) -> None:
        for name in names:
            (folder / name).write_text(text)

    def there(*names: str) -> None:
        tracked.mark_artifacts_dirty()
        poll(lambda: remote_files(client, run_id) == set(names))

    one = ("checkpoints/w-1.npz", "checkpoints/w-1.json")
    put("first", "config.yaml", "checkpoints/.tmp-w-2.npz", *one)
    there("config.yaml", *one)
    put("second", "config.yaml", "checkpoints/w-2.npz", "checkpoints/w-2.json")
    for name in one:
        (folder / name).unlink()
    there("config.yaml", "checkpoints/w-2.npz", "checkpoints/w-2.json")
    poll(lambda: Path(client.download_artifacts(run_id, "config.yaml")).read_text() == "second")

    # A removal that the server refused is done when it answers again.
    with monkeypatch.context() as broken:
        broken.setattr(HttpArtifactRepository, "delete_artifacts", refuse)
        broken.setattr(MlflowArtifactsRepository, "delete_artifacts", refuse)
        (folder / "checkpoints/w-2.npz").unlink()
        (folder / "checkpoints/w-2.json").unlink()
        tracked.mark_artifacts_dirty()
        poll(lambda: REFUSED)
    poll(lambda: remote_files(client, run_id) == {"config.yaml"})
    put("same size", "checkpoints/w-3.npz", "checkpoints/w-3.json")
    assert tracked.finish("KILLED") is None
    assert folder.exists()

    # A file of the same name and size, which another process has written: it is sent again.
    again = reopen_run(remote(tracking), find(tracking, run_id), compose_config([THREADS]).config)
    put("SAME SIZE", "checkpoints/w-3.npz", "checkpoints/w-3.json")
    again.mark_artifacts_dirty()
    assert again.finish("FINISHED") is None
    for name in ("checkpoints/w-3.npz", "checkpoints/w-3.json"):
        assert Path(client.download_artifacts(run_id, name)).read_text() == "SAME SIZE"
    assert not folder.exists()


def test_a_server_leads_nothing_out_of_a_runs_folder(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracking = open_store(server[0], create=True)
    tracked = created(tracking)
    assert tracked.finish("KILLED") is None
    client, run_id = MlflowClient(server[0]), tracked.info.id
    for name in ("../../out", "/tmp/out", "..", ""):
        client.set_tag(run_id, "waymark.local_id", name)
        assert tracking.record(client.get_run(run_id)).folder == (
            tmp_path / "mlruns" / "spool" / run_id / "artifacts"
        )
    good = ["checkpoints/w-7.npz", "checkpoints/w-7.json"]
    bad = ["checkpoints/../../out-8.json", "../out-9.json", "/tmp/out-9.json", "checkpoints/.."]
    files = [SimpleNamespace(path=name) for name in (*bad, *good)]
    monkeypatch.setattr(MlflowClient, "list_artifacts", lambda *_: files)
    assert artifacts.newer(tracking, tracking.record(client.get_run(run_id))) == good


REFUSED: list[Any] = []


def refuse(*arguments: Any) -> None:
    REFUSED.append(arguments)
    raise MlflowException("500 Internal Server Error")


def test_the_uri_of_the_environment_is_used_and_its_password_masked(
    server: tuple[str, Path],
    tmp_path: Path,
    small: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri, home = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    done = main("run", *SHORT, f"data.path={small}", "run_name=from_the_environment")
    assert done.returncode == 0, done
    assert main("evaluate", "from_the_environment").returncode == 0
    assert holding(password(uri), [*home.rglob("*"), *tmp_path.rglob("*")]) == []


def test_the_ui_answers_where_it_says_and_stops_when_told(
    place: Path,
    main: Callable[..., Any],
    start: Callable[..., "subprocess.Popen[str]"],
) -> None:
    port = free_port()
    log = place / "log"  # a file: nobody empties a pipe meanwhile
    with (
        log.open("w") as err,
        start("ui", "--port", str(port), cwd=place, stderr=err) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            page = "experiments?workflowType=machine_learning"  # there is no run yet
            assert address == f"http://127.0.0.1:{port}/#/{page}"
            poll(lambda: answers(f"http://127.0.0.1:{port}/health") == b"OK")
            assert b"<html" in (answers(address.partition("#")[0]) or b"")
            second = main("ui", "--port", str(port))
            assert (second.returncode, second.stdout) == (2, "")
            assert f"--port={port}: nothing can listen there (Address already" in second.stderr
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=BOUND)
            assert process.returncode == 130
            said = log.read_text()
            assert "Traceback" not in said and "Warning" not in said
        finally:
            process.kill()
    poll(lambda: answers(f"http://127.0.0.1:{port}/health") is None)


def test_the_mirror_removes_only_what_waymark_can_have_written(tmp_path: Path) -> None:
    gone = ["weights-20.json", "weights-20.npz", "model_ckpt-3.index"]
    gone += ["model_ckpt-3.data-00000-of-00001"]
    mine = ["weights-keep.npz", "weights-20 (copy).npz", "weights-020.npz", "weights-20.npz.bak"]
    mine += ["weights-old", "checkpoint.txt", "notes-3.txt", "model_ckpt-best.index"]
    names = [f"checkpoints/{name}" for name in [*mine, *gone]]
    deleted: list[str] = []
    repository = SimpleNamespace(
        list_artifacts=lambda folder: [SimpleNamespace(path=n, file_size=1) for n in names],
        delete_artifacts=deleted.append,
    )
    delivery: Any = object.__new__(Delivery)
    delivery._remote_files, delivery._opened = None, 0
    delivery.info = SimpleNamespace(folder=tmp_path)
    delivery.store = SimpleNamespace(artifacts=lambda info: repository)
    delivery.owner, delivery._fetch_run = None, lambda: None
    delivery._mirror({})
    assert sorted(deleted) == sorted(f"checkpoints/{name}" for name in gone)
    assert deleted[0] == "checkpoints/weights-20.json"
