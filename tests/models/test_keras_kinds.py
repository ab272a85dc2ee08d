"""More kinds of Keras models: Keras's own numbers for each, and what is refused of them."""

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waymark.checkpoints import State
from waymark.config.compose import compose_config
from waymark.data.dataset import from_arrays
from waymark.data.sources import Dataset, batch_indices
from waymark.digest import digest
from waymark.errors import BadInput
from waymark.evaluation.restore import load_data, score_state
from waymark.training.loop import Trainer
from waymark.training.runtime import start_tensorflow

tf: Any = start_tensorflow(2)

import keras  # noqa: E402

from tests.support import keras_kinds, keras_models, keras_refused  # noqa: E402

SEED, BATCH, STEPS = 5, 8, 20


def config(module: Any, kind: str, *overrides: str) -> Any:
    build = f"model.build={module.__name__}.{kind}"
    fixed = ["model=keras", build, f"batch_size={BATCH}", "runtime.intra_op_threads=2"]
    return compose_config([*fixed, f"seed={SEED}", *overrides]).config


@pytest.fixture(scope="module")
def data(small: Path) -> Dataset:
    return load_data(compose_config(["data=arrays", f"data.path={small}"]).config)


# The same bits


@pytest.mark.long
@pytest.mark.parametrize("kind", keras_kinds.OTHERS)
def test_rarer_kinds_in_pieces_of_any_sizes(
    kind: str, data: Dataset, tmp_path: Path, seed: int
) -> None:
    given = config(keras_kinds, kind, "save=" + ("npz", "ckpt")[len(kind) % 2])
    whole, other = Trainer(given, data), Trainer(config(keras_kinds, kind), data)
    losses, end = whole.run_steps(STEPS), whole.state()
    draw = random.Random(f"{seed}{kind}")
    cuts = [0, *sorted(draw.sample(range(1, STEPS), draw.randint(1, 6))), STEPS]
    pieces = []
    for number, (first, last) in enumerate(pairwise(cuts)):
        trainer, next_one = (other, whole) if number % 2 == 0 else (whole, other)
        assert trainer.step == first
        pieces.append(trainer.run_steps(last - first))
        given.save.write(tmp_path / f"state-{last}", trainer.state())
        state: State = given.save.read(tmp_path / f"state-{last}")
        assert digest(state) == digest(trainer.state())
        next_one.load(state)
    np.testing.assert_array_equal(np.concatenate(pieces), losses)
    assert digest(trainer.state()) == digest(end)
    fresh = score_state(config(keras_kinds, kind), data, end)
    assert fresh.metrics == trainer.score().metrics


def test_the_first_weights_depend_on_the_seed_alone(data: Dataset, seed: int) -> None:
    """Not on what was built, drawn, named or seeded before in the process."""

    def first(number: int) -> str:
        given = replace(config(keras_models, "batch_norm"), seed=number)
        values = given.model.initial(data.spec, lambda i: None, seed=number)
        values |= given.model.buffers(data.spec)
        return digest({name: value.numpy() for name, value in values.items()})

    draw, kinds = random.Random(seed), [*keras_models.OTHERS, *keras_models.KINDS]
    expected = [first(number) for number in (0, SEED)]
    assert len({*expected}) == 2
    for _ in range(4):
        keras.utils.set_random_seed(draw.randrange(2**32))
        getattr(keras_models, draw.choice(kinds))((8, 8, 1), 10)
        draw.choice([keras.utils.clear_session, lambda: keras.layers.Dense(3, name="dense")])()
        assert [first(number) for number in (0, SEED)] == expected


# Keras's own numbers


def by_keras(
    build: Any,
    data: Dataset,
    loss: Any,
    weights: np.ndarray | None = None,
    precision: str = "float32",
) -> tuple[list[float], Any]:
    """Train by model.train_on_batch with the batches that Waymark draws; return losses, model."""
    keras.utils.clear_session()  # so that the paths are those of a first model
    keras.utils.set_random_seed(SEED)
    keras.config.set_dtype_policy(precision)
    try:
        model = build(data.spec.shape, data.spec.outputs)
        optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.01, clipnorm=0.5)
        model.compile(optimizer, loss, jit_compile=False)
        x = tf.nest.map_structure(scaled, data.x_train[:])
        found = []
        for step in range(1, STEPS + 1):
            at = tf.constant(step, tf.int64)
            picked = batch_indices("replacement", SEED, at, BATCH, len(data.y_train)).numpy()
            counts = None
            if weights is not None:  # Keras divides by the number of examples, not by their weights
                counts = weights[picked] * (BATCH / weights[picked].sum())
            batch = tf.nest.map_structure(lambda array, rows=picked: array[rows], x)
            model.reset_metrics()
            told = model.train_on_batch(batch, data.y_train[picked], sample_weight=counts)
            found.append(float(told))
        return found, model
    finally:
        keras.config.set_dtype_policy("float32")


def scaled(array: np.ndarray) -> np.ndarray:
    divided = array.astype(np.float32) / np.float32(255)
    return divided if array.dtype == np.uint8 else array.astype(np.float32)


ADAMW = ["optimizer=adamw", "optimizer.weight_decay=0.01", "optimizer.clipnorm=0.5"]
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# Of 20 steps. Adam divides by the roots of gradients, which can be nearly 0, and so enlarges what
# kernels that add in another order have apart.
NEAR = {"rtol": 2e-5, "atol": 2e-5}


def agree(trainer: Trainer, found: list[float], model: Any, near: dict[str, float] = NEAR) -> None:
    np.testing.assert_allclose(trainer.run_steps(STEPS), found, **near)
    state = trainer.state()
    for variable in model.variables:
        mine = state[variable.path]
        if mine.dtype.kind == "f":
            np.testing.assert_allclose(
                mine, variable, err_msg=variable.path, equal_nan=True, **near
            )
        else:
            np.testing.assert_array_equal(mine, variable, err_msg=variable.path)


KINDS = [
    *((keras_models, kind) for kind in (*keras_models.KINDS, *keras_models.OTHERS)),
    *((keras_kinds, kind) for kind in (*keras_kinds.OTHERS, "weight_normalised", "lazily_built")),
]


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (keras_kinds, "spectral"),
        *(pytest.param(*each, marks=pytest.mark.long) for each in KINDS),
    ],
)
def test_the_numbers_are_those_of_train_on_batch(module: Any, kind: str, data: Dataset) -> None:
    found, model = by_keras(getattr(module, kind), data, CROSS_ENTROPY)
    agree(Trainer(config(module, kind, *ADAMW), data), found, model)


def test_weights_of_examples_act_as_in_keras(data: Dataset) -> None:
    given = config(keras_models, "dropout", *ADAMW, "task.class_weights=balanced")
    found, model = by_keras(keras_models.dropout, data, CROSS_ENTROPY, given.task.weights(data))
    agree(Trainer(given, data), found, model)


@pytest.mark.long
def test_a_regression_is_that_of_keras(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 6)).astype(np.float32)
    y = (x @ draw.normal(size=(6, 2))).astype(np.float32)
    np.savez(tmp_path / "line.npz", x_train=x, y_train=y)
    how = ["data=arrays", f"data.path={tmp_path / 'line.npz'}", "task=regression"]
    how += ["data.sampling=replacement"]
    given = config(keras_models, "nested", *how, *ADAMW)
    read = load_data(given)
    found, model = by_keras(keras_models.nested, read, keras.losses.MeanSquaredError())
    agree(Trainer(given, read), found, model)


@pytest.mark.long
def test_several_inputs_are_those_of_keras(data: Dataset) -> None:
    both = two_inputs(data)
    found, model = by_keras(keras_kinds.multi_input, both, CROSS_ENTROPY)
    agree(Trainer(config(keras_kinds, "multi_input", *ADAMW), both), found, model)


def two_inputs(data: Dataset) -> Dataset:
    arrays: dict[str, Any] = {}
    for part in ("train", "test"):
        pixels, labels = data.examples(part)
        rows = pixels[:, 3, :, 0].astype(np.float32) / 255
        arrays |= {f"x_{part}.image": pixels[:], f"x_{part}.row": rows, f"y_{part}": labels}
    return from_arrays("two", "test", arrays)


# What is refused

REFUSED = {
    "python_counter": r"its model computes otherwise at each call in the layer middle",
    "python_random": r"its model draws by Python's random generator.*which Python does once",
    "numpy_random": r"its model draws by NumPy's generator in the layer middle .*once",
    "fresh_generator": r"computes otherwise at each call in the layer middle \(.*keras_ref",
    "global_generator": r"draws by Python's random generator|uses the variable 'seed_gen",
    "tf_dropout": r"draws by a generator of TensorFlow's \(RandomUniform in .*middle.*keeps",
    "tf_shuffle": r"draws by a generator of TensorFlow's \(RandomShuffle in .*/middle",
    "tf_generator": r"uses the variable 'StateVar'",
    "of_the_time": r"keeps something \(Timestamp in .*/middle",
    "in_a_loop": r"draws by a generator of TensorFlow's \(RandomUniform in ",
    "numpy_function": r"calls Python while it computes \(PyFunc in .*/middle",
    "with_table": r"uses a variable or table without a name",
    "variable_in_call": r"attempting to create a variable while in a stateless scope",
    "stateful_rnn": r"ValueError: When using `stateful=True` in a RNN, the batch size must be",
    "runs_eagerly": r"its model is compiled with run_eagerly=True",
    "own_test_step": r"OwnTest has its own test_step\(\).*keras_refused.py, line",
    "named_outputs": r"returns a dict of 1; a task takes one tensor",
    "weight_in_call": r"Weighing.*keras_refused.py, line",
    "double": r"trained variable 'sequential.*kernel' is float64; Waymark's parameters are float32",
    "leaving": r"SystemExit: 7 .*keras_refused.py, line",
    "integers_first": r"data.scale=auto: .* the model takes integers",
}


# Those that need code of their own to be refused; the others go the same ways.
SHORT = (
    "python_counter",
    "python_random",
    "global_generator",
    "of_the_time",
    "in_a_loop",
    "double",
)


@pytest.mark.parametrize(
    "kind",
    [k if k in SHORT else pytest.param(k, marks=pytest.mark.long) for k in REFUSED],
)
def test_what_cannot_keep_the_promises_is_refused(kind: str, data: Dataset) -> None:
    state = random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(BadInput, match=REFUSED[kind]) as refused:
        Trainer(config(keras_refused, kind), data)
    assert str(refused.value).startswith(
        ("model.build='tests.support.keras_refused", "data.scale=")
    )
    assert "\n" not in str(refused.value)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state


def test_integers_rounded_to_bfloat16_are_refused(data: Dataset) -> None:
    wide = from_arrays("wide", "test", {
        "x_train": np.arange(120).reshape(20, 6), "y_train": np.arange(20) % 2,
        "x_test": np.arange(12).reshape(2, 6), "y_test": np.arange(2)})  # fmt: skip
    mixed = config(keras_refused, "integers_first", "precision=mixed_bfloat16")
    with pytest.raises(BadInput, match="rounds features to bfloat16, exact up to 256"):
        Trainer(mixed, wide)
    assert np.isfinite(Trainer(config(keras_refused, "integers_first"), wide).run_steps(2)).all()


def test_what_python_does_alike_each_time_is_not_refused(data: Dataset) -> None:
    assert np.isfinite(Trainer(config(keras_refused, "bucketed"), data).run_steps(2)).all()
