"""Tables from end to end: what standardises their features is part of the state."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris, load_wine
from waymark.config.compose import compose_config
from waymark.data import splits
from waymark.data.dataset import Dataset
from waymark.execution import execute

from tests.support.ends import local_end
from tests.support.processes import THREADS, Main, killed
from tests.support.tables import cars, written

SHORT = ["steps=60", "save.every=20", "eval_every=20", "batch_size=10", THREADS, "progress=false"]
HOW = [*SHORT, "data=table", "data.validation=0.2", "optimizer.learning_rate=0.05"]


def wine(folder: Path) -> list[str]:
    """Write the wines of scikit-learn as CSV; return what reads them."""
    frame = load_wine(as_frame=True).frame
    frame["target"] = frame["target"].map({0: "barolo", 1: "grignolino", 2: "barbera"})
    return [f"data.path={written(folder / 'wine.csv', frame)}", "data.target=target"]


def iris(folder: Path) -> list[str]:
    """Write the irises of scikit-learn as Parquet, a third of them as a test set of its own."""
    frame = load_iris(as_frame=True).frame.sample(frac=1, random_state=0)
    path, later = folder / "iris.parquet", folder / "later.parquet"
    words = [f"data.path={written(path, frame[:100])}", "data.target=target"]
    return [*words, f"data.test={written(later, frame[100:])}"]


def read(*words: str) -> Dataset:
    config = compose_config(list(words)).config
    return splits.load(config.data, config.task)


def checkpoint(folder: Path, run_id: str, step: int) -> Path:
    (path,) = folder.glob(f"mlruns/artifacts/*/{run_id}/artifacts/checkpoints/*-{step}.json")
    return path.with_suffix("")


def accuracy(state: Any, features: np.ndarray, labels: np.ndarray) -> float:
    """Return what NumPy finds with what a checkpoint holds."""
    scaled = (features - state["features/mean"]) / state["features/scale"]
    return float(((scaled @ state["weights"]).argmax(1) == labels).mean())


@pytest.mark.parametrize(
    ("save", "source"), [("npz", wine), ("ckpt", iris)], ids=["npz-wine", "ckpt-iris"]
)
def test_a_killed_run_a_rerun_and_an_evaluation(
    place: Path, main: Main, client: Any, save: str, source: Callable[[Path], list[str]]
) -> None:
    import tensorflow as tf

    words = [*HOW, f"save={save}", *source(place)]
    done = main("run", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].startswith("data         table: ")
    assert done.stdout.splitlines()[1].endswith("; standardised")
    whole = done.stdout.split()[1]
    begun = killed(40, *words)
    assert main("resume", begun).returncode == 0
    assert not local_end(place, begun).unlike(local_end(place, whole))
    again = main("rerun", whole)
    assert again.returncode == 0 and "identical" in again.stdout

    data, known = read(*words), client(place).get_run(whole).data.metrics
    path = checkpoint(place, whole, 60)
    if save == "npz":
        state = dict(np.load(path.with_suffix(".npz")))
    else:
        reader = tf.train.load_checkpoint(str(path))
        state = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    assert {"features/mean", "features/scale", "step", "weights"} < set(state)
    for name, value in data.statistics.items():
        assert value.dtype == state[name].dtype == np.float32
        assert np.array_equal(value, state[name])
    assert accuracy(state, data.x_test, data.y_test) == known["restored/accuracy"]
    assert accuracy(state, data.x_val, data.y_val) == known["val/accuracy"]
    assert known["restored/accuracy"] > 0.8
    for more in [[], ["--from", "meta"]] if save == "ckpt" else [[]]:
        found = json.loads(main("evaluate", whole, "--json", *more).stdout)
        assert found["accuracy"] == known["restored/accuracy"]
    refused = main("resume", whole, "data.standardise=false")
    assert refused.returncode == 2 and "data.standardise: cannot change" in refused.stderr


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, shared_once: Callable[..., Any], empty_store: Path
) -> tuple[Path, list[str], str]:
    """Return a folder with a run on the wines, the words that began it, and its id."""

    def make(folder: Path) -> tuple[list[str], str]:
        words = [*HOW, *wine(folder)]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            return words, execute.run(compose_config(words)).run_id

    folder, (words, run_id) = shared_once("trained-on-wine", make)
    return folder, words, run_id


def test_plain_tensorflow_scores_features_as_they_are(trained: tuple[Path, list[str], str]) -> None:
    import tensorflow.compat.v1 as tf

    folder, words, run_id = trained
    prefix, data = checkpoint(folder, run_id, 60), read(*words)
    with tf.Graph().as_default(), tf.Session() as session:
        saver = tf.train.import_meta_graph(str(prefix.with_name("model_ckpt.meta")))
        saver.restore(session, str(prefix))
        inputs, labels, share = tf.get_collection("train_var")
        one_hot = np.eye(3, dtype=np.float32)[data.y_test]
        found = session.run(share, {inputs: data.x_test, labels: one_hot})
    reader = tf.train.load_checkpoint(str(prefix))
    state = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    assert found == np.float32(accuracy(state, data.x_test, data.y_test))


def test_files_bring_their_statistics_or_the_training_sets_are_taken(
    trained: tuple[Path, list[str], str], place: Path, main: Main
) -> None:
    import tensorflow as tf

    folder, words, run_id = trained
    data = read(*words)
    reader = tf.train.load_checkpoint(str(checkpoint(folder, run_id, 60)))
    state = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    other = {**state, "features/mean": state["features/mean"] + 2 * state["features/scale"]}
    files = {
        "renamed": state,
        "moved": other,
        "weights": {"weights": state["weights"]},
        "one of two": {"weights": state["weights"], "features/mean": state["features/mean"]},
        "too short": {**state, "features/mean": state["features/mean"][:-1]},
    }
    own = [word for word in words if word.startswith("data")]
    found = {}
    for name, arrays in files.items():
        np.savez(place / "file.npz", **arrays)
        done = main("evaluate", "--checkpoint", "file.npz", *own, "--json")
        found[name] = json.loads(done.stdout)["accuracy"] if done.returncode == 0 else done.stderr
    right = accuracy(state, data.x_test, data.y_test)
    assert found["renamed"] == found["weights"] == right
    assert found["moved"] == accuracy(other, data.x_test, data.y_test) != right
    for name in ("one of two", "too short"):
        assert "does not fit the model" in found[name] and "features/mean" in found[name]


def test_parameters_alone_are_the_start_of_another_run(
    trained: tuple[Path, list[str], str], place: Path, main: Main
) -> None:
    import tensorflow as tf

    folder, words, run_id = trained
    start = checkpoint(folder, run_id, 60)
    reader = tf.train.load_checkpoint(str(start))
    names = reader.get_variable_to_shape_map()
    np.savez(place / "copy.npz", **{name: reader.get_tensor(name) for name in names})
    more = ["steps=1", "save=npz", "save.every=1", "optimizer.learning_rate=1e-9"]
    cases = {"data.split_seed=7": "copy.npz", "data.standardise=false": str(start)}
    for split, path in cases.items():
        done = main("run", *words, *more, split, f"init_from={path}")
        assert (done.returncode, done.stderr) == (0, "")
        state = dict(np.load(checkpoint(place, done.stdout.split()[1], 1).with_suffix(".npz")))
        assert np.allclose(state["weights"], reader.get_tensor("weights"), atol=1e-7)
        data = read(*words, split)
        assert ("features/mean" in state) == bool(data.statistics)
        for name, value in data.statistics.items():
            assert np.array_equal(state[name], value)


def test_what_a_state_must_hold(
    trained: tuple[Path, list[str], str], place: Path, main: Main
) -> None:
    """Without statistics there are no entries of the state, and the others are the same."""
    words = [word for word in trained[1] if "steps" not in word]
    sets = []
    for plain in (True, False):
        done = main("run", *words, "steps=1", "save=npz", f"data.standardise={plain}".lower())
        sets.append(set(np.load(checkpoint(place, done.stdout.split()[1], 1).with_suffix(".npz"))))
    assert sets[0] - sets[1] == {"features/mean", "features/scale"} and sets[1] < sets[0]


@pytest.mark.long
def test_trials_of_a_sweep_are_encoded_as_each_says(place: Path, main: Main, client: Any) -> None:
    words = [*HOW, *wine(place), "save=npz"]
    done = main("run", "-m", *words, "data.standardise=true,false", "data.features=[ash,hue],null")
    assert done.returncode == 0, done.stderr
    alone = main("run", *words, "data.standardise=false", "data.features=[ash,hue]")
    digests = {
        run.info.run_id: run.data.tags["waymark.state_digest"]
        for run in client(place).search_runs(["1"])
        if "waymark.state_digest" in run.data.tags
    }
    assert len(digests) == 5 and len(set(digests.values())) == 4
    assert list(digests.values()).count(digests[alone.stdout.split()[1]]) == 2


def test_what_would_be_read_is_shown(place: Path, main: Main) -> None:
    frame = cars().astype({"sold": object})
    frame.loc[[3, 5], "size"], frame.loc[7, "colour"] = None, "\x1b[31mred"
    path = written(place / "cars.csv", frame)
    words = ["data=table", f"data.path={path}", "data.target=price", "data.missing=mean"]
    words += ["data.categories=[doors]", "data.unknown=column"]
    done = main("data", *words)
    assert done.returncode == 0 and "\x1b" not in done.stdout
    shown = [line.split() for line in done.stdout.splitlines()]
    low, high = frame["size"].min(), frame["size"].max()
    assert ["size", "number", f"{low:g}", "to", f"{high:g}", "2"] in shown
    assert ["doors", "category", "4:", "2,", "3,", "4,", "5more", "0"] in shown
    assert ["sold", "boolean", "true", "in", str(frame["sold"].sum()), "0"] in shown
    body = json.loads(main("data", *words, "--json").stdout)
    names = [column["name"] for column in body["columns"]]
    assert names == ["id", "size", "colour", "sold", "doors", "wheels"]
    assert len(body["feature_names"]) == body["parts"]["train"]["shape"][0]
    assert [c["missing"] for c in body["columns"]] == [0, 2, 0, 0, 0, 0]


def test_a_refusal_is_one_line_and_leaves_nothing(place: Path, main: Main) -> None:
    frame = pd.DataFrame({"a": [1.0, None, 3.0] * 9, "y": [0, 1, 1] * 9})
    words = [*SHORT, "data=table", f"data.path={written(place / 't.csv', frame)}", "data.target=y"]
    done = main("run", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"waymark: {place}/t.csv: column 'a' has 9 missing values, the ")
    assert not list(place.glob("mlruns/artifacts/*/*"))
    assert main("run", *words, "data.missing=mean").returncode == 0


def test_a_record_from_before_tables_had_weights_goes_on_as_it_would_have(
    trained: tuple[Path, list[str], str],
    tmp_path: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _, run_id = trained
    said, ends = [], []
    for place in (tmp_path / "as it is", tmp_path / "older"):
        monkeypatch.chdir(shutil.copytree(folder, place))
        (record,) = place.glob(f"mlruns/artifacts/*/{run_id}/artifacts/config.yaml")
        if place.name == "older":
            record.write_text(record.read_text().replace("  weight: null\n", ""))
            assert "\n  weight:" not in record.read_text()
        said.append(json.loads(main("evaluate", run_id, "--json").stdout))
        done = main("resume", run_id, "steps=70")
        assert done.returncode == 0, done.stderr
        ends.append(local_end(place, run_id))
    assert said[0] == said[1] and not ends[1].unlike(ends[0])
