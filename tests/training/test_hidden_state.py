"""What a model or an optimizer keeps beside the state is refused before training begins."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark.config.compose import compose_config
from waymark.config.record import recorded_model
from waymark.data.sources import Dataset
from waymark.evaluation import graph
from waymark.models.softmax import Softmax
from waymark.optimizers import Sgd
from waymark.training.hidden_state import HiddenState
from waymark.training.loop import Trainer, initial_state
from waymark.training.runtime import start_tensorflow

tf: Any = start_tensorflow(2)


def dataset() -> Dataset:
    x = np.random.default_rng(1).integers(0, 256, (40, 4, 5, 1), np.uint8)
    y = (np.arange(40) % 10).astype(np.int32)
    return Dataset("random", "memory", x, y, x, y)


def trainer(model: Any, **changed: Any) -> Trainer:
    config = compose_config(["batch_size=10", "runtime.intra_op_threads=2"]).config
    return Trainer(replace(config, model=model, **changed), dataset())


def mean(keep: Callable[[], Any], images: Any, dropout: Any) -> Any:
    """Return the moving mean of what passes, moved in training: what no parameter holds."""
    moving = keep()
    if dropout is not None:
        moving.assign(0.9 * moving + 0.1 * tf.reduce_mean(images))
    return moving


class Plain(Softmax):
    def __init__(self) -> None:
        super().__init__(init_stddev=0.01)


class OnInstance(Plain):
    kept: Any = None

    def keep(self) -> Any:
        if self.kept is None:
            self.kept = tf.Variable(0.0, trainable=False, name="moving")
        return self.kept

    def logits(self, parameters: Any, images: Any, dropout: Any) -> Any:
        return super().logits(parameters, images - mean(self.keep, images, dropout), dropout)


class Lifted(OnInstance):
    def keep(self) -> Any:
        with tf.init_scope():
            return super().keep()


class OnClass(OnInstance):
    def keep(self) -> Any:
        if OnClass.kept is None:
            OnClass.kept = tf.Variable(0.0, name="moving")
        return OnClass.kept


class BeforeTracing(OnInstance):
    def __init__(self) -> None:
        super().__init__()
        super().keep()


class InInitial(OnInstance):
    def initial(self, spec: Any, key: Any) -> Any:
        self.keep()
        return super().initial(spec, key)


GLOBAL = tf.Variable(0.0, trainable=False, name="moving")


class InModule(OnInstance):
    def keep(self) -> Any:
        return GLOBAL


class ReadOnly(Plain):
    def logits(self, parameters: Any, images: Any, dropout: Any) -> Any:
        return super().logits(parameters, images, dropout) + GLOBAL


class InScoring(OnInstance):
    def logits(self, parameters: Any, images: Any, dropout: Any) -> Any:
        if dropout is not None:
            return Softmax.logits(self, parameters, images, dropout)
        return super().logits(parameters, images, dropout)


class EachTime(Plain):
    def logits(self, parameters: Any, images: Any, dropout: Any) -> Any:
        moving = tf.Variable(0.0, name="moving")
        return super().logits(parameters, images, dropout) + moving


class Returned(Plain):
    """Return variables of one's own as first values, and use them instead of the parameters."""

    def initial(self, spec: Any, key: Any) -> Any:
        self.kept = tf.Variable(super().initial(spec, key)["weights"], name="moving")
        return {"weights": self.kept}

    def logits(self, parameters: Any, images: Any, dropout: Any) -> Any:
        return super().logits({"weights": self.kept}, images, dropout)


class Keras(Plain):
    layer: Any = None

    def logits(self, parameters: Any, images: Any, dropout: Any) -> Any:
        import keras

        if self.layer is None:
            self.layer = keras.layers.BatchNormalization()
        return super().logits(parameters, self.layer(images, training=dropout is not None), dropout)


@pytest.mark.parametrize("model", [OnInstance, Lifted, OnClass, BeforeTracing, InInitial, InModule,
                                   ReadOnly, InScoring, EachTime, Returned])  # fmt: skip
def test_a_variable_beside_the_state_is_refused_by_name(model: Any) -> None:
    for _ in range(2):  # what the first attempt made and left
        with pytest.raises(HiddenState, match=rf"{model.__name__}: \w+ the variable 'moving', "):
            trainer(model())


def test_a_keras_layers_variables_are_refused_by_name() -> None:
    with pytest.raises(HiddenState, match=r"Keras: \w+ the variable '(.*/)?gamma(_\w+)?', "):
        trainer(Keras())


def test_an_optimizers_variables_are_refused_by_name() -> None:
    class Counting(Sgd):
        def apply(self, *given: Any) -> None:
            GLOBAL.assign_add(1.0)
            super().apply(*given)

    with pytest.raises(HiddenState, match=r"<locals>\.Counting: uses the variable 'moving', "):
        trainer(Plain(), optimizer=Counting(learning_rate=0.1, momentum=0.0))


TABLE = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)
SEEN = np.zeros(1, np.float32)


def with_table(_: Any) -> Any:
    return TABLE.lookup(tf.constant([1], tf.int64))


def with_numpy(images: Any) -> Any:
    def count(value: np.ndarray) -> np.ndarray:
        SEEN[0] += value.size
        return SEEN

    return tf.reshape(tf.numpy_function(count, [images], tf.float32), [1])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (with_table, "uses a variable or table"),
        (with_numpy, "calls Python"),
        (lambda images: tf.py_function(lambda x: x, [images[0, 0, 0]], tf.float32), "calls Python"),
    ],
)
def test_other_places_that_keep_something_are_refused(more: Any, said: str) -> None:
    class Keeping(Plain):
        def logits(self, parameters: Any, images: Any, dropout: Any) -> Any:
            return super().logits(parameters, images, dropout) + more(images)

    with pytest.raises(HiddenState, match=said):
        trainer(Keeping())


def test_a_variable_made_for_the_graph_alone_is_refused() -> None:
    class ForGraph(OnInstance):
        def logits(self, parameters: Any, images: Any, dropout: Any) -> Any:
            if tf.compat.v1.executing_eagerly_outside_functions():
                return Softmax.logits(self, parameters, images, dropout)
            return Softmax.logits(self, parameters, images, dropout) + self.keep()

    config, data = replace(compose_config([]).config, model=ForGraph()), dataset()
    shapes = trainer(config.model).shapes
    with pytest.raises(HiddenState, match="makes the variable 'moving'"):
        graph.export(config, data.spec, shapes)


def test_first_values_may_be_variables() -> None:
    class Variables(Plain):
        def initial(self, spec: Any, key: Any) -> Any:
            return {name: tf.Variable(value) for name, value in super().initial(spec, key).items()}

    ours, other = trainer(Variables()), trainer(Plain())
    assert np.array_equal(ours.run_steps(3), other.run_steps(3))
    assert initial_state(replace(compose_config([]).config, model=Variables()), dataset().spec)[1]


MODULE = """
from dataclasses import dataclass

from waymark.models.softmax import Softmax

KEPT = []


@dataclass
class Moving(Softmax):
    def logits(self, parameters, images, dropout):
        import tensorflow as tf

        if not KEPT:
            KEPT.append(tf.Variable(0.0, trainable=False, name="moving"))
        if dropout is not None:
            KEPT[0].assign(0.9 * KEPT[0] + 0.1 * tf.reduce_mean(images))
        return super().logits(parameters, images - KEPT[0], dropout)


@dataclass
class Offset(Softmax):
    made = 0

    def __post_init__(self):
        Offset.made += 1
        self.first = Offset.made == 1

    def logits(self, parameters, images, dropout):
        return super().logits(parameters, images if self.first else 0 * images, dropout)
"""


@pytest.fixture
def own(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (place / "keeping.py").write_text(MODULE)
    yield
    sys.modules.pop("keeping", None)


SHORT = ["steps=20", "save.every=10", "eval_every=10", "runtime.intra_op_threads=2"]


def test_the_refusal_comes_before_a_run(
    own: None, place: Path, main: Callable[..., Any], client: Callable[[Path], Any]
) -> None:
    done = main("run", "model._target_=keeping.Moving", *SHORT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "waymark: keeping.Moving: makes the variable 'moving', whose value is in no checkpoint; "
        "all that a model or an optimizer keeps must be among what its initial() or slots() "
        "returns.\n"
    )
    assert client(place).search_runs(["0", "1"]) == []


def test_a_model_is_made_anew_from_its_record(tmp_path: Path) -> None:
    resolved = compose_config(["model=cnn"])
    path, model = tmp_path / "config.yaml", resolved.config.model
    path.write_text(resolved.record())
    again = recorded_model(path, model, [])
    assert (again, again is model) == (model, False)
    path.write_text(resolved.record().replace("keep_prob: 1.0", "keep_prob: '***'"))
    assert recorded_model(path, model, []) == model


def test_what_was_restored_is_scored_by_a_new_model(
    own: None, place: Path, main: Callable[..., Any]
) -> None:
    """One that computes otherwise than the one that was trained: only a new one shows it."""
    done = main("run", "model._target_=keeping.Offset", *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    told = re.findall(r"test accuracy, (?:last step|restored) +(\S+)", done.stdout)
    trained, restored = map(float, told)
    evaluated = main("evaluate", "latest", "trusted_modules=[keeping]")
    assert f"accuracy {restored:.4f}" in evaluated.stdout
    assert restored < 0.2 < trained
