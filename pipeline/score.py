"""Score a model on a whole test set, in batches: in training and after restoring, alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data import Dataset
from pipeline.models import forward, scale

if TYPE_CHECKING:
    import tensorflow as tf

BATCH = 250  # images: ten thousand at once take the CNN a gigabyte and several times as long


@dataclass(frozen=True)
class Score:
    predictions: np.ndarray  # int64 [N], the class of the highest logit
    hits: int
    loss: float  # mean softmax cross entropy

    @property
    def accuracy(self) -> float:
        """Return the share of hits: one integer divided by another."""
        return self.hits / len(self.predictions)

    @property
    def summary(self) -> dict[str, Any]:
        total = len(self.predictions)
        return {**self.metrics, "hits": self.hits, "total": total}

    @property
    def metrics(self) -> dict[str, float]:
        return {"accuracy": self.accuracy, "loss": self.loss}


class Scorer:
    """A compiled function of the parameters, over a test set that stays on the device."""

    def __init__(self, model: Any, precision: str, data: Dataset) -> None:
        import tensorflow as tf

        images, labels = tf.constant(data.x_test), tf.constant(data.y_test)

        @tf.function(autograph=False)
        def batch(
            parameters: dict[str, tf.Tensor], start: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor]:
            pixels = scale(images[start : start + BATCH])
            logits = forward(model, precision, parameters, pixels)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels[start : start + BATCH], logits
            )
            return losses, tf.argmax(logits, 1)

        self._batch, self._labels = batch, data.y_test
        self._compiled: Any = None

    def __call__(self, parameters: "Mapping[str, tf.Tensor]") -> Score:
        import tensorflow as tf

        values = {name: tf.convert_to_tensor(value) for name, value in parameters.items()}
        if self._compiled is None:  # asked for by name: TensorFlow then counts no retracing
            self._compiled = self._batch.get_concrete_function(values, tf.constant(0))
        starts = range(0, len(self._labels), BATCH)
        parts = [self._compiled(values, tf.constant(start)) for start in starts]
        losses = np.concatenate([part[0].numpy() for part in parts])
        predictions = np.concatenate([part[1].numpy() for part in parts])
        hits = int(np.count_nonzero(predictions == self._labels))
        return Score(predictions, hits, float(losses.astype(np.float64).mean()))
