"""Pruned trials are ended early; Optuna proposes trials in a study that lasts."""

import itertools
import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from waymark.api import resume, run
from waymark.config.compose import compose_config
from waymark.names import PRUNING_VALUES, TRIAL, sweep_member_tag
from waymark.sweeps.trial import _pruner, members
from waymark.tracking import limits
from waymark.tracking.remote_store import connect
from waymark.training.pruning import N_STARTUP_TRIALS, pruning_steps, should_prune

from tests.support.processes import Main, Open, poll

SHORT = ["steps=12", "save.every=4", "eval_every=2", "progress=false", "save=npz"]
SHORT += ["runtime.intra_op_threads=2", "optimizer=sgd"]
# The later ones learn next to nothing; the test accuracy tells from the first evaluation on.
RATES = "optimizer.learning_rate=0.5,0.4,0.3,0.2,0.1,0.05,1e-9,1e-10"


def children(client: MlflowClient) -> tuple[Run, list[Run]]:
    """Return the only parent of a store, and its children, the oldest first."""
    found = client.search_runs(["1"], order_by=["attributes.start_time ASC"])
    parents = [each for each in found if each.data.tags.get("waymark.kind") == "sweep"]
    (parent,) = parents
    own = parent.info.run_id
    assert {each.data.tags["mlflow.parentRunId"] for each in found if each != parent} == {own}
    return parent, [each for each in found if each != parent]


# The rules.

values = st.dictionaries(st.integers(1, 5), st.floats(-1, 1), min_size=1)


@given(values, st.lists(values, max_size=12))
def test_median_ends_what_is_below_the_median_of_enough_others(
    own: dict[int, float], others: list[dict[int, float]]
) -> None:
    step = max(own)
    there = [each[step] for each in others if step in each]
    below = max(own.values()) < statistics.median(there) if there else False
    assert should_prune("median", step, own, others) == (len(there) >= N_STARTUP_TRIALS and below)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_asha_lets_the_best_third_of_those_that_have_come_go_on(come: list[float]) -> None:
    own, *others = [{3: value} for value in come]
    ends = should_prune("asha", 3, own, others)
    better = sum(value > come[0] for value in come)
    assert ends == (len(come) >= 3 and better >= len(come) // 3)
    # The best is never ended, and a trial that is better than another outlives it.
    assert not should_prune("asha", 3, {3: max(come)}, [{3: value} for value in come])


@given(st.integers(1, 5000), st.integers(0, 700))
def test_trials_are_judged_at_evaluations_before_the_last_step(steps: int, every: int) -> None:
    for rule in ("median", "asha"):
        judged = pruning_steps(rule, steps, every)
        assert all(0 < step < steps and step % every == 0 for step in judged)
        assert len(judged) <= 50
        assert bool(judged) == (0 < every < steps)
    rungs = pruning_steps("asha", steps, every)
    assert [b / a for a, b in itertools.pairwise(rungs)] == [3.0] * (len(rungs) - 1)


# In a sweep.


@pytest.mark.parametrize("rule", [pytest.param("median", marks=pytest.mark.long), "asha"])
def test_a_hopeless_trial_ends_keeps_its_checkpoint_and_can_go_on(
    place: Path, main: Main, client: Open, rule: str
) -> None:
    command = ["run", "-m", RATES, *SHORT]
    done = main(*command, f"prune={rule}")
    assert (done.returncode, done.stderr) == (0, "")
    parent, trials = children(client(place))
    assert {each.info.status for each in [parent, *trials]} == {"FINISHED"}
    pruned = {each.info.run_name: each for each in trials if each.data.tags.get("waymark.pruned")}
    assert {"lr=1e-9", "lr=1e-10"} <= pruned.keys()
    assert parent.data.metrics["sweep/pruned"] == len(pruned)
    assert parent.data.metrics["sweep/finished"] == 8 - len(pruned)
    assert parent.data.tags["waymark.best"] not in {each.info.run_id for each in pruned.values()}
    hopeless = pruned["lr=1e-9"]
    assert hopeless.data.tags["waymark.reason"] == "pruned at step 2"
    assert f"PRUNED      lr=1e-9 ({hopeless.info.run_id[:8]})" in done.stdout
    folder = place / "mlruns/artifacts/1" / hopeless.info.run_id / "artifacts"
    assert (folder / "checkpoints/weights-2.npz").exists()
    history = client(place).get_metric_history(hopeless.info.run_id, "train/loss")
    assert [point.step for point in history] == [1, 2]
    # Repeated it is done; without pruning it goes on to its end, with the same bits.
    assert main(*command, f"prune={rule}").returncode == 0
    assert len(children(client(place))[1]) == 8
    resumed = resume(hopeless.info.run_id)
    alone = run(*SHORT, "optimizer.learning_rate=1e-9")
    assert resumed and resumed.state_digest == alone.state_digest
    client(place).delete_run(alone.run_id)
    assert main(*command).returncode == 0
    parent, trials = children(client(place))
    assert len(trials) == 8
    assert not any("waymark.pruned" in each.data.tags for each in trials)
    assert parent.data.metrics["sweep/finished"] == 8


def test_pruning_needs_what_is_evaluated(place: Path, main: Main) -> None:
    done = main("run", "-m", "seed=0,1", "prune=median", "objective.metric=train/steps_per_second")
    assert (done.returncode, done.stdout) == (2, "")
    assert "objective.metric='train/steps_per_second' is not evaluated" in done.stderr


# Optuna.

SEARCH = ["run", "-m", "hydra/sweeper=optuna", *SHORT]
SPACE = ["optimizer.learning_rate=tag(log, interval(0.001, 0.5))", "batch_size=50,100"]
SPACE += ["seed=range(3)"]


def test_a_trial_judged_too_often_for_a_tag_is_judged_by_what_it_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {step: 1 / step for step in range(1, 999)}
    text = limits.fitted(json.dumps(values), 5000)
    record = SimpleNamespace(id="a", tags={PRUNING_VALUES: text, TRIAL: "other"}, status="RUNNING")
    tracking = SimpleNamespace(metric_history=lambda *_: list(values.items()))
    monkeypatch.setattr("waymark.sweeps.trial.select", lambda *_: [(record, None)])
    pruner = _pruner(tracking, compose_config(["prune=median"]).config, "test", "sweep", "mine")  # type: ignore[arg-type]
    assert pruner is not None
    assert pruner.other_trials() == [values]
    record.tags[PRUNING_VALUES] = '{"1": 0.5}'
    assert pruner.other_trials() == [{1: 0.5}]


def test_pruning_goes_on_where_the_store_gives_no_answer(place: Path, client: Open) -> None:
    store = connect(None, create=True)
    assert members(store, "sweep") == []
    tags = {sweep_member_tag("sweep"): "c", TRIAL: "other", PRUNING_VALUES: '{"1": 0.5}'}
    client(place).create_run("0", tags=tags)
    config = compose_config(["prune=median"]).config
    pruner = _pruner(store.with_bound(0.2), config, "test", "sweep", "mine")
    assert pruner is not None
    process = psutil.Process(store.process()._process.pid)
    process.suspend()
    try:
        assert pruner.other_trials() == []
    finally:
        process.resume()
    assert poll(pruner.other_trials) == [{1: 0.5}]


def study(place: Path, parent: Run) -> Any:
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{place}/mlruns/optuna.db"
    return optuna.load_study(study_name=parent.info.run_id, storage=storage)


def test_a_study_goes_on_where_it_stopped(place: Path, main: Main, client: Open) -> None:
    pytest.importorskip("optuna")
    done = main(*SEARCH, *SPACE, "hydra.sweeper.n_trials=3")
    assert (done.returncode, done.stderr) == (0, "")
    first = children(client(place))[1]
    assert len(first) == 3
    for _ in range(2):
        assert main(*SEARCH, *SPACE, "hydra.sweeper.n_trials=5").returncode == 0
        parent, trials = children(client(place))
        assert [each.info.run_id for each in trials[:3]] == [each.info.run_id for each in first]
        assert len(trials) == 5
        assert parent.data.metrics["sweep/finished"] == 5
    known = study(place, parent)
    accuracies = sorted(each.data.metrics["restored/accuracy"] for each in trials)
    assert sorted(trial.value for trial in known.trials) == accuracies
    assert known.best_value == parent.data.metrics["best/restored/accuracy"]
    for trial in known.trials:
        assert 0.001 <= trial.params["optimizer.learning_rate"] <= 0.5
        assert trial.params["batch_size"] in (50, 100) and trial.params["seed"] in (0, 1, 2)
    assert len({str(trial.params) for trial in known.trials}) == 5


@pytest.mark.long
def test_what_failed_is_proposed_again(
    place: Path, main: Main, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")

    def broken(*_: Any) -> None:
        raise RuntimeError("the disk has gone")

    with monkeypatch.context() as patch:
        patch.setattr("waymark.execution.execute.RunExecution.restore_and_evaluate", broken)
        done = main(*SEARCH, *SPACE, "hydra.sweeper.n_trials=2")
    assert done.returncode == 1
    parent, trials = children(client(place))
    assert [each.info.status for each in trials] == ["FAILED", "FAILED"]
    assert [trial.state.name for trial in study(place, parent).trials] == ["FAIL", "FAIL"]
    assert main(*SEARCH, *SPACE, "hydra.sweeper.n_trials=2").returncode == 0
    parent, trials = children(client(place))
    assert [each.info.status for each in trials] == ["FINISHED", "FINISHED"]
    states = [trial.state.name for trial in study(place, parent).trials]
    assert states == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.long
def test_a_study_is_no_grid_and_moves_with_its_store(place: Path, main: Main, client: Open) -> None:
    pytest.importorskip("optuna")
    command = [*SEARCH, "seed=0,1"]
    assert main("run", "-m", "seed=0,1", *SHORT).returncode == 0
    assert main(*command, "hydra.sweeper.n_trials=1").returncode == 0
    (place / "moved").mkdir()
    (place / "mlruns").rename(place / "moved" / "mlruns")
    uri = f"tracking.uri=sqlite:///{place}/moved/mlruns/mlflow.db"
    assert main(*command, "hydra.sweeper.n_trials=2", uri).returncode == 0
    found = client(place / "moved").search_runs(["1"])
    parents = [each for each in found if each.data.tags.get("waymark.kind") == "sweep"]
    assert len(parents) == 2 and len(found) == 4  # a trial that the grid has done is not repeated
    (own,) = [each for each in parents if "optuna" in each.data.tags["waymark.command"]]
    assert len(study(place / "moved", own).trials) == 2


@pytest.mark.long
def test_a_pruned_trial_counts_as_pruned(place: Path, main: Main, client: Open) -> None:
    pytest.importorskip("optuna")
    space = ["optimizer.learning_rate=interval(0.2,0.5)"]
    assert main(*SEARCH, *space, "hydra.sweeper.n_trials=6", "prune=median").returncode == 0
    worse = ["optimizer.learning_rate=interval(1e-10,1e-9)"]
    done = main(*SEARCH, *worse, "hydra.sweeper.n_trials=8", "prune=median")
    assert (done.returncode, done.stderr) == (0, "")
    parent, trials = children(client(place))
    known = study(place, parent).trials
    pruned = [trial for trial in known if trial.state.name == "PRUNED"]
    assert len(pruned) == parent.data.metrics["sweep/pruned"] >= 2
    accuracy = trials[-1].data.metrics["test/accuracy"]
    assert pruned[-1].intermediate_values == {2: accuracy}


def test_a_search_of_nothing_is_refused(place: Path, main: Main) -> None:
    pytest.importorskip("optuna")
    done = main(*SEARCH)
    assert done.returncode == 2
    assert "nothing is varied" in done.stderr
