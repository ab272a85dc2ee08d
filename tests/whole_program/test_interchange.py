"""Interchange: plain TensorFlow and NumPy read what Waymark writes, and the other way round.

The TF1 tutorial's programs are written here as it writes them: sessions, placeholders,
no code of Waymark's.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waymark import __main__ as command
from waymark.checkpoints.ckpt import Ckpt
from waymark.checkpoints.external import read_parameters
from waymark.checkpoints.npz import Npz
from waymark.checkpoints.retention import Save
from waymark.checkpoints.store import CheckpointStore
from waymark.comparison.recorded_run import load_parameters
from waymark.config.compose import compose_config
from waymark.data.sources import Dataset, Mnist5k
from waymark.errors import BadInput
from waymark.evaluation.restore import evaluate_files, evaluate_run
from waymark.execution.execute import Result, run
from waymark.training.runtime import start_tensorflow

from tests.support.processes import THREADS

SHAPES = {
    "softmax": {"weights": (784, 10)},
    "cnn": {
        "weights": (5, 5, 1, 32),
        "bias": (32,),
        "weights_1": (5, 5, 32, 64),
        "bias_1": (64,),
        "weights_2": (3136, 1024),
        "bias_2": (1024,),
        "weights_3": (1024, 10),
        "bias_3": (10,),
    },
}


@pytest.fixture(scope="module", autouse=True)
def tf() -> Any:
    return start_tensorflow(2)


@cache
def mnist() -> Dataset:
    return Mnist5k(sampling="replacement").load()


def arrays(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images as in the TF1 tutorial (float32 [N, 784], divided by 255), one-hot labels."""
    data = mnist()
    images, labels = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
    pixels = images.reshape(len(images), 784).astype(np.float32) / np.float32(255)
    return pixels, np.eye(10, dtype=np.float32)[labels]


# The TF1 tutorial's programs


@dataclass
class Program:
    """A graph of the TF1 tutorial's, in a session of its own."""

    session: Any
    saver: Any
    inputs: Any
    labels: Any
    accuracy: Any
    train: Any
    parameters: list[Any]

    def measure(self) -> float:
        pixels, onehot = arrays("test")
        feed = {self.inputs: pixels, self.labels: onehot}
        return float(self.session.run(self.accuracy, feed))

    def step(self, count: int) -> None:
        """Train for some steps on batches of 100."""
        pixels, onehot = arrays("train")
        draw = np.random.default_rng(3)
        for _ in range(count):
            picked = draw.integers(0, len(pixels), 100)
            self.session.run(self.train, {self.inputs: pixels[picked], self.labels: onehot[picked]})

    def values(self) -> list[np.ndarray]:
        return list(self.session.run(self.parameters))


def softmax_logits(v1: Any, inputs: Any) -> tuple[Any, list[Any]]:
    import tensorflow as tf

    weights = v1.Variable(v1.truncated_normal([784, 10], stddev=0.01, seed=1), name="weights")
    return tf.matmul(inputs, weights), [weights]


def cnn_logits(v1: Any, inputs: Any) -> tuple[Any, list[Any]]:
    """Build the TF1 tutorial's SimpleCNN; TensorFlow names all but the first two variables."""
    import tensorflow as tf

    parameters: list[Any] = []

    def pair(shape: list[int]) -> tuple[Any, Any]:
        first = v1.truncated_normal(shape, stddev=0.1, seed=len(parameters))
        weights = v1.Variable(first, name="weights")
        bias = v1.Variable(tf.constant(0.1, shape=shape[-1:]), name="bias")
        parameters.extend([weights, bias])
        return weights, bias

    x = tf.reshape(inputs, [-1, 28, 28, 1])
    for shape in ([5, 5, 1, 32], [5, 5, 32, 64]):
        weights, bias = pair(shape)
        x = tf.nn.relu(tf.nn.conv2d(x, weights, strides=[1, 1, 1, 1], padding="SAME") + bias)
        x = tf.nn.max_pool(x, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME")
    weights, bias = pair([3136, 1024])
    x = tf.nn.relu(tf.matmul(tf.reshape(x, [-1, 3136]), weights) + bias)
    x = tf.nn.dropout(x, rate=0.0)
    weights, bias = pair([1024, 10])
    return tf.matmul(x, weights) + bias, parameters


@contextlib.contextmanager
def program(model: str) -> Iterator[Program]:
    """Build the TF1 tutorial's whole training program, as its second parts rebuild it too."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default():
        inputs = v1.placeholder(tf.float32, [None, 784], name="inputs")
        labels = v1.placeholder(tf.float32, [None, 10], name="labels")
        logits, parameters = (softmax_logits if model == "softmax" else cnn_logits)(v1, inputs)
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        rate = 1e-3 if model == "softmax" else 1e-4
        train = v1.train.AdamOptimizer(rate).minimize(loss)
        right = tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1))
        accuracy = tf.reduce_mean(tf.cast(right, tf.float32))
        for tensor in (inputs, labels, accuracy):
            v1.add_to_collection("train_var", tensor)
        saver = v1.train.Saver(max_to_keep=7, keep_checkpoint_every_n_hours=1)
        with v1.Session() as session:
            yield Program(session, saver, inputs, labels, accuracy, train, parameters)


@dataclass(frozen=True)
class Written:
    """What the TF1 tutorial's program left: saved_model/, the arrays, the accuracy measured."""

    folder: Path
    values: list[np.ndarray]
    accuracy: float

    @property
    def prefix(self) -> Path:
        return self.folder / "saved_model" / "model_ckpt-3"


def wrote(model: str, folder: Path) -> Written:
    import tensorflow as tf

    with program(model) as tutorial:
        tutorial.session.run(tf.compat.v1.global_variables_initializer())
        tutorial.step(3 if model == "cnn" else 40)
        path = str(folder / "saved_model" / "model_ckpt")
        (folder / "saved_model").mkdir()
        tutorial.saver.save(tutorial.session, path, global_step=3, write_meta_graph=False)
        tutorial.saver.export_meta_graph(f"{path}.meta", collection_list=["train_var"])
        return Written(folder, tutorial.values(), tutorial.measure())


@pytest.fixture(scope="module")
def softmax_program(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return wrote("softmax", tmp_path_factory.mktemp("softmax"))


@pytest.fixture(scope="module")
def cnn_program(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return wrote("cnn", tmp_path_factory.mktemp("cnn"))


# Waymark's runs


@dataclass(frozen=True)
class Run:
    result: Result
    step: int

    @property
    def checkpoints(self) -> Path:
        return self.result.folder / "checkpoints"

    @property
    def prefix(self) -> Path:
        return self.checkpoints / f"model_ckpt-{self.step}"

    def digest_of(self, state: Mapping[str, np.ndarray]) -> bool:
        from waymark.digest import digest

        return digest(state) == self.result.state_digest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def waymark(home: Path, *overrides: str) -> Run:
    usual = ["progress=false", "record.changes=false", "eval_every=0", THREADS]
    resolved = compose_config([*usual, *overrides])
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(home):
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Run(run(resolved), resolved.config.steps)


@pytest.fixture(scope="module")
def softmax_run(home: Path) -> Run:
    return waymark(home, "steps=30", "save.every=10", "save.max_to_keep=2")


@pytest.fixture(scope="module")
def cnn_run(home: Path) -> Run:
    return waymark(home, "model=cnn", "steps=4", "save.every=0")


@pytest.fixture(scope="module")
def npz_run(home: Path) -> Run:
    return waymark(home, "save=npz", "steps=30", "save.every=0")


def same_float32(measured: float, recorded: float) -> bool:
    """Tell whether a float32 accuracy is the recorded one, rounded to float32."""
    return np.float32(measured) == np.float32(recorded)


# Others read what Waymark writes


def test_plain_saver_restores_the_weights_alone(tf: Any, softmax_run: Run) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v = v1.Variable(tf.zeros([784, 10]), name="anything")
        v1.train.Saver({"weights": v}).restore(session, str(softmax_run.prefix))
        weights = session.run(v)
    pixels, onehot = arrays("test")
    hits = int(((pixels @ weights).argmax(1) == onehot.argmax(1)).sum())
    assert hits / len(pixels) == softmax_run.result.restored_accuracy


def test_load_checkpoint_reads_the_whole_state(tf: Any, softmax_run: Run) -> None:
    reader = tf.train.load_checkpoint(str(softmax_run.prefix))
    state = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    slots = {"weights/Adam", "weights/Adam_1", "beta1_power", "beta2_power"}
    assert set(state) == {"step", "weights"} | slots
    state = {name: np.asarray(value) for name, value in state.items()}
    assert state["step"] == 30
    assert state["step"].dtype == np.int64
    assert softmax_run.digest_of(state)


def test_latest_checkpoint_finds_it_also_in_a_moved_folder(
    tf: Any, softmax_run: Run, tmp_path: Path
) -> None:
    assert tf.train.latest_checkpoint(str(softmax_run.checkpoints)) == str(softmax_run.prefix)
    moved = tmp_path / "moved"
    shutil.copytree(softmax_run.checkpoints, moved)
    assert tf.train.latest_checkpoint(str(moved)) == str(moved / "model_ckpt-30")
    state = tf.train.get_checkpoint_state(str(moved))
    names = [Path(path).name for path in state.all_model_checkpoint_paths]
    assert names == ["model_ckpt-20", "model_ckpt-30"]


@pytest.mark.parametrize("model", ["softmax", "cnn"])
def test_the_tutorials_program_restores_all_its_variables_and_goes_on(
    model: str, tf: Any, request: pytest.FixtureRequest
) -> None:
    done: Run = request.getfixturevalue(f"{model}_run")
    with program(model) as tutorial:
        tutorial.saver.restore(tutorial.session, str(done.prefix))
        assert same_float32(tutorial.measure(), done.result.restored_accuracy)
        variables = tf.compat.v1.global_variables()
        found = {v.op.name: tutorial.session.run(v) for v in variables}
        slots = {f"{name}/{slot}" for name in SHAPES[model] for slot in ("Adam", "Adam_1")}
        assert set(found) == set(SHAPES[model]) | slots | {"beta1_power", "beta2_power"}
        assert done.digest_of({**found, "step": np.array(done.step, np.int64)})
        tutorial.step(1)
        after = tutorial.session.run(variables)
        assert all(np.isfinite(value).all() for value in after)
        changed = {
            v.op.name
            for v, b in zip(variables, after, strict=True)
            if (b != found[v.op.name]).any()
        }
        assert changed == set(found)


def test_numpy_reads_the_npz_without_pickle(npz_run: Run, softmax_run: Run) -> None:
    with np.load(npz_run.checkpoints / "weights-30.npz", allow_pickle=False) as file:
        state = dict(file)
    assert npz_run.digest_of(state)
    assert softmax_run.digest_of(state)  # the format does not change a bit
    pixels, onehot = arrays("test")
    hits = int(((pixels @ state["weights"]).argmax(1) == onehot.argmax(1)).sum())
    assert hits / len(pixels) == npz_run.result.restored_accuracy


def test_waymark_reads_its_own_files_as_anybodys(softmax_run: Run, npz_run: Run) -> None:
    for path in (softmax_run.prefix, npz_run.checkpoints / "weights-30.npz"):
        assert scored("softmax", path).accuracy == softmax_run.result.restored_accuracy


@pytest.mark.parametrize("from_meta", [False, True])
def test_waymark_itself_scores_state_and_graph_alike(
    from_meta: bool, softmax_run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = evaluate_run(softmax_run.result.run_id, "latest", from_meta, {})
    assert found.step == 30
    assert found.accuracy == softmax_run.result.restored_accuracy


PLAIN = """
import json, sys
import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
found = {}
data = np.load("data.npz")
for model, folder, prefix in json.load(open("runs.json")):
    with tf.Graph().as_default(), v1.Session() as session:
        saver = v1.train.import_meta_graph(f"{folder}/model_ckpt.meta")
        saver.restore(session, prefix)
        inputs, labels, accuracy = v1.get_collection("train_var")
        assert (inputs.dtype, inputs.shape.as_list()) == (tf.float32, [None, 784])
        assert (labels.dtype, labels.shape.as_list()) == (tf.float32, [None, 10])
        assert (accuracy.dtype, accuracy.shape.as_list()) == (tf.float32, [])
        assert inputs.name == "inputs:0"
        value = session.run(accuracy, {inputs: data["x"], labels: data["y"]})
        found[model] = float(value)
assert not [name for name in sys.modules if name.startswith("waymark")]
print(json.dumps(found))
"""


def test_plain_tensorflow_scores_the_graph_file_without_waymark(
    softmax_run: Run, cnn_run: Run, tmp_path: Path
) -> None:
    runs = {"softmax": softmax_run, "cnn": cnn_run}
    rows = [[name, str(each.checkpoints), str(each.prefix)] for name, each in runs.items()]
    (tmp_path / "runs.json").write_text(json.dumps(rows))
    pixels, onehot = arrays("test")
    np.savez(tmp_path / "data.npz", x=pixels, y=onehot)
    (tmp_path / "plain.py").write_text(PLAIN)
    done = subprocess.run(
        [sys.executable, "-I", "plain.py"],
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, each in runs.items():
        assert same_float32(found[name], each.result.restored_accuracy)


# Waymark reads what others write


def scored(model: str, path: Path, from_meta: bool = False) -> dict[str, Any]:
    resolved = compose_config([f"model={model}", THREADS])
    return evaluate_files(resolved, path, from_meta)


def softmax_by_hand(weights: np.ndarray) -> int:
    pixels, onehot = arrays("test")
    return int(((pixels @ weights).argmax(1) == onehot.argmax(1)).sum())


@pytest.mark.parametrize(
    ("model", "form"),
    [
        ("softmax", "prefix"),
        ("cnn", "prefix"),
        ("softmax", "index"),
        ("softmax", "folder"),
        ("softmax", "moved"),
    ],
)
def test_a_tutorials_saver_checkpoint_gives_its_accuracy(
    model: str, form: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tutorial: Written = request.getfixturevalue(f"{model}_program")
    path = tutorial.prefix
    if form == "index":
        path = path.with_name(f"{path.name}.index")
    elif form == "folder":
        path = path.parent
    elif form == "moved":
        shutil.copytree(path.parent, tmp_path / "moved")
        path = tmp_path / "moved" / path.name
    found = scored(model, path)
    assert same_float32(found.accuracy, tutorial.accuracy)
    assert found.total == 1000
    if model == "softmax":
        assert found.hits == softmax_by_hand(tutorial.values[0])


@pytest.mark.parametrize("model", ["softmax", "cnn"])
def test_a_tutorials_graph_file_training_operations_included_gives_its_accuracy(
    model: str, request: pytest.FixtureRequest
) -> None:
    tutorial: Written = request.getfixturevalue(f"{model}_program")
    meta = tutorial.prefix.with_name("model_ckpt.meta").read_bytes()
    assert b"Adam" in meta
    assert b"gradients" in meta
    found = scored(model, tutorial.prefix, from_meta=True)
    assert same_float32(found.accuracy, tutorial.accuracy)


@pytest.mark.parametrize("names", ["arr_0", "weights", "anything"])
def test_an_npz_of_one_array_gives_its_accuracy(
    names: str, softmax_program: Written, tmp_path: Path
) -> None:
    path = tmp_path / "weight_storage.npz"
    (weights,) = softmax_program.values
    if names == "arr_0":
        np.savez(path, weights)  # as the TF1 tutorial does
    else:
        np.savez(path, **{names: weights})
    found = scored("softmax", path)
    assert found.hits == softmax_by_hand(weights)
    assert same_float32(found.accuracy, softmax_program.accuracy)


def test_an_npz_of_eight_positional_arrays_gives_its_accuracy(
    cnn_program: Written, tmp_path: Path
) -> None:
    path = tmp_path / "cnn_weight_storage.npz"
    np.savez(path, *cnn_program.values)
    found = scored("cnn", path)
    assert same_float32(found.accuracy, cnn_program.accuracy)


def test_the_pickled_npz_is_refused_with_the_line_that_converts_it(
    cnn_program: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cnn_weight_storage.npz"
    pickled = np.empty(8, object)  # what old NumPy made of the list
    pickled[:] = cnn_program.values
    np.savez(path, pickled)
    with pytest.raises(BadInput, match="pickled object array, which is never loaded") as caught:
        scored("cnn", path)
    assert "\n" not in str(caught.value)
    line = re.search(r"np\.savez\(.*\)$", str(caught.value))
    assert line is not None
    monkeypatch.chdir(tmp_path)
    exec(line[0], {"np": np})
    found = scored("cnn", tmp_path / "converted.npz")
    assert same_float32(found.accuracy, cnn_program.accuracy)


class Armed:
    def __reduce__(self) -> Any:
        return (open, ("armed", "w"))


@pytest.mark.parametrize("name", ["arr_0", "weights"])
def test_no_pickle_is_ever_executed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = np.empty(1, object)
    pickled[:] = [Armed()]
    np.savez("armed.npz", **{name: pickled})
    with pytest.raises(BadInput, match="pickled object array"):
        read_parameters(Path("armed.npz"), SHAPES["softmax"], "--checkpoint")
    assert not Path("armed").exists()


def test_the_command_scores_files(
    softmax_program: Written,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def evaluate(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["waymark", "evaluate", *arguments])
        status = command.main()
        return status, capsys.readouterr().out

    hits, prefix = softmax_by_hand(softmax_program.values[0]), str(softmax_program.prefix)
    status, out = evaluate("--checkpoint", prefix, "model=softmax", THREADS)
    assert status == 0
    assert out.startswith(f"accuracy {hits / 1000:.4f}, loss ")
    assert f"({hits} of 1000 examples)\nrestored from {prefix}\n" in out
    status, out = evaluate("--checkpoint", prefix, "--from", "meta", "--json", THREADS)
    assert status == 0
    said = {"accuracy": hits / 1000, "hits": hits, "total": 1000, "source": prefix}
    assert json.loads(out) == said
    assert evaluate("--checkpoint", prefix, "model=cnn", THREADS) == (2, "")
    assert list(tmp_path.iterdir()) == []  # it writes nothing


# What does not fit is refused by name


def near(shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, 0.5, np.float32)


W = near((784, 10))
CNN = {name: near(shape) for name, shape in SHAPES["cnn"].items()}
LISTED = list(CNN.values())


def no(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in CNN.items() if key != name}


@pytest.mark.parametrize(
    ("model", "entries", "said"),
    [
        ("softmax", {}, "no entry fits weights [784, 10]"),
        ("softmax", {"weights": W[:, :9]}, "no entry fits weights [784, 10] (it has weights [784"),
        ("softmax", {"weights": W.T}, "no entry fits weights [784, 10]"),
        ("softmax", {"weights": W, "bias": W[0]}, "its entry bias [10] belongs to no parameter"),
        ("softmax", {"weights": W, "z": W, "a": W}, "its entry a [784, 10] belongs to no"),
        ("softmax", {"weights": W, "z/Adam": W}, "its entry z/Adam [784, 10] belongs to no"),
        ("softmax", {"a": W, "b": W}, "['a', 'b'] fit equally weights [784, 10]"),
        ("softmax", {"weights": W.astype(np.int32)}, "weights is int32, not floating point"),
        ("softmax", {"weights": W > 0}, "weights is bool, not floating point"),
        ("softmax", {"weights": W.astype("c8")}, "weights is complex64, not floating point"),
        ("cnn", no("bias_2"), "no entry fits bias_2 [1024]"),
        ("cnn", no("weights"), "no entry fits weights [5, 5, 1, 32]"),
        ("cnn", {**CNN, "extra": W}, "its entry extra [784, 10] belongs to no parameter"),
        ("cnn", {**no("bias_3"), "b": W[0], "a": W[0]}, "['b', 'a'] fit equally bias_3 [10]"),
        ("cnn", {**CNN, "bias_3": W[0].astype(np.uint8)}, "bias_3 is uint8, not floating point"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused_by_name(
    model: str, entries: dict[str, np.ndarray], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, **entries)
    with pytest.raises(BadInput) as caught:
        read_parameters(path, SHAPES[model], "--checkpoint")
    text = str(caught.value)
    assert text.startswith(f"--checkpoint={str(path)!r}: ")
    assert said in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"other": near((784, 9))}, "no entry fits weights [784, 10]"),
        ({"weights": W, "more": near((3, 4))}, "its entry more [3, 4] belongs to no parameter"),
        ({"a": W, "b": W + 1}, "['a', 'b'] fit equally weights [784, 10]"),
        ({"weights": W.astype(np.int32)}, "weights is int32, not floating point"),
    ],
)
def test_a_saver_checkpoint_that_does_not_fit_is_refused_by_name(
    entries: dict[str, np.ndarray], said: str, tf: Any, tmp_path: Path
) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for name, value in entries.items():
            v1.Variable(value, name=name)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model_ckpt"), 1, write_meta_graph=False)
    with pytest.raises(BadInput) as caught:
        read_parameters(tmp_path / "model_ckpt-1", SHAPES["softmax"], "--checkpoint")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_parameters_of_one_shape_need_names(tmp_path: Path) -> None:
    shapes = {"left": (2, 2), "right": (2, 2)}
    left, right = near((2, 2)), near((2, 2)) * 2
    np.savez(tmp_path / "named.npz", right=right, left=left)
    found = read_parameters(tmp_path / "named.npz", shapes, "init_from")
    assert list(found) == ["left", "right"]
    assert (found["left"] == left).all()
    assert (found["right"] == right).all()
    np.savez(tmp_path / "listed.npz", left, right)
    with pytest.raises(BadInput, match=r"\['arr_0', 'arr_1'\] fit equally left"):
        read_parameters(tmp_path / "listed.npz", shapes, "init_from")
    np.savez(tmp_path / "one.npz", left)
    with pytest.raises(BadInput, match=r"no entry fits right \[2, 2\]"):
        read_parameters(tmp_path / "one.npz", shapes, "init_from")
    np.savez(tmp_path / "half.npz", left=left, other=right)
    found = read_parameters(tmp_path / "half.npz", shapes, "init_from")  # only one place is left
    assert (found["right"] == right).all()


def test_float64_is_read_as_float32(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(784, 10))
    np.savez(tmp_path / "double.npz", values)
    found = read_parameters(tmp_path / "double.npz", SHAPES["softmax"], "--checkpoint")
    assert found["weights"].dtype == np.float32
    assert (found["weights"] == values.astype(np.float32)).all()


def test_slots_and_counters_are_passed_over(tmp_path: Path) -> None:
    entries = {"weights": W, "weights/Adam": W, "weights/Adam_1": W, "weights/Momentum": W}
    entries |= {"beta1_power": np.float32(0.5), "global_step": np.int64(3)}
    np.savez(tmp_path / "all.npz", **entries)
    found = read_parameters(tmp_path / "all.npz", SHAPES["softmax"], "--checkpoint")
    assert list(found) == ["weights"]


def object_based(tf: Any, folder: Path, values: list[np.ndarray]) -> Path:
    """Save arrays with `tf.train.Checkpoint`, as TensorFlow 2 programs do."""
    tracked = {f"v{i}": tf.Variable(value) for i, value in enumerate(values)}
    checkpoint = tf.train.Checkpoint(**tracked, step=tf.Variable(3, dtype=tf.int64))
    return Path(checkpoint.save(str(folder / "ckpt")))


@pytest.mark.parametrize("model", ["softmax", "cnn"])
def test_an_object_based_checkpoint_matches_by_shape(
    model: str, tf: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tutorial: Written = request.getfixturevalue(f"{model}_program")
    path = object_based(tf, tmp_path, tutorial.values)
    found = scored(model, path)
    assert same_float32(found.accuracy, tutorial.accuracy)


@pytest.mark.parametrize("values", [[W, W], [W[0]], [W, W[0]]])
def test_an_object_based_checkpoint_of_something_else_is_refused(
    values: list[np.ndarray], tf: Any, tmp_path: Path
) -> None:
    path = object_based(tf, tmp_path, values)
    with pytest.raises(BadInput, match="does not fit the model: ") as caught:
        read_parameters(path, SHAPES["softmax"], "--checkpoint")
    assert "\n" not in str(caught.value)


def test_an_object_based_checkpoint_matches_by_name(tf: Any, tmp_path: Path) -> None:
    left, right = near((2, 2)), near((2, 2)) * 2
    checkpoint = tf.train.Checkpoint(right=tf.Variable(right), left=tf.Variable(left))
    path = Path(checkpoint.save(str(tmp_path / "ckpt")))
    found = read_parameters(path, {"left": (2, 2), "right": (2, 2)}, "init_from")
    assert (found["left"] == left).all()
    assert (found["right"] == right).all()


def saved(tf: Any, prefix: Path, **options: Any) -> np.ndarray:
    """Save weights [784, 10] as a TF1 program does, in parts or shards; return them."""
    parts, devices = options.pop("parts", None), options.pop("devices", ["/cpu:0"])
    v1 = tf.compat.v1
    with (
        tf.Graph().as_default(),
        v1.Session(config=v1.ConfigProto(device_count={"CPU": 2})) as session,
    ):
        inputs = v1.placeholder(tf.float32, [None, 784])
        labels = v1.placeholder(tf.float32, [None, 10])
        with tf.device(devices[0]):
            first = v1.random_normal_initializer(seed=5)
            split = parts and (lambda **_: parts)
            weights = v1.get_variable("weights", [784, 10], initializer=first, partitioner=split)
            weights = tf.convert_to_tensor(weights)
        with tf.device(devices[-1]):
            v1.get_variable("global_step", initializer=np.int64(3))
        right = tf.equal(tf.argmax(inputs @ weights, 1), tf.argmax(labels, 1))
        for tensor in (inputs, labels, tf.reduce_mean(tf.cast(right, tf.float32))):
            v1.add_to_collection("train_var", tensor)
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver(**options)
        saver.save(session, str(prefix), write_meta_graph=False)
        saver.export_meta_graph(f"{prefix}.meta")
        return np.asarray(session.run(weights))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"parts": [3, 1]}, marks=pytest.mark.long),
        pytest.param({"parts": [1, 2]}, marks=pytest.mark.long),
        pytest.param({"parts": [784, 1]}, marks=pytest.mark.long),
        pytest.param({"sharded": True, "devices": ["/cpu:0", "/cpu:1"]}, marks=pytest.mark.long),
        {"sharded": True, "devices": ["/cpu:0", "/cpu:1"], "parts": [5, 1]},
    ],
)
def test_partitioned_and_sharded_checkpoints_are_read(
    options: dict[str, Any], tf: Any, tmp_path: Path
) -> None:
    weights = saved(tf, tmp_path / "x", **options)
    assert len([*tmp_path.glob("x.data-*")]) == len(options.get("devices", ["/cpu:0"]))
    found = read_parameters(tmp_path, SHAPES["softmax"], "--checkpoint")
    assert (found["weights"] == weights).all()
    accuracies = [scored("softmax", tmp_path / "x", how).accuracy for how in (False, True)]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("sharded", [False, True])
def test_the_first_format_is_refused_with_what_converts_it(
    sharded: bool, tf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = saved(
        tf, tmp_path / "x", write_version=tf.compat.v1.train.SaverDef.V1, sharded=sharded
    )
    with pytest.raises(BadInput, match=r"first format \(V1\), which is not read") as caught:
        scored("softmax", tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).partition("converts it: ")[2], {"tf": tf, "np": np})
    found = read_parameters(tmp_path / "converted.npz", SHAPES["softmax"], "--checkpoint")
    assert (found["weights"] == weights).all()
    with pytest.raises(BadInput, match=r"its saver reads TensorFlow's first format \(V1\) alone"):
        scored("softmax", tmp_path / "x", True)


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_folder_whose_state_file_is_absolute_may_be_moved(
    how: str, tf: Any, tmp_path: Path
) -> None:
    """A copy reads what lies in it, whatever lies where it was copied from."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    weights = saved(tf, old / "x")
    state = f'model_checkpoint_path: "{old}/x"\nall_model_checkpoint_paths: "{old}/x"\n'
    (old / "checkpoint").write_text(state)
    assert (read_parameters(old, SHAPES["softmax"], "here")["weights"] == weights).all()
    (old.rename if how == "moved" else partial(shutil.copytree, old))(new)
    if how == "copied":
        (old / "x.index").write_bytes(b"")
    assert (read_parameters(new, SHAPES["softmax"], "here")["weights"] == weights).all()
    assert scored("softmax", new, True).hits == scored("softmax", new).hits
    (tmp_path / "alone").mkdir()
    if how == "moved":  # a state file alone, which leads where the checkpoint is
        state = state.replace("/old/", "/new/")
        (tmp_path / "alone" / "checkpoint").write_text(state)
        found = read_parameters(tmp_path / "alone", SHAPES["softmax"], "here")
        assert (found["weights"] == weights).all()


@pytest.mark.parametrize(
    "name", ["x" * 300, "nothing", "nothing.npz", "nothing.index", "empty", ".", "text.npz", "text"]
)
@pytest.mark.parametrize("from_meta", [False, True])
def test_what_is_no_checkpoint_is_refused(
    name: str, from_meta: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for file in ("text.npz", "text.index", "text.data-00000-of-00001", "text"):
        (tmp_path / file).write_text("no checkpoint\n" * 20)
    with pytest.raises(BadInput) as caught:
        scored("softmax", Path(name), from_meta)
    assert str(caught.value).startswith(f"--checkpoint={name!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("from_meta", [False, True])
@pytest.mark.parametrize("body", [b"\xff\xfe\x00", b"no state", b'model_checkpoint_path: "x"'])
def test_a_damaged_state_file_is_refused(body: bytes, from_meta: bool, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(body)
    with pytest.raises(BadInput) as caught:
        scored("softmax", tmp_path, from_meta)
    assert str(caught.value).startswith("--checkpoint=")
    assert "\n" not in str(caught.value)


def test_a_damaged_file_gives_no_numbers(softmax_program: Written, tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", *softmax_program.values)
    whole = (tmp_path / "whole.npz").read_bytes()
    data = softmax_program.prefix.with_name("model_ckpt-3.data-00000-of-00001").read_bytes()
    index = softmax_program.prefix.with_name("model_ckpt-3.index").read_bytes()
    middle = len(whole) // 2
    flipped = bytearray(whole)
    flipped[middle] ^= 1
    turned = bytearray(data)
    turned[data.index(softmax_program.values[0].tobytes()[:64])] ^= 1
    for number, damaged in enumerate((whole[:middle], b"", bytes(flipped))):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"is damaged|cannot be read"):
            read_parameters(path, SHAPES["softmax"], "--checkpoint")
    for number, (first, second) in enumerate(((data[:100], index), (turned, index), (data, b""))):
        path = tmp_path / f"{number}"
        path.with_name(f"{number}.data-00000-of-00001").write_bytes(first)
        path.with_name(f"{number}.index").write_bytes(second)
        with pytest.raises(BadInput, match="cannot be read"):
            read_parameters(path, SHAPES["softmax"], "--checkpoint")


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("weights", "text")
    with pytest.raises(BadInput, match=r"cannot be read \('weights' is not an array as NumPy"):
        read_parameters(tmp_path / "other.npz", SHAPES["softmax"], "--checkpoint")


SMALL = {"w": np.arange(12, dtype=np.float32).reshape(4, 3), "b": np.ones(3, np.float32)}
SMALL_SHAPES = {name: value.shape for name, value in SMALL.items()}
changes = st.lists(
    st.tuples(
        st.integers(0, 1),  # which file
        st.sampled_from(["flip", "cut", "insert", "drop"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def changed(body: bytes, what: str, place: float, value: int) -> bytes:
    at = int(place * len(body))
    if what == "cut" or not body:
        return body[:at]
    if what == "flip":
        return body[:at] + bytes([body[at] ^ (1 << value % 8)]) + body[at + 1 :]
    return body[:at] + (bytes([value]) + body[at:] if what == "insert" else body[at + value :])


@pytest.mark.parametrize("form", ["npz", "ckpt"])
@settings(max_examples=200, deadline=None)
@given(changes)
def test_damage_gives_the_right_numbers_or_none(
    form: str, happened: list[tuple[int, str, float, int]]
) -> None:
    with TemporaryDirectory() as folder:
        prefix = Path(folder) / "model_ckpt-1"
        if form == "npz":
            np.savez(f"{prefix}.npz", **SMALL)
        else:
            Ckpt.write(None, prefix, SMALL)  # type: ignore[arg-type]
        files = sorted(Path(folder).iterdir())
        for which, *change in happened:
            file = files[which % len(files)]
            file.write_bytes(changed(file.read_bytes(), *change))
        path = files[0] if form == "npz" else prefix
        try:
            found = read_parameters(path, SMALL_SHAPES, "--checkpoint")
        except BadInput as error:
            found, said = {}, str(error)
        else:
            said = f"--checkpoint={str(path)!r}: "
        assert said.startswith(f"--checkpoint={str(path)!r}: ")
        assert "\n" not in said
        assert all((found[name] == SMALL[name]).all() for name in found)
        assert set(found) in ({"w", "b"}, set())


# Waymark's own checkpoints, with slots of a user's own optimizer


def published(folder: Path, kind: Any, names: list[str] | None, slots: dict[str, Any]) -> Path:
    """Publish a state with some slots at step 3; return what `init_from` would be given."""
    own = {"meta_graph": False} if kind is Ckpt else {}
    usual = {"every": 1, "max_to_keep": 2, "keep_every_n_hours": None, "keep_best": None}
    save = kind(asynchronous=False, log_model=False, **usual, **own)
    folder.mkdir()
    store = CheckpointStore(folder, save)
    store.parameters = names
    state = {"step": np.array(3, np.int64), "w": FOUR, "bias": FOUR[0], **slots}
    store.commit(Save(3, 1.0), state)
    return store.path(3) if kind is Ckpt else store.path(3).with_suffix(".npz")


FOUR = np.arange(4, dtype=np.float32).reshape(2, 2)
FITTING = {"w": (2, 2), "bias": (2,)}
OTHER = np.ones((2, 2), np.float32)
OWN = [  # the slots; whether they are known without a manifest, and by an old one
    ({"w/m": OTHER, "bias/v": OTHER[0], "decay": np.float32(0.5)}, True, True),
    ({"w/deep/er": OTHER}, True, True),
    ({"m/w": OTHER, "velocity": OTHER[0]}, False, True),
    ({"rows of w": np.ones(7, np.float32)}, False, False),
]


@pytest.mark.parametrize("kind", [Ckpt, Npz])
@pytest.mark.parametrize(("slots", "bare", "old"), OWN)
def test_own_checkpoints_are_read_whatever_their_slots_are_called(
    kind: Any, slots: dict[str, Any], bare: bool, old: bool, tmp_path: Path
) -> None:
    new = published(tmp_path / "new", kind, ["w", "bias"], slots)
    before = published(tmp_path / "old", kind, None, slots)
    without = published(tmp_path / "bare", kind, ["w", "bias"], slots)
    (tmp_path / "bare" / f"{kind.stem}-3.json").unlink()
    for path, known in ((new, True), (before, old), (without, bare)):
        if known:
            found = read_parameters(path, FITTING, "init_from")
            assert (found["w"].tolist(), found["bias"].tolist()) == (FOUR.tolist(), [0.0, 1.0])
        else:
            with pytest.raises(BadInput, match="belongs to no parameter"):
                read_parameters(path, FITTING, "init_from")
    record: Any = SimpleNamespace(folder=tmp_path)
    shutil.copytree(tmp_path / "new", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "mine-3.npz").write_text("no archive")
    tracking: Any = None  # nothing is asked of the store
    assert load_parameters(tracking, record, 3, FITTING)["w"].tolist() == FOUR.tolist()


@pytest.mark.parametrize("kind", [Ckpt, Npz])
def test_own_checkpoints_of_another_model_are_refused(kind: Any, tmp_path: Path) -> None:
    """What one model calls a parameter is no slot to another one."""
    new = published(tmp_path / "new", kind, ["w", "bias", "w/m"], {"w/m": OTHER})
    with pytest.raises(BadInput, match=r"its entry w/m \[2, 2\] belongs to no parameter"):
        read_parameters(new, FITTING, "init_from")
    with pytest.raises(BadInput, match=r"its entry bias \[2\] belongs to no parameter"):
        read_parameters(
            published(tmp_path / "two", kind, ["w", "bias"], {}), {"w": (2, 2)}, "init_from"
        )
    forged = published(tmp_path / "forged", kind, ["w", "bias"], {"extra": np.ones(7, np.float32)})
    other = published(tmp_path / "other", kind, ["w", "bias"], {})
    shutil.copy(other.parent / f"{kind.stem}-3.json", forged.parent)  # describes another file
    with pytest.raises(BadInput, match="its entry extra"):
        read_parameters(forged, FITTING, "init_from")
