"""`compare` and `runs` on real stores: other programs' runs, Waymark's own, a server, bad input."""

import math
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow.entities import Metric as Point
from mlflow.entities import Param, RunTag
from mlflow.tracking import MlflowClient
from scipy import stats
from waymark import api, listing
from waymark.comparison.recorded_run import load_recorded_run
from waymark.comparison.report import Comparison, Row
from waymark.comparison.repository import CHECKOUT
from waymark.comparison.rerun_report import Divergence
from waymark.errors import BadInput
from waymark.names import VERSION
from waymark.tracking.finder import find
from waymark.tracking.opening import open_store

from tests.support.comparisons import (
    HARM,
    Curve,
    cells,
    compared,
    made,
    printable,
    shown_in,
    strict_json,
)
from tests.support.processes import Done, Main, free_port, killed

BASE = ["runtime.intra_op_threads=2", "progress=false", "save.meta_graph=false", "steps=20"]
BASE += ["batch_size=10", "save.every=10", "eval_every=5"]


# A store of other programs' runs


class Store:
    """A local store, and MLflow's own client, which makes runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.uri)
        self.named = f"tracking.uri={self.uri}"

    def experiment(self, name: str) -> str:
        there = self.client.get_experiment_by_name(name)
        place = f"{self.folder}/artifacts/{name}"
        return str(there.experiment_id if there else self.client.create_experiment(name, place))

    def add(
        self,
        name: str,
        params: Mapping[str, str] | None = None,
        metrics: Mapping[str, Curve] | None = None,
        tags: Mapping[str, str] | None = None,
        status: str = "FINISHED",
        experiment: str = "foreign",
    ) -> str:
        made = self.client.create_run(self.experiment(experiment), run_name=name)
        run = str(made.info.run_id)
        points = [
            Point(key, value, 1000 + step, step)
            for key, curve in (metrics or {}).items()
            for step, value in curve.items()
        ]
        own = [RunTag(key, value) for key, value in (tags or {}).items()]
        texts = [Param(key, value) for key, value in (params or {}).items()]
        self.client.log_batch(run, points, texts, own)
        if status != "RUNNING":
            self.client.set_terminated(run, status)
        return run

    def change(self, statement: str, *values: Any) -> None:
        """Change the database itself, as no client can."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as database, database:
            database.execute(statement, values)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Store:
    """Return a store with some runs that no Waymark made; no test adds to its experiments."""
    folder = tmp_path_factory.mktemp("foreign") / "mlruns"
    shutil.copytree(empty_store, folder)
    store = Store(folder)
    parent = store.add("parent")
    for i in range(4):
        loss = {step: 1 / (step + 1 + i) for step in range(5)}
        kind = {"model": "cnn" if i % 2 else "softmax", "depth": str(i)}
        child = {"mlflow.parentRunId": parent}
        accuracy = {"test/accuracy": {4: i / 4}}
        store.add(f"child-{i}", kind, {"train/loss": loss, **accuracy}, child)
    gone = store.add("gone", {"model": "cnn"}, {}, {"mlflow.parentRunId": parent})
    store.client.delete_run(gone)
    store.add("bare")
    store.add("running", {"model": "cnn"}, {"train/loss": {3: 1.5}}, status="RUNNING")
    broken = {"train/loss": {0: 1.0, 7: math.nan}, "test/accuracy": {7: math.inf}}
    store.add("failed", {"model": "x", "steps": "9"}, broken, status="FAILED")
    many = {f"metric/{i}": {0: float(i)} for i in range(200)}
    store.add("many", {"model": "many"}, many, experiment="other")
    return store


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Store:
    """Return a store of this test alone."""
    shutil.copytree(empty_store, tmp_path / "own")
    return Store(tmp_path / "own")


def names(found: Comparison) -> list[str]:
    return sorted(row.name for row in found.rows)


CHILDREN = [f"child-{i}" for i in range(4)]
FOREIGN = sorted([*CHILDREN, "bare", "running", "failed", "parent"])
CHOSEN: list[tuple[list[str], dict[str, str], list[str]]] = [
    ([], {"sweep": "parent"}, CHILDREN),
    ([], {"experiment": "foreign"}, FOREIGN),
    ([], {"where": "params.model = 'cnn'"}, ["child-1", "child-3", "running"]),
    ([], {"where": "metrics.`test/accuracy` > 0.4"}, ["child-2", "child-3", "failed"]),
    ([], {"where": "attributes.status = 'FINISHED'", "sweep": "parent"}, CHILDREN),
    (["bare"], {"sweep": "parent", "where": "params.depth = '2'"}, ["bare", "child-2"]),
    (["child-1", "many"], {"sweep": "parent"}, sorted([*CHILDREN, "many"])),
    ([], {"where": "params.model != 'none'", "experiment": "foreign"},
     [*CHILDREN, "failed", "running"]),
    (["bare", "bare", "many"], {}, ["bare", "many"]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CHOSEN)))
def test_which_runs_are_compared(number: int, foreign: Store) -> None:
    named, conditions, expected = CHOSEN[number]
    found = api.compare(*named, tracking_uri=foreign.uri, **conditions)
    assert names(found) == expected


def test_the_order_is_that_of_naming_and_of_beginning(foreign: Store) -> None:
    found = api.compare("running", "child-2", "bare", tracking_uri=foreign.uri)
    assert [row.name for row in found.rows] == ["running", "child-2", "bare"]
    found = api.compare("child-3", sweep="parent", tracking_uri=foreign.uri)
    assert [row.name for row in found.rows] == ["child-3", "child-0", "child-1", "child-2"]


def test_a_trial_stands_for_its_sweep(store: Store) -> None:
    """`latest` is a trial when a sweep has ended."""
    parent = store.add("parent", tags={"waymark.kind": "sweep"})
    for i in range(2):
        child = {"mlflow.parentRunId": parent, "waymark.trial": str(i)}
        store.add(f"trial-{i}", {"seed": str(i)}, {"train/loss": {1: 1.0 + i}}, child)
    for run in ("parent", "trial-1"):
        found = api.compare(sweep=run, tracking_uri=store.uri)
        assert sum(len(row.runs) for row in found.rows) == 2


def test_other_programs_runs_are_compared_as_they_are(foreign: Store) -> None:
    found = api.compare(sweep="parent", tracking_uri=foreign.uri)
    assert found.keys == ["model", "depth"]
    for i, row in enumerate(found.rows):
        assert row.values == {"model": "cnn" if i % 2 else "softmax", "depth": str(i)}
        loss, accuracy = row.metrics["train/loss"], row.metrics["test/accuracy"]
        assert (loss.final, loss.best) == (1 / (5 + i), 1 / (5 + i))
        assert (loss.final_leads, loss.best_leads) == (i == 3, i == 3)
        assert (accuracy.final, accuracy.final_leads) == (i / 4, i == 3)
        run = foreign.client.get_run(row.runs[0]).info
        assert row.seconds == pytest.approx((run.end_time - run.start_time) / 1000, abs=1e-6)
        assert (row.steps_per_second, row.states, row.data) == (None, [], None)
        assert row.status == "FINISHED"
    assert [curve[1] for curve in found.curves] == [
        {step: 1 / (step + 1 + i) for step in range(5)} for i in range(4)
    ]


def test_runs_that_never_ended_or_hold_nothing(foreign: Store, tmp_path: Path) -> None:
    found = api.compare("failed", "running", "bare", "many", tracking_uri=foreign.uri)
    failed, running, bare, many = found.rows
    assert [row.status for row in found.rows] == ["FAILED", "RUNNING", "FINISHED", "FINISHED"]
    assert running.seconds is None
    assert math.isnan(failed.metrics["train/loss"].final)
    assert failed.metrics["train/loss"].best == 1.0
    assert failed.metrics["test/accuracy"].final == math.inf
    assert running.metrics["train/loss"].final_leads  # NaN is no better
    assert (bare.metrics, bare.values) == ({}, {})
    assert {key: m.final for key, m in many.metrics.items()} == {
        f"metric/{i}": float(i) for i in range(200)
    }
    assert printable(found.text(80))
    assert len(cells(found)[0]) == 3 + 2 + 6 * 202 + 4
    strict_json(found.to_json())
    found.plot(tmp_path / "x.png")
    shown_in(tmp_path / "x.png")


def test_a_metric_without_steps_has_the_last_value_and_the_best(store: Store) -> None:
    """Other programs leave the step out, which makes it 0 for every value."""
    runs = []
    for values in ([0.9, 0.5, 0.7], [0.3, 0.6, 0.65]):
        runs.append(store.add(f"run-{len(runs)}", {"lr": str(len(runs))}))
        points = [Point("acc", value, 1000 + i, 0) for i, value in enumerate(values)]
        store.client.log_batch(runs[-1], points)
    found = api.compare(*runs, tracking_uri=store.uri)
    assert [row.metrics["acc"].final for row in found.rows] == [0.7, 0.65]
    assert [row.metrics["acc"].best for row in found.rows] == [0.9, 0.65]


def test_a_strangers_database(store: Store, main: Main, tmp_path: Path) -> None:
    """Only SQL puts such keys and rows there; MLflow's client refuses them."""
    runs = [store.add(f"run-{i}", {"lr": str(i)}, {"loss": {1: float(i)}}) for i in range(2)]
    for key in ("\x1b[2Jlr", "[/red]lr", "l\nr", "[bold]lr"):
        store.change("UPDATE params SET key = ?", key)
        done = main("compare", *runs, store.named)
        assert (done.returncode, done.stderr) == (0, "")
        assert printable(done.stdout)
        assert key.replace("\x1b", "\\x1b").replace("\n", "\\n") in done.stdout
    place = tmp_path / "elsewhere"
    for column, value in (("end_time", 5), ("artifact_uri", "s3://x/y"), ("artifact_uri", place)):
        store.change(f"UPDATE runs SET {column} = ?", str(value))
        for arguments in (["runs"], ["compare", *runs]):
            done = main(*arguments, store.named)
            assert done.returncode == 0, done
            assert not re.search(r"-\d+\.\d s", done.stdout)  # no time is below nothing
    place.mkdir()
    (place / "environment.json").write_text('{"code": [1], "earlier": 7, "python": "\\u001b[2J"}')
    (place / "history.json").write_text('{"loss": [1, 2]}')  # Keras has such a file, too
    done = main("compare", *runs, store.named)
    assert done.returncode == 0, done
    assert printable(done.stdout)
    for run in runs:  # and whoever copies a tag of Waymark's may write anything
        store.client.set_tag(run, VERSION, "1")
    done = main("compare", *runs, store.named)
    assert done.returncode == 0, done
    assert printable(done.stdout)
    store.change("UPDATE runs SET start_time = NULL")
    for arguments in (["runs"], ["compare", *runs]):
        done = main(*arguments, store.named)
        assert done.returncode in (0, 2), done
        assert printable(done.stdout + done.stderr)


def test_three_hundred_runs(store: Store, main: Main) -> None:
    template = store.add("first", experiment="many")
    count, steps = 300, 10
    with closing(sqlite3.connect(store.folder / "mlflow.db")) as database, database:
        database.row_factory = sqlite3.Row
        row = dict(database.execute("SELECT * FROM runs").fetchone())
        ids = [f"{i:032x}" for i in range(1, count + 1)]
        for i, run in enumerate(ids):
            own = {**row, "run_uuid": run, "name": f"n{i}", "start_time": 1_700_000_000_000 + i}
            own |= {"end_time": own["start_time"] + 5000}
            marks = ",".join("?" * len(own))
            database.execute(f"INSERT INTO runs VALUES ({marks})", (*own.values(),))
            values = [("lr", str(i // 3), run), ("seed", str(i % 3), run)]
            database.executemany("INSERT INTO params VALUES (?, ?, ?)", values)
            for key in ("train/loss", "test/accuracy"):
                points = [(key, (i + 1) / (s + 1), s, run, s, 0) for s in range(steps)]
                database.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", points)
                key, value, at, _, step, nan = points[-1]
                last = (key, value, at, step, nan, run)
                database.execute("INSERT INTO latest_metrics VALUES (?, ?, ?, ?, ?, ?)", last)
    store.client.delete_run(template)
    done = main("compare", "--experiment", "many", store.named)
    assert (done.returncode, done.stderr) == (0, "")
    rows = done.stdout.splitlines()[1:101]
    assert [line.split()[:2] for line in rows] == [[f"lr={99 - i}", "3"] for i in range(100)]
    assert rows[0].split()[3:5] == ["29.90*", "0.2484"]  # test/accuracy, which is the highest
    assert "0.2000*" in rows[-1].split()  # train/loss
    listed = listing.list_runs(store.uri, 250)
    assert [run.id for run in listed] == ids[::-1][:250]


# Waymark's own runs


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, small: Path
) -> Iterator[dict[str, Any]]:
    """Return a store of Waymark's runs: their ids, and the results of those that finished."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(empty_store, folder / "mlruns")
    found: dict[str, Any] = {"uri": f"sqlite:///{folder}/mlruns/mlflow.db"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
        patch.setenv(CHECKOUT, str(folder))  # no checkout: asking git takes time
        base = [*BASE, "data=arrays", f"data.path={small}", f"tracking.uri={found['uri']}"]
        for seed in range(2):
            found[f"seed-{seed}"] = api.run(*base, f"seed={seed}", f"run_name=seed-{seed}")
        found["fast"] = api.run(*base, "optimizer.learning_rate=0.1", "run_name=fast")
        found["again"] = api.rerun("seed-0", f"tracking.uri={found['uri']}")
        found["dead"] = killed(10, *base, "run_name=dead", "batch_size=11")
        diverging = ["optimizer=sgd", "optimizer.learning_rate=1e38", "run_name=diverged"]
        with pytest.raises(api.Failed):
            api.run(*base, *diverging)
    # The process that trained the dead one is gone, as far as its tag says.
    client = MlflowClient(found["uri"])
    client.set_tag(found["dead"], "waymark.process", "{}")
    client.set_tag(found["dead"], "waymark.heartbeat", "0")
    yield found


def test_seeds_and_another_rate(trained: dict[str, Any]) -> None:
    results = [trained[f"seed-{seed}"] for seed in range(2)]
    found = api.compare(
        *[result.run_id for result in results],
        trained["fast"].run_id,
        trained["again"].run_id,
        tracking_uri=trained["uri"],
    )
    assert found.keys == ["optimizer.learning_rate"]
    seeds, fast, again = found.rows
    assert seeds.runs == [result.run_id for result in results]
    restored = seeds.metrics["restored/accuracy"]
    values = [result.restored_accuracy for result in results]
    wide = stats.t.interval(0.95, 1, loc=np.mean(values), scale=stats.sem(values))
    expected = (np.mean(values), np.std(values, ddof=1), *wide)
    assert (restored.final, restored.std, restored.low, restored.high) == pytest.approx(expected)
    assert fast.metrics["restored/accuracy"].final == trained["fast"].restored_accuracy
    assert seeds.states == [result.state_digest for result in results]
    # A rerun of a seed is no further sample; its state is the same.
    assert again.runs == [trained["again"].run_id]
    assert found.same_state == [[results[0].run_id, trained["again"].run_id]]
    assert len(found.data) == 1
    assert found.differences == {}
    # Duration and pace are there, and what the run's own files say is what is compared.
    for row in found.rows:
        assert row.seconds is not None and 0 < row.seconds < 600
        assert row.steps_per_second is not None and row.steps_per_second > 0
    client, points = MlflowClient(trained["uri"]), {}
    for run, (_, losses, accuracies) in zip(
        [*seeds.runs, *fast.runs, *again.runs], found.curves, strict=True
    ):
        points = {p.step: p.value for p in client.get_metric_history(run, "train/loss")}
        assert losses == points
        assert sorted(accuracies) == [5, 10, 15, 20]
    loss = fast.metrics["train/loss"]
    _, losses, _ = found.curves[2]
    assert (loss.final, loss.best) == (losses[20], min(losses.values()))


def test_a_rerun_parts_nowhere_and_another_seed_at_once(trained: dict[str, Any]) -> None:
    first, second = trained["seed-0"].run_id, trained["seed-1"].run_id
    uri = trained["uri"]
    same = api.compare(first, trained["again"].run_id, tracking_uri=uri)
    assert same.partings == {}
    assert "all shared losses and evaluations are identical" in same.text()
    other = api.compare(first, second, tracking_uri=uri)
    assert other.partings is not None
    assert other.partings["train/loss"].step == 1
    assert other.keys == []
    assert "train/loss first differs at step 1: " in other.text()


def test_the_commands_say_what_the_functions_return(
    trained: dict[str, Any], main: Main, tmp_path: Path
) -> None:
    where = "params.`optimizer` = 'adam'"
    named = f"tracking.uri={trained['uri']}"
    found = api.compare(where=where, tracking_uri=trained["uri"])
    assert len(found.rows) == 4  # seeds, fast, again, dead
    path = tmp_path / "x.png"
    for flags, expected in (
        ([], f"{found.text()}\n"),
        (["--csv"], found.to_csv()),
        (["--json"], f"{found.to_json()}\n"),
        (["--json", "--plot", str(path)], f"{found.to_json()}\n"),
    ):
        done = main("compare", "--where", where, named, *flags)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == expected
    shown_in(path)
    done = main("compare", trained["seed-0"].run_id[:6], "fast", named)
    assert done.returncode == 0
    assert "train/loss first differs at step 2: " in done.stdout


def listed(done: Done) -> dict[str, list[str]]:
    """Return the cells of the list of runs by name; check its heading."""
    assert (done.returncode, done.stderr) == (0, ""), done
    head, *lines = done.stdout.splitlines()
    columns = ["id", "name", "model", "status", "steps", "accuracy", "age"]
    rows = [re.split(r"\s{2,}", line) for line in lines]
    can_be_done = any(len(row) > len(columns) for row in rows)
    assert head.split() == columns + ["to", "do"] * can_be_done
    return {row[1]: row for row in rows}


def test_the_list_of_waymarks_runs(trained: dict[str, Any], main: Main) -> None:
    named = f"tracking.uri={trained['uri']}"
    rows = listed(main("runs", named))
    order = ["diverged", "dead", "rerun of seed-0", "fast", "seed-1", "seed-0"]
    assert [*rows] == order
    for name in ("fast", "seed-0", "seed-1"):
        result = trained[name]
        run, _, model, status, steps, accuracy, _age, *can = rows[name]
        assert (run, model, status) == (result.run_id[:8], "softmax", "FINISHED")
        assert (steps, accuracy, can) == ("20", f"{result.restored_accuracy:.4f}", [])
    dead = rows["dead"]
    assert dead[3:5] == ["KILLED", "10 of 20"]
    assert dead[5] != "-"  # the evaluation at step 10
    assert dead[-1] == "resume"
    diverged = rows["diverged"]
    assert diverged[3] == "FAILED"
    assert re.fullmatch(r"[1-9] of 20", diverged[4])
    assert diverged[-1] != "resume"
    ages = [run.age for run in listing.list_runs(trained["uri"], 20)]
    assert ages == sorted(ages)
    assert 0 < ages[0] < 600
    assert [run.resumable for run in listing.list_runs(trained["uri"], 20)] == [
        name == "dead" for name in order
    ]


def test_a_longer_run_says_so(trained: dict[str, Any], tmp_path: Path, main: Main) -> None:
    """Resume in a copy of the store; MLflow's own param keeps the first number of steps."""
    shutil.copytree(Path(trained["uri"][10:]).parent, tmp_path / "mlruns")
    named = f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db"
    dead = trained["dead"]
    assert main("resume", dead, named, "steps=15", "--allow-drift").returncode == 0
    rows = listed(main("runs", named))
    assert rows["dead"][3:5] == ["FINISHED", "15"]
    assert rows["dead"][-1] != "resume"
    done = main("compare", dead, "fast", named, "--json")
    steps = [row["values"]["steps"] for row in strict_json(done.stdout)["rows"]]
    assert steps == ["15", "20"]


def test_the_list_of_other_programs_runs(foreign: Store, main: Main) -> None:
    rows = listed(main("runs", foreign.named))
    assert [*rows] == ["many", "failed", "running", "bare", *CHILDREN[::-1], "parent"]
    assert rows["failed"][2:6] == ["x", "FAILED", "7 of 9", "inf"]
    assert rows["child-3"][2:6] == ["cnn", "FINISHED", "-", "0.7500"]
    assert rows["bare"][2:6] == ["-", "FINISHED", "-", "-"]
    assert not [row for row in rows.values() if row[-1] == "resume"]


def test_how_many_are_listed(store: Store, main: Main) -> None:
    assert main("runs", store.named).stdout == "there are no runs here yet\n"
    for i in range(25):
        made = store.client.create_run("0", start_time=1000 * (i + 1), run_name=f"run-{i}")
        store.client.set_terminated(made.info.run_id)
    order = [f"run-{i}" for i in reversed(range(25))]
    assert [*listed(main("runs", store.named))] == order[:20]
    assert [*listed(main("runs", store.named, "--limit", "3"))] == order[:3]
    assert [*listed(main("runs", store.named, "--limit", "999"))] == order
    store.client.delete_run(store.client.search_runs(["0"])[0].info.run_id)
    assert [*listed(main("runs", store.named, "--limit", "1"))] == ["run-23"]
    store.change(
        "INSERT INTO runs (run_uuid, name, status, start_time, lifecycle_stage, experiment_id,"
        " artifact_uri, user_id, source_type, source_name, entry_point_name, source_version)"
        " WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n WHERE i < 1200)"
        " SELECT printf('%032x', i), 'x', 'FINISHED', i, 'active', 0, 'none',"
        " '', 'LOCAL', '', '', '' FROM n"
    )
    assert len(listing.list_runs(store.uri, 1001)) == 1001


def test_the_list_tells_how_far_a_pruned_trial_came(store: Store, main: Main) -> None:
    for name, step in (("pruned", "20"), ("trained on", "")):
        store.add(name, {"model": "m", "steps": "200"}, tags={"waymark.pruned": step})
    rows = listed(main("runs", store.named))
    assert [rows[name][4] for name in ("pruned", "trained on")] == ["20 of 200", "200"]


def test_a_sweep_stands_above_its_trials_however_many_they_are(store: Store, main: Main) -> None:
    counts = {f"sweep/{name}": {1: value} for name, value in (("trials", 4.0), ("finished", 3.0))}
    parent = store.add("a-sweep", {}, counts, {"waymark.kind": "sweep"}, status="FAILED")
    for i in range(3):
        tags = {"mlflow.parentRunId": parent, "waymark.trial": str(i)}
        store.add(f"trial-{i}", {"model": "m"}, tags=tags)
    done = main("runs", store.named, "--limit", "2")
    _, first, *others = done.stdout.splitlines()
    assert "a-sweep" in first and first.endswith("1 of 4 trials left: repeat its command")
    assert [line.split()[1] for line in others] == ["trial-2", "trial-1"]
    assert all(re.match(r"\w{8}    trial-", line) for line in others)
    failed = listing.list_runs(store.uri, 9, status="FAILED")
    assert [run.name for run in failed] == ["a-sweep"]


def test_the_list_escapes_names(store: Store, main: Main) -> None:
    for i, harm in enumerate(HARM):
        run = store.add(f"run-{i}", {"model": "m", "steps": "1"})
        name = "UPDATE tags SET value = ? WHERE key = 'mlflow.runName' AND run_uuid = ?"
        store.change(name, harm, run)
        store.change("UPDATE runs SET name = ? WHERE run_uuid = ?", harm, run)
        store.change("UPDATE params SET value = ? WHERE run_uuid = ?", harm, run)
    done = main("runs", store.named)
    assert (done.returncode, done.stderr) == (0, "")
    assert printable(done.stdout)
    assert len(done.stdout.splitlines()) == 1 + len(HARM)
    for harm, line in zip(reversed(HARM), done.stdout.splitlines()[1:], strict=True):
        plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in harm).strip()
        assert line.count(plain) >= 3 or not plain  # name, model, steps


# With a tracking server


def test_a_tracking_server(
    server: tuple[str, Path],
    trained: dict[str, Any],
    place: Path,
    small: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(CHECKOUT, str(place))
    uri, named = server[0], f"tracking.uri={server[0]}"
    base = [*BASE, "data=arrays", f"data.path={small}", named, "experiment_name=compared"]
    there = api.run(*base, "run_name=there")
    assert not [*place.glob("mlruns/spool/*")]  # the exact history is only with the server
    dead = killed(10, *base, "run_name=dead", "batch_size=11")
    found = api.compare("there", dead, tracking_uri=uri)
    assert found.keys == ["batch_size"]
    tracked = open_store(trained["uri"])  # where the same run was recorded in a file
    assert there.state_digest == trained["seed-0"].state_digest
    exact = load_recorded_run(tracked, find(tracked, "seed-0")).history.metrics
    (_, losses, accuracies), (_, others, _) = found.curves
    assert losses == exact["train/loss"]
    assert accuracies == exact["test/accuracy"]
    assert found.rows[0].metrics["restored/loss"].final == exact["restored/loss"][20]
    assert [*others] == [*range(1, 11)]
    assert found.partings is not None and found.partings["train/loss"].step == 1
    client = MlflowClient(uri)
    experiment = client.create_experiment("compared-foreign")
    for i in range(2):
        run = client.create_run(experiment, run_name=f"foreign-{i}").info.run_id
        points = [Point("train/loss", 1 / (step + 1 + i), step, step) for step in range(5)]
        client.log_batch(run, points, [Param("lr", str(i))])
        client.set_terminated(run)
    found = api.compare(experiment="compared-foreign", tracking_uri=uri)
    assert [row.name for row in found.rows] == ["foreign-0", "foreign-1"]
    assert [row.metrics["train/loss"].final for row in found.rows] == [1 / 5, 1 / 6]
    assert found.partings == {"train/loss": Divergence(0, 1.0, 0.5)}
    # The process of a dead run is gone: every command sees that it can go on.
    for arguments in (
        ["runs"],
        ["compare", "--experiment", "compared"],
        ["compare", "there", dead],
    ):
        client.update_run(dead, status="RUNNING")
        client.set_tag(dead, "waymark.resume", "")
        client.set_tag(dead, "waymark.process", "{}")
        client.set_tag(dead, "waymark.heartbeat", "0")
        done = main(*arguments, named)
        assert done.returncode == 0, done
        lines = done.stdout.splitlines()
        if arguments == ["runs"]:
            (line,) = [line for line in lines if re.search(r"\bdead .*KILLED", line)]
            assert "10 of 20" in line and line.endswith("resume")
        else:
            assert [line for line in lines if line.startswith("status ") and "KILLED" in line]


def test_a_server_that_is_down(place: Path, small: Path, main: Main, monkeypatch: Any) -> None:
    monkeypatch.setenv(CHECKOUT, str(place))
    uri = f"http://127.0.0.1:{free_port()}"
    named = f"tracking.uri={uri}"
    for arguments in (["runs"], ["compare", "a", "b"], ["compare", "--experiment", "x"]):
        done = main(*arguments, named)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{named[:12]}='{uri}': cannot be used (Connection refused)" in done.stderr
    done = main("compare", "--where", "params.model = 'cnn'", named)
    assert done.returncode == 2
    assert uri in done.stderr  # it is not the filter that is wrong
    base = [*BASE, "data=arrays", f"data.path={small}", named, "tracking.flush_seconds=0.1"]
    results = [api.run(*base, f"batch_size={10 + i}", f"run_name=off-{i}") for i in range(2)]
    found = api.compare(*[result.run_id for result in results], tracking_uri=uri)
    assert found.keys == ["batch_size"]
    for row, result in zip(found.rows, results, strict=True):
        assert (row.name[:4], row.status) == ("off-", "FINISHED")
        assert row.metrics["restored/accuracy"].final == result.restored_accuracy
        assert row.states == [result.state_digest]
        assert row.seconds is not None and row.seconds > 0
    assert found.partings is not None and found.partings["train/loss"].step == 1
    assert threading.active_count() < 50


# Bad input


REFUSED: list[tuple[list[str], str]] = [
    ([], "found 0"),
    (["bare"], "found 1"),
    (["bare", "bare"], "found 1"),
    (["bare", "nothing"], "RUN='nothing': there is no such run"),
    (["bare", "gone"], "RUN='gone'"),
    (["bare", ""], "RUN=''"),
    (["bare", "\x1b[2J"], "RUN='\\x1b[2J'"),
    (["bare", "a'\"b"], "RUN="),
    (["--experiment", "nothing"], "--experiment='nothing'"),
    (["--experiment", ""], "--experiment=''"),
    (["--experiment", "\x1b[2J"], "--experiment='\\x1b[2J'"),
    (["--sweep", "nothing"], "'nothing'"),
    (["bare", "many", "--sweep", ""], "''"),
    (["--sweep", "bare"], "is no sweep, and no trial of one"),
    (["--where", "params.model = cnn"], "--where='params.model = cnn'"),
    (["--where", "nonsense"], "--where='nonsense'"),
    (["--where", "'"], '--where="\'"'),
    (["--where", "params.model = 'cnn' OR params.model = 'x'"], "--where="),
    (["--where", "x\x1b\n"], "--where='x\\x1b\\n'"),
    (["--where", "attributes.start_time > 'x'"], "--where="),
    (["--where", "params.model = 'none'"], "matched 0"),
    (["bare", "many", "--plot", "x.gif"], "--plot='x.gif': must end in .png, .svg, .pdf or .html"),
    (["bare", "many", "--plot", "x" * 250 + ".png"], "x.png': File name too long."),
    (["bare", "many", "--plot", "png"], "--plot='png': must end in .png, .svg, .pdf or .html"),
    (["bare", "many", "--plot", ""], "--plot=''"),
    (["bare", "many", "--plot", "no/x.png"], "--plot='no/x.png': there is no folder"),
    (["bare", "many", "--plot", "folder.png"], "--plot='folder.png'"),
    (["bare", "many", "--plot", "folder.html"], "--plot='folder.html'"),
    (["bare", "many", "--plot", "~nobody-here/x.png"], "--plot='~nobody-here/x.png'"),
    (["bare", "nothing", "--plot", "x.png"], "RUN='nothing'"),
    (["bare", "many", "--csv", "--json"], "--csv"),
    (["bare", "many", "--nonsense"], "--nonsense"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be_compared_is_refused(
    number: int, foreign: Store, main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("folder.png", "folder.html"):
        Path(name).mkdir()
    arguments, words = REFUSED[number]
    done = main("compare", *arguments, foreign.named)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert printable(done.stderr)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder.html", "folder.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", "0"], "0 is not in the range x>=1"),
        (["--limit", "-3"], "-3"),
        (["--limit", "x"], "'x'"),
        (["steps=3"], "the only one here is tracking.uri"),
        (["bare"], "bare: is not of the form key=value"),
        (["tracking.uri=nonsense"], "tracking.uri='nonsense'"),
        (["tracking.uri=sqlite:///none/mlflow.db"], "there are no runs here"),
    ],
    ids=str,
)
def test_what_cannot_be_listed_is_refused(
    arguments: list[str], words: str, main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = main("runs", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["x.png", "x.svg"])
def test_a_plot_that_fails_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    found = compared(*[made(i, {"lr": str(i)}, {"train/loss": {1: 1.0}}) for i in range(2)])
    path = tmp_path / name
    path.write_text("before")

    def full(figure: Figure, target: Any, **named: Any) -> None:
        """Write a part, as on a disk that is full then."""
        with open(target, "wb") if isinstance(target, str | Path) else target as file:
            file.write(b"<svg")
        raise OSError(28, "No space left on device")

    with mock.patch.object(Figure, "savefig", full), pytest.raises((OSError, BadInput)):
        found.plot(path)
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


def test_the_functions_refuse_as_the_commands_do(foreign: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="two runs or more; found 1"):
        api.compare("bare", tracking_uri=foreign.uri)
    found = api.compare("bare", "many", tracking_uri=foreign.uri)
    assert isinstance(found.rows[0], Row)
    for name in ("x.gif", "none/x.png"):
        with pytest.raises(BadInput):
            found.plot(tmp_path / name)
    assert [*tmp_path.iterdir()] == []
