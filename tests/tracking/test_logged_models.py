"""Models on their way to MLflow: each is made once, and whole, whatever fails on the way."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from waymark import api
from waymark.execution.execute import Result
from waymark.tracking import logged_models, model_folder
from waymark.tracking.active_run import ActiveRun
from waymark.tracking.opening import open_store

from tests.support.processes import THREADS, Killed, Main, end_sending, poll
from tests.support.proxy import Proxy

SHORT = ["data=arrays", "save=npz", "steps=10", "save.every=5", "eval_every=5", "progress=false"]
SHORT += ["batch_size=10", "save.log_model=true", THREADS]
CALLS = ("create_logged_model", "log_model_artifacts", "log_outputs", "finalize_logged_model")
FILES = {"MLmodel", "requirements.txt", "python_env.yaml", "conda.yaml", "input_example.json"}
FILES |= {"serving_input_example.json", "tf2model/saved_model.pb"}


def models(client: MlflowClient, run_id: str) -> list[Any]:
    """Return the models that MLflow has of a run."""
    experiment = client.get_run(run_id).info.experiment_id
    return list(client.search_logged_models([experiment], f"source_run_id = '{run_id}'"))


def files_of(client: MlflowClient, model: Any) -> set[str]:
    """Return the files of a model, wherever they lie."""
    folders, found = [None], set()
    while folders:
        for each in client.list_logged_model_artifacts(model.model_id, folders.pop()):
            (folders.append if each.is_dir else found.add)(each.path)
    return found


def check(client: MlflowClient, run_id: str) -> None:
    """A run has one model, which is whole, and shows it once."""
    (model,) = models(client, run_id)
    assert (model.status, model.name) == ("READY", "step-10")
    assert files_of(client, model) >= FILES
    run = client.get_run(run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    keys = [metric.key for metric in model.metrics]
    assert len(set(keys)) == len(keys) and {"test/accuracy", "restored/accuracy"} <= set(keys)
    history = client.get_metric_history(run_id, "test/accuracy")
    assert [point.step for point in history] == [5, 10]


@pytest.fixture
def train(place: Path, small: Path, delivery_here: None) -> Callable[..., Result]:
    """Return what runs the short run; this process delivers it."""
    return lambda *more: api.run(*SHORT, f"data.path={small}", *more)


@pytest.fixture
def mine(place: Path, client: Callable[[Path], MlflowClient]) -> MlflowClient:
    """Return MLflow's client on the store of the test's folder."""
    return client(place)


@pytest.mark.parametrize(
    "call",
    [
        "log_model_artifacts",
        *(pytest.param(c, marks=pytest.mark.long) for c in CALLS if c != "log_model_artifacts"),
    ],
)
@pytest.mark.parametrize("after", [True, pytest.param(False, marks=pytest.mark.long)])
def test_whatever_fails_a_model_is_made_once(
    call: str,
    after: bool,
    train: Callable[..., Result],
    mine: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process dies before or after a call to MLflow, of which it has no answer then."""
    real, failed = getattr(MlflowClient, call), []

    def failing(*arguments: Any, **named: Any) -> Any:
        answer = real(*arguments, **named) if after or failed else None
        if not failed:
            failed.append(True)
            raise ConnectionError("[Errno 104] Connection reset by peer")
        return answer

    monkeypatch.setattr(MlflowClient, call, failing)
    result = train()
    assert failed
    check(mine, result.run_id)
    assert not list(model_folder.waiting(result.folder.parent))


@pytest.mark.long
@pytest.mark.parametrize("call", CALLS)
def test_a_model_whose_making_was_killed_is_completed(
    call: str,
    train: Callable[..., Result],
    mine: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    main: Main,
) -> None:
    """The next command that opens the store, or `sync`, does what was left."""
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, call, lambda *_, **__: 1 / 0)
        broken.setattr("waymark.tracking.active_run.PICTURES_S", 1.0)
        result = train("tracking.flush_seconds=1")
    assert [model.status for model in models(mine, result.run_id)] != ["READY"]
    assert main("sync").returncode == 0
    check(mine, result.run_id)


@pytest.mark.parametrize("method", ["end", pytest.param("set_tags", marks=pytest.mark.long)])
def test_a_run_that_dies_after_its_model_is_written_has_one_model_when_it_goes_on(
    method: str,
    train: Callable[..., Result],
    mine: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of SIGKILL: before its end is recorded, or before the model, written twice, is there."""
    started: list[ActiveRun] = []

    def dying(run: ActiveRun, *_: object) -> None:
        started.append(run)
        raise Killed

    with monkeypatch.context() as broken, pytest.raises(Killed):
        broken.setattr(ActiveRun, method, dying)
        train()
    end_sending(started[0])
    run_id = started[0].info.id
    api.resume(run_id)
    check(mine, run_id)


def test_through_a_server_a_model_is_made_registered_and_resolved(
    server: tuple[str, Path], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri, name = f"tracking.uri={server[0]}", tmp_path.name
    result = api.run(*SHORT, f"data.path={small}", uri, f"experiment_name={name}")
    remote = MlflowClient(server[0])
    check(remote, result.run_id)
    shutil.rmtree(tmp_path / "mlruns")  # this machine has nothing of it
    made = api.register(result.run_id, name, uri, alias="champion")
    assert (made.version, made.new, made.step) == (1, True, 10)
    assert not api.register(result.run_id, name, uri, alias="champion").new
    found = api.evaluate(f"models:/{name}@champion", uri)
    assert found.step == 10 and found.accuracy == result.restored_accuracy
    earlier = api.register(result.run_id, name, uri, step="5")
    assert (earlier.version, earlier.step) == (2, 5)
    assert {model.name for model in models(remote, result.run_id)} == {"step-5", "step-10"}
    store = open_store(server[0], reading=True)
    folder = logged_models.fetch_model(store, made.model_id, tmp_path)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} >= FILES


@pytest.mark.long
@pytest.mark.parametrize("mode", ["refuse", "error", "deaf"])
def test_what_an_outage_kept_from_a_server_sync_makes_once(
    mode: str,
    server: tuple[str, Path],
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    delivery_here: None,
    main: Main,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with Proxy(server[0]) as proxy:
        uri = f"tracking.uri={proxy.uri}"
        real = ActiveRun.end

        def ending(run: ActiveRun, status: str) -> None:
            proxy.set(mode, grace=0 if mode == "refuse" else 3)  # the model is on its way
            real(run, status)

        monkeypatch.setattr(ActiveRun, "end", ending)
        named = f"experiment_name={tmp_path.name}", "tracking.flush_seconds=2"
        api.run(*SHORT, f"data.path={small}", uri, *named)
        proxy.set("pass")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # a busy machine takes its time
        remote = MlflowClient(server[0])

        def arrived() -> bool:
            """Sync, which leaves a run alone as long as its delivery tries again."""
            assert main("sync", uri).returncode == 0
            experiment = remote.get_experiment_by_name(tmp_path.name)
            runs = remote.search_runs([experiment.experiment_id]) if experiment else []
            return bool(runs and models(remote, runs[0].info.run_id))

        poll(arrived)
        experiment = remote.get_experiment_by_name(tmp_path.name)
        (run,) = remote.search_runs([experiment.experiment_id])
        check(remote, run.info.run_id)
        assert not list(tmp_path.glob("mlruns/spool/*/models/*"))


def test_in_a_sweep_the_best_trial_is_a_model_at_the_end(
    place: Path, small: Path, mine: MlflowClient
) -> None:
    short = [word for word in SHORT if not word.startswith("save.log_model")]
    found = api.sweep(
        *short, f"data.path={small}", "save.log_model=auto", "optimizer.learning_rate=0.3,1e-6"
    )
    assert found.best
    assert {each.run_id: len(models(mine, each.run_id)) for each in found.trials} == {
        each.run_id: int(each.run_id == found.best.run_id) for each in found.trials
    }
    check(mine, found.best.run_id)
