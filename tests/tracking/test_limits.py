"""What a store will never take: written otherwise or set aside with a word; the rest arrives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import _validate_param
from waymark.tracking import limits
from waymark.tracking.opening import open_store
from waymark.tracking.outbox import RunCreation, read
from waymark.tracking.ownership import Lease
from waymark.tracking.recovery import sync
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore

from tests.support.processes import Main, created, end_sending, poll

pytestmark = pytest.mark.usefixtures("delivery_here")

LONG = "1" * 7000
PARAMS = {f"model.p{i:03}": str(i) for i in range(150)} | {
    "model.layers.conv@1": "32",
    "model.a[0]=b": "\ud800 \0",
    "model.x//y/../z": "1",
    "model.안녕\U0001f600": "값" * 6001,
    "model." + "k" * 300: "long",
    "model." + "k" * 301: "longer",
    "refused": "1",
    "long": LONG[:600],
}


@given(st.text(), st.text(max_size=9), st.integers(100, 300))
def test_any_setting_is_written_as_mlflow_takes_it(key: str, value: str, times: int) -> None:
    name = limits.param_name(f"model.{key}")
    assert limits.param_name(name) == name
    text = limits.fitted(value * times, 500)
    assert limits.fitted(text, 500) == text
    taken = _validate_param(name, text)
    assert (taken.key, taken.value) == (name, text)
    assert len(text) <= 500
    text.encode()


def test_names_and_values_that_mlflow_takes_stay_as_they_are() -> None:
    for key in ("model", "optimizer.learning_rate", "model.a b/c:d-e_f.값", "m." + "k" * 248):
        assert limits.params({key: "x" * 6000}) == {key: "x" * 6000}
    assert limits.param_name("model.conv@1") == "model.conv:40:1"
    names = {limits.param_name("model." + "k" * n) for n in range(245, 260)}
    assert len(names) == 15
    cut = {limits.fitted("x" * 6000 + end, 6000) for end in "ab"}
    assert len(cut) == 2


def test_a_request_is_never_too_large() -> None:
    many = [Param(f"k{i:0200}", "값" * 6000) for i in range(250)]
    parts = [*limits.requests("params", many)]
    assert [item for part in parts for item in part] == many
    assert max(len(part) * 6 * 6200 for part in parts) < 1_000_000
    assert [len(p) for p in limits.requests("params", [Param("k", "v")] * 250)] == [100, 100, 50]


def refusing(monkeypatch: pytest.MonkeyPatch, code: int, words: set[str]) -> None:
    """Let the store refuse some names, and texts that an older store does not take."""

    def refuse(real: Any, items: dict[str, str], most: int) -> None:
        for key, value in items.items():
            if key in words or len(str(value)) > most:
                raise MlflowException(f"Invalid value for {key!r}", code)

    batch, create = MlflowClient.log_batch, MlflowClient.create_run

    def log_batch(self: Any, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()):  # type: ignore[no-untyped-def]
        refuse(None, {m.key: m.value for m in metrics}, 99)
        refuse(None, {p.key: p.value for p in params}, 500)
        refuse(None, {t.key: t.value for t in tags}, 5000)
        batch(self, run_id, metrics, params, tags)

    def create_run(self: Any, experiment: str, start: int, tags: Any, name: str) -> Any:
        refuse(None, tags, 5000)
        return create(self, experiment, start, tags, name)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    monkeypatch.setattr(MlflowClient, "create_run", create_run)


def checked(run: Any) -> None:
    """Check that all but what was refused has arrived."""
    client, data = MlflowClient("sqlite:///mlruns/mlflow.db"), run.data
    assert run.info.status == "FINISHED"
    names = {limits.param_name(key) for key in PARAMS} - {"refused"}
    assert names <= set(data.params)
    assert data.params["model.layers.conv:40:1"] == "32"
    assert (len(data.params["long"]), data.params["model.p149"]) == (500, "149")
    assert data.tags["waymark.version"] == "test"
    assert (data.tags["note"], len(data.tags["long"])) == ("mine", 5000)
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in losses] == [1, 2, 3]
    assert not {"refused"} & {*data.params, *data.tags, *data.metrics}
    assert len(run.inputs.dataset_inputs) == 1


def test_a_refused_word_keeps_nothing_else_from_arriving(
    tracking: RunStore, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run's own process, and by sync, where the store was out of reach before."""
    real = RunCreation
    tags = {"note": "mine", "refused": "x", "long": LONG}

    def birth(**named: Any) -> RunCreation:
        named |= {"params": {**named["params"], **PARAMS}, "tags": {**named["tags"], **tags}}
        return real(**named)

    monkeypatch.setattr("waymark.tracking.active_run.RunCreation", birth)
    refusing(monkeypatch, INVALID_PARAMETER_VALUE, {"refused"})
    for outage in (False, True):
        with monkeypatch.context() as patch:
            if outage:
                patch.setattr(MlflowClient, "log_batch", gone)
            run = created(tracking, "tracking.flush_seconds=0.3" if outage else "steps=3")
            for key in ("refused", "train/loss"):
                run.record([1, 2, 3], {key: [3.0, 2.0, 1.0]})
            left = run.finish("FINISHED")
        if outage:
            assert (left, run.refused) == ("500 Internal Server Error", "")
            (line,) = [text for text, _ in sync(tracking)]
            said = line.removeprefix(f"run {run.info.id}: delivered without ")
            assert main("sync").stdout == "nothing left to deliver\n"
        else:
            assert left is None
            said = run.refused
        assert said.strip() == "; ".join(
            f"the {kind} 'refused' (Invalid value for 'refused')"
            for kind in ("metric", "param", "tag")
        )
        checked(tracking.client.get_run(run.info.id))


def gone(*_: Any, **__: Any) -> None:
    raise MlflowException("500 Internal Server Error", INTERNAL_ERROR)


@pytest.mark.parametrize("code", [INTERNAL_ERROR, INVALID_PARAMETER_VALUE])
def test_an_outage_is_no_refusal(
    code: int, tracking: RunStore, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an answer is called: where nothing at all is answered well, nothing is set aside."""
    with monkeypatch.context() as patch:
        refusing(patch, code, {"train/loss"})
        run = created(tracking, "tracking.flush_seconds=0.3")
        if code == INVALID_PARAMETER_VALUE:
            patch.setattr(MlflowClient, "get_run", gone)
        run.record([1], {"train/loss": [0.5]})
        assert run.finish("FINISHED")
        assert run.refused == ""
    assert [text for text, _ in sync(tracking)] == [f"run {run.info.id}: delivered"]
    assert tracking.client.get_run(run.info.id).data.metrics["train/loss"] == 0.5


@pytest.mark.parametrize("what", ["run", "experiment"])
@pytest.mark.parametrize("remote", [False, True])
def test_what_was_deleted_is_left_out_until_it_is_restored(
    what: str,
    remote: bool,
    place: Path,
    server: tuple[str, Path],
    main: Main,
) -> None:
    tracking = open_store(server[0] if remote else None, create=True)
    run = created(tracking, "tracking.flush_seconds=9999", f"experiment_name={what}-{place.name}")
    poll(lambda: run.info.known)
    client, info = tracking.client, run.info
    thing = info.id if what == "run" else info.experiment_id
    getattr(client, f"delete_{what}")(thing)
    run.record([1, 2], {"train/loss": [0.5, 0.25]})
    left = run.finish("FINISHED")  # at once
    assert left is not None and "was deleted there, and can be restored" in left
    assert run.refused == ""
    named = [f"tracking.uri={server[0]}"] if remote else []
    poll(lambda: "another process" not in (done := main("sync", *named)).stdout and done)
    done = main("sync", *named)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert done.stdout.startswith(f"run {info.id}: left out, ")
    assert client.get_metric_history(info.id, "train/loss") == []
    getattr(client, f"restore_{what}")(thing)
    if what == "experiment":
        client.restore_run(info.id)
    done = main("sync", *named)
    assert done.returncode == 0
    assert done.stdout == f"run {info.id}: delivered\n"
    assert [point.step for point in client.get_metric_history(info.id, "train/loss")] == [1, 2]
    assert client.get_run(info.id).info.status == "FINISHED"


@pytest.fixture
def killed(tracking: RunStore, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """Return a run with two points that no process sent, and no process trains."""
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", gone)
        run = created(tracking)
        for key in ("train/loss", "refused"):
            run.record([1, 2], {key: [0.5, 0.25]})
        end_sending(run)
    return run.info


def deleted(client: MlflowClient, record: RunRecord) -> str:
    client.delete_run(record.id)
    return "left out, it was deleted and can be restored"


def taken(client: MlflowClient, record: RunRecord) -> str:
    """Let a process of another host have gone on from step 1, and be gone as well."""
    other = Lease(2, 1, {"host": "elsewhere", "pid": 1})
    for key, text in other.tags().items():
        client.set_tag(record.id, key, text)
    return (
        "delivered without 2 points after step 1, status, tags and files "
        "(a process on elsewhere went on from step 1)"
    )


def refused(client: MlflowClient, record: RunRecord) -> str:
    return "delivered without the metric 'refused' (Invalid value for 'refused')"


@pytest.mark.parametrize("what", [deleted, taken, refused])
def test_what_is_left_out_of_a_killed_run_is_told(
    what: Callable[[MlflowClient, RunRecord], str],
    tracking: RunStore,
    killed: RunRecord,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one line: by sync, which delivers some of it when it opens the store."""
    if what is refused:
        refusing(monkeypatch, INVALID_PARAMETER_VALUE, {"refused"})
    else:
        monkeypatch.setattr("waymark.tracking.liveness.DEAD_AFTER_S", -1)
    line = f"run {killed.id}: {what(tracking.client, killed)}\n"
    done = main("sync")
    assert (done.returncode, done.stdout, done.stderr) == (0, line, "")
    again = main("sync")
    assert again.stdout == (line if what is deleted else "nothing left to deliver\n")


@pytest.mark.parametrize("words", [["runs"], ["evaluate", "none"], ["resume", "none"]])
def test_a_command_that_delivers_on_the_way_says_what_it_left_out(
    words: list[str],
    tracking: RunStore,
    killed: RunRecord,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusing(monkeypatch, INVALID_PARAMETER_VALUE, {"refused"})
    line = f"waymark: run {killed.id}: {refused(tracking.client, killed)}\n"
    assert main(*words).stderr.startswith(line)
    assert line not in main(*words).stderr
    history = tracking.client.get_metric_history(killed.id, "train/loss")
    assert [point.step for point in history] == [1, 2]


def test_a_file_that_is_refused_keeps_no_other_from_arriving(
    place: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest stays behind with it: a checkpoint is there whole or not at all."""
    tracking = open_store(server[0], create=True)
    run = created(tracking)
    folder = run.info.folder
    (folder / "checkpoints").mkdir(parents=True)
    real = HttpArtifactRepository.log_artifact

    def log_artifact(self: Any, file: str, folder: str | None = None) -> None:
        if Path(file).name == "weights-1.npz":
            answer = requests.Response()
            answer.status_code, answer.reason = 413, "Request Entity Too Large"
            answer.raise_for_status()
        real(self, file, folder)

    monkeypatch.setattr(HttpArtifactRepository, "log_artifact", log_artifact)
    for step in (1, 2):
        for end in ("npz", "json"):
            (folder / "checkpoints" / f"weights-{step}.{end}").write_text("{}")
    (folder / "config.yaml").write_text("steps: 2")
    run.mark_artifacts_dirty()
    assert run.finish("KILLED") is None
    assert run.refused.startswith("the file checkpoints/weights-1.npz (413 ")
    client = MlflowClient(server[0])
    there = [file.path for file in client.list_artifacts(run.info.id, "checkpoints")]
    assert sorted(there) == [f"checkpoints/weights-2.{end}" for end in ("json", "npz")]
    assert "config.yaml" in [file.path for file in client.list_artifacts(run.info.id)]
    assert client.get_run(run.info.id).info.status == "KILLED"
    assert read(run.info.outbox).delivered
