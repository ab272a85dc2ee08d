"""Keras models of many kinds, as users write them: nothing of Waymark's is in here."""

from typing import Any

import keras
from keras import layers, ops


def batch_norm(
    input_shape: tuple[int, ...], outputs: int, width: int = 4, rate: float = 0.5
) -> Any:
    """Return the model that most tests train: all that can go wrong at once."""
    inputs = x = keras.Input(input_shape)
    x = layers.RandomTranslation(0.1, 0.1)(x)
    x = layers.Conv2D(width, 3, kernel_regularizer="l2")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Flatten()(layers.ReLU()(x))
    x = layers.Dropout(rate)(x)
    return keras.Model(inputs, layers.Dense(outputs)(x))


def layer_norm(input_shape, outputs):
    return keras.Sequential(
        [layers.Flatten(), layers.Dense(8), layers.LayerNormalization(), layers.Dense(outputs)]
    )


def dropout(input_shape, outputs):
    return keras.Sequential([layers.Flatten(), layers.Dropout(0.5), layers.Dense(outputs)])


def rows(input_shape):
    """Return inputs, and their rows as a sequence."""
    inputs = keras.Input(input_shape)
    return inputs, layers.Reshape(input_shape[:2])(inputs)


def attention(input_shape, outputs):
    inputs, x = rows(input_shape)
    x = layers.MultiHeadAttention(2, 4, dropout=0.2)(x, x)
    return keras.Model(inputs, layers.Dense(outputs)(layers.GlobalAveragePooling1D()(x)))


def lstm(input_shape, outputs):
    inputs, x = rows(input_shape)
    return keras.Model(inputs, layers.Dense(outputs)(layers.LSTM(4, dropout=0.2)(x)))


def gru(input_shape, outputs):
    inputs, x = rows(input_shape)
    return keras.Model(inputs, layers.Dense(outputs)(layers.GRU(4, recurrent_dropout=0.2)(x)))


def embedding(input_shape, outputs):
    inputs = keras.Input(input_shape)
    x = layers.Embedding(256, 3)(layers.Flatten()(inputs * 255))
    return keras.Model(inputs, layers.Dense(outputs)(layers.Flatten()(x)))


def shared(input_shape, outputs):
    inputs, x = rows(input_shape)
    dense = layers.Dense(x.shape[-1], activation="relu")
    x = layers.Flatten()(dense(dense(x)))
    return keras.Model(inputs, layers.Dense(outputs)(x))


def nested(input_shape, outputs):
    def block():
        return keras.Sequential([layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.1)])

    inputs = keras.Input(input_shape)
    x = block()(block()(layers.Flatten()(inputs)))
    return keras.Model(inputs, layers.Dense(outputs)(x))


def regularised(input_shape, outputs):
    return keras.Sequential(
        [
            layers.Flatten(),
            layers.Dense(8, kernel_regularizer="l1", activity_regularizer="l2"),
            layers.Dense(outputs, bias_regularizer="l2", kernel_constraint="max_norm"),
        ]
    )


def frozen(input_shape, outputs):
    first = layers.Dense(8, trainable=False, name="first")
    return keras.Sequential([layers.Flatten(), first, layers.Dense(outputs)])


def augmentation(input_shape, outputs):
    return keras.Sequential(
        [
            *(layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomZoom(0.1)),
            *(layers.RandomContrast(0.2), layers.GaussianNoise(0.1), layers.Flatten()),
            layers.Dense(outputs),
        ]
    )


class Scaled(layers.Layer):
    """A layer that is built late, and counts its calls in training."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[1:], initializer="ones", name="scale")
        self.calls = self.add_weight(
            shape=(), dtype="int64", initializer="zeros", trainable=False, name="calls"
        )

    def call(self, x, training=False):
        if training:
            self.calls.assign_add(1)
        return x * self.scale


def own_layer(input_shape, outputs):
    return keras.Sequential([layers.Flatten(), Scaled(), layers.Dense(outputs)])


class OwnSeed(layers.Layer):
    """A layer that draws with a generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(3)

    def call(self, x, training=False):
        if not training:
            return x
        return x + keras.random.normal(ops.shape(x), 0, 0.1, seed=self.generator)


def own_seed(input_shape, outputs):
    return keras.Sequential([layers.Flatten(), OwnSeed(), layers.Dense(outputs)])


class Late(keras.Model):
    """A model whose layers are built at their first call, with a loss of its own."""

    def __init__(self, outputs):
        super().__init__()
        self.flat, self.drop = layers.Flatten(), layers.Dropout(0.5)
        self.first, self.last = layers.Dense(8), layers.Dense(outputs)

    def call(self, x):  # without `training`: dropout rests, as in Keras's fit
        x = self.drop(self.first(self.flat(x)))
        self.add_loss(1e-2 * ops.mean(ops.square(x)))
        return self.last(x)


def add_loss(input_shape, outputs):
    return Late(outputs)


def separable(input_shape, outputs):
    return keras.Sequential(
        [
            layers.SeparableConv2D(4, 3),
            layers.DepthwiseConv2D(3),
            layers.GroupNormalization(2),
            layers.SpatialDropout2D(0.2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(outputs),
        ]
    )


def channels_first(input_shape, outputs):
    """Return a model for image_data_format=channels_first, whose constraint adds epsilon."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Permute((3, 1, 2)),
            layers.Conv2D(4, 3),
            layers.MaxPooling2D(),
            layers.BatchNormalization(axis=1),
            layers.RandomFlip(),
            layers.Flatten(),
            layers.Dense(outputs, kernel_constraint=keras.constraints.UnitNorm()),
        ]
    )


KINDS = ("batch_norm", "lstm", "nested", "frozen", "own_layer", "add_loss")
OTHERS = (
    *("layer_norm", "dropout", "attention", "gru", "embedding", "shared", "regularised"),
    *("augmentation", "own_seed", "separable"),
)


def softmax(input_shape, outputs):
    return keras.Sequential([layers.Flatten(), layers.Dense(outputs, activation="softmax")])


def sigmoid(input_shape, outputs):
    return keras.Sequential([layers.Flatten(), layers.Dense(outputs, activation="sigmoid")])


def linear(input_shape, outputs):
    return keras.Sequential([layers.Flatten(), layers.Dense(outputs)])


# What is refused


class OwnStep(keras.Model):
    def train_step(self, data):
        return {}


def own_step(input_shape, outputs):
    inputs = keras.Input(input_shape)
    return OwnStep(inputs, layers.Dense(outputs)(layers.Flatten()(inputs)))


def calls_python(input_shape, outputs):
    import tensorflow as tf

    class Python(layers.Layer):
        def call(self, x):
            return tf.ensure_shape(tf.py_function(lambda y: y, [x], tf.float32), x.shape)

        def compute_output_shape(self, shape):
            return shape

    return keras.Sequential([layers.Flatten(), Python(), layers.Dense(outputs)])


def eager_only(input_shape, outputs):
    class Eager(layers.Layer):
        def call(self, x):
            return x * float(ops.sum(x))

        def compute_output_shape(self, shape):
            return shape

    return keras.Sequential([layers.Flatten(), Eager(), layers.Dense(outputs)])


class Drawing(layers.Layer):
    def call(self, x, training=False):
        import tensorflow as tf

        return x + tf.random.normal(tf.shape(x)) if training else x


def draws(input_shape, outputs):
    return keras.Sequential([layers.Flatten(), Drawing(), layers.Dense(outputs)])


class Counting(layers.Layer):
    def __init__(self):
        super().__init__()
        self.mean = keras.metrics.Mean(name="of_all")

    def call(self, x):
        self.mean.update_state(x)
        return x


def counts(input_shape, outputs):
    return keras.Sequential([layers.Flatten(), Counting(), layers.Dense(outputs)])


def own_policy(input_shape, outputs):
    keras.config.set_dtype_policy("mixed_float16")
    return linear(input_shape, outputs)


def few_outputs(input_shape, outputs):
    return linear(input_shape, outputs - 1)


def two_outputs(input_shape, outputs):
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    return keras.Model(inputs, [layers.Dense(outputs)(x), layers.Dense(outputs)(x)])


def two_inputs(input_shape, outputs):
    inputs = [keras.Input(input_shape), keras.Input(input_shape)]
    return keras.Model(inputs, layers.Dense(outputs)(layers.Flatten()(layers.add(inputs))))


def one_path(input_shape, outputs):
    class Twins(keras.Model):
        def __init__(self):
            super().__init__(name="twins")
            self.flat = layers.Flatten()
            self.one, self.two = (layers.Dense(outputs, name="same") for _ in range(2))

        def call(self, x):
            x = self.flat(x)
            return self.one(x) + self.two(x)

    return Twins()


def raises(input_shape, outputs):
    raise RuntimeError("the weights are elsewhere")


def no_model(input_shape, outputs):
    return [1, 2]


def nothing_trained(input_shape, outputs):
    model = linear(input_shape, outputs)
    model.trainable = False
    return model


def rescaling(input_shape, outputs):
    return keras.Sequential([layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(outputs)])


def named_inputs(input_shape: dict[str, tuple[int, ...]], outputs: int) -> Any:
    """Return a model of several inputs, which takes them as a mapping."""
    inputs = {name: keras.Input(shape, name=name) for name, shape in input_shape.items()}
    hidden = [layers.Dense(4)(layers.Flatten()(each)) for each in inputs.values()]
    return keras.Model(inputs, layers.Dense(outputs)(layers.Concatenate()(hidden)))


def one_of_two(input_shape: dict[str, tuple[int, ...]], outputs: int) -> Any:
    """Return a model that takes one of several inputs, and not as a mapping."""
    return keras.Sequential([keras.Input(input_shape["row"]), layers.Dense(outputs)])
