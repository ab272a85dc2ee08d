"""Rerunning: the same bits are called identical, other bits different, and the cause is named."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.tracking import MlflowClient
from waymark import api
from waymark.checkpoints.store import CheckpointStore, CheckpointWriteError
from waymark.comparison.recorded_run import load_recorded_run
from waymark.comparison.repository import CHECKOUT
from waymark.comparison.rerun_report import ArrayDifference, Divergence, compare_rerun, load
from waymark.errors import BadInput, Failed
from waymark.processes.signals import Interrupted
from waymark.tracking.finder import find
from waymark.tracking.opening import open_store

from tests.support.processes import BOUND, Done, Main, StopAt, after_opening, killed
from tests.support.reruns import (
    CNN,
    OWN,
    SOFTMAX,
    artifacts,
    counts,
    forget,
    is_clean,
    own_model,
    record_fact,
    runs,
    store,
    verdict_of,
)

pytestmark = pytest.mark.usefixtures("no_checkout")


def is_npz(overrides: list[str]) -> list[str]:
    """Return overrides for npz files, which know no meta_graph."""
    return [*(item for item in overrides if "meta_graph" not in item), "save=npz"]


def losses(run_id: str) -> dict[int, float]:
    points = store().get_metric_history(run_id, "train/loss")
    return {point.step: point.value for point in points}


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
    assert len(after_opening(done.stdout)) == 1  # the verdict


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
    assert after_opening(done.stdout) == [
        f"nothing that run {run_id} recorded can be compared",
    ]
    assert runs()[0].data.tags["waymark.verdict"] == "different"


@pytest.mark.long
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


# Different


def other_pixel(path: Path, target: Path, pictures: int | None = 1) -> None:
    """Write the data again, one pixel of the first training pictures changed, None: of all."""
    arrays = dict(np.load(path))
    arrays["x_train"][:pictures, 3, 3] ^= 64
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
    assert f"train/loss first differs at step {first}: {values}" in lines
    assert f"accuracy {accuracies[0]:.4f} recorded, {accuracies[1]:.4f} now" in lines
    assert lines[-2:] == [
        "what differs:",
        f"  data: {digests[0][:8]} recorded, {digests[1][:8]} now",
    ]
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
    other_pixel(small, Path("other.npz"), pictures=None)  # any batch differs
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
    assert out.startswith(f"run {verdict.run_id} (rerun of cnn)\n")
    assert after_opening(out) == []
    assert err == ""


@pytest.mark.parametrize(
    ("variable", "values", "fact"),
    [
        ("TF_ENABLE_ONEDNN_OPTS", "01", "onednn"),
        pytest.param("TF_DETERMINISTIC_OPS", "10", "deterministic_ops", marks=pytest.mark.long),
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
