"""A validation set: held out or brought, it alone is what training and sweeps are judged by."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.types.schema import Schema
from waymark.config.compose import compose_config
from waymark.data.sources import Dataset
from waymark.evaluation.restore import load_data

from tests.support.data import pictures
from tests.support.ends import local_end
from tests.support.processes import THREADS, Main, Open, killed

SHORT = ["steps=60", "save.every=20", "eval_every=20", "batch_size=10", THREADS, "progress=false"]
HELD_OUT = [*SHORT, "data.validation=0.2", "save=npz"]


def write(folder: Path, **more: Any) -> str:
    """Write an npz of 200 and 60 pictures; what is None in `more` is left out."""
    arrays = {**pictures(200, 60), **more}
    np.savez(folder / "mine.npz", **{k: v for k, v in arrays.items() if v is not None})
    return f"data.path={folder}/mine.npz"


def data_of(*overrides: str) -> Dataset:
    return load_data(compose_config(["data=arrays", *overrides]).config)


def points(client: Any, run_id: str) -> dict[str, list[int]]:
    return {
        key: sorted(point.step for point in client.get_metric_history(run_id, key))
        for key in client.get_run(run_id).data.metrics
        if key.partition("/")[0] in ("val", "test", "restored")
    }


def test_training_is_evaluated_on_it_and_the_test_set_is_scored_once(
    place: Path, main: Main, client: Open
) -> None:
    path = write(place)
    done = main("run", "data=arrays", path, *HELD_OUT)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()[:2]
    assert second == (
        "data         arrays: 8x8x1, 10 classes; 160 training, 40 validation, 60 test examples; "
        "divided by 255"
    )
    run_id = first.split()[1]
    assert points(client(place), run_id) == {
        "val/accuracy": [20, 40, 60],
        "val/loss": [20, 40, 60],
        "restored/accuracy": [60],
        "restored/loss": [60],
    }
    # NumPy, on what a checkpoint holds and on the rows that are in no other set.
    data = data_of(path, "data.validation=0.2")
    (file,) = place.glob(f"mlruns/artifacts/*/{run_id}/artifacts/checkpoints/weights-40.npz")
    weights = np.load(file)["weights"].astype(np.float64)
    whole = {image.tobytes(): label for image, label in zip(*rows(path), strict=True)}
    for image in data.x_train:
        del whole[image.tobytes()]
    images = np.array([np.frombuffer(image, np.uint8) for image in whole]) / 255
    hits = (images @ weights).argmax(1) == np.array(list(whole.values()))
    history = client(place).get_metric_history(run_id, "val/accuracy")
    assert [point.value for point in history if point.step == 40] == [hits.mean()]


def rows(path: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = np.load(path.removeprefix("data.path="))
    return arrays["x_train"], arrays["y_train"]


@pytest.mark.parametrize("save", [pytest.param("ckpt", marks=pytest.mark.long), "npz"])
def test_a_killed_run_and_a_rerun_have_the_same_split_and_bits(
    place: Path, main: Main, client: Open, save: str
) -> None:
    best = "save.keep_best={metric: val/accuracy, mode: max}"
    words = ["data=arrays", write(place), *HELD_OUT, f"save={save}", best]
    whole = main("run", *words).stdout.split()[1]
    begun = killed(40, *words)
    assert main("resume", begun).returncode == 0
    assert not local_end(place, begun).unlike(local_end(place, whole))
    done = main("rerun", whole)
    assert done.returncode == 0 and "identical" in done.stdout
    scored = json.loads(main("evaluate", whole, "--json").stdout)
    known = client(place).get_run(whole).data.metrics
    assert scored["accuracy"] == known["restored/accuracy"]
    step = json.loads(main("evaluate", whole, "--step", "best", "--json").stdout)["step"]
    history = client(place).get_metric_history(whole, "val/accuracy")
    values = {point.step: point.value for point in history}
    assert step == max(values, key=lambda at: (values[at], -at))
    refused = main("resume", whole, "data.split_seed=1")
    assert refused.returncode == 2 and "data.split_seed: cannot change" in refused.stderr


def test_seeds_share_the_split(place: Path) -> None:
    path = write(place)
    first, second, other = (
        data_of(path, "data.validation=40", *more)
        for more in ([], ["seed=7"], ["data.split_seed=1"])
    )
    assert np.array_equal(first.x_val, second.x_val)
    assert not np.array_equal(first.x_val, other.x_val)
    assert first.digest == other.digest == data_of(path).digest


def test_sets_that_the_file_brings(place: Path, main: Main, client: Open) -> None:
    brought = pictures(200, 60)
    own = {"x_val": brought["x_train"][:50], "y_val": brought["y_train"][:50]}
    path = write(place, **own, notes=np.arange(3))
    done = main("run", "data=arrays", path, *SHORT)
    assert done.returncode == 0 and "val/accuracy" in points(client(place), done.stdout.split()[1])
    data = data_of(path)
    assert np.array_equal(data.x_val[..., 0], own["x_val"]) and len(data.x_train) == 200


def test_a_test_set_is_held_out_where_there_is_none(place: Path, main: Main) -> None:
    path = write(place, x_test=None, y_test=None)
    done = main("run", "data=arrays", path, *HELD_OUT)
    assert done.stdout.splitlines()[1] == (
        "data         arrays: 8x8x1, 10 classes; 128 training, 32 validation, 40 test examples "
        "(data.test=0.2 by default); divided by 255"
    )
    data = data_of(path, "data.test=50", "data.validation=30")
    assert [len(data.x_train), len(data.x_val), len(data.x_test)] == [120, 30, 50]
    last = data_of(path, "data.split=ordered", "data.test=50", "data.validation=30")
    assert np.array_equal(last.y_test, rows(path)[1][150:])
    assert np.array_equal(last.y_val, rows(path)[1][120:150])
    other = place / "other.npz"
    np.savez(other, x_test=rows(path)[0][:9], y_test=rows(path)[1][:9])
    assert len(data_of(path, f"data.test={other}").x_test) == 9


def test_a_group_stays_on_one_side(place: Path) -> None:
    path = write(place, patient=np.repeat(np.arange(50), 4), x_test=None, y_test=None)
    data = data_of(path, "data.group=patient", "data.validation=0.25")
    images = [{image.tobytes() for image in data.examples(p)[0]} for p in ("train", "val", "test")]
    for start in range(0, 200, 4):
        family = {image.tobytes() for image in rows(path)[0][start : start + 4]}
        assert sum(bool(family & each) for each in images) == 1
    assert abs(len(data.x_test) - 40) <= 2 and abs(len(data.x_val) - 40) <= 2


ONE = {"y_train": np.array([1] * 199 + [0])}
REFUSED = {
    "data.validation=200": ({}, "data.validation=200: holds out 200 of 200 examples; "),
    "data.validation=0.001": ({}, "data.validation=0.001: holds out 0 of 200 examples; "),
    "data.validation=-1": ({}, "data.validation=-1 (the command line): "),
    "data.validation=1.5": (
        {},
        "data.validation=1.5 (the command line): must be a whole number of ",
    ),
    "data.test=100.0": ({}, "data.test=100.0 (the command line): must be a whole number of "),
    "data.test=0": ({}, "data.test=0 (the command line): must be a whole number of "),
    "data.test=0.1": ({}, "data.test=0.1: "),
    "data.validation=0.2": (ONE, "class 0 has 1 example left to split; "),
    "data.validation=5": ({}, "a split into 195 and 5 examples has no room for each of 10 "),
    "data.split_seed=-1": ({}, "data.split_seed=-1 (the command line): "),
    "data.scale=256": ({}, "data.scale=256 (the command line): "),
    "data.split=both": ({}, "data.split='both' (the command line): "),
    "data.group=patient": ({}, "data.group='patient': "),
    "data.test=other.npz": ({}, "data.test='other.npz': "),
    "data=mnist_5k data.group=patient": ({}, "data.group='patient': mnist_5k has no groups"),
    "data=mnist_5k data.test=other.npz": ({}, "data.test='other.npz': mnist_5k reads no other "),
    "eval_every=0 stop={metric: test/loss, mode: min, patience: 1}": ({}, "stop: needs "),
    "save.keep_best={metric: val/loss, mode: min}": ({}, "save.keep_best.metric=val/loss: "),
    "stop={metric: val/loss, mode: min, patience: 1}": ({}, "stop.metric=val/loss: "),
    "stop={metric: val/loss, mode: min, patience: 0}": ({}, "stop.patience=0 (the command line): "),
    "+objective.metrics=1": ({}, "objective.metrics (the command line): there is no such setting"),
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_held_out_is_refused(place: Path, main: Main, override: str) -> None:
    changed, said = REFUSED[override]
    np.savez(place / "other.npz", x_test=pictures(9, 9)["x_test"], y_test=np.arange(9))
    words = [write(place, **changed)] if "mnist" not in override else []
    given = override.split(" ", 1) if " data" in override or " stop" in override else [override]
    done = main("run", "data=arrays", *words, *SHORT, *given)
    assert done.returncode == 2 and done.stderr.startswith(f"waymark: {said}"), done.stderr
    assert not list(place.glob("mlruns/artifacts/*/*"))


def test_a_set_that_the_file_brings_is_not_held_out_as_well(place: Path, main: Main) -> None:
    brought = pictures(200, 60)
    path = write(place, x_val=brought["x_test"], y_val=brought["y_test"])
    done = main("run", "data=arrays", path, *SHORT, "data.validation=0.1")
    assert done.returncode == 2 and "brings its own validation set" in done.stderr
    path = write(place, x_val=brought["x_test"])
    done = main("run", "data=arrays", path, *SHORT)
    assert done.returncode == 2 and "has no entry y_val" in done.stderr


def test_a_sweep_selects_on_it(place: Path, main: Main, client: Open) -> None:
    words = ["data=arrays", write(place), *HELD_OUT, "optimizer.learning_rate=1e-5,1e-2"]
    done = main("run", "-m", *words)
    assert (done.returncode, done.stderr) == (0, "")
    parent = next(
        each
        for each in client(place).search_runs(["1"])
        if each.data.tags.get("waymark.kind") == "sweep"
    )
    text = client(place).download_artifacts(parent.info.run_id, "trials.csv", str(place))
    trials = list(csv.DictReader(Path(text).read_text().splitlines()))
    for trial in trials:
        known = client(place).get_run(trial["run_id"]).data.metrics
        assert float(trial["objective"]) == known["val/accuracy"]
    best = max(trials, key=lambda trial: float(trial["objective"]))
    assert f"({best['run_id'][:8]}), val/accuracy" in done.stdout
    done = main("run", "-m", *words, "data.validation=0")
    assert done.returncode == 0 and "), restored/accuracy" in done.stdout
    assert "\nselected on the test set; data.validation=0.1 holds out " in done.stdout


BROUGHT = """
from waymark.data.sources import Arrays
from waymark.config.schema import settings


@settings
class Brought(Arrays):
    def load(self):
        return super().load()
"""


def test_a_sweep_selects_on_what_a_class_of_the_users_own_brings(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "brought_data.py").write_text(BROUGHT)
    (place / "conf" / "data").mkdir(parents=True)
    (place / "conf" / "data" / "brought.yaml").write_text(
        "_target_: brought_data.Brought\npath: ???\n"
    )
    monkeypatch.syspath_prepend(place)
    brought = pictures(200, 60)
    path = write(place, x_val=brought["x_test"], y_val=brought["y_test"])
    words = ["--config-dir", "conf", "data=brought", path, *SHORT, "prune=median"]
    done = main("run", "-m", *words, "seed=0,1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "), val/accuracy" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["objective.metric=test/loss", "data.validation=0.2"], "where val/accuracy, val/loss, "),
        (["objective.metric=val/loss"], "where test/accuracy, test/loss, "),
        (["objective.metric=3"], "must be a text"),
    ],
)
def test_an_objective_that_no_trial_records_is_refused(
    place: Path, main: Main, words: list[str], said: str
) -> None:
    done = main("run", "-m", "data=arrays", write(place), *SHORT, "seed=0,1", *words)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_file_with_the_test_set_may_move(place: Path, main: Main) -> None:
    brought = pictures(200, 60)
    other = place / "other.npz"
    np.savez(other, x_test=brought["x_test"], y_test=brought["y_test"])
    path = write(place, x_test=None, y_test=None)
    run_id = main("run", "data=arrays", path, *SHORT, f"data.test={other}").stdout.split()[1]
    other.rename(place / "moved.npz")
    for command in ("resume", "evaluate", "rerun"):
        done = main(command, run_id, f"data.test={place}/moved.npz")
        assert (done.returncode, done.stderr.count("waymark:")) == (0, 0), done.stderr
    done = main("resume", run_id, "data.test=0.3")
    assert done.returncode == 2 and "data.test: cannot change" in done.stderr


def test_keep_best_says_where_it_selects_on_the_test_set(place: Path, main: Main) -> None:
    best = "save.keep_best={metric: test/accuracy, mode: max}"
    done = main("run", "data=arrays", write(place), *SHORT, best)
    assert done.returncode == 0
    assert done.stderr.startswith("waymark: save.keep_best selects on the test set; ")
    done = main("run", "data=arrays", write(place), *HELD_OUT, best)
    assert done.returncode == 2 and "is not recorded in training" in done.stderr


def test_a_run_stops_early_at_the_same_step_whatever_happens_to_it(
    place: Path, main: Main, client: Open
) -> None:
    # So high a learning rate that the loss only gets worse.
    words = ["data=arrays", write(place), *HELD_OUT, "optimizer.learning_rate=3", "steps=200"]
    words += ["stop={metric: val/loss, mode: min, patience: 3}", "save.every=30"]
    words += ["save.keep_best={metric: val/accuracy, mode: max}"]
    done = main("run", *words)
    assert (done.returncode, done.stderr) == (0, "")
    whole = done.stdout.split()[1]
    run = client(place).get_run(whole)
    step, scored = (int(run.data.tags[f"waymark.{name}"]) for name in ("stopped", "scored"))
    assert step < 200 and run.info.status == "FINISHED"
    assert f"stopped early at step {step}: val/loss has not improved" in done.stdout
    history = client(place).get_metric_history(whole, "val/accuracy")
    values = {point.step: point.value for point in history}
    assert max(values) == step and scored == max(values, key=lambda at: (values[at], -at))
    assert points(client(place), whole)["restored/accuracy"] == [step]
    evaluated = main("evaluate", whole, "--step", str(scored), "--json")
    assert json.loads(evaluated.stdout)["accuracy"] == run.data.metrics["restored/accuracy"]

    begun = killed(step - 20, *words)
    assert main("resume", begun).returncode == 0
    assert not local_end(place, begun).unlike(local_end(place, whole))
    again = main("rerun", whole)
    assert again.returncode == 0 and "identical" in again.stdout
    said = main("resume", whole).stdout
    assert said.startswith(f"stopped early at step {step}: ") and "patience" in said
    other = main("resume", whole, "eval_every=7")  # the evaluations would be counted otherwise
    assert other.returncode == 2 and "a run with stop" in other.stderr
    assert main("resume", whole, "stop=null").returncode == 0
    ended = client(place).get_run(whole).data
    assert (
        not ended.tags["waymark.stopped"] and max(points(client(place), whole)["val/loss"]) == 200
    )
    assert f"{step} of 200" in main("runs").stdout


def test_epochs_are_turned_into_steps(place: Path, main: Main, client: Open) -> None:
    path, rest = write(place), [word for word in HELD_OUT if not word.startswith("steps")]
    words = [
        "data=arrays",
        path,
        *rest,
        "batch_size=30",
        "epochs=3",
        "eval_every=epoch",
        "save.every=8",
    ]
    done = main("run", *words)
    assert (done.returncode, done.stderr) == (0, "")
    run_id = done.stdout.split()[1]
    params = client(place).get_run(run_id).data.params
    # 160 examples: 16 batches of 30 hold them three times, six hold them once.
    assert [params[key] for key in ("steps", "epochs", "eval_every")] == ["16", "None", "6"]
    assert points(client(place), run_id)["val/loss"] == [6, 12, 16]
    same = main("run", "data=arrays", path, *rest, "batch_size=30", "steps=16", "eval_every=6")
    assert local_end(place, same.stdout.split()[1]).digest == local_end(place, run_id).digest
    assert main("resume", run_id, "epochs=4").returncode == 0
    assert max(points(client(place), run_id)["val/loss"]) == 22
    done = main("run", *words, "steps=20")
    assert done.returncode == 2 and "steps=20 and epochs=3: give one of them" in done.stderr
    done = main("resume", run_id, "epochs=9", "steps=100")
    assert done.returncode == 2 and "steps=100 and epochs=9: give one of them" in done.stderr
    swept = [*words, "optimizer.learning_rate=1e-3,1e-2", "prune=median"]
    assert main("run", "-m", *swept).returncode == 0
    trials = [r for r in client(place).search_runs(["1"]) if "waymark.trial" in r.data.tags]
    assert [trial.data.params["steps"] for trial in trials] == ["16", "16"]


@pytest.mark.parametrize(
    ("dtype", "flat", "scale", "divided"),
    [
        ("uint8", False, "auto", True),
        ("uint8", True, "auto", False),
        ("uint8", True, "uint8", True),
        ("float32", False, "auto", False),
        ("float32", False, "255", True),
        ("int16", True, "none", False),
    ],
)
def test_features_of_any_kind_are_scaled_as_asked(
    place: Path, main: Main, client: Open, dtype: str, flat: bool, scale: str, divided: bool
) -> None:
    brought = pictures(200, 60)
    x = {key: brought[key].astype(dtype) for key in ("x_train", "x_test")}
    x = {key: each.reshape(len(each), -1) if flat else each for key, each in x.items()}
    words = ["data=arrays", write(place, **x), *SHORT, f"data.scale={scale}", "save=npz"]
    done = main("run", *words)
    assert (done.returncode, done.stderr) == (0, "")
    said = "divided by 255" if divided else f"{dtype} as it is"
    assert f"60 test examples; {said}\n" in done.stdout
    run_id = done.stdout.split()[1]
    (file,) = place.glob(f"mlruns/artifacts/*/{run_id}/artifacts/checkpoints/weights-60.npz")
    features = x["x_test"].reshape(60, -1).astype(np.float64) / (255 if divided else 1)
    hits = (features @ np.load(file)["weights"].astype(np.float64)).argmax(1) == brought["y_test"]
    known = client(place).get_run(run_id).data.metrics
    assert known["restored/accuracy"] == hits.mean()


def test_what_would_be_read_is_shown(place: Path, main: Main) -> None:
    brought = pictures(200, 60)
    names = np.array([f"thing {i}" for i in range(10)])
    twice = brought["x_test"].copy()
    twice[:7] = brought["x_train"][:7]
    path = write(place, x_test=twice, **{k: names[brought[k]] for k in ("y_train", "y_test")})
    done = main("data", "data=arrays", path, "data.validation=0.2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    dataset = data_of(path, "data.validation=0.2")
    assert found["digest"] == dataset.digest
    assert {part: each["examples"] for part, each in found["parts"].items()} == {
        "train": 160,
        "val": 40,
        "test": 60,
    }
    train = {image.tobytes() for image in dataset.x_train}
    again = sum(image.tobytes() in train for image in dataset.x_test)
    assert 0 < again <= 7 and found["parts"]["test"]["in_train"] == again
    for part, each in found["parts"].items():
        counts = np.bincount(dataset.examples(part)[1], minlength=10)
        assert each["classes"] == dict(zip(names.tolist(), counts.tolist(), strict=True))
    text = main("data", "data=arrays", path, "data.validation=0.2").stdout
    assert "thing 9" in text and "[8, 8, 1]  uint8  0 to 25" in text
    assert not list(place.glob("mlruns/artifacts/*/*"))


def test_class_names_stand_in_the_picture(place: Path, main: Main, client: Open) -> None:
    brought, names = pictures(200, 60), np.array([f"thing $x^{i}$" for i in range(10)])
    brought["x_test"][:3] = brought["x_train"][[5, 7, 5]]
    path = write(
        place, **{k: names[brought[k]] for k in ("y_train", "y_test")}, x_test=brought["x_test"]
    )
    done = main("run", "data=arrays", path, *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    train = {image.tobytes() for image in brought["x_train"]}
    again = sum(image.tobytes() in train for image in brought["x_test"])
    assert again >= 3
    assert f"\n{again} of 60 test examples stand in the training set as well\n" in done.stdout
    (file,) = place.glob("mlruns/artifacts/*/*/artifacts/evaluation/metrics.json")
    assert json.loads(file.read_text())["class_names"] == names.tolist()
    assert file.with_name("confusion_matrix.png").stat().st_size > 5000
    run = client(place).get_run(file.parents[2].name)
    data = run.inputs.dataset_inputs[0].dataset
    assert json.loads(data.profile) == {
        "x_train": [200, 8, 8, 1],
        "x_test": [60, 8, 8, 1],
        "class_names": names.tolist(),
    }
    spec = json.loads(data.schema)["mlflow_tensorspec"]  # as MLflow reads it
    shapes = {key: Schema.from_json(spec[key]).inputs[0] for key in ("features", "targets")}
    assert (shapes["features"].type, shapes["features"].shape) == (np.uint8, (-1, 8, 8, 1))
    assert (shapes["targets"].type, shapes["targets"].shape) == (np.int32, (-1,))


OWN = """
from dataclasses import dataclass
from waymark.data.sources import Arrays


@dataclass
class Plain:
    sampling: str
    path: str

    def load(self):
        given = {"test": None, "validation": 0, "split": "random", "split_seed": 0, "group": None}
        return Arrays(sampling=self.sampling, path=self.path, **given).load()
"""


def test_a_class_without_such_settings_works_as_before(
    place: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "plain_data.py").write_text(OWN)
    (place / "conf" / "data").mkdir(parents=True)
    (place / "conf" / "data" / "plain.yaml").write_text("_target_: plain_data.Plain\npath: ???\n")
    monkeypatch.syspath_prepend(place)
    words = ["--config-dir", "conf", "data=plain", write(place), *SHORT]
    done = main("run", *words)
    assert (done.returncode, done.stderr) == (0, "")
    done = main("run", *words, "data.validation=0.1")
    assert done.returncode == 2 and "Plain has no such setting" in done.stderr
