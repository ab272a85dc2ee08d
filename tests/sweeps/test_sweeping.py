"""Sweeps: one parent, named children, failures that stay local, the same command completing it."""

import contextlib
import csv
import re
import signal
import sqlite3
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NoReturn

import hydra
import numpy as np
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from waymark.api import run, sweep
from waymark.config import compose
from waymark.config.compose import CONF, compose_config, hydra_errors
from waymark.config.composer import Composer
from waymark.config.resolve import Resolved
from waymark.errors import BadInput
from waymark.processes.signals import GracefulShutdown
from waymark.sweeps import multirun, trial
from waymark.sweeps.multirun import threads_of
from waymark.sweeps.trial import by_content, identity
from waymark.training.progress import NoProgress, NoSweepProgress

from tests.support.processes import Done, Main, Open, StopAt, poll

SHORT = ["steps=6", "save.every=3", "eval_every=3", "progress=false"]
SHORT += ["runtime.intra_op_threads=2", "save=npz"]
RAY = "hydra_plugins.hydra_ray_launcher.Other"
PARENT = "mlflow.parentRunId"
ROUNDS = 20  # of four processes on a new store


def runs(client: MlflowClient) -> tuple[list[Run], list[Run]]:
    """Return the parents and the children of a store, the oldest first."""
    found = client.search_runs(["1"], order_by=["attributes.start_time ASC"])
    parents = [each for each in found if each.data.tags.get("waymark.kind") == "sweep"]
    return parents, [each for each in found if each not in parents]


def missing(name: str) -> NoReturn:
    raise PackageNotFoundError(name)


def begun(folder: Path) -> bool:
    """Tell whether a trial of a sweep has begun; MLflow's client would make a store itself."""
    uri = f"file:{folder}/mlruns/mlflow.db?mode=ro"
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(uri, uri=True)) as db,
    ):
        return bool(db.execute("SELECT count(*) > 1 FROM runs").fetchone()[0])
    return False


def digests(children: list[Run]) -> dict[str, str]:
    return {each.info.run_name: each.data.tags["waymark.state_digest"] for each in children}


def test_a_sweep_is_one_parent_with_named_children(place: Path, main: Main, client: Open) -> None:
    done = main("run", "-m", "seed=0,1", "optimizer.learning_rate=0.01,0.1", *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    (parent,), children = runs(client(place))
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "sweep: lr x seed (4)"
    words = " ".join(["seed=0,1", "optimizer.learning_rate=0.01,0.1", *SHORT])
    assert parent.data.tags["waymark.command"] == f"waymark run -m {words}"
    assert parent.data.tags["waymark.varied"] == '["optimizer.learning_rate", "seed"]'
    names = [f"seed={seed} lr={rate}" for seed in (0, 1) for rate in (0.01, 0.1)]
    assert sorted(each.info.run_name for each in children) == sorted(names)
    assert {each.data.tags[PARENT] for each in children} == {parent.info.run_id}
    assert {each.data.params["runtime.intra_op_threads"] for each in children} == {"2"}
    accuracy = {each.info.run_id: each.data.metrics["restored/accuracy"] for each in children}
    best = parent.data.tags["waymark.best"]
    assert accuracy[best] == max(accuracy.values()) == parent.data.metrics["best/restored/accuracy"]
    assert parent.data.metrics["sweep/finished"] == 4
    listed = {file.path for file in client(place).list_artifacts(parent.info.run_id)}
    assert listed == {"sweep.csv", "sweep.html", "slices.png", "curves.png", "trials.csv"}
    shown = Path(client(place).download_artifacts(parent.info.run_id, "sweep.html")).read_text()
    assert all(f"/runs/{each.info.run_id}" in shown for each in children)
    assert "<h1>Sweep: lr</h1>" in shown and shown.count("data:image/png") == 1
    assert re.search(r"^trials +4 finished; 4 new, [\d.]+ trials/min$", done.stdout, re.M)
    table = [line.split() for line in done.stdout.splitlines()]
    assert ["run", "lr=0.01", "lr=0.1"] in table
    assert ["seeds", "2", "2"] in table
    alone = run(*SHORT, "seed=1", "optimizer.learning_rate=0.1")
    assert digests(children)["seed=1 lr=0.1"] == alone.state_digest


def test_the_same_command_again_does_nothing_twice(place: Path, main: Main, client: Open) -> None:
    command = ["run", "-m", "seed=0,1", *SHORT]
    assert main(*command).returncode == 0
    before = runs(client(place))
    again = main(*command)
    assert (again.returncode, again.stderr) == (0, "")
    (parent,), children = runs(client(place))
    assert [each.info.run_id for each in children] == [each.info.run_id for each in before[1]]
    assert parent.info.run_id == before[0][0].info.run_id
    # Wider: the same sweep, and what is new is done. Another order of the words changes nothing.
    wider = main("run", "-m", *SHORT, "seed=0,1,2")
    assert wider.returncode == 0
    (parent,), children = runs(client(place))
    assert [each.info.run_name for each in children] == ["seed=0", "seed=1", "seed=2"]
    assert {each.data.tags[PARENT] for each in children} == {parent.info.run_id}
    # Other fixed values: another sweep. A trial that another sweep has done is not done again.
    assert main("run", "-m", "batch_size=100,50", "seed=0", *SHORT).returncode == 0
    parents, children = runs(client(place))
    assert [each.info.run_name for each in children][3:] == ["bs=50"]
    assert children[3].data.tags[PARENT] == parents[1].info.run_id
    assert parents[1].data.metrics["sweep/finished"] == 2
    # Unless it is asked for.
    assert main(*command, "rerun_finished=true").returncode == 0
    assert len(runs(client(place))[1]) == 6
    # Another experiment is another sweep, and has trials of its own.
    assert main("run", "-m", "seed=0", *SHORT, "experiment_name=b").returncode == 0
    assert [parent.info.run_id for parent in runs(client(place))[0]] == [
        parent.info.run_id for parent in parents
    ]
    other = client(place).get_experiment_by_name("b").experiment_id
    found = client(place).search_runs([other])
    (parent,) = [each for each in found if each.data.tags.get("waymark.kind") == "sweep"]
    assert len(found) == 2 and parent.data.metrics["sweep/finished"] == 1


def test_a_file_counts_by_what_it_holds(place: Path) -> None:
    def named(folder: Path) -> dict[str, Any]:
        (folder / "tree" / "inner").mkdir(parents=True)
        for name in ("words.txt", "b.npz", "c-7.index", "c-7.data-00000-of-00001", "tree/inner/x"):
            (folder / name).write_text(name)
        return {
            "model.words": f"{folder}/words.txt",
            "model.names": ["relu", f"{folder}/words.txt"],
            "data.folder": f"{folder}/tree",
            "init_from": f"{folder}/c-7",
        }

    text = {"model.activation": "relu", "model.root": str(place), "model.no": "no.txt", "seed": 3}
    text["experiment_name"] = "mlruns"  # a folder here, but not one that is meant
    assert by_content(text) == text
    first, second = named(place / "first"), named(place / "second")
    before = by_content(first)
    assert by_content(second) == before  # wherever it lies
    (place / "first" / "c-70.index").write_text("another checkpoint")
    assert by_content(first) == before
    changes = {
        "words.txt": ["model.words", "model.names"],
        "tree/inner/x": ["data.folder"],
        "tree/new": ["data.folder"],
        "c-7.data-00000-of-00001": ["init_from"],
    }
    for name, keys in changes.items():
        (place / "first" / name).write_text("other")
        after = by_content(first)
        assert [key for key in first if after[key] != before[key]] == keys
        before = after


def test_a_trial_is_told_by_the_weights_that_it_starts_from(place: Path) -> None:
    file = f"init_from={place}/w.npz"
    np.savez(place / "w.npz", weights=np.zeros((784, 10)))
    before = identity(compose_config([file]))
    assert identity(compose_config([file])) == before != identity(compose_config([]))
    np.savez(place / "w.npz", weights=np.ones((784, 10)))
    assert identity(compose_config([file])) != before


def test_failures_stay_local(
    place: Path, main: Main, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", "-m", "batch_size=5000,10", "optimizer.learning_rate=0.01,1e38", *SHORT]
    command += ["optimizer=sgd"]
    done = main(*command)
    assert done.returncode == 1
    (parent,), children = runs(client(place))
    told = {each.info.run_name: each for each in children}
    assert {name: each.info.status for name, each in told.items()} == {
        "bs=5000 lr=0.01": "FAILED",
        "bs=5000 lr=1e+38": "FAILED",
        "bs=10 lr=0.01": "FINISHED",
        "bs=10 lr=1e+38": "FAILED",
    }
    text = client(place).download_artifacts(parent.info.run_id, "trials.csv", str(place))
    table = {row["name"]: row for row in csv.DictReader(Path(text).read_text().splitlines())}
    assert {name: row["status"] for name, row in table.items()} == {
        name: each.info.status for name, each in told.items()
    }
    for name, words in (("bs=5000 lr=0.01", "must be 1 to 4000"),
                        ("bs=10 lr=1e+38", "the loss at step")):  # fmt: skip
        assert words in told[name].data.tags["waymark.reason"]
        assert words in table[name]["reason"]
        assert words in done.stdout
    assert parent.info.status == "FAILED"
    completing = f"waymark {' '.join(command)}"
    assert done.stderr.endswith(f"to complete the sweep: {completing}\n")
    assert parent.data.tags["waymark.resume"] == completing


def test_an_interrupted_sweep_is_completed_by_the_same_command(
    place: Path, main: Main, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", "-m", "seed=0,1,2", *SHORT, "save.every=1"]
    with monkeypatch.context() as patch:
        reporters = iter([NoProgress(0, 0), StopAt(3)])  # of the first trial and the second
        patch.setattr("waymark.execution.execute.make_progress", lambda *_: next(reporters))
        done = main(*command)
    assert done.returncode == 143
    (parent,), children = runs(client(place))
    assert parent.info.status == "KILLED"
    assert [each.info.status for each in children] == ["FINISHED", "KILLED"]
    # Its store may have been moved meanwhile.
    (place / "moved").mkdir()
    (place / "mlruns").rename(place / "moved" / "mlruns")
    there = client(place / "moved")
    uri = f"tracking.uri=sqlite:///{place}/moved/mlruns/mlflow.db"
    first = parent.info.run_id
    assert main(*command, uri).returncode == 0
    (parent,), children = runs(there)
    assert (parent.info.run_id, parent.info.status) == (first, "FINISHED")
    assert [each.info.status for each in children] == ["FINISHED"] * 3
    for child in children:
        history = there.get_metric_history(child.info.run_id, "train/loss")
        assert [point.step for point in history] == [1, 2, 3, 4, 5, 6]
    alone = run(*SHORT, "save.every=1", "seed=1", uri)
    assert digests(children)["seed=1"] == alone.state_digest


def test_a_folder_of_ones_own_yaml_is_looked_into(place: Path, main: Main, client: Open) -> None:
    (place / "own conf" / "optimizer").mkdir(parents=True)
    yaml = "_target_: waymark.optimizers.Sgd\nmomentum: 0.5\n"
    (place / "own conf" / "optimizer" / "mine.yaml").write_text(yaml)
    flags = ["--config-dir", "own conf"]
    done = main("run", "-m", *flags, "optimizer=mine", "seed=0,1", *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    (parent,), children = runs(client(place))
    assert [each.data.params["optimizer.momentum"] for each in children] == ["0.5", "0.5"]
    assert parent.data.tags["waymark.resume"] == ""


def test_bad_input_makes_no_sweep(place: Path, main: Main, client: Open) -> None:
    for arguments, words in (
        (["seed=0,1", "stesp=3"], "nearest is steps"),
        (["seed=0,1", "model=vgg"], "softmax"),
        (["seed=0,1", "tracking.uri=ftp://x"], "ftp://x"),
        (["seed=0,1", f"hydra.launcher._target_={RAY}"], f"{RAY!r}: is not installed.\n"),
        (["seed=0,1", "hydra/launcher=joblibs"], "submitit_slurm); the nearest is joblib"),
        (["seed=0,1", "hydra/launcher=ray_x"], "submitit_slurm); the nearest is ray"),
    ):
        done = main("run", "-m", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
    assert client(place).search_runs(["0"]) == []
    assert client(place).get_experiment_by_name("waymark") is None


def test_what_a_sweep_lacks_is_named_by_its_packages(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "distribution", missing)
    monkeypatch.setattr(multirun, "find_spec", lambda name: None)
    ray = "'hydra-ray-launcher~=1.2.2' 'ray>=2.50,<3' 'boto3>=1.40'"
    for choice, words, packages in (
        (f"hydra.launcher._target_={RAY}", f"={RAY!r}: is not installed", ray),
        ("hydra/sweeper=optuna", "=optuna: needs Optuna", "'optuna>=4'"),
    ):
        done = main("run", "-m", "seed=0,1", choice)
        said = f"waymark: {choice.partition('=')[0]}{words}; pip install {packages} brings it.\n"
        assert (done.returncode, done.stderr) == (2, said)


def test_a_refused_sweep_leaves_no_trace(place: Path, main: Main, client: Open) -> None:
    def trace() -> list[Any]:
        found = client(place).search_runs(["1"])
        return [(each.info.run_id, each.info.status, each.data.tags) for each in found]

    assert main("run", "-m", "batch_size=10,20", *SHORT).returncode == 0
    before = trace()
    for arguments, words in (
        (["seed=zero"], "seed='zero'"),
        (["seed=0,1", "batch_size=0"], "batch_size=0"),
        (["batch_size=5000,6000"], "none of the 2 trials can be done; the first one: batch_size=5"),
        (["batch_size=5000,6000", "hydra.sweeper.max_batch_size=1"], "none of the 2 trials"),
        (["seed=0,1", "data=arrays", "data.path=no.npz"], "no.npz does not exist"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0", "seed=0,1"], "n_jobs == 0"),
        (["hydra/sweeper=optuna"], "nothing is varied"),
        (["hydra/sweeper=optuna", "model=softmax,vgg"], "softmax"),
    ):
        done = main("run", "-m", *SHORT, *arguments)
        handed_over = "sweep" if words == "n_jobs == 0" else ""  # the launcher refuses it
        assert (done.returncode, done.stdout.partition(" ")[0]) == (2, handed_over), done
        assert words in done.stderr and "to complete" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert trace() == before
    # One that can be done is enough.
    done = main("run", "-m", *SHORT, "batch_size=5000,10", "hydra.sweeper.max_batch_size=1")
    assert done.returncode == 1
    assert len(trace()) == len(before) + 1


@pytest.mark.long
def test_only_what_is_new_is_composed_and_looked_up(
    place: Path, main: Main, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many trials have finished, the rest costs what it would cost alone."""
    command = ["run", "-m", "optimizer.learning_rate=0.1,0.2", *SHORT]
    assert main(*command, "seed=0,1,2").returncode == 0
    compose_config, searched = [], []
    compose, search = ConfigLoaderImpl.load_sweep_config, MlflowClient.search_runs

    def count_compose(self: Any, *arguments: Any, **named: Any) -> Any:
        compose_config.append(arguments)
        return compose(self, *arguments, **named)

    def count_search(self: Any, *arguments: Any, **named: Any) -> Any:
        searched.append(arguments)
        return search(self, *arguments, **named)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", count_compose)
    monkeypatch.setattr(MlflowClient, "search_runs", count_search)
    counts = []
    for seeds in ("0,1", "0,1,2"):
        assert main(*command, f"seed={seeds}").returncode == 0
        counts.append((len(compose_config), len(searched)))
        compose_config.clear(), searched.clear()
    assert counts[0] == counts[1]
    assert counts[0][0] == 1
    assert main(*command, "seed=0,1,2,3").returncode == 0
    assert len(compose_config) == 1 + 2  # once for all, once by Hydra for each of the new ones


groups = st.sampled_from(
    [
        *("model=cnn", "model=softmax", "model=mlp", "data=arrays", "optimizer=sgd", "save=npz"),
        "+tags.a=1",
    ]
)
plain_values = st.sampled_from(
    [
        *("seed=3", "steps=7", "batch_size=20", "optimizer.learning_rate=1e-3", "run_name=null"),
        *("model.init_stddev=0.2", "run_name='a b'", "run_name=7", "precision=mixed_bfloat16"),
        *("tags=null", "tags={b: 2}", "save.keep_best=null", "init_from=x", "seed=zero", "nope=1"),
        *("optimizer.beta_1=0.5", "optimizer.use_ema=true", "optimizer.epsilon=1e-8"),
        *("optimizer.momentum=0.5", "save.max_to_keep=0", "progress=true", "model=nope", "seed=4"),
    ]
)


@given(st.lists(st.lists(st.one_of(groups, plain_values), max_size=6), min_size=1, max_size=4))
@settings(max_examples=5, deadline=None)
def test_trials_are_composed_as_hydra_composes_them(jobs: list[list[str]]) -> None:
    def outcome(compose: Callable[[list[str]], Resolved], job: list[str]) -> Any:
        try:
            found = compose(job)
            return found.values, found.choices
        except (BadInput, *hydra_errors()):
            return None

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        master = hydra.compose("config", return_hydra_config=True)
        fast = Composer(GlobalHydra.instance().config_loader(), master)
        found = [outcome(fast, job) for job in jobs]
    assert found == [outcome(lambda job: compose_config(job), job) for job in jobs]


def test_each_number_of_threads_has_a_process(
    place: Path, waymark: Callable[..., Done], client: Open
) -> None:
    short = [word for word in SHORT if "threads" not in word]
    done = waymark("run", "-m", "runtime.intra_op_threads=1,2", *short, cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    (_, children) = runs(client(place))
    assert {each.data.params["runtime.intra_op_threads"] for each in children} == {"1", "2"}
    assert len({each.data.tags["waymark.process"] for each in children}) == 2
    alone = run(*short, "runtime.intra_op_threads=2")
    assert digests(children)["intra_op_threads=2"] == alone.state_digest


def test_the_work_of_a_trial_may_compose(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's model may call Waymark's functions: its work is done on another thread."""
    composed: list[bool] = []

    def done(*_: Any) -> float:
        work = threading.Thread(target=compose_config, args=[["steps=7"]], daemon=True)
        work.start()
        work.join(60)
        composed.append(not work.is_alive())
        return 0.5

    monkeypatch.setattr("waymark.sweeps.trial.claim_and_run", done)
    sweep(*SHORT, "seed=0,1")
    assert composed == [True, True]


def test_a_trial_that_another_process_trains_is_waited_for(
    place: Path, start: Callable[..., Any], main: Main, client: Open
) -> None:
    """Two commands at once: what one of them is doing the other does not do again."""
    long = [word for word in SHORT if not word.startswith(("steps", "save.every"))]
    command = ["run", "-m", "seed=0,1", *long, "steps=2000", "save.every=500"]
    with start(*command, cwd=place) as first:
        poll(lambda: begun(place))
        assert main(*command).returncode == 0
        assert first.wait(60) == 0
    (parent,), children = runs(client(place))
    assert [each.info.run_name for each in children] == ["seed=0", "seed=1"]
    assert [each.info.status for each in [parent, *children]] == ["FINISHED"] * 3


def test_one_trial_in_other_words_is_done_once(place: Path, main: Main, client: Open) -> None:
    assert main("run", "-m", "optimizer.learning_rate=0.1,1e-1,0.10", *SHORT).returncode == 0
    (parent,), children = runs(client(place))
    assert len(children) == 1
    assert parent.data.metrics["sweep/finished"] == 1


@pytest.mark.parametrize(
    ("launcher", "threads"),
    [
        ({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, 8),
        ({"_target_": "x.JoblibLauncher", "n_jobs": -1}, 1),
        ({"_target_": "x.JoblibLauncher", "n_jobs": 2}, 4),
        ({"_target_": "x.JoblibLauncher", "n_jobs": 3}, 2),
        ({"_target_": "x.JoblibLauncher", "n_jobs": 30}, 1),
        ({"_target_": "x.SlurmLauncher", "cpus_per_task": None}, 1),
        ({"_target_": "x.SlurmLauncher", "cpus_per_task": 6}, 6),
        ({"_target_": "x.RayLauncher", "ray": {"remote": {"num_cpus": 3}}}, 3),
        ({"_target_": "x.RayLauncher", "ray": {"remote": {}}}, 1),
        ({"_target_": "own.Launcher"}, 1),
    ],
)
def test_trials_beside_each_other_share_the_cores(
    launcher: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert threads_of(launcher) == threads


def test_progress_is_seen_while_it_goes_on(
    place: Path, main: Main, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the parent run, as MLflow's UI shows it, and as a bar: each trial waits to be seen."""
    begun, do = [], trial.claim_and_run

    def parent() -> Run:
        return runs(client(place))[0][0]

    def done(*arguments: Any) -> float:
        if begun:
            poll(lambda: parent().data.metrics.get("sweep/finished") == len(begun))
            (first,) = (each for each in runs(client(place))[1] if each.info.run_name == "seed=0")
            assert (parent().info.status, first.info.status) == ("RUNNING", "FINISHED")
            assert "waymark.best" in parent().data.tags
        begun.append(1)
        return do(*arguments)

    monkeypatch.setattr("waymark.sweeps.trial.claim_and_run", done)
    words = [word for word in SHORT if not word.startswith("progress")]
    shown = main("run", "-m", "seed=0,1,2", *words, "progress=true")
    assert (shown.returncode, len(begun)) == (0, 3)
    history = client(place).get_metric_history(parent().info.run_id, "sweep/finished")
    assert list(dict.fromkeys(point.value for point in history)) in ([1, 2, 3], [0, 1, 2, 3])
    assert re.search(r"\d finished(, \d running)?, best 0\.\d{4}", shown.stdout)
    begun.clear()
    told = main("run", "-m", "seed=2,3", *words).stdout
    assert told.startswith(f"sweep {parent().info.run_id} seed (3)\n")
    lines = re.findall(r"(?m)^finished: (.*) \(\w{8}\), restored/accuracy 0\.\d{4}; (.*)$", told)
    assert lines == [("seed=3", "2 of 2")], "of what is new, where there is no terminal"
    link = f"runs/{parent().info.run_id}?workflowType=machine_learning"
    *_, page, follow = told.splitlines()
    assert page.endswith(link)
    shown = main(*follow.split()[2:])
    assert (shown.returncode, "restored/accuracy" in shown.stdout) == (0, True)


@pytest.mark.parametrize(
    "words",
    [["seed=0,1"], ["hydra/sweeper=optuna", "seed=range(1000)", "hydra.sweeper.n_trials=2"]],
)
def test_one_bar_moves_as_trials_end(
    place: Path,
    main: Main,
    client: Open,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    bars: list[list[tuple[int, int]]] = []  # of each: total and finished, as they are shown

    class Shown(NoSweepProgress):
        def __init__(self, *_: Any) -> None:
            bars.append([])

        def show(self, total: int, counts: Mapping[str, int], best: float | None) -> None:
            bars[-1].append((total, counts["finished"]))

    begun, do = [], trial.claim_and_run

    def done(*arguments: Any) -> float:
        begun.append(1)
        poll(lambda: len(begun) == 1 or (bars and (2, 1) in bars[-1]))
        return do(*arguments)

    monkeypatch.setattr("waymark.sweeps.sweep.POLL_INTERVAL_S", 3600)
    monkeypatch.setattr("waymark.sweeps.sweep.make_sweep_progress", Shown)
    monkeypatch.setattr("waymark.sweeps.trial.claim_and_run", done)
    if len(words) > 1:
        pytest.importorskip("optuna")
    assert main("run", "-m", *words, *SHORT).returncode == 0
    (bar,) = bars
    assert {total for total, _ in bar} == {2} and bar[-1] == (2, 2)
    (parent,), _ = runs(client(place))
    history = client(place).get_metric_history(parent.info.run_id, "sweep/finished")
    assert {point.value for point in history} >= {1, 2}


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_four_processes_share_a_new_store(
    place: Path, start: Callable[..., Any], client: Open
) -> None:
    """However they interleave: no error, no lost point, one experiment."""
    for attempt in range(ROUNDS):
        folder = place / str(attempt)
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            words = [["run", *SHORT, f"seed={seed}"] for seed in range(4)]
            four = [stack.enter_context(start(*each, cwd=folder)) for each in words]
            ends = [process.communicate(timeout=200) for process in four]
        assert [process.returncode for process in four] == [0] * 4, ends
        assert [err for _, err in ends] == [""] * 4
        children = runs(client(folder))[1]
        assert sorted(each.data.params["seed"] for each in children) == ["0", "1", "2", "3"]
        for child in children:
            history = client(folder).get_metric_history(child.info.run_id, "train/loss")
            assert [point.step for point in history] == [1, 2, 3, 4, 5, 6]


def test_a_sweep_on_a_server_keeps_its_password_to_itself(
    place: Path, main: Main, server: tuple[str, Path]
) -> None:
    uri, folder = server
    client = MlflowClient(uri)
    secret = uri.rpartition("@")[0].rpartition(":")[2]
    command = ["run", "-m", "seed=0,1", *SHORT, f"tracking.uri={uri}", "experiment_name=sweep"]
    done = main(*command)
    assert (done.returncode, done.stderr) == (0, "")
    experiment = client.get_experiment_by_name("sweep")
    found = client.search_runs([experiment.experiment_id])
    assert sorted(each.info.status for each in found) == ["FINISHED"] * 3
    assert secret not in done.stdout and secret not in str([each.to_dictionary() for each in found])
    for path in [*place.rglob("*"), *folder.rglob("artifacts/**/*")]:
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    assert "***" in (place / "mlruns/multirun.yaml").read_text()


def test_trials_that_record_elsewhere_are_missed(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers in another folder, say, with a store of their own."""
    monkeypatch.setattr("waymark.sweeps.trial.claim_and_run", lambda *_: 0.5)
    done = main("run", "-m", "seed=0,1", *SHORT)
    assert done.returncode == 1
    assert "waymark: 2 trials left no trace in " in done.stderr


def test_a_signal_that_comes_as_a_trial_ends_still_ends_the_sweep(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def done(*_: Any) -> float:
        begun.append(1)
        GracefulShutdown.last_signal = signal.SIGTERM
        return 0.5

    monkeypatch.setattr("waymark.sweeps.trial.claim_and_run", done)
    assert main("run", "-m", "seed=0,1", *SHORT).returncode == 143
    assert len(begun) == 1


def test_a_store_that_is_gone_at_the_end_is_one_sentence(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **named: Any) -> None:
        raise MlflowException("API request failed: Connection refused")

    monkeypatch.setattr("waymark.sweeps.sweep.Sweep.outcome", gone)
    monkeypatch.setattr("waymark.sweeps.trial.connect", gone)
    done = main("run", "-m", "seed=0,1", *SHORT)
    assert done.returncode == 1
    one, two, end, command = done.stderr.splitlines()
    assert one.startswith("waymark: seed=0: ") and two.startswith("waymark: seed=1: ")
    assert end.startswith("waymark: the end of the sweep cannot be recorded (")
    assert command.startswith("to complete the sweep: waymark run -m seed=0,1 ")
