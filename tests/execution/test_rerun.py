"""Rerunning: the same bits are called identical, other bits different, and the cause is named."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.tracking import MlflowClient
from waymark import api
from waymark.checkpoints.store import CheckpointStore, CheckpointWriteError
from waymark.comparison import environment, repository
from waymark.comparison.bits import ArrayDifference, Divergence
from waymark.comparison.recorded_run import RecordedRun, load_recorded_run
from waymark.comparison.repository import CHECKOUT, changes, diffstat, git_commit
from waymark.comparison.rerun_report import RerunReport, compare_rerun, load
from waymark.errors import BadInput, Failed
from waymark.execution import rerunning
from waymark.processes.signals import Interrupted
from waymark.tracking.finder import find
from waymark.tracking.history import History
from waymark.tracking.opening import open_store

from tests.support.processes import BOUND, REPO, Done, Main, StopAt, git, killed

BASE = ["runtime.intra_op_threads=2", "progress=false", "save.meta_graph=false"]
SOFTMAX = [*BASE, "steps=20", "batch_size=10", "save.every=5", "eval_every=5"]
CNN = [*BASE, "model=cnn", "steps=4", "batch_size=20", "save.every=2", "eval_every=2"]
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not here")


def is_npz(overrides: list[str]) -> list[str]:
    """Return overrides for npz files, which know no meta_graph."""
    return [*(item for item in overrides if "meta_graph" not in item), "save=npz"]


@pytest.fixture(autouse=True)
def no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the code stand in no checkout: asking git takes time, and somebody may edit there."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv(CHECKOUT, str(tmp_path))


@pytest.fixture
def data(small: Path) -> list[str]:
    return ["data=arrays", f"data.path={small}"]


@pytest.fixture(scope="module")
def originals(
    shared_once: Callable[..., tuple[Path, Any]], empty_store: Path, small: Path
) -> dict[str, Any]:
    """Return a folder with two finished runs, and their ids."""

    def make(folder: Path) -> dict[str, Any]:
        shutil.copytree(empty_store, folder / "mlruns")
        found: dict[str, Any] = {"folder": folder}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv(CHECKOUT, str(folder))
            for name, config in (("softmax", [*SOFTMAX, "save.max_to_keep=1"]), ("cnn", CNN)):
                given = [*config, "data=arrays", f"data.path={small}", f"run_name={name}"]
                found[name] = api.run(*given).run_id
        return found

    return dict(shared_once("originals", make)[1])


@pytest.fixture
def copy(
    originals: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Be in a folder with a copy of the originals' `mlruns`; return their ids."""
    shutil.copytree(originals["folder"] / "mlruns", tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return originals


def artifacts(run_id: str, folder: Path | None = None) -> Path:
    (found,) = (folder or Path.cwd()).glob(f"mlruns/artifacts/*/{run_id}/artifacts")
    return found


def store(folder: Path | None = None) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder or Path.cwd()}/mlruns/mlflow.db")


def runs(folder: Path | None = None) -> list[Any]:
    client = store(folder)
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time DESC"]))


def losses(run_id: str) -> dict[int, float]:
    points = store().get_metric_history(run_id, "train/loss")
    return {point.step: point.value for point in points}


def verdict_of(done: Done, run_id: str, word: str, folder: Path | None = None) -> RerunReport:
    """Check that a rerun of a run said `word` in all places; return the verdict."""
    assert done.returncode == {"identical": 0, "different": 3}[word], done
    new = next(r for r in runs(folder) if r.info.run_id == done.stdout.split()[1])
    assert new.info.run_id != run_id
    assert new.data.tags["waymark.rerun_of"] == run_id
    assert new.data.tags["waymark.verdict"] == word
    text = (artifacts(new.info.run_id, folder) / "rerun.json").read_text()
    assert json.loads(text)["verdict"] == word
    verdict = load(text)
    assert verdict.identical is (word == "identical")
    assert (verdict.run_id, verdict.rerun_of) == (new.info.run_id, run_id)
    first = {"identical": "identical to", "different": "different from"}[word]
    counts = f"{verdict.losses} losses, {verdict.evaluations} evaluations"
    told = f"{first} run {run_id} ({counts}, {verdict.checkpoints} checkpoints compared)\n"
    assert told in done.stdout
    return verdict


def counts(verdict: RerunReport) -> tuple[int, int, int]:
    return verdict.losses, verdict.evaluations, verdict.checkpoints


def is_clean(verdict: RerunReport) -> bool:
    """Tell whether a verdict found nothing apart."""
    apart = (verdict.partings, verdict.checkpoint, verdict.weights, verdict.differences)
    return verdict.identical and apart == ({}, None, {}, [])


# Identical


CONFIGS = {
    "softmax": (SOFTMAX, ["save=npz"], (20, 5, 4)),
    "softmax, npz, by epochs": (
        [*is_npz(SOFTMAX), "data.sampling=epoch", "optimizer=sgd"],
        ["save=ckpt"],
        (20, 5, 4),
    ),
    "cnn": (is_npz(CNN), [], (4, 3, 2)),
    "dropout": ([*CNN, "model.keep_prob=0.5", "data.sampling=epoch"], ["save=npz"], (4, 3, 2)),
    "mixed": ([*CNN, "precision=mixed_bfloat16"], ["save.asynchronous=false"], (4, 3, 2)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_identical(name: str, place: Path, data: list[str], main: Main) -> None:
    config, changed, expected = CONFIGS[name]
    run_id = api.run(*config, *data, "run_name=original").run_id
    done = main("rerun", run_id, *changed)
    verdict = verdict_of(done, run_id, "identical")
    assert counts(verdict) == expected
    assert is_clean(verdict)
    assert verdict.accuracy[0] == verdict.accuracy[1] is not None
    new = runs()[0]
    assert (new.info.run_name, new.info.status) == ("rerun of original", "FINISHED")
    if name != "mixed":  # which some processors have no instructions for: that is said
        assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2  # the run, the verdict


def test_retention_erases_no_digest(copy: dict[str, Any], main: Main) -> None:
    """Rerun in a copy of the store: the original keeps one checkpoint, so does the rerun.

    The longest name does not stop it; a rerun can be run again itself.
    """
    run_id = copy["softmax"]
    longest = "n" * 250
    path = artifacts(run_id) / "config.yaml"
    path.write_text(path.read_text().replace("run_name: softmax", f"run_name: {longest}"))
    store().set_tag(run_id, "mlflow.runName", longest)
    assert len([*artifacts(run_id).glob("checkpoints/*.index")]) == 1
    verdict = verdict_of(main("rerun", longest), run_id, "identical")
    assert counts(verdict) == (20, 5, 4)
    assert len([*artifacts(verdict.run_id).glob("checkpoints/*.index")]) == 1
    assert {run.info.run_id for run in runs(copy["folder"])} == {copy["softmax"], copy["cnn"]}
    again = verdict_of(main("rerun", "latest", "log_every=2"), verdict.run_id, "identical")
    assert counts(again) == (10, 5, 4)


def test_what_cannot_change_the_numbers_may_change(
    copy: dict[str, Any], small: Path, main: Main
) -> None:
    shutil.copy(small, "moved.npz")
    changed = ["save=npz", "save.every=4", "save.max_to_keep=2", "save.keep_best=null"]
    changed += ["eval_every=10", "log_every=3", "data.path=moved.npz", "run_name=mine"]
    changed += ["experiment_name=other", "tracking.flush_seconds=7", "record.changes=false"]
    changed += ["progress=true", "tracking.system_metrics=false", "save.asynchronous=false"]
    done = main("rerun", copy["softmax"], *changed, "--threads", "2")
    verdict = verdict_of(done, copy["softmax"], "identical")
    # Losses at 3, 6, ... 18 and the last step; evaluations at 10, 20 and the restored one.
    assert counts(verdict) == (7, 3, 1)
    assert is_clean(verdict)
    record = yaml.safe_load((artifacts(verdict.run_id) / "config.yaml").read_text())
    assert record["choices"]["save"] == "npz"
    assert (record["run_name"], record["experiment_name"]) == ("mine", "other")
    assert record["data"]["path"] == "moved.npz"


def test_a_killed_run_as_far_as_it_went(
    place: Path, data: list[str], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = killed(10, *SOFTMAX, *data)
    assert not (artifacts(run_id) / "history.json").exists()
    verdict = verdict_of(main("rerun", run_id), run_id, "identical")
    assert counts(verdict) == (10, 2, 2)
    assert is_clean(verdict)
    assert verdict.accuracy[0] is not None


def test_a_run_that_recorded_nothing(
    place: Path, data: list[str], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be compared is not identical."""
    run_id = killed(0, *SOFTMAX, *data)
    done = main("rerun", run_id)
    assert done.returncode == 3
    assert done.stdout.splitlines()[1:] == [
        f"nothing that run {run_id} recorded can be compared",
    ]
    assert runs()[0].data.tags["waymark.verdict"] == "different"


@pytest.mark.skipif(not shutil.which("taskset"), reason="taskset is not here")
def test_a_killed_and_resumed_run_on_one_core(
    place: Path,
    data: list[str],
    main: Main,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = killed(2, *CNN, *data)
    assert main("resume", run_id).returncode == 0
    core = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(core), sys.executable, "-m", "waymark", "rerun", run_id]
    env = {**environment, CHECKOUT: str(place)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=BOUND * 2)
    verdict = verdict_of(done, run_id, "identical")
    assert counts(verdict) == (4, 3, 2)
    assert is_clean(verdict)
    assert done.stderr == ""


def test_through_a_tracking_server(
    server: tuple[str, Path], place: Path, data: list[str], main: Main
) -> None:
    uri = f"tracking.uri={server[0]}"
    name = "run_name='on a server'"
    run_id = api.run(*SOFTMAX, "save.max_to_keep=1", *data, uri, name).run_id
    done = main("rerun", run_id, uri)
    assert (done.returncode, done.stderr) == (0, "")
    client = MlflowClient(server[0])
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    (original,) = client.search_runs(everywhere, "attributes.run_name = 'on a server'")
    (new,) = client.search_runs(everywhere, "attributes.run_name = 'rerun of on a server'")
    assert new.data.tags["waymark.rerun_of"] == original.info.run_id
    assert new.data.tags["waymark.verdict"] == "identical"
    report = client.download_artifacts(new.info.run_id, "rerun.json", str(place))
    verdict = load(Path(report).read_text())
    assert counts(verdict) == (20, 5, 4)
    assert is_clean(verdict)
    assert verdict.rerun_of == original.info.run_id
    # And with other data: the final weights come from the server, too.
    other_pixel(Path(data[1].partition("=")[2]), place / "other.npz")
    verdict = api.rerun(run_id, uri, "data.path=other.npz")
    assert not verdict.identical
    assert set(verdict.weights) == {"weights"}
    assert [each[0] for each in verdict.differences] == ["data"]


SGD = [*SOFTMAX, "optimizer=sgd", "optimizer.learning_rate=1e37", "log_every=1"]


def test_a_run_that_diverges_is_repeated(place: Path, data: list[str], main: Main) -> None:
    with pytest.raises(Failed):
        api.run(*SGD, *data)
    original = runs()[0]
    assert original.info.status == "FAILED"
    done = main("rerun", original.info.run_id)
    verdict = verdict_of(done, original.info.run_id, "identical")
    assert runs()[0].info.status == "FAILED"
    assert runs()[0].data.tags["waymark.reason"] == original.data.tags["waymark.reason"]
    assert verdict.losses >= 2
    assert is_clean(verdict)


def test_infinities_and_nan_are_repeated(place: Path, data: list[str], main: Main) -> None:
    run_id = api.run(*SGD, *data, "on_nan=continue").run_id
    history = json.loads((artifacts(run_id) / "history.json").read_text())["metrics"]
    assert {"inf", "nan"} < set(history["train/loss"][1])  # JSON that every reader takes
    done = main("rerun", run_id)
    verdict = verdict_of(done, run_id, "identical")
    assert counts(verdict) == (20, 5, 4)
    assert is_clean(verdict)


def known(record: Any = None, **metrics: dict[int, float]) -> RecordedRun:
    """Return the evidence of a run that recorded these losses or other metrics."""
    values = {key.replace("_", "/"): steps for key, steps in metrics.items()}
    return RecordedRun(record or SimpleNamespace(id="a", tags={}), History(values), {}, None)


@pytest.mark.parametrize(
    ("recorded", "now", "same"),
    [
        (math.nan, math.nan, True),
        (math.nan, -math.nan, True),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (math.inf, math.nan, False),
        (math.inf, sys.float_info.max, False),
        (0.0, -0.0, False),
        (1.0, math.nextafter(1.0, 2.0), False),
        (0.5, math.nan, False),
    ],
)
def test_values_are_compared_by_their_bits(recorded: float, now: float, same: bool) -> None:
    old = known(train_loss={1: 0.5, 2: 0.25, 3: recorded})
    verdict = compare_rerun(None, old, known(train_loss={1: 0.5, 3: now, 4: 1.0}), {})  # type: ignore[arg-type]
    assert verdict.identical is same
    assert verdict.losses == 2
    if not same:
        (parting,) = verdict.partings.values()
        assert parting.step == 3
        for value, expected in ((parting.recorded, recorded), (parting.now, now)):
            np.testing.assert_array_equal(value, expected)
    assert repr(load(verdict.dump())) == repr(verdict)
    json.loads(verdict.dump(), parse_constant=pytest.fail)


def test_speed_and_load_are_no_bits() -> None:
    old = known(train_loss={1: 1.0}, train_steps_per_second={1: 3.0}, system_cpu={1: 4.0})
    old = replace(old, history=History({k.replace("steps/per/", "steps_per_"): v
                                        for k, v in old.history.metrics.items()}))  # fmt: skip
    assert "train/steps_per_second" in old.history.metrics
    new = replace(old, history=History({k: {1: 1.0} for k in old.history.metrics}))
    assert compare_rerun(None, old, new, {}).identical  # type: ignore[arg-type]


def test_a_state_alone_can_be_apart() -> None:
    old, new = (known(train_loss={1: 1.0, 2: 1.0}) for _ in range(2))
    old.history.digests.update({1: "a", 2: "b", 3: "c"})  # type: ignore[attr-defined]
    new.history.digests.update({1: "a", 2: "x", 4: "d"})  # type: ignore[attr-defined]
    record = SimpleNamespace(id="a", tags={}, folder=Path("nowhere"), remote=False)
    tracking: Any = None  # there is no remote home to ask
    verdict = compare_rerun(
        tracking, replace(old, record=record), replace(new, record=record), {"w": (1,)}
    )
    assert (verdict.identical, verdict.checkpoint, verdict.checkpoints) == (False, 2, 2)
    assert verdict.weights == {}  # the checkpoints are gone
    assert "no loss parts" in verdict.lines()
    assert "the state parts at the checkpoint of step 2" in verdict.lines()


# Different


def other_pixel(path: Path, target: Path) -> None:
    """Write the data again, one pixel of the first training picture changed."""
    arrays = dict(np.load(path))
    arrays["x_train"][0, 3, 3] ^= 64
    np.savez(target, **arrays)


def weights_of(run_id: str, stem: str = "weights-20.npz") -> np.ndarray:
    return np.load(artifacts(run_id) / "checkpoints" / stem)["weights"].astype(np.float64)


def test_one_pixel(place: Path, data: list[str], small: Path, main: Main) -> None:
    run_id = api.run(*is_npz(SOFTMAX), *data, "save.max_to_keep=2").run_id
    other_pixel(small, place / "other.npz")
    done = main("rerun", run_id, "data.path=other.npz")
    verdict = verdict_of(done, run_id, "different")
    was, now = losses(run_id), losses(verdict.run_id)
    first = min(step for step in was if was[step] != now[step])
    assert first > 1  # the changed picture is not in the first batch
    assert next(iter(verdict.partings)) == "train/loss"
    assert verdict.partings["train/loss"] == Divergence(first, was[first], now[first])
    assert verdict.checkpoint == -(-first // 5) * 5
    a, b = weights_of(run_id), weights_of(verdict.run_id)
    far = np.abs(a - b)
    relative = (far / np.maximum(np.maximum(np.abs(a), np.abs(b)), 1e-300)).max()
    assert verdict.weights == {"weights": ArrayDifference(far.max(), pytest.approx(relative))}
    client = store()
    accuracies = [
        client.get_run(x).data.metrics["restored/accuracy"] for x in (run_id, verdict.run_id)
    ]
    assert list(verdict.accuracy) == accuracies
    digests = [client.get_run(x).data.tags["waymark.data_digest"] for x in (run_id, verdict.run_id)]
    assert verdict.differences == [("data", *digests)]
    lines = done.stdout.splitlines()
    values = f"{np.float32(was[first])!s} recorded, {np.float32(now[first])!s} now"
    assert f"train/loss parts at step {first}: {values}" in lines
    assert f"accuracy {accuracies[0]:.4f} recorded, {accuracies[1]:.4f} now" in lines
    assert lines[-2:] == ["what differs:", f"  data: {digests[0]} recorded, {digests[1]} now"]
    # The original is what it was; run again, it is identical.
    assert api.rerun(run_id).identical


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], str]:
    """Return what does something that SIGTERM stops at a step; it returns the run's id."""

    def stopped(step: int, begin: Callable[[], Any]) -> str:
        with monkeypatch.context() as patch:
            patch.setattr("waymark.execution.execute.make_progress", lambda *_: StopAt(step))
            with pytest.raises(Interrupted):
                begin()
        assert runs()[0].info.status == "KILLED"
        return str(runs()[0].info.run_id)

    return stopped


@pytest.mark.parametrize("word", ["identical", "different"])
def test_a_rerun_that_was_stopped_gives_its_verdict(
    word: str,
    copy: dict[str, Any],
    small: Path,
    main: Main,
    stopped: Callable[[int, Callable[[], Any]], str],
) -> None:
    other_pixel(small, Path("other.npz"))
    path = "other.npz" if word == "different" else str(small)
    begin = lambda: api.rerun(copy["softmax"], f"data.path={path}")  # noqa: E731
    run_id = stopped(6, begin)
    assert "waymark.verdict" not in runs()[0].data.tags
    done = main("resume", run_id)
    verdict = verdict_of(done, copy["softmax"], word)
    assert (verdict.run_id, counts(verdict)) == (run_id, (20, 5, 4))
    assert [each[0] for each in verdict.differences] == ["data"] * (word == "different")


def test_a_stopped_rerun_whose_original_is_gone(
    copy: dict[str, Any], main: Main, stopped: Callable[[int, Callable[[], Any]], str]
) -> None:
    run_id = stopped(6, lambda: api.rerun(copy["softmax"]))
    store().delete_run(copy["softmax"])
    done = main("resume", run_id)
    assert done.returncode == 0
    assert done.stderr.startswith("waymark: no verdict: ")
    assert runs()[0].info.status == "FINISHED"


def test_another_thread_count(
    copy: dict[str, Any], small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """This process has two threads: the work is done in another one, the verdict comes back.

    Whether threads alone change the bits is a matter of the processor: the data do.
    """
    other_pixel(small, Path("other.npz"))
    verdict = api.rerun(copy["cnn"], "data.path=other.npz", threads=1)
    out, err = capfd.readouterr()
    assert not verdict.identical
    assert counts(verdict) == (4, 3, 2)
    assert "train/loss" in verdict.partings
    assert len(verdict.weights) == 8
    assert max(apart.absolute for apart in verdict.weights.values()) > 0
    assert [each[0] for each in verdict.differences] == ["data", "intra_op_threads"]
    assert verdict.differences[1] == ("intra_op_threads", 2, 1)
    new = runs()[0]
    assert new.info.run_id == verdict.run_id
    assert new.data.params["runtime.intra_op_threads"] == "1"
    assert load((artifacts(verdict.run_id) / "rerun.json").read_text()) == verdict
    assert out == f"run {verdict.run_id} (rerun of cnn)\n"
    assert err == ""


@pytest.mark.parametrize(
    ("variable", "values", "fact"),
    [
        ("TF_ENABLE_ONEDNN_OPTS", "01", "onednn"),
        ("TF_DETERMINISTIC_OPS", "10", "deterministic_ops"),
    ],
)
def test_a_variable_that_steers_tensorflow(
    variable: str,
    values: str,
    fact: str,
    copy: dict[str, Any],
    tmp_path: Path,
    waymark: Callable[..., Done],
    environment: dict[str, str],
) -> None:
    """Whether the bits differ is a matter of the processor; what was set is named anyway."""
    was = os.environ.get(variable)
    value = next(value for value in values if value != was)
    env = {**environment, variable: value, CHECKOUT: str(tmp_path)}
    done = waymark("rerun", copy["cnn"], cwd=tmp_path, env=env)
    verdict = verdict_of(done, copy["cnn"], "different" if done.returncode else "identical")
    told = f"  settings.{variable}: {was or 'not set'} recorded, {value} now"
    assert told in done.stdout.splitlines()
    recorded = json.loads((artifacts(copy["cnn"]) / "environment.json").read_text())
    on = recorded["tensorflow"][fact]
    setting, effect = (f"settings.{variable}", was, value), (f"tensorflow.{fact}", on, not on)
    without = [setting] if fact == "onednn" and not on else None  # not all processors use oneDNN
    assert verdict.differences in ([effect, setting], without)


def test_op_determinism_is_as_it_was_recorded(
    copy: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """Let a record say that it was on, in a process in which it is not."""
    path = artifacts(copy["cnn"]) / "config.yaml"
    text = path.read_text()
    assert "  deterministic: false\n" in text
    path.write_text(text.replace("deterministic: false", "deterministic: true"))
    verdict = api.rerun(copy["cnn"])
    assert verdict.differences == [("tensorflow.deterministic_ops", False, True)]
    new = yaml.safe_load((artifacts(verdict.run_id) / "config.yaml").read_text())
    assert new["runtime"] == {"intra_op_threads": 2, "deterministic": True}
    assert "op determinism" not in "".join(capfd.readouterr())
    with pytest.raises(BadInput, match=r"^runtime\.deterministic: "):
        api.rerun(copy["cnn"], "runtime.deterministic=false")


OWN = """
from waymark.models.softmax import Softmax

SCALE = 1.0


class Own(Softmax):
    def logits(self, parameters, images, dropout):
        return SCALE * super().logits(parameters, images, dropout)
"""


def own_model(name: str, text: str = OWN) -> list[str]:
    """Write a model class of the user's in the current folder; return the overrides."""
    Path(f"{name}.py").write_text(text)
    return ["model=softmax", f"model._target_={name}.Own"]


def forget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a module be imported anew, as in a new process."""
    monkeypatch.delitem(sys.modules, name)
    shutil.rmtree("__pycache__", ignore_errors=True)


def test_a_changed_line_of_an_own_model(
    place: Path, data: list[str], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "own_model_that_changes"
    done = main("run", *SOFTMAX, *data, *own_model(name))
    run_id = done.stdout.split()[1]
    refused = main("rerun", run_id)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "trusted_modules=[...]" in refused.stderr
    trust = f"trusted_modules=[{name}]"
    assert is_clean(verdict_of(main("rerun", run_id, trust), run_id, "identical"))
    forget(name, monkeypatch)
    own_model(name, OWN.replace("SCALE = 1.0", "SCALE = 1.25"))
    done = main("rerun", run_id, trust)
    verdict = verdict_of(done, run_id, "different")
    assert verdict.differences == [("code", [name], [name])]
    assert done.stdout.splitlines()[-1] == f"  code: changed {name}"
    assert verdict.partings["train/loss"].step == 1
    # A change that changes no number is named, too.
    forget(name, monkeypatch)
    own_model(name, OWN + "# a remark\n")
    done = main("rerun", run_id, trust)
    verdict = verdict_of(done, run_id, "identical")
    assert verdict.differences == [("code", [name], [name])]
    assert done.stdout.splitlines()[-2:] == ["although these differ:", f"  code: changed {name}"]


# A resume in another environment


@pytest.mark.parametrize("reached", [0, 10])
def test_a_resume_elsewhere_is_refused(
    reached: int,
    place: Path,
    data: list[str],
    main: Main,
    stopped: Callable[[int, Callable[[], Any]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also before the first checkpoint: the losses so far are recorded, and stay."""
    if reached:
        run_id = stopped(reached, lambda: api.run(*SOFTMAX, *data))
    else:

        def full(*_: Any) -> None:
            raise CheckpointWriteError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(CheckpointStore, "_check_room", full)
            with pytest.raises(Failed):
                api.run(*SOFTMAX, *data)
        run_id = runs()[0].info.run_id
    before = losses(run_id)
    assert len(before) >= 5
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # without effect on a CPU
    refused = main("resume", run_id)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "settings.NVIDIA_TF32_OVERRIDE: not set recorded, 0 now" in refused.stderr
    assert "--allow-drift" in refused.stderr
    assert losses(run_id) == before
    assert main("resume", run_id, "--allow-drift").returncode == 0
    facts = json.loads((artifacts(run_id) / "environment.json").read_text())
    (earlier,) = facts["earlier"]
    assert facts["settings"] == {**earlier["settings"], "NVIDIA_TF32_OVERRIDE": "0"}
    if not reached:
        return
    # A rerun here is in the one environment of two.
    verdict = verdict_of(main("rerun", run_id), run_id, "identical")
    what = f"settings.NVIDIA_TF32_OVERRIDE, before and after run {run_id} was resumed"
    assert verdict.differences == [(what, None, "0")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("intra_op_threads", 1),
        ("tensorflow", {"version": "1.2.3"}),
        ("tensorflow", {"onednn": "maybe"}),
        ("cpu", {"instructions": ["mmx"]}),
        ("gpus", ["/physical_device:GPU:0"]),
    ],
)
def test_what_refuses_a_resume(key: str, value: Any, copy: dict[str, Any], main: Main) -> None:
    run_id, tracking = copy["softmax"], open_store(None)
    new = load_recorded_run(tracking, find(tracking, run_id))
    record_fact(run_id, key, value)
    done = main("resume", run_id, "steps=21")
    assert (done.returncode, done.stdout) == (2, "")
    name = f"{key}.{next(iter(value))}" if isinstance(value, dict) else key
    assert f"{name}: " in done.stderr
    verdict = compare_rerun(tracking, load_recorded_run(tracking, find(tracking, run_id)), new, {})
    assert [each[0] for each in verdict.differences] == [name]
    assert [line.partition(":")[0] for line in verdict.lines()[1:]] == [
        "although these differ",
        f"  {name}",
    ]


def test_what_does_not_refuse_a_resume(copy: dict[str, Any], main: Main) -> None:
    """It may explain another code's bits, and is told by a rerun."""
    facts = {"packages": {"numpy": "0.1"}, "python": "3.10.0", "git_commit": "0" * 40}
    for key, value in facts.items():
        record_fact(copy["softmax"], key, value)
    assert main("resume", copy["softmax"], "steps=21").returncode == 0
    verdict = api.rerun(copy["softmax"])
    assert counts(verdict) == (21, 6, 5)  # evaluated and saved at the old end as well
    end = f", before and after run {copy['softmax']} was resumed"
    found = {what.removesuffix(end) for what, _, _ in verdict.differences}
    assert found == {"packages.numpy", "python", "git_commit"}


def record_fact(run_id: str, key: str, value: Any) -> None:
    """Change what the environment.json of a run says; a mapping is merged."""
    path = artifacts(run_id) / "environment.json"
    facts = json.loads(path.read_text())
    facts[key] = {**facts[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(facts))


# Refused


UNSAFE = ["steps=5", "seed=1", "batch_size=3", "model=cnn", "model.init_stddev=1.0"]
UNSAFE += ["optimizer=sgd", "optimizer.learning_rate=0.1", "on_nan=continue", "init_from=x.npz"]
UNSAFE += ["data=mnist_5k", "data.sampling=epoch", "data={path:x}", "precision=mixed_bfloat16"]
UNSAFE += ["tags.a=b", "tags={a:b}", "model._target_=os.system", "data._target_=a.B"]
UNSAFE += ["runtime.intra_op_threads=1", "runtime={intra_op_threads:1}", "saves.every=1"]


def test_what_could_change_the_numbers_is_refused(
    copy: dict[str, Any], main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(runs())
    for override in UNSAFE:
        key = override.partition("=")[0]
        hint = f"waymark run --config-from {copy['softmax']} {key}="
        with pytest.raises(BadInput) as refusal:
            api.rerun(copy["softmax"], override)
        assert str(refusal.value).startswith(f"{key}: "), override
        if key == "runtime.intra_op_threads":
            assert "--threads N" in str(refusal.value)
        else:
            said = str(refusal.value).replace("from RUN", f"from {copy['softmax']}")
            assert hint in said
    for words in (["--threads", "0"], ["++steps=3"], ["~seed"], ["save.every=1,2"], ["steps"]):
        done = main("rerun", copy["softmax"], *words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.startswith("waymark: ")
    for words in (["save.every=-1"], ["save.evry=1"], ["save=zip"], ["save._target_=os.system"]):
        done = main("rerun", copy["softmax"], *words)
        assert (done.returncode, done.stdout) == (2, ""), words
    assert main("rerun", "nosuchrun").returncode == 2
    assert len(runs()) == before


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "torn":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text(how)


ODD = ["missing", "torn", "", "null", "[1]", '{"earlier": 5}', '{"earlier": [5]}']
ODD += ['{"code": [1]}', '{"code": null}', '{"packages": 3, "cpu": [], "settings": "x"}']
ODD += ['{"git_commit": 5, "tensorflow": null, "intra_op_threads": {}}', "[" * 100_000]


@pytest.mark.parametrize("how", ODD, ids=lambda how: how[:20])
def test_a_damaged_environment(
    how: str, copy: dict[str, Any], monkeypatch: pytest.MonkeyPatch, main: Main
) -> None:
    """Only the explanation suffers: of a rerun, and of a resume, which is not refused for it."""
    tracking = open_store(None)
    path = artifacts(copy["softmax"]) / "environment.json"
    damage(path, how)
    old = load_recorded_run(tracking, find(tracking, copy["softmax"]))
    new = load_recorded_run(tracking, find(tracking, copy["cnn"]))
    same = compare_rerun(tracking, old, replace(old, facts=new.facts), {})
    assert same.identical
    assert same.lines()
    assert load(same.dump()).rerun_of == copy["softmax"]
    if how in ('{"earlier": 5}', '{"code": [1]}'):
        done = main("resume", copy["softmax"], "steps=21", "--allow-drift")
        assert done.returncode == 0, done
        facts = json.loads(path.read_text())
        assert facts["intra_op_threads"] == 2


def without(kind: str) -> Callable[[str], bool]:
    return lambda line: f'["{kind}"' not in line


HISTORIES: dict[str, tuple[bool, Callable[[str], bool] | None]] = {
    "no history.json": (False, lambda line: True),
    "no outbox": (True, None),
    "neither": (False, None),
    "no digest in the outbox": (True, without("digest")),
    "no digest at all": (False, without("digest")),
    "no points in the outbox": (True, without("points")),
    "half of the outbox": (True, lambda line: "points" not in line or "[1," in line),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_a_damaged_history(name: str, copy: dict[str, Any]) -> None:
    """All is compared that still stands somewhere."""
    keep, lines = HISTORIES[name]
    tracking = open_store(None)
    whole_one = load_recorded_run(tracking, find(tracking, copy["softmax"]))
    folder = artifacts(copy["softmax"])
    if not keep:
        damage(folder / "history.json", random.choice(["missing", "torn", "{}", '{"metrics": 3}']))
    box = folder.parent / "outbox.jsonl"
    if lines is None:
        box.unlink()
    else:
        whole = box.read_text().splitlines(keepends=True)
        box.write_text("".join(line for line in whole if lines(line)))
    damaged = load_recorded_run(tracking, find(tracking, copy["softmax"]))
    verdict = compare_rerun(tracking, damaged, whole_one, {})
    assert is_clean(verdict)
    assert counts(verdict)[:2] == (20, 5)
    # Where no digest is recorded (as before there were reruns), the manifest that is kept has one.
    no_digests = name in ("neither", "no digest at all")
    assert verdict.checkpoints == (1 if no_digests else 4)


# The other process


CHILD = """#!{python}
import json, os, signal, sys
{body}
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return what replaces the other process, which takes seconds, by a few lines of Python."""

    def child(body: str) -> Path:
        path = tmp_path / "child"
        path.write_text(CHILD.format(python=sys.executable, body=body))
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))
        return path

    return child


VERDICT = RerunReport(
    *(False, "b", "a", 3, 2, 1, {"train/loss": Divergence(1, math.inf, -0.5)}, 2),
    weights={"w": ArrayDifference(1e-9, math.inf)},
    accuracy=(None, 0.25),
    differences=[("intra_op_threads", 2, 1), ("code", ["x"], []), ("settings.A", None, "1")],
)


@pytest.mark.parametrize("status", [0, 3])
def test_the_verdict_of_the_other_process_comes_back(
    status: int, child: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    lines = "run b (x)\nwaymark: it warns\nat the end\n"
    answer = VERDICT.dump().replace("\n", "")
    child(f"sys.stderr.write({lines!r})\nprint({answer!r})\nsys.exit({status})")
    assert rerunning._in_a_new_process(["rerun", "a"], [], ".") == VERDICT
    assert "".join(capfd.readouterr()) == lines


@pytest.mark.parametrize(
    ("ending", "last", "kind", "text"),
    [
        ("sys.exit(2)", "waymark: it does not fit\n", BadInput, "^it does not fit$"),
        ("sys.exit(1)", "waymark: it does not fit\n", Failed, "^it does not fit$"),
        ("sys.exit(143)", "to go on: waymark resume b\n", Interrupted, "SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "", Interrupted, "SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "", Failed, "SIGKILL|signal 9"),
    ],
)
def test_the_end_of_the_other_process_comes_back(
    ending: str,
    last: str,
    kind: type[Exception],
    text: str,
    child: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    child(f"sys.stderr.write({'run b (x)' + chr(10) + last!r})\nsys.stderr.flush()\n{ending}")
    with pytest.raises(kind, match=text):
        rerunning._in_a_new_process(["rerun", "a"], [], ".")
    said = "".join(capfd.readouterr())
    assert said == "run b (x)\n" + (last if last.startswith("to go on") else "")


SIGNALLED = """
signals = [signal.SIGINT, signal.SIGTERM]
signal.alarm(30)
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
print("ready", "go", sep=chr(10), file=sys.stderr, flush=True)
first = signal.sigwait(signals)
again = signal.sigtimedwait(signals, 0.3)
print("twice" if again else "once", file=sys.stderr)
sys.exit(128 + first)
"""


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_reaches_the_other_process_once(
    number: signal.Signals,
    group: bool,
    child: Callable[[str], Path],
    tmp_path: Path,
    environment: dict[str, str],
) -> None:
    """A terminal's Ctrl-C goes to all processes of the command; a second one would end it."""
    python = sys.executable
    (tmp_path / "parent.py").write_text(
        "import sys\nfrom waymark.execution import rerunning\n"
        f"sys.executable = {str(child(SIGNALLED))!r}\n"
        "try:\n    rerunning._in_a_new_process(['rerun', 'a'], [], '.')\n"
        "except Exception as error:\n    print(type(error).__name__, error.status)\n"
    )
    with subprocess.Popen(
        [python, "parent.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"  # it has handlers, the child waits
            (os.killpg if group else os.kill)(process.pid, number)
            out, err = process.communicate(timeout=BOUND)
        finally:
            process.kill()
    assert [*out.splitlines(), *err.splitlines()] == ["go", "once", f"Interrupted {128 + number}"]


# The recorded commit


def commit(folder: Path, message: str = "a commit") -> str:
    git(folder, "add", "--all", ".")
    git(folder, "commit", "--quiet", f"--message={message}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def scratch(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Return the folder for temporary files, in which nothing may be left."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert [path.name for path in folder.iterdir() if path.name.startswith("waymark")] == []


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: Path) -> Iterator[Path]:
    """Let the code stand in a checkout of its own, `code`; after a test it has one worktree."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    root = tmp_path / "code"
    root.mkdir()
    git(root, "init", "--quiet")
    monkeypatch.setenv(CHECKOUT, str(root))
    yield root
    assert len(git(root, "worktree", "list").splitlines()) == 1
    assert not [*root.glob(".git/worktrees/*")]
    assert git(root, "stash", "list") == ""


AT_COMMIT = ("--at-commit", "--trust-code")


@needs_git
def test_the_code_moved_on(
    place: Path,
    code: Path,
    data: list[str],
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Repeat a run's code as it was: commit, changed lines, new file, own model in a folder."""
    for part in ("pipeline", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / part, code / part, ignore=ignored)
    mine = code / "mine"
    mine.mkdir()
    (code / ".gitignore").write_text("mlruns\n__pycache__\n")
    shutil.move("mlruns", mine / "mlruns")
    monkeypatch.chdir(mine)
    name, helper = "own_model_of_a_commit", "own_model_of_a_commit_helper"
    overrides = own_model(name)
    softmax = code / "pipeline" / "waymark" / "models" / "softmax.py"
    as_now = softmax.read_text()
    softmax.write_text(as_now.replace("return tf.reshape", "return 2 * tf.reshape"))
    first = commit(code, "a first \x1b[31mstate")
    softmax.write_text(as_now)
    own_model(name, OWN.replace("SCALE = 1.0", f"from {helper} import SCALE"))
    Path(f"{helper}.py").write_text("SCALE = 1.5\n")  # git does not know it
    done = main("run", *SOFTMAX, *data, *overrides, "run_name=original")
    run_id = done.stdout.split()[1]
    softmax.write_text(f"{as_now}# a remark\n")
    Path(f"{helper}.py").unlink()
    own_model(name, OWN.replace("SCALE = 1.0", "SCALE = 3.0"))
    commit(code, "the code moved on")
    before, trust = git(code, "status", "--porcelain"), f"trusted_modules=[{name}]"

    told = [
        f"recorded changes: mine/{name}.py +1 -1, mine/{helper}.py +1 -0, "
        "pipeline/waymark/models/softmax.py +1 -1"
    ]
    refused = main("rerun", run_id, trust, "--at-commit")
    lines = refused.stdout.splitlines()
    assert refused.returncode == 2
    assert lines[0].startswith(f"commit {git(code, 'rev-parse', '--short', first)} of ")
    assert "\x1b" not in refused.stdout
    assert lines[1:] == told
    assert "--trust-code" in refused.stderr

    done = main("rerun", run_id, trust, *AT_COMMIT)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[1:2] == told
    assert done.stderr == ""
    done = Done(done.args, 0, done.stdout.partition(told[0])[2], "")
    verdict = verdict_of(done, run_id, "identical")
    assert is_clean(verdict)
    assert counts(verdict) == (20, 5, 4)
    new = artifacts(verdict.run_id)
    facts = json.loads((new / "environment.json").read_text())
    assert facts["git_commit"] == first
    assert (new / "changes.patch").read_text() == (artifacts(run_id) / "changes.patch").read_text()
    assert git(code, "status", "--porcelain") == before

    # The code as it is now is another one, which is told.
    forget(name, monkeypatch)
    monkeypatch.setattr(environment, "FOLDER", code / "pipeline" / "waymark")
    monkeypatch.setattr(repository, "REPOSITORY", code)
    verdict = verdict_of(main("rerun", run_id, trust), run_id, "different")
    assert verdict.partings["train/loss"].step == 1
    found = {what: (was, now) for what, was, now in verdict.differences}
    assert set(found) == {"git_commit", "code", "uncommitted changes"}
    assert found["git_commit"] == (first, git(code, "rev-parse", "HEAD"))
    both = [name, "waymark.models.softmax"]
    assert found["code"] == (sorted([*both, helper]), both)
    assert found["uncommitted changes"] == (told[0].partition(": ")[2], "none")


OWN_PACKAGE = """
from loose_{0} import SCALE
from waymark.models.softmax import Softmax


class Own(Softmax):
    def logits(self, parameters, images, dropout):
        from own_{0}.late import FACTOR

        return FACTOR * SCALE * super().logits(parameters, images, dropout)
"""


@needs_git
def test_the_users_own_code_moved_on(
    place: Path,
    data: list[str],
    main: Main,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Repeat a model of a repository beside the current folder: commit, changed lines, a module
    that git ignores and that training alone imports, and one that is in no repository.
    """
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    top, loose = place / "theirs", place / "loose"
    package = top / "src" / "own_x"
    package.mkdir(parents=True)
    loose.mkdir()
    git(top, "init", "--quiet")
    (top / ".gitignore").write_text("late.py\n__pycache__\n")
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("# first\n" + OWN_PACKAGE.format("x"))
    first = commit(top)
    (package / "model.py").write_text("# changed, token\n" + OWN_PACKAGE.format("x"))
    (package / "late.py").write_text("FACTOR = 1.5\n")
    (loose / "loose_x.py").write_text("SCALE = 1.25")
    for folder in (loose, top / "src"):
        monkeypatch.syspath_prepend(folder)
    overrides = ["model=softmax", "model._target_=own_x.model.Own"]
    run_id = main("run", *SOFTMAX, *data, *overrides).stdout.split()[1]
    recorded = artifacts(run_id)
    facts = json.loads((recorded / "environment.json").read_text())
    own = facts["own"]
    changes_told = "src/own_x/late.py +1 -0, src/own_x/model.py +1 -1"
    modules = {"own_x": "__init__.py", "own_x.model": "model.py", "own_x.late": "late.py"}
    (repository,) = own["repositories"]
    assert repository == {
        "name": "theirs",
        "commit": first,
        "changes": changes_told,
        "modules": {name: f"src/own_x/{file}" for name, file in modules.items()},
    }
    assert (own["copied"], own["left_out"]) == (["loose_x"], [])
    assert {*modules, "loose_x"} <= facts["code"].keys()
    kept = {path: path.read_text() for path in recorded.glob("own_code/*")}
    assert not [path for path, text in kept.items() if str(place) in text or "token" in text]

    # The code moves on.
    (package / "late.py").unlink()
    (package / "model.py").write_text(OWN_PACKAGE.format("x").replace("own_x.late", "loose_x"))
    (loose / "loose_x.py").write_text("SCALE = FACTOR = 3.0")
    commit(top)
    before = (git(top, "status", "--porcelain"), git(top, "worktree", "list"))
    for name in (*modules, "loose_x"):
        sys.modules.pop(name, None)
    shutil.rmtree(package / "__pycache__", ignore_errors=True)
    shutil.rmtree(loose / "__pycache__", ignore_errors=True)
    trust = "trusted_modules=[own_x]"
    verdict = verdict_of(main("rerun", run_id, trust), run_id, "different")
    found = {what: (was, now) for what, was, now in verdict.differences}
    assert found == {
        "code": (["loose_x", "own_x.late", "own_x.model"], ["loose_x", "own_x.model"]),
        "commit of theirs": (first, git(top, "rev-parse", "HEAD")),
        "uncommitted changes of theirs": (changes_told, "none"),
    }

    masked = main("rerun", run_id, trust, "--at-commit")
    assert (masked.returncode, "masked in part" in masked.stderr) == (2, True)
    patch = recorded / "own_code" / "repository-0.patch"
    patch.write_text(patch.read_text().replace("+(masked)", "+# changed"))
    refused = main("rerun", run_id, trust, "--at-commit")
    assert (refused.returncode, "--trust-code" in refused.stderr) == (2, True)
    assert refused.stdout.splitlines()[1:] == [
        f"recorded changes of theirs: {changes_told}",
        "recorded copies: loose_x.py +1 -0",
    ]
    done = main("rerun", run_id, trust, *AT_COMMIT)
    told = "".join(done.stdout.partition("run ")[1:])
    verdict = verdict_of(Done(done.args, done.returncode, told, done.stderr), run_id, "identical")
    assert [what for what, _, _ in verdict.differences] == [
        "code",
        "uncommitted changes of theirs",
    ]
    assert (git(top, "status", "--porcelain"), git(top, "worktree", "list")) == before

    # A stranger's record reaches no other repository, and no folder outside.
    facts["own"]["repositories"][0]["commit"] = "0" * 40
    (recorded / "environment.json").write_text(json.dumps(facts))
    done = main("rerun", run_id, trust, *AT_COMMIT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "of theirs is in no git checkout" in done.stderr


@pytest.fixture
def shadow(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """Return what collects the files of each worktree, whose code is not run."""
    seen: list[dict[str, bytes]] = []

    def look(words: list[str], code: list[str], checkout: str) -> RerunReport:
        folder = Path(checkout)
        assert code[0] == checkout
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        seen.append({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
        seen[-1].pop(".git")
        return VERDICT

    monkeypatch.setattr(rerunning, "_in_a_new_process", look)
    return seen


FILES = {
    "plain.py": (b"one\ntwo\n", b"one\n2\n"),
    "crlf.py": (b"one\r\ntwo\r\n", b"one\r\n2\r\n"),
    "latin.py": (b"# coding: latin-1\none = 1\n", b"# coding: latin-1\none = '\xe9'\n"),
    "no_end.py": (b"one\ntwo", b"one\n2"),
    "feed.py": (b"one\n\x0c\ntwo\n", b"one\n\x0c\n2\n"),
    "removed.py": (b"one\n", None),
    "new.py": (None, b"one\n"),
    "g\u00fcn/new one.py": (None, b"one\n"),
    "moved.py": (b"".join(b"%d\n" % i for i in range(50)), None),
    "moved_here.py": (None, b"".join(b"%d\n" % i for i in range(50))),
}
GROUPED = {
    "usual": [name for name in FILES if name not in ("crlf.py", "latin.py")],
    "crlf": ["crlf.py"],
    "latin": ["latin.py"],
}
SETTINGS = ["diff.noprefix=true", "diff.mnemonicPrefix=true", "diff.relative=true"]
SETTINGS += [
    "color.ui=always",
    "diff.external=false",
    "diff.renames=copies",
    "apply.whitespace=fix",
]


def as_recorded(run_id: str, commit_id: Any, patch: str) -> None:
    """Let the record of a run say that it ran a commit with changes, as a run records them."""
    record_fact(run_id, "git_commit", commit_id)
    record_fact(run_id, "changes", diffstat(patch))
    path = artifacts(run_id) / "changes.patch"
    path.unlink(missing_ok=True)
    if patch:
        path.write_bytes(patch.encode(errors="surrogateescape"))


def recorded_change(code: Path, run_id: str, names: list[str]) -> None:
    """Commit files, change them, record that for a run; then let the code move on."""
    for which in (0, 1):
        for name in names:
            body, path = FILES[name][which], code / name
            path.unlink(missing_ok=True)
            if body is not None:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(body)
        if which == 0:
            (code / "readme").write_text("one\n")
            commit(code)
    as_recorded(run_id, git_commit(), changes() or "")
    shutil.rmtree(code / "g\u00fcn", ignore_errors=True)
    for path in code.glob("*.py"):
        path.unlink()
    commit(code)


@needs_git
@pytest.mark.parametrize("setting", [*GROUPED, *SETTINGS])
def test_recorded_changes_are_repeated(
    setting: str,
    copy: dict[str, Any],
    code: Path,
    shadow: list[dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = GROUPED.get(setting, ["plain.py", "new.py"])
    if setting not in GROUPED:
        git(code, "config", *setting.split("="))
    if setting == "diff.relative=true":
        (code / "inside").mkdir()
        monkeypatch.setenv(CHECKOUT, str(code / "inside"))
    recorded_change(code, copy["softmax"], names)
    api.rerun(copy["softmax"], at_commit=True, trust_code=True)
    now = {name: FILES[name][1] for name in names}
    expected = {name: body for name, body in now.items() if body is not None}
    assert shadow == [{**expected, "readme": b"one\n"}]


@needs_git
def test_the_diffstat_is_short(copy: dict[str, Any], code: Path, main: Main) -> None:
    recorded_change(code, copy["softmax"], ["plain.py", "new.py"])
    done = main("rerun", copy["softmax"], "--at-commit")
    assert done.stdout.splitlines()[1] == "recorded changes: new.py +1 -0, plain.py +1 -1"


@pytest.fixture
def patched(copy: dict[str, Any], code: Path) -> Callable[..., str]:
    """Return what gives a run a record of the commit that is there, with other changes."""
    (code / "plain.py").write_text("one\n")
    commit_id = commit(code)

    def patched(patch: str = "") -> str:
        as_recorded(copy["softmax"], commit_id, patch)
        return str(copy["softmax"])

    return patched


ADDED = """diff --git a/{0} b/{0}
new file mode {1}
index 0000000..0123456
--- /dev/null
+++ b/{0}
@@ -0,0 +1 @@
+{2}
"""
LINK = ADDED.format("link", "120000", "..") + "\\ No newline at end of file\n"


@needs_git
def test_a_strangers_record(
    patched: Callable[..., str],
    code: Path,
    tmp_path: Path,
    main: Main,
    shadow: list[dict[str, bytes]],
) -> None:
    """Nothing is written outside of the worktree, and no option reaches git."""
    (code / "hook").write_text(f"#!/bin/sh\ntouch {tmp_path}/evil\n")
    (code / "hook").chmod(0o700)
    run_id = patched(ADDED.format("a.py", "100644", "x"))
    facts = artifacts(run_id) / "environment.json"
    patch = artifacts(run_id) / "changes.patch"
    whole, before = json.loads(facts.read_text()), [*tmp_path.glob("*"), *tmp_path.parent.glob("*")]
    head = whole["git_commit"]
    commits = [
        f"--upload-pack={code}/hook",
        f"--output={tmp_path}/evil",
        "HEAD",
        "main",
        "",
        5,
        None,
    ]
    commits += [f"{head}\n", f"{head}^", head[:12], ["a"], {"a": 1}, head.upper(), "0" * 40]
    for told in commits:
        facts.write_text(json.dumps({**whole, "git_commit": told}))
        done = main("rerun", run_id, *AT_COMMIT)
        assert (done.returncode, done.stdout) == (2, ""), told
        assert done.stderr.startswith("waymark: --at-commit: "), told
        assert len(done.stderr.splitlines()) == 1
    facts.write_text(json.dumps(whole))
    outside = [ADDED.format(name, "100644", "evil") for name in ("../evil", f"{tmp_path}/evil")]
    outside += [
        ADDED.format(".git/hooks/evil", "100644", "evil"),
        ADDED.format(".git", "100644", "x"),
    ]
    outside += [LINK + ADDED.format("link/evil", "100644", "evil")]
    outside += [LINK + ADDED.format("link/code/evil", "100644", "evil")]
    outside += ["diff --git a/plain.py b/../evil\nsimilarity index 100%\n"
                "rename from plain.py\nrename to ../evil\n"]  # fmt: skip
    outside += ["no patch\n", "\x00" * 99]
    for text in outside:
        patch.write_text(text)
        done = main("rerun", run_id, *AT_COMMIT)
        assert done.returncode == 2, text
        assert done.stderr.startswith("waymark: --at-commit: git apply fails: "), done
    assert [*tmp_path.glob("*"), *tmp_path.parent.glob("*")] == before
    assert not (code / "evil").exists()
    assert not [*code.glob(".git/hooks/evil")]
    assert shadow == []


@needs_git
def test_what_a_terminal_would_act_on(
    patched: Callable[..., str], main: Main, shadow: list[dict[str, bytes]]
) -> None:
    run_id = patched(ADDED.format("a\x1b[2Jb\x9b\u202e.py", "100644", "x"))
    done = main("rerun", run_id, "--at-commit")
    assert done.returncode == 2
    assert done.stdout.replace("\n", "").isprintable()


@needs_git
def test_what_at_commit_needs(
    patched: Callable[..., str],
    tmp_path: Path,
    main: Main,
    code: Path,
    shadow: list[dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masked = ADDED.format("a.py", "100644", "x").replace("+x", "+(masked)")
    run_id = patched(masked)
    done = main("rerun", run_id, *AT_COMMIT)
    assert (done.returncode, done.stderr.count("masked")) == (2, 1)
    (artifacts(run_id) / "changes.patch").unlink()
    with monkeypatch.context() as patch:
        patch.setenv(CHECKOUT, str(tmp_path))
        done = main("rerun", run_id, *AT_COMMIT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no git checkout" in done.stderr
    assert str(tmp_path) in done.stderr
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        done = main("rerun", run_id, *AT_COMMIT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("waymark: --at-commit: ")
    assert shadow == []
    api.rerun(run_id, "save=npz", threads=2, at_commit=True, trust_code=True)
    assert shadow == [{"plain.py": b"one\n"}]
    # Without a commit there is nothing to go back to.
    facts = artifacts(run_id) / "environment.json"
    facts.write_text("{}")
    done = main("rerun", run_id, *AT_COMMIT)
    assert "recorded no git commit" in done.stderr


@needs_git
def test_in_a_hook_of_another_repository_the_codes_own_one_is_used(
    patched: Callable[..., str],
    tmp_path: Path,
    shadow: list[dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id, other = patched(ADDED.format("new.py", "100644", "x")), tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    (other / "theirs.py").write_text("")
    commit(other)
    with monkeypatch.context() as hook:
        for name, path in (("DIR", ".git"), ("WORK_TREE", "."), ("INDEX_FILE", ".git/index")):
            hook.setenv(f"GIT_{name}", str(other / path))
        api.rerun(run_id, at_commit=True, trust_code=True)
    assert shadow == [{"plain.py": b"one\n", "new.py": b"x\n"}]
    assert git(other, "status", "--porcelain") == ""


@needs_git
@pytest.mark.parametrize("ending", ["sys.exit(2)", "sys.exit(1)", "sys.exit(143)", "abort"])
def test_nothing_is_left_when_the_commit_fails(
    ending: str, patched: Callable[..., str], child: Callable[[str], Path], scratch: Path
) -> None:
    """The fixtures check it: no worktree, no temporary folder."""
    run_id = patched(ADDED.format("new.py", "100644", "x"))
    seen = scratch / "seen"
    ending = {"abort": "os.kill(os.getpid(), signal.SIGKILL)"}.get(ending, ending)
    child(
        f"open({str(seen)!r}, 'w').write(' '.join([*sys.argv[1:], os.environ['PYTHONPATH']]))\n"
        f"print('waymark: no', file=sys.stderr, flush=True)\n{ending}"
    )
    with pytest.raises((BadInput, Failed, Interrupted)):
        api.rerun(run_id, "save=npz", threads=3, at_commit=True, trust_code=True)
    words = seen.read_text().split()
    assert words[:6] == ["-P", "-m", "waymark", "rerun", run_id, "save=npz"]
    assert words[6:8] == ["--threads=3", "--json"]
    assert words[8].startswith(str(scratch))
