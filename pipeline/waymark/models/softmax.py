"""Softmax regression: one matrix, no bias."""

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from waymark.config.schema import settings
from waymark.data.sources import ImageSpec
from waymark.models import truncated_normal

if TYPE_CHECKING:
    import tensorflow as tf


@settings
class Softmax:
    """The TF1 tutorial's first model: logits = images @ weights."""

    init_stddev: PositiveFloat
    """standard deviation of the initial weights (truncated normal), above 0"""

    def initial(self, spec: ImageSpec, key: "Callable[[int], tf.Tensor]") -> "dict[str, tf.Tensor]":
        """Return `weights`, float32 [pixels, classes], truncated normal."""
        shape = (prod(spec.shape), spec.classes)
        return {"weights": truncated_normal(shape, self.init_stddev, key(0))}

    def logits(
        self,
        parameters: "Mapping[str, tf.Tensor]",
        images: "tf.Tensor",
        dropout: "tf.Tensor | None",
    ) -> "tf.Tensor":
        """Return logits [B, classes] for images [B, ...], flattened."""
        import tensorflow as tf

        return tf.reshape(images, [-1, prod(images.shape[1:])]) @ parameters["weights"]
