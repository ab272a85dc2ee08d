"""More Keras models, as users write them: rarer layers, and layers of one's own."""

import keras
import numpy as np
from keras import layers, ops


class WeightNormalised(layers.Layer):
    """A dense layer whose kernel is directions times lengths (Salimans and Kingma 2016)."""

    def __init__(self, units):
        super().__init__()
        self.units = units

    def build(self, shape):
        self.direction = self.add_weight(shape=(shape[-1], self.units), name="direction")
        self.length = self.add_weight(shape=(self.units,), initializer="ones", name="length")

    def call(self, x):
        return ops.matmul(x, self.direction * (self.length / ops.norm(self.direction, axis=0)))


def weight_normalised(input_shape, outputs):
    return keras.Sequential(
        [layers.Flatten(), WeightNormalised(8), layers.ReLU(), WeightNormalised(outputs)]
    )


class Lazy(keras.Model):
    """A model that knows no shape until it is called, with layers in a list and a mapping."""

    def __init__(self, outputs):
        super().__init__()
        self.hidden = [layers.Dense(8, activation="relu") for _ in range(2)]
        self.others = {"flat": layers.Flatten(), "norm": layers.BatchNormalization()}
        self.last = layers.Dense(outputs)

    def call(self, x, training=False):
        x = self.others["flat"](x)
        for layer in self.hidden:
            x = layer(x)
        return self.last(self.others["norm"](x, training=training))


def lazily_built(input_shape, outputs):
    return Lazy(outputs)


def multi_input(input_shape, outputs):
    inputs = {name: keras.Input(shape, name=name) for name, shape in input_shape.items()}
    hidden = [layers.Dense(4)(layers.Flatten()(each)) for each in inputs.values()]
    x = layers.Dropout(0.3)(layers.BatchNormalization()(layers.Concatenate()(hidden)))
    return keras.Model(inputs, layers.Dense(outputs)(x))


def spectral(input_shape, outputs):
    """Return a model with layers that assign to a trained kernel at each step."""
    return keras.Sequential(
        [
            layers.Flatten(),
            layers.SpectralNormalization(layers.Dense(8, activation="relu")),
            layers.Dense(outputs),
        ]
    )


def of_integers(input_shape, outputs):
    """Return a model of integer features, some of which are masked."""
    inputs = keras.Input(input_shape, dtype="int32")
    x = layers.Embedding(256, 3, mask_zero=True)(layers.Reshape(input_shape[:2])(inputs)[:, 0])
    return keras.Model(inputs, layers.Dense(outputs)(layers.Bidirectional(layers.GRU(3))(x)))


def stacked(input_shape, outputs):
    inputs = keras.Input(input_shape)
    cells = layers.StackedRNNCells([layers.LSTMCell(3, dropout=0.1), layers.GRUCell(3)])
    x = layers.RNN(cells)(layers.Reshape(input_shape[:2])(inputs))
    return keras.Model(inputs, layers.Dense(outputs)(x))


def frozen_norm(input_shape, outputs):
    frozen = layers.BatchNormalization(trainable=False)
    return keras.Sequential(
        [
            layers.Flatten(),
            layers.Dense(6),
            frozen,
            layers.UnitNormalization(),
            layers.Dense(outputs),
        ]
    )


class Noise(layers.Layer):
    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def call(self, x, training=False):
        if not training:
            return x
        return x + keras.random.normal(ops.shape(x), 0, 0.1, seed=self.generator)


def shared_seed(input_shape, outputs):
    """Return a model two of whose layers draw by one generator."""
    generator = keras.random.SeedGenerator(7)
    return keras.Sequential(
        [
            layers.Flatten(),
            Noise(generator),
            layers.Dense(6),
            Noise(generator),
            layers.Dense(outputs),
        ]
    )


def augmented(input_shape, outputs):
    return keras.Sequential(
        [
            *(layers.RandomBrightness(0.1, value_range=(0, 1)), layers.RandomErasing()),
            *(layers.RandomShear(0.1, 0.1), layers.Flatten()),
            layers.Dense(outputs),
        ]
    )


class Odd(layers.Layer):
    """A layer that keeps a truth value, a missing number, and a count."""

    def build(self, shape):
        self.seen = self.add_weight(
            shape=(), dtype="bool", initializer="zeros", trainable=False, name="seen"
        )
        self.lost = self.add_weight(
            shape=(2,),
            initializer=keras.initializers.Constant(np.nan),
            trainable=False,
            name="lost",
        )

    def call(self, x, training=False):
        if training:
            self.seen.assign(True)
        return ops.where(self.seen, x, x * 1)


def odd_variables(input_shape, outputs):
    return keras.Sequential([layers.Flatten(), Odd(), layers.Dense(outputs)])


def adapted(input_shape, outputs, file):
    """Return a model whose first layer knows mean and variance of what a file holds."""
    normalization = layers.Normalization(axis=None)
    normalization.adapt(np.load(file))
    return keras.Sequential([normalization, layers.Flatten(), layers.Dense(outputs)])


def with_positions(input_shape, outputs):
    """Return a small vision transformer: an Embedding that no feature goes into."""
    inputs = keras.Input(input_shape)
    x = layers.Dense(4)(layers.Reshape(input_shape[:2])(inputs))
    x = x + layers.Embedding(input_shape[0], 4)(ops.arange(input_shape[0]))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(inputs, layers.Dense(outputs)(layers.GlobalAveragePooling1D()(x)))


OTHERS = (
    *("spectral", "stacked", "frozen_norm", "shared_seed", "augmented", "odd_variables"),
    *("with_positions",),
)
