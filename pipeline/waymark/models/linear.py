"""A linear model: one matrix and a bias for each output, for regression above all."""

from collections.abc import Callable
from math import prod
from typing import Any

from waymark.config.schema import settings
from waymark.data.dataset import ImageSpec
from waymark.data.randomness import Tensor
from waymark.models import Tensors, one_input


@settings
class Linear:
    """outputs = features @ weights + bias; both are 0 at first, from where any optimum is found."""

    def check(self, spec: ImageSpec) -> None:
        """Refuse data of several inputs."""
        one_input(spec, "linear")

    def initial(self, spec: ImageSpec, key: Callable[[int], Tensor]) -> dict[str, Tensor]:
        """Return `weights`, float32 [features, outputs], and `bias`, float32 [outputs], zeros."""
        import tensorflow as tf

        shape = (prod(one_input(spec, "linear")), spec.outputs)
        return {"weights": tf.zeros(shape), "bias": tf.zeros(shape[1:])}

    def logits(self, parameters: Tensors, images: Tensor, dropout: Tensor | None) -> Tensor:
        """Return outputs [B, outputs] for features [B, ...], flattened."""
        import tensorflow as tf

        flat = tf.reshape(images, [-1, prod(images.shape[1:])])
        return flat @ parameters["weights"] + parameters["bias"]

    def keras_layers(self, outputs: int) -> list[Any]:
        """Return the layers of Keras's that compute the same; their weights are in this order."""
        from waymark.keras_import import import_keras

        keras = import_keras()
        return [keras.layers.Flatten(), keras.layers.Dense(outputs)]
