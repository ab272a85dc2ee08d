"""Optimizers: step by step the bits, and the slot names, of TensorFlow 1's own classes."""

from typing import Any

import numpy as np
import pytest
from waymark.optimizers import Adam, Sgd
from waymark.training.runtime import start_tensorflow

tf: Any = start_tensorflow(2)
v1: Any = tf.compat.v1

STEPS = 40
SHAPES = {"weights": (7, 5), "bias": (5,), "weights_1": (3, 3, 2, 4), "scale": ()}
ADAM = Adam(learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8)

PAIRS: list[Any] = [
    pytest.param(ours, theirs, id=name)
    for name, ours, theirs in [
        ("adam", ADAM, lambda: v1.train.AdamOptimizer(1e-3)),
        (
            "adam, other settings",
            Adam(learning_rate=0.7, beta1=0.0, beta2=0.5, epsilon=0.1),
            lambda: v1.train.AdamOptimizer(0.7, beta1=0.0, beta2=0.5, epsilon=0.1),
        ),
        (
            "sgd",
            Sgd(learning_rate=1e-2, momentum=0.9),
            lambda: v1.train.MomentumOptimizer(1e-2, 0.9),
        ),
        (
            "sgd without momentum",
            Sgd(learning_rate=0.3, momentum=0.0),
            lambda: v1.train.MomentumOptimizer(0.3, 0.0),
        ),
    ]
]


def first_values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients() -> list[dict[str, np.ndarray]]:
    """Return gradients for every step: usual, zero, tiny and large ones."""
    rng = np.random.default_rng(2)
    sizes = [1.0, 1e-3, 0.0, 1e-12, 1e4, 1e-30]
    return [
        {
            name: (rng.normal(size=shape) * sizes[step % len(sizes)]).astype(np.float32)
            for name, shape in SHAPES.items()
        }
        for step in range(STEPS)
    ]


def tensorflow_1(make: Any) -> list[dict[str, np.ndarray]]:
    """Return all variables after every step of TensorFlow 1's optimizer in a graph."""
    states = []
    with tf.Graph().as_default(), v1.Session() as session:
        variables = {
            name: v1.get_variable(name, initializer=value, use_resource=True)
            for name, value in first_values().items()
        }
        feeds = {name: v1.placeholder(tf.float32, shape) for name, shape in SHAPES.items()}
        apply = make().apply_gradients([(feeds[name], variables[name]) for name in SHAPES])
        session.run(v1.global_variables_initializer())
        everything = {variable.op.name: variable for variable in v1.global_variables()}
        for values in gradients():
            session.run(apply, {feeds[name]: value for name, value in values.items()})
            states.append(session.run(everything))
    return states


def waymark(optimizer: Any) -> list[dict[str, np.ndarray]]:
    """Return all variables after every step of a compiled function, as in training."""
    initial = {name: tf.constant(value) for name, value in first_values().items()}
    parameters = {name: tf.Variable(value) for name, value in initial.items()}
    slots = {name: tf.Variable(value) for name, value in optimizer.slots(initial).items()}

    @tf.function(autograph=False)
    def step(values: Any) -> None:
        optimizer.apply(parameters, slots, values)

    states = []
    for values in gradients():
        step({name: tf.constant(value) for name, value in values.items()})
        states.append({name: v.numpy() for name, v in (parameters | slots).items()})
    return states


@pytest.mark.parametrize(("optimizer", "theirs"), PAIRS)
def test_every_step_has_tensorflow_1s_names_and_bits(optimizer: Any, theirs: Any) -> None:
    for step, (one, other) in enumerate(zip(waymark(optimizer), tensorflow_1(theirs), strict=True)):
        assert set(one) == set(other)
        for name, value in one.items():
            assert (value.dtype, value.shape) == (np.float32, other[name].shape)
            assert np.array_equal(value, other[name]), (step, name)


@pytest.mark.parametrize("optimizer", [ADAM, Sgd(learning_rate=0.01, momentum=0.9)])
def test_slots_do_not_depend_on_the_parameters_values(optimizer: Any) -> None:
    zeros = {name: tf.zeros(shape) for name, shape in SHAPES.items()}
    usual = {name: tf.constant(value) for name, value in first_values().items()}
    one, other = optimizer.slots(zeros), optimizer.slots(usual)
    assert list(one) == list(other)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not set(one) & set(SHAPES)


def test_adam_is_kingmas_and_bas() -> None:
    """Check TensorFlow's kernel, too, against the paper's formulas in float64."""
    beta1, beta2, epsilon, rate = 0.9, 0.999, 1e-8, 1e-3
    value = first_values()["weights"].astype(np.float64)
    m = v = np.zeros_like(value)
    for step, given in enumerate(gradients()[:8], 1):
        gradient = given["weights"].astype(np.float64)
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        size = rate * np.sqrt(1 - beta2**step) / (1 - beta1**step)
        value = value - size * m / (np.sqrt(v) + epsilon)
    np.testing.assert_allclose(waymark(ADAM)[7]["weights"], value, rtol=1e-5, atol=1e-6)


LONGEST, DECAY, SLOW = 0.7, 0.05, 0.3  # the clipped norm, the weight decay, the learning rate


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize(("longest", "decay"), [(LONGEST, DECAY), (LONGEST, None), (None, DECAY)])
def test_clipping_and_decay_are_kerass(
    kind: str, longest: float | None, decay: float | None
) -> None:
    """Against NumPy in float64: gradients are clipped, parameters shrink, and then are updated."""
    more = {"learning_rate": SLOW, "clipnorm": longest, "weight_decay": decay}
    adam = Adam(beta1=0.9, beta2=0.99, epsilon=1e-3, **more)  # type: ignore[arg-type]
    sgd = Sgd(momentum=0.5, **more)  # type: ignore[arg-type]
    for name, value in first_values().items():
        expected = value.astype(np.float64)
        m, v = np.zeros_like(expected), np.zeros_like(expected)
        for step, given in enumerate(gradients()[:8], 1):
            gradient = given[name].astype(np.float64)
            norm = np.sqrt(np.sum(gradient**2))
            if longest is not None and norm > longest:
                gradient = gradient * longest / norm
            if decay is not None:
                expected = expected * (1 - decay * SLOW)
            if kind == "sgd":
                m = 0.5 * m + gradient
                expected = expected - SLOW * m
            else:
                m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
                size = SLOW * np.sqrt(1 - 0.99**step) / (1 - 0.9**step)
                expected = expected - size * m / (np.sqrt(v) + 1e-3)
        found = waymark(adam if kind == "adam" else sgd)[7][name]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
