"""Tasks and metrics by the command line: every task runs, resumes, reruns, evaluates, is swept."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import yaml
from sklearn.datasets import load_diabetes, load_digits, load_wine
from waymark.config.compose import compose_config
from waymark.evaluation.restore import load_data
from waymark.training.runtime import start_tensorflow

from tests.support.data import write_pictures
from tests.support.ends import local_end
from tests.support.processes import THREADS, Main, Open, killed

start_tensorflow(2)  # which is noisy where a module of the user's own is the first to import it

SHORT = ["steps=60", "save.every=20", "eval_every=20", "batch_size=20", "progress=false"]
SHORT += [THREADS, "save=npz", "data=arrays", "data.path=mine.npz", "optimizer.learning_rate=0.01"]

OWN = """
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from waymark.tasks.metrics import Metric


def worst(labels, outputs):
    return np.abs(labels - outputs).max()


def fails(labels, outputs):
    raise ValueError("no such thing")


@dataclass
class Counts:
    '''Poisson regression.'''

    floor: float

    def prepare(self, data):
        labels = data.y_train.astype(np.int32)[:, None]
        return replace(data, outputs=1, y_train=labels)

    def losses(self, labels, outputs, training):
        return tf.nn.log_poisson_loss(tf.cast(labels, tf.float32), outputs)[:, 0]

    def predict(self, outputs):
        return tf.exp(outputs)

    def report(self, data, predictions):
        return {"true": [1.0, 2.0], "predicted": [[1.0]]}  # which nothing can be drawn from

    def metrics(self):
        return {"deviance": Metric("min", lambda y, p: float(np.abs(y - p).mean()))}
"""


def standardised(values: np.ndarray) -> np.ndarray:
    return ((values - values.mean(0)) / values.std(0)).astype(np.float32)


def write(place: Path, task: str) -> None:
    """Write small real data of a task into mine.npz."""
    if task == "classification":
        x, y = load_digits(return_X_y=True)
        x, y = (x / 16).astype(np.float32)[:600], y[:600]
        np.savez(place / "mine.npz", x_train=x, y_train=y, sample_weight=1 + (np.arange(600) % 3))
    elif task == "multilabel":
        x, y = load_wine(return_X_y=True)
        labels = np.column_stack([y == 0, x[:, 0] > 13, y != 2])
        np.savez(place / "mine.npz", x_train=standardised(x), y_train=labels)
    else:
        x, y = load_diabetes(return_X_y=True)
        np.savez(place / "mine.npz", x_train=standardised(x), y_train=standardised(y))


def own_module(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(place)


def run_id_of(done: Any) -> str:
    assert done.returncode == 0, done.stderr
    return str(done.stdout.split()[1])


def artifact(place: Path, run_id: str, name: str) -> Path:
    (file,) = place.glob(f"mlruns/artifacts/*/{run_id}/artifacts/{name}")
    return file


CASES = {
    "classification": [
        *("task.class_weights=balanced", "task.label_smoothing=0.1"),
        "metrics=[macro_f1, top_5, mine.worst]",
        "save.keep_best={metric: val/macro_f1, mode: max}",
    ],
    "multilabel": ["metrics=[roc_auc]", "save.keep_best={metric: val/loss, mode: min}"],
    "regression": [
        *("task.loss=huber", "metrics=[r2, mse, mine.worst]"),
        "save.keep_best={metric: val/worst, mode: min}",
    ],
}
FIRST = {"classification": "accuracy", "multilabel": "macro_f1", "regression": "rmse"}
PICTURES = {
    "classification": {"confusion_matrix.png", "classes.csv"},
    "multilabel": {"labels.png", "classes.csv"},
    "regression": {"predicted.png", "residuals.png"},
}


def plain_metrics(task: str, labels: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
    """Return what scikit-learn finds."""
    sk: Any = sklearn.metrics
    if task == "regression":
        worst = float(np.abs(labels - outputs).max())
        error = sk.mean_squared_error(labels, outputs)
        return {
            "rmse": error**0.5,
            "mse": error,
            "worst": worst,
            "r2": sk.r2_score(labels, outputs),
        }
    if task == "multilabel":
        f1 = sk.f1_score(labels, outputs > 0, average="macro", zero_division=0)
        return {"macro_f1": f1, "roc_auc": sk.roc_auc_score(labels, outputs)}
    f1 = sk.f1_score(labels, outputs.argmax(1), average="macro", zero_division=0)
    return {
        "accuracy": sk.accuracy_score(labels, outputs.argmax(1)),
        "macro_f1": f1,
        "top_5": sk.top_k_accuracy_score(labels, outputs, k=5),
    }


@pytest.mark.parametrize("task", CASES)
def test_a_task_is_run_killed_resumed_rerun_and_evaluated(
    place: Path, main: Main, client: Open, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    own_module(place, monkeypatch)
    write(place, task)
    words = [*SHORT, f"task={task}", "data.validation=0.2", *CASES[task]]
    if task == "classification":
        words[words.index("metrics=[macro_f1, top_5, mine.worst]")] = "metrics=[macro_f1, top_5]"
    done = main("run", *words)
    whole, name = run_id_of(done), FIRST[task]
    known = client(place).get_run(whole).data
    shown = known.metrics[f"restored/{name}"]
    text = f"{shown:.4f}" if name == "accuracy" else f"{shown:#.4g}"
    assert re.search(rf"(?m)^test {name}, restored +{text}$", done.stdout)
    assert known.tags["waymark.metric"] == name

    # From the weights on disk, by NumPy and scikit-learn.
    data = load_data(compose_config(words).config)
    weights = np.load(artifact(place, whole, "checkpoints/weights-60.npz"))["weights"]
    for part, where in (("val", "val"), ("test", "restored")):
        x, labels = data.examples(part)
        outputs = x.astype(np.float64) @ weights.astype(np.float64)
        for key, value in plain_metrics(task, labels, outputs).items():
            assert known.metrics[f"{where}/{key}"] == pytest.approx(value, rel=1e-4), key
    files = {path.name for path in artifact(place, whole, "evaluation").iterdir()}
    assert files == PICTURES[task] | {"metrics.json", "loss.png"}

    trusted = ["trusted_modules=[mine]"] if "mine.worst" in str(words) else []
    begun = killed(30, *words)
    assert main("resume", begun, *trusted).returncode == 0
    assert not local_end(place, begun).unlike(local_end(place, whole))
    done = main("rerun", whole, *trusted)
    assert done.returncode == 0 and "60 losses, 4 evaluations" in done.stdout
    found = json.loads(main("evaluate", whole, *trusted, "--json").stdout)
    restored = {k[9:]: v for k, v in known.metrics.items() if k.startswith("restored/")}
    assert {key: found[key] for key in restored} == restored
    best = json.loads(main("evaluate", whole, *trusted, "--step", "best", "--json").stdout)["step"]
    (rule,) = (yaml.safe_load(w.partition("=")[2]) for w in words if "keep_best" in w)
    points = client(place).get_metric_history(whole, rule["metric"])
    sign = 1 if rule["mode"] == "max" else -1
    assert best == max(points, key=lambda point: (sign * point.value, -point.step)).step

    done = main("evaluate", whole, *trusted, "--per-class")
    if task == "regression":
        assert done.returncode == 2 and "--per-class: this task has no classes" in done.stderr
    else:
        table = artifact(place, whole, "evaluation/classes.csv").read_text()
        rows = list(csv.reader(table.splitlines()))
        assert done.stdout.splitlines()[-len(rows)].split() == rows[0]
        predicted = outputs.argmax(1) if task == "classification" else outputs > 0
        theirs: Any = sklearn.metrics.precision_recall_fscore_support(
            labels, predicted, zero_division=0
        )
        ours = np.array(rows[1:])[:, 1:].astype(float)
        np.testing.assert_allclose(ours, np.array(theirs).T, rtol=1e-6)
    assert f"{name} {text}" in main("runs").stdout or name == "accuracy"
    assert main("compare", whole, begun).returncode == 0
    done = main("data", *words[6:], "--json")
    train = json.loads(done.stdout)["parts"]["train"]
    if task == "regression":
        y = data.y_train.astype(np.float64)
        assert train["targets"] == [pytest.approx([y.min(), y.max(), y.mean()])]
    else:
        once = np.eye(10)[data.y_train] if task == "classification" else data.y_train
        assert list(train["classes"].values()) == once.sum(0).tolist()
    assert main("data", *words[6:]).returncode == 0


@pytest.mark.long
def test_a_regression_is_swept_by_its_own_metric(
    place: Path, main: Main, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_module(place, monkeypatch)
    write(place, "regression")
    words = [*SHORT[:-1], "task=regression", "optimizer.learning_rate=1e-4,3e-2"]
    done = main("run", "-m", *words, "data.validation=0.2", "prune=median")
    assert (done.returncode, done.stderr) == (0, "")
    runs = client(place).search_runs(["1"])
    trials = [each for each in runs if "waymark.trial" in each.data.tags]
    best = min(trials, key=lambda each: each.data.metrics["val/rmse"])
    assert f"best        {best.info.run_name} ({best.info.run_id[:8]}), val/rmse" in (done.stdout)
    done = main("run", "-m", *words, "objective.metric=restored/mae")
    assert done.returncode == 0 and ", restored/mae " in done.stdout
    asked = [*words, "metrics=[mine.worst]", "objective.metric=test/worst"]
    done = main("run", "-m", *asked)
    assert done.returncode == 2
    assert done.stderr == (
        "waymark: objective.metric=test/worst: nothing tells whether more is better or less; "
        "objective.mode=max or objective.mode=min does.\n"
    )
    done = main("run", "-m", *asked, "objective.mode=min", "experiment_name=other")
    assert done.returncode == 0 and ", test/worst " in done.stdout


def test_a_regression_stops_early_by_any_metric(place: Path, main: Main, client: Open) -> None:
    write(place, "regression")
    stop = "stop={metric: test/r2, mode: max, patience: 2, min_delta: 10}"
    done = main("run", *SHORT, "steps=100", "task=regression", "metrics=[r2]", stop)
    assert "stopped early at step 60: test/r2 has not improved since step 20" in done.stdout
    assert "test rmse, last step" in done.stdout


def test_a_task_of_the_users_own(
    place: Path, main: Main, client: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_module(place, monkeypatch)
    (place / "conf" / "task").mkdir(parents=True)
    (place / "conf" / "task" / "counts.yaml").write_text("_target_: mine.Counts\nfloor: 0.5\n")
    x = load_wine(return_X_y=True)[0]
    y = np.random.default_rng(0).poisson(np.exp(standardised(x)[:, 0] / 2))
    np.savez(place / "mine.npz", x_train=standardised(x), y_train=y)
    words = [*SHORT, "--config-dir", "conf", "task=counts"]
    done = main("run", *words, "metrics=[mine.worst]")
    assert "waymark: resume" not in done.stderr
    run_id = run_id_of(done)
    assert "test deviance, restored " in done.stdout
    known = client(place).get_run(run_id).data
    assert known.params["task"] == "counts" and known.metrics["restored/worst"] > 0
    files = {path.name for path in artifact(place, run_id, "evaluation").iterdir()}
    assert files == {"metrics.json", "loss.png"}
    assert main("rerun", run_id, "trusted_modules=[mine]").returncode == 0
    done = main("evaluate", run_id, "trusted_modules=[mine]", "--step", "best", "--json")
    assert json.loads(done.stdout)["deviance"] > 0
    done = main("evaluate", run_id)
    assert done.returncode == 2 and "task._target_='mine.Counts'" in done.stderr
    done = main("run", *words, "metrics=[mine.fails]")
    assert done.returncode == 1 and "metrics='mine.fails': ValueError: no such thing (" in (
        done.stderr
    )
    assert "mine.py, line " in done.stderr


FORGED: dict[str, dict[str, Any]] = {
    "planted.measure": {"metrics": ["macro_f1", "planted.measure"]},
    "waymark.files.replace_file": {"metrics": ["waymark.files.replace_file"]},
    "os.system": {"metrics": ["os.system"]},
    "planted.Task": {"task": {"_target_": "planted.Task"}},
}


def test_a_forged_record_imports_nothing(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(place / "mine.npz", 60, 20)
    run_id = run_id_of(main("run", *SHORT))
    marker = place / "imported"
    (place / "planted.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(place)
    record = artifact(place, run_id, "config.yaml")
    body = yaml.safe_load(record.read_text())
    for forged, change in FORGED.items():
        record.write_text(yaml.safe_dump(body | change))
        for command in (["evaluate"], ["resume"], ["rerun"], ["run", "--config-from"]):
            done = main(*command, run_id)
            assert done.returncode == 2, command
            assert f"={forged!r} (record" in done.stderr
            assert done.stderr.count("\n") == 1
            assert "trusted_modules=[...]" in done.stderr or "is part of Waymark" in done.stderr
    assert not marker.exists() and "planted" not in sys.modules


REFUSED = {
    "metrics=[rmse]": "metrics='rmse': there is no such metric of this task; there are accuracy, ",
    "metrics=[mine.accuracy]": "metrics='mine.accuracy' (the command line): cannot be loaded: ",
    "metrics=[mine.OWN]": "metrics='mine.OWN' (the command line): cannot be loaded: ",
    "metrics=[mine.np.pi]": "metrics='mine.np.pi' (the command line): is not a function.",
    "metrics=[mine.own.loss]": "metrics='mine.own.loss' (the command line): cannot be loaded: ",
    "metrics=[3]": "metrics=3 (the command line): must be a text",
    "metrics=top_5": "metrics='top_5' (the command line): ",
    "task=multilabel": "mine.npz: y_train is int64[60]; allowed are numbers [N, K], ",
    "task.label_smoothing=1.5": "task.label_smoothing=1.5 (the command line): ",
    "task.class_weights=some": "task.class_weights='some' (the command line): ",
    "task.class_weights=[1,2]": "task.class_weights=[1.0, 2.0]: must be 10 numbers, one a ",
    "task=regression task.loss=rmse": "task.loss='rmse' (the command line): ",
    "stop={metric: val/loss, mode: min, patience: 1}": "stop.metric=val/loss: is not recorded in "
    "training, where test/accuracy and test/loss are; data.validation=0.1 would hold out val.",
    "stop={metric: loss, mode: min, patience: 1}": "stop.metric='loss' (the command line): must ",
    "save.keep_best={metric: test/macro_f1, mode: max}": "save.keep_best.metric=test/macro_f1: is ",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_does_not_fit_is_refused(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    own_module(place, monkeypatch)
    write_pictures(place / "mine.npz", 60, 20)
    given = override.split(" ") if override.startswith("task=reg") else [override]
    done = main("run", *SHORT, *given)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"waymark: {REFUSED[override]}"), done.stderr
    assert not list(place.glob("mlruns/artifacts/*/*"))


def test_few_classes_have_no_top_five(place: Path, main: Main) -> None:
    x, y = load_wine(return_X_y=True)
    np.savez(place / "mine.npz", x_train=x, y_train=y)
    done = main("run", *SHORT, "metrics=[top_5]")
    assert done.returncode == 2 and "takes more than 5 classes; the data have 3" in done.stderr


def test_only_a_classification_has_a_graph(place: Path, main: Main) -> None:
    write(place, "regression")
    words = [*(word for word in SHORT if word != "save=npz"), "task=regression"]
    run_id = run_id_of(main("run", *words))
    assert not list(place.glob("mlruns/artifacts/*/*/artifacts/checkpoints/*.meta"))
    said = {
        (run_id,): "this run saved no graph; that takes save=ckpt and task=classification.",
        ("--checkpoint", "x", *words[6:]): "a graph tells an accuracy alone, so it takes ",
    }
    for arguments, sentence in said.items():
        done = main("evaluate", "--from", "meta", *arguments)
        assert done.returncode == 2 and f"--from meta: {sentence}" in done.stderr


def test_a_record_without_tasks_and_metrics_is_a_classification(place: Path, main: Main) -> None:
    write_pictures(place / "mine.npz", 60, 20)
    run_id = run_id_of(main("run", *SHORT))
    other = run_id_of(main("run", *SHORT, "seed=1"))
    record = artifact(place, run_id, "config.yaml")
    body = yaml.safe_load(record.read_text())
    del body["task"], body["metrics"], body["choices"]["task"]
    record.write_text(yaml.safe_dump(body))
    assert main("rerun", run_id).returncode == 0
    found = json.loads(main("evaluate", run_id, "--json").stdout)
    assert set(found) == {"accuracy", "loss", "hits", "total", "source", "step"}
    assert "task" not in main("compare", run_id, other).stdout.splitlines()[0]


def test_outputs_that_do_not_fit_a_task_are_named(place: Path, main: Main) -> None:
    write(place, "regression")
    (place / "few.py").write_text(FEW)
    words = [*SHORT, "task=regression", "model._target_=few.Few", "~model.init_stddev"]
    done = main("run", *words)
    assert done.returncode == 1
    assert "the task needs outputs [N, 1], but those of the model are [N, 2] (" in done.stderr
    shutil.rmtree(place / "mlruns")


FEW = """
from dataclasses import dataclass
import tensorflow as tf


@dataclass
class Few:
    def initial(self, spec, key):
        return {"w": tf.zeros([spec.shape[0], spec.classes + 1])}

    def logits(self, parameters, images, dropout):
        return images @ parameters["w"]
"""


def test_a_trial_that_does_not_record_the_objective_is_refused_by_itself(
    place: Path, main: Main
) -> None:
    """Where the task or the metrics are varied, and so what there is to select by."""
    write(place, "classification")
    words = [*SHORT, "steps=20", "save.every=0", "eval_every=0", "optimizer.learning_rate=1e-3"]
    done = main("run", "-m", *words, "task=classification,regression", "objective.metric=test/rmse")
    said = "objective.metric=test/rmse: is not recorded, where test/accuracy, test/loss, restored/"
    assert done.returncode == 1 and said in done.stderr, done
    assert "task=regression" in done.stdout and ", test/rmse " in done.stdout
    assert "1 finished, 1 failed" in done.stdout
    done = main("run", "-m", *words, "metrics=[macro_f1],[roc_auc]", "objective.metric=test/r2")
    assert done.returncode == 2 and "none of the 2 trials can be done" in done.stderr, done
    given = ["metrics=[macro_f1],[roc_auc]", "prune=median", "objective.metric=train/loss"]
    done = main("run", "-m", *words, *given)
    said = "prune=median: objective.metric='train/loss' is not evaluated during training; "
    assert done.returncode == 2 and said in done.stderr, done
