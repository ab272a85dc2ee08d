"""The TF1 tutorial's SimpleCNN: two convolutions with pooling, two dense layers."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, PositiveFloat

from waymark.config.schema import settings
from waymark.data.dataset import ImageSpec
from waymark.data.randomness import Tensor
from waymark.errors import BadInput
from waymark.models import Tensors, one_input, truncated_normal

FILTERS = (32, 64)
DENSE = 1024
NAMES = [kind + end for end in ("", "_1", "_2", "_3") for kind in ("weights", "bias")]


@settings
class Cnn:
    """conv 5x5x32, pool, conv 5x5x64, pool, dense 1024, dropout, dense to the outputs.

    The parameters bear the names that TensorFlow gave the TF1 tutorial's unnamed variables, so that
    its programs read Waymark's checkpoints and the other way round.
    """

    init_stddev: PositiveFloat
    """standard deviation of the initial weights (truncated normal), above 0"""
    init_bias: float
    """initial value of every bias"""
    keep_prob: Annotated[float, Field(gt=0, le=1)]
    """share of the dense layer's units that dropout keeps in training, above 0, at most 1"""

    def check(self, spec: ImageSpec) -> None:
        """Refuse data whose images have no height and width, and several inputs."""
        shape = one_input(spec, "cnn")
        if len(shape) != 3:
            raise BadInput(
                f"model=cnn needs images [N,H,W] or [N,H,W,C]; "
                f"this data has [N,{','.join(map(str, shape))}]: use model=softmax."
            )

    def initial(self, spec: ImageSpec, key: Callable[[int], Tensor]) -> dict[str, Tensor]:
        """Return float32 weights, truncated normal, and biases, constant, by name."""
        import tensorflow as tf

        height, width, channels = one_input(spec, "cnn")
        flat = -(-height // 4) * -(-width // 4) * FILTERS[1]
        shapes = (
            (5, 5, channels, FILTERS[0]),
            (5, 5, *FILTERS),
            (flat, DENSE),
            (DENSE, spec.outputs),
        )
        values = []
        for i, shape in enumerate(shapes):
            values.append(truncated_normal(shape, self.init_stddev, key(i)))
            values.append(tf.fill(shape[-1:], tf.constant(self.init_bias)))
        return dict(zip(NAMES, values, strict=True))

    def logits(self, parameters: Tensors, images: Tensor, dropout: Tensor | None) -> Tensor:
        """Return logits [B, outputs] for images [B, H, W, C]; no dropout without its key."""
        import tensorflow as tf

        w = [parameters[name] for name in NAMES]

        def convolution(x: tf.Tensor, filters: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
            # Adding a bias and ReLU keep the order within a channel, so pooling first gives
            # the same bits for a quarter of the element-wise work.
            x = tf.nn.conv2d(x, filters, strides=1, padding="SAME")
            return tf.nn.relu(tf.nn.max_pool2d(x, 2, 2, "SAME") + bias)

        x = convolution(convolution(images, w[0], w[1]), w[2], w[3])
        x = tf.reshape(x, [-1, x.shape[1] * x.shape[2] * x.shape[3]])
        # In training the product's gradient to x then needs no transposed w, which would take
        # oneDNN a tenth of a step longer; the bits of the weights are the same.
        dense = x @ w[4] if dropout is None else tf.matmul(tf.transpose(x), w[4], transpose_a=True)
        x = tf.nn.relu(dense + w[5])
        if dropout is not None and self.keep_prob < 1:
            x = tf.nn.experimental.stateless_dropout(
                x, rate=1 - self.keep_prob, seed=dropout, rng_alg="philox"
            )
        return x @ w[6] + w[7]

    def keras_layers(self, outputs: int) -> list[Any]:
        """Return the layers of Keras's that compute the same; their weights are in this order."""
        from waymark.keras_import import import_keras

        keras = import_keras()
        layers = keras.layers
        made: list[Any] = []
        for filters in FILTERS:
            made.append(layers.Conv2D(filters, 5, padding="same", activation="relu"))
            made.append(layers.MaxPooling2D(2, padding="same"))
        made += [layers.Flatten(), layers.Dense(DENSE, activation="relu")]
        return [*made, layers.Dropout(1 - self.keep_prob), layers.Dense(outputs)]
