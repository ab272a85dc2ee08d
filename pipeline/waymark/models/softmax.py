"""Softmax regression: one matrix, no bias."""

from collections.abc import Callable
from math import prod
from typing import Any

from pydantic import PositiveFloat

from waymark.config.schema import settings
from waymark.data.dataset import ImageSpec
from waymark.data.randomness import Tensor
from waymark.models import Tensors, one_input, truncated_normal


@settings
class Softmax:
    """The TF1 tutorial's first model: logits = images @ weights."""

    init_stddev: PositiveFloat
    """standard deviation of the initial weights (truncated normal), above 0"""

    def check(self, spec: ImageSpec) -> None:
        """Refuse data of several inputs."""
        one_input(spec, "softmax")

    def initial(self, spec: ImageSpec, key: Callable[[int], Tensor]) -> dict[str, Tensor]:
        """Return `weights`, float32 [pixels, outputs], truncated normal."""
        shape = (prod(one_input(spec, "softmax")), spec.outputs)
        return {"weights": truncated_normal(shape, self.init_stddev, key(0))}

    def logits(self, parameters: Tensors, images: Tensor, dropout: Tensor | None) -> Tensor:
        """Return logits [B, outputs] for images [B, ...], flattened."""
        import tensorflow as tf

        return tf.reshape(images, [-1, prod(images.shape[1:])]) @ parameters["weights"]

    def keras_layers(self, outputs: int) -> list[Any]:
        """Return the layers of Keras's that compute the same; their weights are in this order."""
        from waymark.keras_import import import_keras

        keras = import_keras()
        return [keras.layers.Flatten(), keras.layers.Dense(outputs, use_bias=False)]
