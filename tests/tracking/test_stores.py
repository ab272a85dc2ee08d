"""Stores of runs: moved, copied, lost, damaged, of another version, locked; passwords."""

import json
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote
from urllib.request import url2pathname

import pytest
from mlflow.tracking import MlflowClient
from waymark.config.compose import compose_config
from waymark.execution import execute
from waymark.processes.signals import Interrupted
from waymark.tracking import outbox
from waymark.tracking.active_run import create_run
from waymark.tracking.address import location
from waymark.tracking.finder import find, select
from waymark.tracking.liveness import this_process
from waymark.tracking.opening import open_store
from waymark.tracking.remote_store import connect

from tests.support.data import POINTS
from tests.support.processes import Done, Main, StopAt, free_port

pytestmark = pytest.mark.usefixtures("delivery_here")

SHORT = ["data=arrays", "save=npz", "steps=40", "save.every=10", "save.max_to_keep=2"]
SHORT += ["eval_every=20", "batch_size=10", "progress=false", "runtime.intra_op_threads=2"]


class Kept:
    """A store and the ids of its runs by name: made once, and copied for each test.

    `whole` is finished, `training` died in the middle, `failed` is of another experiment.
    """

    def __init__(self, mlruns: Path) -> None:
        self.mlruns = mlruns
        self.ids: dict[str, str] = {}


def died(folder: Path, run_id: str) -> None:
    """Make a run that was stopped one that died before it could say or send any more."""
    (path,) = folder.glob(f"mlruns/artifacts/*/{run_id}/outbox.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines) if b'["points"' in line)
    path.write_bytes(b"".join(lines[: last + 1]))
    with closing(sqlite3.connect(folder / "mlruns/mlflow.db")) as database, database:
        change = "UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE run_uuid = ?"
        database.execute(change, (run_id,))
        change = "DELETE FROM tags WHERE key IN ('waymark.reason', 'waymark.resume')"
        database.execute(f"{change} AND run_uuid = ?", (run_id,))


@pytest.fixture(scope="module")
def kept(
    tmp_path_factory: pytest.TempPathFactory,
    empty_store: Path,
    small: Path,
) -> Kept:
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(empty_store, folder / "mlruns")
    kept, overrides = Kept(folder / "mlruns"), [*SHORT, f"data.path={small}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # The runs' process is one that is gone: its pid belongs to this one now.
        gone = {**this_process(), "started": 1.0}
        patch.setattr("waymark.tracking.active_run.this_process", lambda: gone)
        kept.ids["whole"] = execute.run(compose_config([*overrides, "run_name=whole"])).run_id
        patch.setattr("waymark.execution.execute.make_progress", lambda *_: StopAt(23))
        with pytest.raises(Interrupted):
            execute.run(compose_config([*overrides, "run_name=training"]))
        kept.ids["training"] = find(open_store(None), "training").id
        settings = compose_config(
            [*overrides, 'experiment_name="it\'s other"', "+tags.colour='žlutá'"]
        )
        failed = create_run(connect(None), settings, {"waymark.version": "1"}, POINTS)
        failed.record([1, 2, 3], {"train/loss": [0.5, float("nan"), 1e-300]})
        failed.set_tags({"waymark.reason": "a\nb"})
        (failed.info.folder / "config.yaml").write_text("none")
        assert failed.finish("FAILED") is None
        kept.ids["failed"] = failed.info.id
        died(folder, kept.ids["training"])
    return kept


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Let MLflow say what it does in the program, which sets this before it imports MLflow."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@pytest.fixture
def here(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder of this test, with a copy of the store."""
    shutil.copytree(kept.mlruns, tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mlflow(folder: Path | None = None) -> MlflowClient:
    path = f"{folder or Path.cwd()}/mlruns/mlflow.db"
    plain = not {"%", "?"} & set(path)
    return MlflowClient(f"sqlite:///{path}" if plain else f"sqlite+pysqlite:///{quote(path)}")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return everything below a folder: contents of files, None for folders."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in found}


def files(client: MlflowClient, run_id: str, below: str | None = None) -> dict[str, bytes]:
    """Return a run's artifacts as plain MLflow reads them."""
    found: dict[str, bytes] = {}
    for file in client.list_artifacts(run_id, below):
        if file.is_dir:
            found |= files(client, run_id, file.path)
        else:
            found[file.path] = Path(client.download_artifacts(run_id, file.path)).read_bytes()
    return found


def good(done: Done) -> Done:
    assert done.returncode == 0, done
    return done


def sentence(done: Done, *words: str, status: int = 2) -> None:
    """Check that a command failed with one sentence in which the words stand."""
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.startswith("waymark: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the command lines of the UIs that were opened: none is, in truth."""
    commands: list[list[str]] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        if "server" not in command:
            return popen(command, **options)
        commands.append(command)
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(subprocess, "Popen", start)
    return commands


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return for how long MLflow has waited; it does not, in truth. Others may sleep."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        own = threading.current_thread() is threading.main_thread()
        slept.append(seconds) if own else time.sleep(seconds)

    for module in ("db.utils", "tracking.sqlalchemy_store"):  # waiting for a child sleeps, too
        asleep = SimpleNamespace(**{**vars(time), "sleep": sleep})
        monkeypatch.setattr(f"mlflow.store.{module}.time", asleep)
    return slept


# Moved and copied.

ODD = 'it\'s "quoted", žluťoučký 名前'
NAMES = [ODD, "C# and more", "100%25 sure", "what?..", "a[1]*\\\n{ "]


LONG = "/".join(["가" * 80] * 3)


def test_a_path_that_no_database_can_have_is_refused(
    here: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, words in [("\udcff\udcfe", "UTF-8"), (LONG, "504 bytes"), ("link", "504 bytes")]:
        (here / "link").symlink_to(here / LONG) if name == "link" else (here / name).mkdir(
            parents=True
        )
        sentence(main("run", f"tracking.uri='sqlite:///{here}/{name}/mlflow.db'"), words)
        with monkeypatch.context() as patch:
            patch.chdir(here / name)
            sentence(main("run", "runtime.intra_op_threads=2"), words)
        assert list((here / name).iterdir()) == []
    sentence(main("runs", "tracking.uri='sqlite:///x/mlflow.db?timeout=9'"), "no options")


def test_an_address_is_taken_as_written_or_encoded(
    here: Path, main: Main, empty_store: Path
) -> None:
    """Percent-encoded where only that exists, as plain MLflow takes it."""
    good(main("runs", f"tracking.uri='sqlite:///{here}/mlruns/mlflow%2Edb'"))
    names = ["50%25", "what?", "a[1] %", "'\" :b\\n\n"]
    for name in names:
        (here / name).mkdir()
        tracking = open_store(f"sqlite:///{here}/{name}/new/mlflow.db", create=True)
        assert tracking.root == here / name / "new"
        assert tracking.database is not None
        assert tracking.database.exists()
        for experiment in tracking.client.search_experiments():
            assert url2pathname(experiment.artifact_location) == f"{tracking.root}/artifacts/0"
        for path in (name, quote(name)):
            assert open_store(f"sqlite:///{path}/new/mlflow.db").database == tracking.database
    assert {path.name for path in here.iterdir()} == {"mlruns", *names}


@pytest.mark.parametrize("name", NAMES)
def test_a_store_may_lie_anywhere(
    kept: Kept,
    here: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    slept: list[float],
    name: str,
) -> None:
    """Its artifacts are then read by plain MLflow as well."""
    expected = files(mlflow(kept.mlruns.parent), kept.ids["whole"])
    assert "evaluation/metrics.json" in expected
    there = here / name
    there.mkdir()
    os.rename("mlruns", there / "mlruns")
    monkeypatch.chdir(there)
    accuracy = json.loads(good(main("evaluate", "whole", "--json")).stdout)["accuracy"]
    assert json.loads(expected["evaluation/metrics.json"])["accuracy"] == accuracy
    assert sum(slept) == 0
    stored = f"{location(there)}/mlruns/artifacts/"
    for run_id in kept.ids.values():
        assert mlflow().get_run(run_id).info.artifact_uri.startswith(stored)
    assert files(mlflow(), kept.ids["whole"]) == expected
    assert [path.name for path in here.iterdir()] == [name]
    assert [path.name for path in there.iterdir()] == ["mlruns"]


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_store_goes_on_elsewhere(
    kept: Kept,
    here: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    opened: list[list[str]],
    how: str,
) -> None:
    open_store(None)  # it has lived here for a while
    there, before = here / ODD, {}
    there.mkdir()
    if how == "moved":
        os.rename("mlruns", there / "mlruns")
    else:
        shutil.copytree("mlruns", there / "mlruns")
        before = tree(here / "mlruns")
    monkeypatch.chdir(there)
    done = good(main("resume", "whole", "steps=50"))
    checkpoints = {f"checkpoints/weights-{n}.{end}" for n in (40, 50) for end in ("json", "npz")}
    assert set(files(mlflow(), kept.ids["whole"], "checkpoints")) == checkpoints
    evaluated = json.loads(good(main("evaluate", "whole", "--json")).stdout)
    assert evaluated["step"] == 50
    assert re.search(f"test accuracy, restored +{evaluated['accuracy']:.4f}", done.stdout)
    good(main("sync"))
    shown = good(main("ui")).stdout
    assert location(there / "mlruns/artifacts") in opened[0]
    (newest, _), *_ = select(open_store(None), None, None, None, 1)
    assert f"/#/experiments/{newest.experiment_id}/runs?" in shown
    assert newest.experiment_id != "1"
    assert [path.name for path in there.iterdir()] == ["mlruns"]
    assert tree(here / "mlruns") == before


def test_a_copy_shares_no_experiment_with_the_original(
    kept: Kept, here: Path, small: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not MLflow's own without any run either, nor one that another program made there."""
    good(main("sync"))
    with closing(sqlite3.connect("mlruns/mlflow.db")) as database, database:
        change = "UPDATE experiments SET artifact_location = ? WHERE name = 'Default'"
        database.execute(change, (f"{here}/mlruns/artifacts/0",))  # as if MLflow had made it here
    mlflow().create_experiment("made", f"{here}/mlruns/artifacts/77")
    (here / "copy").mkdir()
    shutil.copytree("mlruns", "copy/mlruns")
    before = tree(here / "mlruns")
    monkeypatch.chdir("copy")
    for name in ("Default", "made"):
        good(main("run", *SHORT, "steps=10", f"data.path={small}", f"experiment_name={name}"))
        folder = find(open_store(None), "latest").folder
        assert folder.is_relative_to(here / "copy"), name
    assert tree(here / "mlruns") == before


@pytest.mark.parametrize("form", [str, Path.as_uri])
def test_a_place_that_the_user_chose_stays(
    place: Path,
    small: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    form: Callable[[Path], str],
) -> None:
    chosen, there = place / "chosen, 50% by ümyself", place / "there"
    experiment = mlflow().create_experiment("x", artifact_location=form(chosen))
    good(main("run", *SHORT, f"data.path={small}", "experiment_name=x"))
    run_id = find(open_store(None), "latest").id
    kept = set(files(mlflow(), run_id))
    assert (chosen / run_id / "artifacts/checkpoints/weights-40.npz").exists()
    assert not [*place.glob("mlruns/artifacts/*/*")]
    there.mkdir()
    os.rename("mlruns", there / "mlruns")
    monkeypatch.chdir(there)
    good(main("evaluate", run_id))
    assert mlflow().get_experiment(experiment).artifact_location == form(chosen)
    assert set(files(mlflow(), run_id)) == kept
    if form is str:
        good(main("resume", run_id, "steps=50"))
        assert (chosen / run_id / "artifacts/checkpoints/weights-50.npz").exists()
        assert "checkpoints/weights-50.npz" in files(mlflow(), run_id)
    assert not [*there.glob("mlruns/artifacts/*/*")]


# The database is lost, the folders are there.

OWN = ("waymark.process", "waymark.heartbeat", "waymark.local_id")


def facts(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """Return what MLflow knows of a run, but ids and what only says who trained it when."""
    run = client.get_run(run_id)
    ids = "|".join([run_id, run.data.tags.get("waymark.local_id", run_id)])
    tags = {k: re.sub(ids, "ID", text) for k, text in run.data.tags.items() if k not in OWN}
    inputs = [
        (vars(item.dataset), [(tag.key, tag.value) for tag in item.tags])
        for item in run.inputs.dataset_inputs
    ]
    points = {
        key: sorted((p.step, repr(p.value), p.timestamp) for p in history)
        for key in run.data.metrics
        for history in [client.get_metric_history(run_id, key)]
    }
    return {
        "status": run.info.status,
        "name": run.info.run_name,
        "start": run.info.start_time,
        "end": run.info.end_time,
        "experiment": client.get_experiment(run.info.experiment_id).name,
        "params": run.data.params,
        "tags": tags,
        "inputs": inputs,
        "points": points,
        "files": files(client, run_id),
    }


def everything(client: MlflowClient) -> dict[str, dict[str, Any]]:
    """Return the facts of all runs by name; two of one name are a mistake."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, run_view_type=3)  # the deleted ones too
    found = {run.info.run_name: facts(client, run.info.run_id) for run in runs}
    assert len(found) == len(runs)
    return found


@pytest.fixture(scope="module")
def before(kept: Kept) -> dict[str, dict[str, Any]]:
    """Return what the store knows, its dead run having been found and its name added."""
    mlruns = kept.mlruns.parent / "known/mlruns"
    shutil.copytree(kept.mlruns, mlruns)
    open_store(f"sqlite:///{mlruns}/mlflow.db")
    known = everything(mlflow(mlruns.parent))
    assert {"FINISHED", "KILLED", "FAILED"} == {one["status"] for one in known.values()}
    (run_name,) = set(known) - {"whole", "training"}
    assert known[run_name]["points"]["train/loss"][1][1] == "nan"
    assert known[run_name]["tags"]["colour"] == "žlutá"
    assert all(one["files"] and one["inputs"] and one["params"] for one in known.values())
    return known


def lose(empty_store: Path, how: str) -> None:
    os.unlink("mlruns/mlflow.db")
    if how == "replaced":
        shutil.copy(empty_store / "mlflow.db", "mlruns/mlflow.db")


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_lost_runs_are_made_again(
    kept: Kept,
    here: Path,
    empty_store: Path,
    before: dict[str, dict[str, Any]],
    main: Main,
    how: str,
) -> None:
    lose(empty_store, how)
    done = good(main("sync"))
    assert done.stdout.count(": delivered\n") == done.stdout.count("\n") == 3
    assert done.stderr == ""
    assert everything(mlflow()) == before
    places = {run.parent.name for run in here.glob("mlruns/artifacts/*/*/outbox.jsonl")}
    assert places & set(kept.ids.values()) == set()
    assert main("sync").stdout == "nothing left to deliver\n"
    if how == "deleted":
        return
    assert everything(mlflow()) == before

    whole, training = kept.ids["whole"], kept.ids["training"]
    assert json.loads(good(main("evaluate", whole, "--json")).stdout)["step"] == 40
    good(main("resume", training[:8]))
    after = everything(mlflow())
    digest = "waymark.state_digest"
    assert after["training"]["status"] == "FINISHED"
    assert after["training"]["tags"][digest] == after["whole"]["tags"][digest]
    assert [p[:2] for p in after["training"]["points"]["train/loss"]] == [
        p[:2] for p in before["whole"]["points"]["train/loss"]
    ]
    good(main("resume", whole, "steps=50"))
    losses = everything(mlflow())["whole"]["points"]["train/loss"]
    assert losses[:40] == before["whole"]["points"]["train/loss"]
    assert [step for step, *_ in losses] == list(range(1, 51))
    assert len(everything(mlflow())) == 3


FAULTS: list[tuple[Any, str, str, type[BaseException]]] = [
    (MlflowClient, "create_run", "after", OSError),
    (MlflowClient, "create_run", "after", KeyboardInterrupt),
    (MlflowClient, "log_batch", "before", OSError),
    (MlflowClient, "log_inputs", "after", OSError),
    (MlflowClient, "set_terminated", "before", OSError),
    (os, "rename", "before", OSError),
    (os, "rename", "after", KeyboardInterrupt),
]


@pytest.mark.parametrize(("owner", "name", "when", "error"), FAULTS)
def test_what_interrupts_a_sync_costs_and_doubles_nothing(
    here: Path,
    empty_store: Path,
    before: dict[str, dict[str, Any]],
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    when: str,
    error: type[BaseException],
) -> None:
    lose(empty_store, "replaced")
    real, calls = getattr(owner, name), []

    def failing(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if when == "after":
            real(*arguments, **named)
        raise error("no more power")

    with monkeypatch.context() as broken:
        broken.setattr(owner, name, failing)
        done = main("sync")
    assert calls
    if error is OSError:
        assert (done.returncode, done.stderr) == (1, ""), done
        assert done.stdout.count("no more power\n") == done.stdout.count("\n") == 3
    else:
        assert done.returncode == 130, done
    good(main("sync"))
    assert everything(mlflow()) == before
    assert main("sync").stdout == "nothing left to deliver\n"


@pytest.mark.parametrize("name", ["whole", "training"])
def test_deleted_runs_stay_deleted(kept: Kept, here: Path, main: Main, name: str) -> None:
    client, run_id = mlflow(), kept.ids[name]
    client.delete_run(run_id)
    for _ in range(2):
        good(main("sync"))
    runs = client.search_runs(["1"], run_view_type=3)
    assert sorted(run.info.run_id for run in runs) == sorted(
        [kept.ids["whole"], kept.ids["training"]]
    )
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"


def test_a_folder_without_artifacts_is_passed_over(
    kept: Kept, here: Path, empty_store: Path, before: dict[str, dict[str, Any]], main: Main
) -> None:
    """MLflow's garbage collection takes a deleted run's artifacts, and leaves the outbox."""
    (folder,) = here.glob(f"mlruns/artifacts/*/{kept.ids['training']}")
    shutil.rmtree(folder / "artifacts")
    lose(empty_store, "replaced")
    assert good(main("sync")).stdout.count(": delivered\n") == 2
    assert main("sync").stdout == "nothing left to deliver\n"
    assert everything(mlflow()) == {k: v for k, v in before.items() if k != "training"}
    assert [path.name for path in folder.iterdir() if path.name != "lock"] == ["outbox.jsonl"]


def line(kind: Any, value: Any) -> bytes:
    body = json.dumps([kind, value]).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def raw(body: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(body), body)


BIRTH: dict[str, Any] = {
    "id": "f" * 32,
    "address": "",
    "experiment": "waymark",
    "name": "stranger",
    "start": 1_700_000_000_000,
    "tags": {"waymark.version": "1"},
    "params": {"a": "b"},
    "dataset": {"name": "n", "digest": "d", "source": "s", "profile": "{}"},
}
NO_BIRTH = {
    "nothing": b"",
    "noise": bytes(range(256)) * 64,
    "zeros": bytes(10_000),
    "text": b"hello\n" * 100,
    "json without checksums": json.dumps(["run", BIRTH]).encode(),
    "deep": raw(b"[" * 100_000),
    "deep in a pair": raw(b'["run", ' + b"[" * 100_000 + b"]" * 100_000 + b"]"),
    "huge number": raw(b'["run", ' + b"9" * 5000 + b"]"),
    "no pair": line("run", BIRTH)[:9] + raw(b'["run"]') + raw(b'{"run": 1}') + raw(b"null"),
    "kinds": b"".join(line(kind, BIRTH) for kind in (None, 1, [], {}, "", "Run", "\0")),
    "only an end": line("status", ["FINISHED", 5]) + line("delivered", None),
    "no dictionary": b"".join(line("run", value) for value in (None, 5, "x", [], [[1, 2]])),
    "unknown key": line("run", {**BIRTH, "more": 1}),
    "missing key": line("run", {k: v for k, v in BIRTH.items() if k != "tags"}),
    **{
        f"{key}={value!r}"[:40]: line("run", {**BIRTH, key: value})
        for key, values in {
            "id": (None, 5, "", "..", "../../x", "a/b", "a' OR '1'='1", ["a"], {"a": 1}),
            "address": (None, 5, [], {}),
            "experiment": (None, 5, [], {}),
            "name": (5, 0, [], {}, False),
            "start": (None, "5", "x", [], {}, float("nan"), float("inf"), 1e400, True),
            "tags": (None, 5, "ab", [], [["a", "b"]], {"a": 1}, {"a": None}, {"a": {}}),
            "params": (None, "ab", [], {"a": 1}),
            "dataset": (None, "ab", [], {"name": 5}, {"name": "n"}),
        }.items()
        for value in values
    },
}


@pytest.fixture
def stray(here: Path, kept: Kept) -> Path:
    """Return the outbox to be of a run unknown to the database, beside a lost and a dead run."""
    with closing(sqlite3.connect("mlruns/mlflow.db")) as database, database:
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (kept.ids["whole"],))
    path = here / f"mlruns/artifacts/1/{'e' * 32}/outbox.jsonl"
    (path.parent / "artifacts").mkdir(parents=True)
    return path


@pytest.mark.parametrize("name", NO_BIRTH)
def test_what_is_no_outbox_tells_of_no_run(tmp_path: Path, name: str) -> None:
    path = tmp_path / "outbox.jsonl"
    path.write_bytes(NO_BIRTH[name])
    assert outbox.read(path).creation is None
    path.write_bytes(NO_BIRTH[name] + b"\n" + line("run", BIRTH))  # costs only itself
    assert outbox.read(path).creation == outbox.RunCreation(**BIRTH)


def test_what_is_no_outbox_makes_no_run(
    here: Path, stray: Path, before: dict[str, dict[str, Any]], main: Main
) -> None:
    strays = [place / f"{'e' * 31}x" for place in (stray.parent.parent, here / "mlruns/spool")]
    written = {}
    for folder in strays:
        for number, data in enumerate(NO_BIRTH.values()):
            path = folder.with_name(f"{number:032}") / "outbox.jsonl"
            (path.parent / "artifacts").mkdir(parents=True)
            path.write_bytes(data)
            written[path] = data
    done = good(main("sync"))
    assert done.stdout.count(": delivered\n") == done.stdout.count("\n") == 2
    assert everything(mlflow()) == before
    assert {path: path.read_bytes() for path in written} == written


NO = [None, 5, "x", [], [1]]
NO_PAIR = [None, 5, "abcd", [], ["x"], [1, 2, 3]]
BAD_ENTRIES = [
    *(line("status", value) for value in (*NO_PAIR, ["x", "y"], ["FINISHED", None])),
    *(line("status", ["FINISHED", at]) for at in ("x", float("inf"), [])),
    *(line("points", value) for value in (*NO_PAIR, ["k", 1, 1.0, 5], ["k", [1], [1, 2], 5])),
    *(line("points", ["k", [step], [1.0], 5]) for step in ("x", None, float("inf"))),
    *(line("points", ["k", [1], [value], 5]) for value in ("x", None, [])),
    *(line("points", ["k", [1], [1.0], at]) for at in ("x", None, float("nan"))),
    *(line("tags", value) for value in (*NO, [["a", "b"]])),
    *(line("ids", value) for value in NO_PAIR),
    *(line("begun", value) for value in (None, 5, "x", [1])),
]


def test_entries_that_no_outbox_holds_cost_only_themselves(
    stray: Path, before: dict[str, dict[str, Any]], main: Main
) -> None:
    good_ones = [line("run", BIRTH), line("points", ["k", [1], [0.5], 7])]
    end = [line("status", ["FINISHED", 1_700_000_001_000])]
    stray.write_bytes(b"".join([*BAD_ENTRIES, *good_ones, *BAD_ENTRIES, *end, *BAD_ENTRIES]))
    done = good(main("sync"))
    assert done.stdout.count(": delivered\n") == done.stdout.count("\n") == 3
    after = everything(mlflow())
    stranger = after.pop("stranger")
    assert after == before
    assert stranger["points"] == {"k": [(1, "0.5", 7)]}
    assert (stranger["status"], stranger["end"]) == ("FINISHED", 1_700_000_001_000)
    assert stranger["tags"] == {"waymark.version": "1", "mlflow.runName": "stranger"}


IMPOSSIBLE = {
    "status": line("status", ["NONSENSE", 5]),
    "end beyond": line("status", ["FINISHED", 10**30]),
    "step beyond": line("points", ["k", [10**30], [1.0], 5]),
    "key with zero": line("points", ["a\0b", [1], [1.0], 5]),
    "key of a page": line("points", ["k" * 100_000, [1], [1.0], 5]),
    "tag without a name": line("tags", {"": "x"}),
    "tag of a book": line("tags", {"a": "x" * 200_000}),
    "surrogate": line("tags", {"a": "\ud800"}),
    "process": line("begun", {**this_process(), "boot": [], "pid": "x", "started": {}}),
}


def test_what_mlflow_refuses_stops_no_other_run(
    stray: Path, before: dict[str, dict[str, Any]], main: Main
) -> None:
    for number, (name, entry) in enumerate(IMPOSSIBLE.items()):
        path = stray.parent.with_name(f"{number:032}") / "outbox.jsonl"
        (path.parent / "artifacts").mkdir(parents=True)
        birth = line("run", {**BIRTH, "id": f"{number:032}", "name": f"stranger: {name}"})
        path.write_bytes(birth + entry)
    done = main("sync")
    assert (done.returncode, done.stderr) == (1, ""), done
    assert done.stdout.count("\n") == 2 + len(IMPOSSIBLE)
    after = everything(mlflow())
    assert {name: after[name] for name in after if not name.startswith("stranger")} == before


def test_a_backup_of_a_runs_folder_is_no_second_run(
    kept: Kept, here: Path, before: dict[str, dict[str, Any]], main: Main
) -> None:
    (folder,) = here.glob(f"mlruns/artifacts/*/{kept.ids['whole']}")
    shutil.copytree(folder, folder.with_name(f"{folder.name}.bak"))
    good(main("sync"))
    assert everything(mlflow()) == before


# Stores that cannot be used.


def sql(statement: str) -> Callable[[Path], Any]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(statement)

    return change


def written(at: int, data: bytes) -> Callable[[Path], Any]:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    return change


def into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BAD = {
    "newer": (sql("UPDATE alembic_version SET version_num = 'ffffffffffff'"), "a newer MLflow"),
    "older": (sql("UPDATE alembic_version SET version_num = '451aebb31d03'"), "an older MLflow"),
    "half": (lambda path: os.truncate(path, path.stat().st_size // 2), "it is damaged"),
    "odd": (lambda path: os.truncate(path, path.stat().st_size * 3 // 4 + 17), "it is damaged"),
    "scrap": (lambda path: os.truncate(path, 50), "it is damaged"),
    "head": (written(0, b"x" * 16), "it is damaged"),
    "first page": (written(0, bytes(4096)), "it is damaged"),
    "pages": (written(4096, os.urandom(4096 * 40)), "it is damaged"),
    "text": (lambda path: path.write_text("a list of things\n" * 500), "it is damaged"),
    "folder": (into_a_folder, "mlflow.db"),
}
EVERY = {
    "evaluate": ["evaluate", "whole"],
    "resume": ["resume", "whole", "steps=50"],
    "sync": ["sync"],
    "ui": ["ui"],
    "run": ["run", *SHORT],
}


@pytest.mark.parametrize(
    ("name", "command"),
    [(name, command) for name in ("newer", "older") for command in EVERY]
    + [(name, "evaluate") for name in BAD if name not in ("newer", "older")]
    + [("head", "run"), ("head", "sync")],
)
def test_a_bad_store_is_refused_in_one_sentence(
    here: Path,
    small: Path,
    main: Main,
    opened: list[list[str]],
    slept: list[float],
    name: str,
    command: str,
) -> None:
    change, words = BAD[name]
    change(here / "mlruns/mlflow.db")
    before = tree(here)
    done = main(*EVERY[command], *[f"data.path={small}"] * (command == "run"))
    sentence(done, words, "mlruns/mlflow.db")
    assert tree(here) == before
    assert sum(slept) < 10
    assert opened == []


SCALE = 20  # how much faster SQLite's waits pass in the two tests below
PATIENCE = 30  # seconds


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> Callable[[], float]:
    """Return what tells how many seconds were spent on locks: what SQLite was told to wait each
    time it gave up, and what MLflow slept. No clock is asked, so a busy machine adds nothing.
    """
    real, in_vain = sqlite3.connect, []

    class Cursor(sqlite3.Cursor):
        connection: "Connection"

        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            told = re.fullmatch(r"PRAGMA busy_timeout = (\d+);?", sql)
            if told:
                self.connection.told = int(told[1]) / 1000
                sql = f"PRAGMA busy_timeout = {int(told[1]) // SCALE}"
            return self.connection.counted(super().execute, sql, *arguments)

        def executemany(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            return self.connection.counted(super().executemany, sql, *arguments)

    class Connection(sqlite3.Connection):
        told = 0.0

        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            return self.cursor().execute(sql, *arguments)  # SQLite's own asks no method of ours

        def commit(self) -> None:
            self.counted(super().commit)

        def counted(self, work: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return work(*arguments)
            except sqlite3.OperationalError as error:
                if "locked" in str(error):
                    in_vain.append(self.told)
                raise

    def connect(*arguments: Any, timeout: float = 5.0, **named: Any) -> Any:
        made = real(*arguments, timeout=timeout / SCALE, factory=Connection, **named)
        made.told = timeout
        return made

    for module in (sqlite3, sqlite3.dbapi2):
        monkeypatch.setattr(module, "connect", connect)
    return lambda: sum(in_vain) + sum(slept)


@pytest.fixture
def hold(here: Path) -> Iterator[Callable[[str], None]]:
    """Return what locks the database as another program would."""
    with closing(sqlite3.connect("mlruns/mlflow.db", isolation_level=None)) as other:
        yield lambda kind: other.execute(f"BEGIN {kind}") and None


@pytest.mark.parametrize("command", EVERY)
def test_a_locked_store_is_not_waited_for_long(
    hold: Callable[[str], None],
    waited: Callable[[], float],
    here: Path,
    small: Path,
    main: Main,
    opened: list[list[str]],
    command: str,
) -> None:
    hold("EXCLUSIVE")
    before = tree(here)
    done = main(*EVERY[command], *[f"data.path={small}"] * (command == "run"))
    assert 0 < waited() < PATIENCE
    sentence(done, "another program has locked it for long")
    assert tree(here) == before


def test_a_store_that_cannot_be_written_to_is_read(
    hold: Callable[[str], None],
    waited: Callable[[], float],
    here: Path,
    small: Path,
    main: Main,
) -> None:
    """Many runs have died; none can be marked while another program writes for long."""
    open_store(None)  # it has been moved here: that has to be written once
    with closing(sqlite3.connect("mlruns/mlflow.db")) as database, database:
        database.execute("UPDATE runs SET status = 'RUNNING' WHERE name != 'whole'")
    hold("IMMEDIATE")
    done = good(main("evaluate", "whole"))
    reading = waited()
    assert 0 < reading < PATIENCE
    assert "Traceback" not in done.stderr
    files = tree(here)
    sentence(main("run", *SHORT, f"data.path={small}"), "another program has locked it for long")
    assert 0 < waited() - reading < PATIENCE
    assert tree(here) == files


# Passwords.

# Passwords, and a part of each that stands nowhere else; some need an escape and have none.
USABLE = "p@ss:w0rd@"
SECRETS = {
    USABLE: "ss:w0rd",
    "hunter2secret": "nter2sec",
    "50%25off!": "50%25",
    "question?mark": "estion?",
    "ham#mer": "ham#",
    "slash/ed": "ash/e",
}


@pytest.mark.parametrize("secret", SECRETS)
def test_no_password_is_said_or_written(
    place: Path, small: Path, main: Main, capfd: pytest.CaptureFixture[str], secret: str
) -> None:
    """Nobody answers at the address: all there is are messages, the outbox and the spool."""
    uri = f"tracking.uri='http://me:{secret}@127.0.0.1:{free_port()}'"
    said = []
    if secret == USABLE:
        patience = "tracking.flush_seconds=0.1"
        said += [good(main("run", *SHORT, patience, f"data.path={small}", uri))]
        assert "it is kept in" in said[0].stderr
        (spool,) = place.glob("mlruns/spool/*/outbox.jsonl")
        assert outbox.read(spool).status
        said += [good(main("evaluate", "latest", uri))]
        said += [good(main("resume", "latest", "steps=50", uri))]
    said += [main(*words, uri) for words in (["sync"], ["evaluate", "none"], ["ui"])]
    text = "".join(done.stdout + done.stderr for done in said)
    assert "127.0.0.1" in text
    for part in (secret, SECRETS[secret]):
        assert part not in text
        assert not [p for p in place.rglob("*") if p.is_file() and part.encode() in p.read_bytes()]


def test_no_password_in_a_query_is_said(place: Path, main: Main) -> None:
    uri = "postgresql://127.0.0.1:1/db?user=me&password=hunter2secret"
    for words in (["sync"], ["evaluate", "latest"]):
        done = main(*words, f"tracking.uri='{uri}'")
        sentence(done, "postgresql://127.0.0.1:1/db")
        assert "hunter2secret" not in done.stderr


def test_the_record_of_a_birth_is_what_this_file_says(kept: Kept) -> None:
    (path,) = kept.mlruns.glob(f"artifacts/*/{kept.ids['whole']}/outbox.jsonl")
    birth = outbox.read(path).creation
    assert birth
    assert set(asdict(birth)) == set(BIRTH)
