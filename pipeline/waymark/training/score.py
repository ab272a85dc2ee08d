"""Score a model on a whole set of examples, in batches: in training and restored, alike."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from waymark.data.dataset import Dataset
from waymark.models import Tensors, check_outputs, forward, scale
from waymark.training.hidden_state import trace

MAX_CONFUSION_CLASSES = 200  # classes of which each has a row in the confusion matrix
MOST_CONFUSED = 20  # the most confused ones, which alone have one where there are more classes
IMAGES_PER_BATCH = 250  # images: ten thousand at once take the CNN gigabytes, and longer


@dataclass(frozen=True)
class Score:
    """What a model scored on a whole test set of N images."""

    predictions: np.ndarray  # int64 [N], the class of the highest logit
    hits: int
    loss: float  # mean softmax cross entropy

    @property
    def accuracy(self) -> float:
        """Return the share of hits: one integer divided by another."""
        return self.hits / len(self.predictions)

    @property
    def summary(self) -> dict[str, Any]:
        """Return the metrics, and how many of how many images are classified correctly."""
        return {**self.metrics, "hits": self.hits, "total": len(self.predictions)}

    @property
    def metrics(self) -> dict[str, float]:
        """Return accuracy, 0 to 1, and mean loss by their names."""
        return {"accuracy": self.accuracy, "loss": self.loss}


class Scorer:
    """A compiled function of the parameters, over a set that stays on the device."""

    def __init__(
        self, model: Any, precision: str, data: Dataset, part: Literal["val", "test"] = "test"
    ) -> None:
        import tensorflow as tf

        x, y = data.examples(part)
        images, labels = tf.constant(x), tf.constant(y)
        batches = -(-len(y) // IMAGES_PER_BATCH)

        @tf.function(autograph=False)
        def score(parameters: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            def body(
                i: tf.Tensor, losses: tf.TensorArray, classes: tf.TensorArray
            ) -> tuple[tf.Tensor, tf.TensorArray, tf.TensorArray]:
                rows = slice(i * IMAGES_PER_BATCH, (i + 1) * IMAGES_PER_BATCH)
                logits = forward(model, precision, parameters, scale(images[rows], data.divide))
                check_outputs(model, logits, data.spec.classes)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels[rows], logits)
                return i + 1, losses.write(i, loss), classes.write(i, tf.argmax(logits, 1))

            losses, classes = (
                tf.TensorArray(kind, batches, infer_shape=False, element_shape=[None])
                for kind in (tf.float32, tf.int64)
            )
            _, losses, classes = tf.while_loop(
                lambda i, *_: i < batches,
                body,
                (tf.constant(0), losses, classes),
                parallel_iterations=2,  # on two cores no slower than more
            )
            return losses.concat(), classes.concat()

        self._model, self._score, self._labels = model, score, y
        self._compiled: Any = None

    def compile(self, parameters: Tensors) -> None:
        """Compile for parameters of these shapes; raise HiddenState."""
        import tensorflow as tf

        shapes = {n: tf.TensorSpec(value.shape, value.dtype) for n, value in parameters.items()}
        # Asked for by name: TensorFlow then counts no retracing.
        self._compiled = trace(self._score, [self._model], (), shapes)

    def __call__(self, parameters: Tensors) -> Score:
        import tensorflow as tf

        values = {name: tf.convert_to_tensor(value) for name, value in parameters.items()}
        if self._compiled is None:
            self.compile(values)
        losses, predictions = (part.numpy() for part in self._compiled(values))
        hits = int(np.count_nonzero(predictions == self._labels))
        return Score(predictions, hits, float(losses.astype(np.float64).mean()))


def confusion(
    truth: np.ndarray, predictions: np.ndarray, classes: int
) -> tuple[list[int], np.ndarray]:
    """Return which classes the confusion matrix shows, and its int64 counts, true class by row.

    Of more than MAX_CONFUSION_CLASSES classes these are MOST_CONFUSED ones: of the most frequent
    errors, then of the most images. Memory does not grow with the square of all classes.
    """
    truth = truth.astype(np.int64)
    classes = max(classes, int(predictions.max()) + 1)  # a model may have more outputs
    shown = np.arange(classes)
    if classes > MAX_CONFUSION_CLASSES:
        wrong = truth != predictions
        pairs = _by_frequency(truth[wrong] * classes + predictions[wrong])
        ends = np.column_stack(np.divmod(pairs, classes)).ravel()
        order = dict.fromkeys([*ends.tolist(), *_by_frequency(truth).tolist()])
        shown = np.array(sorted(list(order)[:MOST_CONFUSED]))
    inside = np.isin(truth, shown) & np.isin(predictions, shown)
    row, column = (np.searchsorted(shown, each[inside]) for each in (truth, predictions))
    size = len(shown)
    counts = np.bincount(row * size + column, minlength=size**2).reshape(size, size)
    return shown.tolist(), counts


def _by_frequency(values: np.ndarray) -> np.ndarray:
    """Return the values that occur, each once, the most frequent first."""
    found, counts = np.unique(values, return_counts=True)
    return found[np.argsort(-counts, kind="stable")]
