"""Keras's optimizers: their own numbers, and the same bits in any pieces, averaged or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from waymark.config.compose import compose_config
from waymark.data.sources import Dataset, batch_indices
from waymark.digest import digest
from waymark.errors import BadInput
from waymark.evaluation.restore import load_data, score_state
from waymark.package import CONF
from waymark.schedules import rate_of
from waymark.training.loop import Trainer
from waymark.training.runtime import start_tensorflow

tf: Any = start_tensorflow(2)

import keras  # noqa: E402

OPTIMIZERS = sorted(
    path.stem
    for path in (CONF / "optimizer").glob("*.yaml")
    if "keras" in yaml.safe_load(path.read_text())["_target_"]
)
EMA = ["optimizer.use_ema=true", "optimizer.ema_momentum=0.8"]
EMA += ["optimizer.ema_overwrite_frequency=3"]
ACCUMULATED = "optimizer.gradient_accumulation_steps=4"
MEASURED = ("adafactor", "muon", "keras_adam", "keras_sgd")  # by default
VARIANTS = (
    *("keras_sgd optimizer.nesterov=true", "keras_sgd optimizer.momentum=0.0"),
    *("keras_adam optimizer.amsgrad=true", f"keras_adam {ACCUMULATED}", f"keras_sgd {ACCUMULATED}"),
)
CUT = ("adafactor", "warmup_cosine")  # what is cut by default
SCHEDULES = {
    "null": [],
    "cosine": ["decay_steps=9", "alpha=0.1"],
    "piecewise": ["boundaries=[2,5]", "values=[0.01,0.02,0.003]"],
    "exponential": ["decay_steps=3", "decay_rate=0.7"],
    "warmup_cosine": ["warmup_steps=3", "decay_steps=6", "alpha=0.1"],
}
SHAPES = {"dense/kernel": (6, 5), "dense/bias": (5,), "conv/kernel": (3, 3, 2, 4), "scale": ()}


def scheduled(name: str) -> list[str]:
    return [f"optimizer.schedule={name}", *(f"optimizer.schedule.{x}" for x in SCHEDULES[name])]


def config(*words: str) -> Any:
    fixed = ["batch_size=8", "runtime.intra_op_threads=2", "seed=5", "optimizer.learning_rate=0.01"]
    return compose_config([*fixed, *words]).config


@pytest.fixture(scope="module")
def data(small: Path) -> Dataset:
    return load_data(config("data=arrays", f"data.path={small}"))


# Their numbers


def ours(optimizer: Any, first: dict[str, Any], given: list[dict[str, Any]]) -> list[np.ndarray]:
    """Return the parameters after each step of a compiled function, as in training."""
    slots = optimizer.slots(first)
    made = optimizer.variables()
    assert made.keys() == first.keys() | slots.keys()

    @tf.function(autograph=False)
    def step(number: Any, gradients: Any) -> None:
        rate = rate_of(optimizer, tf.constant(0.01), number)
        parts = ({name: made[name] for name in names} for names in (first, slots))
        optimizer.apply(*parts, gradients, rate)

    found = []
    for number, gradients in enumerate(given, 1):
        step(tf.constant(number, tf.int64), gradients)
        found.append(np.concatenate([np.ravel(made[name]) for name in first]))
    return found


def theirs(make: Any, first: dict[str, Any], given: list[dict[str, Any]]) -> list[np.ndarray]:
    """Return the same of Keras's own class."""
    optimizer = make()
    variables = [keras.Variable(x, name=name.replace("/", "_")) for name, x in first.items()]
    optimizer.build(variables)
    step = tf.function(lambda gradients: optimizer.apply(gradients, variables))
    found = []
    for gradients in given:
        step(list(gradients.values()))
        found.append(np.concatenate([np.ravel(variable) for variable in variables]))
    return found


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(each, marks=() if each in MEASURED else pytest.mark.long)
        for each in (*OPTIMIZERS, *VARIANTS)
    ],
)
def test_every_step_is_that_of_keras_with_its_own_schedule(words: str) -> None:
    """Adam, AdamW and SGD with momentum are one kernel of TensorFlow's for each parameter here."""
    name, *chosen = words.split()
    draw = np.random.default_rng(3)

    def drawn() -> dict[str, Any]:
        return {k: tf.constant(draw.normal(size=s), tf.float32) for k, s in SHAPES.items()}

    first, given = drawn(), [drawn() for _ in range(9)]
    more = [*scheduled("cosine"), "optimizer.clipnorm=0.7", "optimizer.weight_decay=0.3", *EMA]
    more += chosen
    optimizer = config(f"optimizer={name}", *more).optimizer
    names = ("learning_rate", "schedule", "clipnorm", "weight_decay")
    settings = {k: v for k, v in optimizer.__getstate__().items() if k not in names}

    def make() -> Any:
        rate = keras.optimizers.schedules.CosineDecay(0.01, 9, 0.1)
        kind = getattr(keras.optimizers, type(optimizer).__name__)
        return kind(rate, clipnorm=0.7, weight_decay=0.3, **settings)

    expected = theirs(make, first, given)
    for step, values in enumerate(ours(optimizer, first, given)):
        np.testing.assert_allclose(values, expected[step], rtol=2e-5, atol=1e-6, err_msg=str(step))
    assert not np.allclose(expected[0], expected[-1], rtol=1e-3)


def test_an_average_is_scored_and_the_parameters_train_on(data: Dataset) -> None:
    """Against plain Keras: its own model, optimizer and schedule, batch by batch."""
    build = "model.build=tests.support.keras_models.linear"
    more = ["optimizer.weight_decay=0.1", "optimizer.clipnorm=0.5", *EMA[:2]]
    given = config("model=keras", build, "optimizer=adamw", *scheduled("warmup_cosine"), *more)
    trainer = Trainer(given, data)
    first = [trainer.state()[name] for name in trainer.parameters]
    assert trainer.averages.keys() == trainer.parameters.keys()
    before = trainer.score().metrics

    inputs = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10)(flat))
    model.set_weights(first)
    rate = keras.optimizers.schedules.CosineDecay(0.0, 6, 0.1, warmup_target=0.01, warmup_steps=3)
    how = {"weight_decay": 0.1, "clipnorm": 0.5, "use_ema": True, "ema_momentum": 0.8}
    optimizer = keras.optimizers.AdamW(rate, **how)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    pixels = [part.astype(np.float32) / np.float32(255) for part in (data.x_train, data.x_test)]
    unchanged = model.evaluate(pixels[1], data.y_test, verbose=0, return_dict=True)
    assert before["loss"] == pytest.approx(unchanged["loss"], rel=1e-5)
    losses = []
    for step in range(1, 11):
        picked = batch_indices("replacement", 5, tf.constant(step, tf.int64), 8, len(pixels[0]))
        model.reset_metrics()
        losses.append(model.train_on_batch(pixels[0][picked], data.y_train[picked])[0])
    np.testing.assert_allclose(trainer.run_steps(10), losses, rtol=2e-5)
    state = trainer.state()
    for name, value in zip(trainer.parameters, model.get_weights(), strict=True):
        np.testing.assert_allclose(state[name], value, rtol=1e-4, atol=1e-6)
        assert np.abs(state[name] - state[trainer.averages[name]]).max() > 1e-3
    optimizer.finalize_variable_values(model.trainable_variables)  # as fit() does at its end
    averaged = model.evaluate(pixels[1], data.y_test, verbose=0, return_dict=True)
    found = trainer.score().metrics
    assert found["loss"] == pytest.approx(averaged["loss"], rel=1e-5)
    assert found["accuracy"] == pytest.approx(averaged["accuracy"])
    assert score_state(given, data, state).metrics == found
    raw = {**state, **{mean: state[name] for name, mean in trainer.averages.items()}}
    assert score_state(given, data, raw).metrics != found


# In any pieces


def in_pieces(data: Dataset, folder: Path, *words: str) -> None:
    """Train in one piece, and cut at each step with the state saved and read by a new trainer."""
    one, steps = Trainer(config(*words), data), 7
    first, losses = one.state(), one.run_steps(steps)
    whole, rate, score = one.state(), one.learning_rate, one.score().metrics
    assert np.isfinite(losses).all()
    other = Trainer(config(*words), data)
    assert digest(other.state()) == digest(first)
    pieces, form = [], config(*words).save
    for step in range(steps):
        trainer = (other, one)[step % 2]
        pieces.append(trainer.run_steps(1))
        form.write(folder / f"state-{step}", trainer.state())
        (one, other)[step % 2].load(form.read(folder / f"state-{step}"))
    assert np.array_equal(np.concatenate(pieces), losses)
    assert digest(one.state()) == digest(other.state()) == digest(whole)
    assert (trainer.learning_rate, other.score().metrics) == (rate, score)


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        pytest.param(
            optimizer,
            schedule,
            marks=() if (optimizer, schedule) == CUT else pytest.mark.long,
        )
        for optimizer in OPTIMIZERS
        for schedule in SCHEDULES
        if (optimizer, schedule) != ("ftrl", "warmup_cosine")
    ],
)
def test_cut_anywhere_to_the_same_bits(
    optimizer: str, schedule: str, data: Dataset, tmp_path: Path
) -> None:
    """Also in the middle of an accumulation; with an average that overwrites the parameters."""
    how = [f"optimizer={optimizer}", *scheduled(schedule), *EMA, ACCUMULATED, "save=npz"]
    in_pieces(data, tmp_path, *how)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_waymarks_own_are_cut_anywhere_as_well(
    optimizer: str, schedule: str, data: Dataset, tmp_path: Path
) -> None:
    how = ["optimizer.weight_decay=0.1", "optimizer.clipnorm=0.1"]
    in_pieces(data, tmp_path, f"optimizer={optimizer}", *scheduled(schedule), *how)


def test_slots_of_one_path_are_told_apart(data: Dataset) -> None:
    """Adafactor calls its rows and columns by the parameter's name, both of them."""
    state = Trainer(config("model=linear", "optimizer=adafactor"), data).state()
    shapes = {name: value.shape for name, value in state.items() if name.startswith("adafactor/")}
    rows, columns = "adafactor/weights", "adafactor/weights_1"
    assert (shapes[rows], shapes[columns]) == ((64,), (10,))


def test_a_class_that_this_keras_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(keras.optimizers, "Muon")
    with pytest.raises(BadInput, match=r"^optimizer: Keras .* has no Muon\.$"):
        config("optimizer=muon").optimizer.slots({"weights": tf.zeros([3, 2])})
