"""Models: their arithmetic against plain NumPy and TensorFlow 1, their first values, dropout."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from waymark.data.randomness import DROPOUT, INITIAL, random_key
from waymark.data.sources import ImageSpec
from waymark.errors import BadInput
from waymark.models import forward, scale, truncated_normal
from waymark.models.cnn import Cnn
from waymark.models.linear import Linear
from waymark.models.softmax import Softmax
from waymark.training.runtime import start_tensorflow

from tests.support.tutorial import tutorial_cnn

tf: Any = start_tensorflow(2)
v1: Any = tf.compat.v1

SOFTMAX = Softmax(init_stddev=0.01)
CNN = Cnn(init_stddev=0.1, init_bias=0.1, keep_prob=1.0)
SPECS = [
    ImageSpec((28, 28, 1), 10),
    ImageSpec((13, 9, 3), 26),
    ImageSpec((1, 5, 2), 2),
    ImageSpec((4, 1, 1), 3),
]


def pixels(spec: ImageSpec, count: int = 6) -> np.ndarray:
    """Return random images, float32 in [0, 1], some of them all black or all white."""
    images = np.random.default_rng(1).integers(0, 256, (count, *spec.shape), np.uint8)
    images[0], images[1] = 0, 255
    return images.astype(np.float32) / np.float32(255)


def arrays(parameters: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in parameters.items()}


# Arithmetic


@pytest.mark.parametrize("shape", [(28, 28, 1), (784,), (5, 4, 3)])
def test_softmax_is_one_matrix_product(shape: tuple[int, ...]) -> None:
    spec = ImageSpec(shape, 10)
    images = pixels(spec, 200)
    parameters = SOFTMAX.initial(spec, partial(random_key, 3, INITIAL))
    weights = parameters["weights"].numpy()
    logits = forward(SOFTMAX, "float32", parameters, tf.constant(images)).numpy()
    exact = images.reshape(200, -1).astype(np.float64) @ weights.astype(np.float64)
    assert (weights.shape, logits.dtype) == ((np.prod(shape), 10), np.float32)
    np.testing.assert_allclose(logits, exact, rtol=1e-4, atol=1e-6)
    plain = images.reshape(200, -1) @ weights
    assert np.array_equal(logits.argmax(1), plain.argmax(1))


def test_the_linear_model_starts_at_zero_and_adds_its_bias() -> None:
    spec, rng = ImageSpec((5, 4, 3), 2), np.random.default_rng(0)
    zeros = arrays(Linear().initial(spec, partial(random_key, 3, INITIAL)))
    assert {name: value.shape for name, value in zeros.items()} == {
        "weights": (60, 2),
        "bias": (2,),
    }
    assert not any(value.any() for value in zeros.values())
    values = {name: rng.normal(size=v.shape).astype(np.float32) for name, v in zeros.items()}
    features = pixels(spec, 50)
    outputs = forward(Linear(), "float32", values, tf.constant(features)).numpy()
    exact = features.reshape(50, -1).astype(np.float64) @ values["weights"] + values["bias"]
    np.testing.assert_allclose(outputs, exact, rtol=1e-4, atol=1e-4)


def without_rewriting() -> Any:
    """Return a session's settings under which TensorFlow runs the graph as it was written."""
    config = v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return config


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_cnn_is_the_tutorials_bit_for_bit(spec: ImageSpec) -> None:
    images = pixels(spec)
    values = arrays(CNN.initial(spec, partial(random_key, 5, INITIAL)))
    # Biases of both signs, so that ReLU cuts some of the channels and not others.
    rng = np.random.default_rng(2)
    values |= {n: rng.normal(0, 0.2, v.shape).astype(np.float32) for n, v in values.items()
               if n.startswith("bias")}  # fmt: skip
    with tf.Graph().as_default(), v1.Session(config=without_rewriting()) as session:
        inputs = v1.placeholder(tf.float32, [None, *spec.shape])
        variables = [v1.Variable(value, use_resource=False) for value in values.values()]
        logits = tutorial_cnn(inputs, variables)
        session.run(v1.global_variables_initializer())
        expected = session.run(logits, {inputs: images})

    parameters = {name: tf.constant(value) for name, value in values.items()}
    eager = forward(CNN, "float32", parameters, tf.constant(images)).numpy()
    assert np.array_equal(eager, expected)
    assert expected.std() > 0


def test_cnn_has_the_tutorials_gradients() -> None:
    spec = ImageSpec((9, 10, 2), 5)
    values = CNN.initial(spec, partial(random_key, 5, INITIAL))
    images, labels = tf.constant(pixels(spec)), tf.constant([0, 1, 2, 3, 4, 0])

    def gradients(logits: Any) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            tape.watch(values)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits())
        return [g.numpy() for g in tape.gradient(losses, list(values.values()))]

    ours = gradients(lambda: forward(CNN, "float32", values, images))
    theirs = gradients(lambda: tutorial_cnn(images, list(values.values())))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert np.abs(other).max() > 0


def test_a_models_parameters_are_found_by_name() -> None:
    spec = SPECS[1]
    parameters = CNN.initial(spec, partial(random_key, 0, INITIAL))
    shuffled = {name: parameters[name] for name in sorted(parameters, reverse=True)}
    images = tf.constant(pixels(spec))
    one, other = (forward(CNN, "float32", p, images).numpy() for p in (parameters, shuffled))
    assert np.array_equal(one, other)


def test_pixels_are_divided_as_numpy_divides() -> None:
    values = np.arange(256, dtype=np.uint8)
    scaled = scale(tf.constant(values), True).numpy()
    assert scaled.dtype == np.float32
    assert np.array_equal(scaled, values.astype(np.float32) / np.float32(255))
    compiled = tf.function(lambda x: scale(x, True), autograph=False)(tf.constant(values)).numpy()
    assert np.array_equal(compiled, scaled)  # no rewriting into a multiplication either
    floats = np.random.default_rng(0).random(100, np.float32)
    assert np.array_equal(scale(tf.constant(floats), False).numpy(), floats)


@pytest.mark.parametrize("model", [SOFTMAX, CNN], ids=["softmax", "cnn"])
def test_bfloat16_is_inside_only(model: Any) -> None:
    spec = ImageSpec((8, 8, 1), 10)
    parameters = model.initial(spec, partial(random_key, 0, INITIAL))
    images = tf.constant(pixels(spec))
    exact = forward(model, "float32", parameters, images)
    mixed = forward(model, "mixed_bfloat16", parameters, images)
    assert (exact.dtype, mixed.dtype) == (tf.float32, tf.float32)
    assert {value.dtype for value in parameters.values()} == {tf.float32}
    assert not np.array_equal(exact, mixed)
    scale_of = np.abs(exact).max()
    np.testing.assert_allclose(mixed, exact, atol=0.03 * scale_of)


# First values


def test_softmaxs_shape_and_name() -> None:
    parameters = SOFTMAX.initial(ImageSpec((28, 28, 1), 10), partial(random_key, 0, INITIAL))
    assert {n: v.shape.as_list() for n, v in parameters.items()} == {"weights": [784, 10]}


@pytest.mark.parametrize(
    ("spec", "flat"),
    [
        (ImageSpec((28, 28, 1), 10), 3136),
        (ImageSpec((29, 31, 3), 26), 8 * 8 * 64),
        (ImageSpec((1, 1, 1), 2), 64),
        (ImageSpec((5, 8, 4), 10), 2 * 2 * 64),
    ],
    ids=str,
)
def test_cnns_shapes_and_names_are_the_tutorials(spec: ImageSpec, flat: int) -> None:
    parameters = CNN.initial(spec, partial(random_key, 0, INITIAL))
    channels, classes = spec.shape[2], spec.classes
    assert [(name, tuple(value.shape)) for name, value in parameters.items()] == [
        ("weights", (5, 5, channels, 32)),
        ("bias", (32,)),
        ("weights_1", (5, 5, 32, 64)),
        ("bias_1", (64,)),
        ("weights_2", (flat, 1024)),
        ("bias_2", (1024,)),
        ("weights_3", (1024, classes)),
        ("bias_3", (classes,)),
    ]
    assert {value.dtype for value in parameters.values()} == {tf.float32}
    logits = forward(CNN, "float32", parameters, tf.constant(pixels(spec)))
    assert logits.shape == (6, classes)


def test_tensorflow_1_gives_unnamed_variables_these_names() -> None:
    spec = ImageSpec((4, 4, 1), 2)
    shapes = [tuple(v.shape) for v in CNN.initial(spec, partial(random_key, 0, INITIAL)).values()]
    with tf.Graph().as_default():
        kinds = ["weights" if len(shape) > 1 else "bias" for shape in shapes]
        made = [v1.Variable(tf.zeros(s), name=n) for n, s in zip(kinds, shapes, strict=True)]
        names = [variable.op.name for variable in made]
    assert names == list(CNN.initial(spec, partial(random_key, 0, INITIAL)))


def test_cnn_needs_height_and_width() -> None:
    with pytest.raises(BadInput, match=r"\[N,784\].*model=softmax"):
        CNN.check(ImageSpec((784,), 10))
    CNN.check(ImageSpec((28, 28, 1), 10))


@pytest.mark.parametrize("stddev", [0.01, 0.1, 2.5])
def test_weights_are_truncated_normal(stddev: float) -> None:
    drawn = truncated_normal((500, 200), stddev, random_key(0, INITIAL, 0)).numpy()
    assert drawn.dtype == np.float32
    assert np.abs(drawn).max() <= 2 * stddev
    assert np.abs(drawn).max() > 1.99 * stddev
    # Cut off at two standard deviations, a normal's standard deviation shrinks to 0.8796.
    assert drawn.std() == pytest.approx(0.8796 * stddev, rel=0.01)
    assert abs(drawn.mean()) < 0.01 * stddev


def test_truncated_normal_has_tensorflow_1s_distribution() -> None:
    drawn = truncated_normal((100_000,), 1.0, random_key(0, INITIAL, 0)).numpy()
    with tf.Graph().as_default(), v1.Session() as session:
        theirs = session.run(v1.truncated_normal([100_000], stddev=1.0, seed=1))
    both = np.sort(np.concatenate([drawn, theirs]))
    ranks = [np.searchsorted(np.sort(x), both, "right") / len(x) for x in (drawn, theirs)]
    assert np.abs(ranks[0] - ranks[1]).max() < 0.0087  # Kolmogorov and Smirnov's, at 0.1 %


@pytest.mark.parametrize("model", [SOFTMAX, CNN], ids=["softmax", "cnn"])
def test_first_weights_are_a_function_of_the_seed(model: Any) -> None:
    spec = ImageSpec((4, 4, 1), 3)
    seeds = [0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**48, 2**48 + 1, 2**62, 2**63 - 2, 2**63 - 1]
    first = {s: arrays(model.initial(spec, partial(random_key, s, INITIAL))) for s in seeds}
    again = {s: arrays(model.initial(spec, partial(random_key, s, INITIAL))) for s in seeds}
    weights = [name for name in first[0] if name.startswith("weights")]
    for name in first[0]:
        assert all(np.array_equal(first[s][name], again[s][name]) for s in seeds)
    for name in weights:
        assert len({first[s][name].tobytes() for s in seeds}) == len(seeds)


def test_parameters_of_equal_shape_differ() -> None:
    parameters = CNN.initial(ImageSpec((16, 16, 1), 1024), partial(random_key, 0, INITIAL))
    one, other = parameters["weights_2"].numpy(), parameters["weights_3"].numpy()
    assert one.shape == other.shape == (1024, 1024)
    assert np.mean(one == other) < 0.01
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("bias", [0.1, 0, -1])
def test_biases_start_as_set(bias: float) -> None:
    model = Cnn(init_stddev=0.1, init_bias=bias, keep_prob=1.0)
    values = arrays(model.initial(ImageSpec((4, 4, 1), 3), partial(random_key, 0, INITIAL)))
    for name in ("bias", "bias_1", "bias_2", "bias_3"):
        assert values[name].dtype == np.float32
        assert np.array_equal(values[name], np.full_like(values[name], bias))


# Dropout


def hidden(keep_prob: float, dropout: Any) -> np.ndarray:
    """Return the CNN's 1024 hidden units behind dropout: its last layer is the identity."""
    spec = ImageSpec((4, 4, 1), 1024)
    model = Cnn(init_stddev=0.1, init_bias=0.1, keep_prob=keep_prob)
    parameters = model.initial(spec, partial(random_key, 0, INITIAL))
    parameters |= {"weights_3": tf.eye(1024), "bias_3": tf.zeros([1024])}
    images = tf.constant(pixels(spec, 40))
    result: np.ndarray = forward(model, "float32", parameters, images, dropout).numpy()
    return result


def test_dropout_keeps_the_share_and_scales_it() -> None:
    whole, dropped = hidden(0.25, None), hidden(0.25, random_key(0, DROPOUT, 1))
    alive = whole != 0
    kept = dropped != 0
    assert not np.any(kept & ~alive)
    np.testing.assert_allclose(dropped[kept], whole[kept] * 4, rtol=1e-6)
    assert kept.sum() / alive.sum() == pytest.approx(0.25, abs=0.02)


def test_dropout_is_a_function_of_seed_and_step() -> None:
    keys = [(0, 1), (0, 2), (1, 1), (2**32, 1), (2**63 - 1, 1), (0, 2**32 + 1)]
    masks = [hidden(0.5, random_key(s, DROPOUT, n)) != 0 for s, n in keys]
    again = [hidden(0.5, random_key(s, DROPOUT, n)) != 0 for s, n in keys]
    assert all(np.array_equal(a, b) for a, b in zip(masks, again, strict=True))
    assert len({mask.tobytes() for mask in masks}) == len(keys)


def test_nothing_is_dropped_outside_training_or_when_all_is_kept() -> None:
    whole = hidden(1.0, None)
    assert np.array_equal(hidden(0.25, None), whole)
    assert np.array_equal(hidden(1.0, random_key(0, DROPOUT, 1)), whole)


def test_several_inputs_are_scaled_by_name_and_cast_to_the_precision() -> None:
    class Sum:
        def logits(self, parameters: Any, inputs: Any, dropout: Any) -> Any:
            assert {x.dtype for x in [*inputs.values(), *parameters.values()]} == {tf.bfloat16}
            return inputs["image"] @ parameters["weights"] + inputs["meta"]

    image = np.arange(256, dtype=np.uint8).reshape(64, 4)
    inputs = scale({"image": tf.constant(image), "meta": image[:, :3]}, frozenset(["image"]))
    assert np.array_equal(inputs["image"], image.astype(np.float32) / np.float32(255))
    assert inputs["meta"].dtype == tf.float32 and np.array_equal(inputs["meta"], image[:, :3])
    weights = {"weights": tf.ones((4, 3))}
    assert forward(Sum(), "mixed_bfloat16", weights, inputs).dtype == tf.float32


@pytest.mark.parametrize("model", [SOFTMAX, CNN, Linear()])
def test_models_of_one_input_refuse_several(model: Any) -> None:
    spec = ImageSpec({"image": (8, 8, 1), "meta": (3,), "tags": (2,)}, 10)
    name = type(model).__name__.lower()
    with pytest.raises(BadInput, match=f"model={name} takes one input, and this data has image, "):
        model.check(spec)
