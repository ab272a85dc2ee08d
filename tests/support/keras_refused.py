"""Keras models that cannot keep the promises, as users write them."""

import random

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def around(call, **members):
    """Return a model with a layer in the middle that computes by `call(layer, x, training)`."""

    class Middle(layers.Layer):
        def __init__(self):
            super().__init__(name="middle")
            for name, value in members.items():
                setattr(self, name, value)

        def call(self, x, training=False):
            return call(self, x, training)

        def compute_output_shape(self, shape):
            return shape

    def build(input_shape, outputs):
        return keras.Sequential([layers.Flatten(), Middle(), layers.Dense(outputs)])

    return build


def counting(layer, x, training):
    layer.calls += 1
    return x * (1 + 0.1 * layer.calls)


def drop_by_chance(layer, x, training):
    return x * 0 if training and random.random() < 0.5 else x


def draw_at_last(layer, x, training):
    """Draw in the inner function of a loop, where no one looks."""
    return tf.while_loop(lambda i, _: i < 2, lambda i, y: (i + 1, tf.nn.dropout(y, 0.1)), (0, x))[1]


def keep_in_table(layer, x, training):
    return x + layer.table.lookup(tf.constant(1))


def make_late(layer, x, training):
    if not hasattr(layer, "late"):
        layer.late = keras.Variable(np.ones(x.shape[-1], np.float32), name="late")
    return x * layer.late


def table():
    keys, values = tf.constant([1]), tf.constant([2.0])
    initializer = tf.lookup.KeyValueTensorInitializer(keys, values)
    return tf.lookup.StaticHashTable(initializer, 0.0)


python_counter = around(counting, calls=0)
python_random = around(drop_by_chance)
numpy_random = around(lambda layer, x, training: x + np.random.normal(size=x.shape[-1]))
fresh_generator = around(lambda layer, x, training: x + np.random.default_rng().normal())
global_generator = around(lambda layer, x, training: keras.random.dropout(x, 0.5))
tf_dropout = around(lambda layer, x, training: tf.nn.dropout(x, 0.5))
tf_shuffle = around(lambda layer, x, training: tf.random.shuffle(x))
tf_generator = around(lambda layer, x, training: x + layer.drawn.normal(tf.shape(x)),
                      drawn=tf.random.Generator.from_seed(1))  # fmt: skip
of_the_time = around(lambda layer, x, training: x * tf.cast(tf.timestamp(), x.dtype))
in_a_loop = around(draw_at_last)
numpy_function = around(lambda layer, x, training: tf.ensure_shape(
    tf.numpy_function(lambda y: y, [x], tf.float32), x.shape))  # fmt: skip
with_table = around(keep_in_table, table=table())
variable_in_call = around(make_late)


def stateful_rnn(input_shape, outputs):
    x = inputs = keras.Input(input_shape)
    x = layers.LSTM(3, stateful=True)(layers.Reshape(input_shape[:2])(x))
    return keras.Model(inputs, layers.Dense(outputs)(x))


def runs_eagerly(input_shape, outputs):
    model = keras.Sequential([layers.Flatten(), layers.Dense(outputs)])
    model.compile(run_eagerly=True)
    return model


class OwnTest(keras.Sequential):
    def test_step(self, data):
        return {}


def own_test_step(input_shape, outputs):
    return OwnTest([layers.Flatten(), layers.Dense(outputs)])


def named_outputs(input_shape, outputs):
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, {"digits": layers.Dense(outputs)(layers.Flatten()(inputs))})


class Weighing(layers.Layer):
    def call(self, x):
        return x * self.add_weight(shape=(x.shape[-1],), name="late")


def weight_in_call(input_shape, outputs):
    return keras.Sequential([layers.Flatten(), Weighing(), layers.Dense(outputs)])


def double(input_shape, outputs):
    return keras.Sequential([layers.Flatten(), layers.Dense(outputs, dtype="float64")])


def integers_first(input_shape, outputs):
    flat = layers.Flatten()
    return keras.Sequential(
        [flat, layers.Embedding(256, 3), layers.Flatten(), layers.Dense(outputs)]
    )


def mean_of_softmaxes(input_shape, outputs):
    """Return an ensemble: its outputs are probabilities, and no softmax is its end."""
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    return keras.Model(
        inputs, layers.average([layers.Dense(outputs, "softmax")(x) for _ in range(2)])
    )


def leaving(input_shape, outputs):
    raise SystemExit(7)


def bucketed(input_shape, outputs):
    """Return a model that is good: Python draws in it, but the same each time."""
    noise = around(lambda layer, x, training: x + np.random.default_rng(0).normal())
    return noise(input_shape, outputs)
