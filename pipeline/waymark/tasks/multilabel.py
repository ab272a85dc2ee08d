"""Multilabel classification: every example has any number of the labels."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np

from waymark.config.schema import settings
from waymark.data.dataset import Dataset
from waymark.data.randomness import Tensor
from waymark.errors import BadInput
from waymark.tasks import AnswerNames, prepare_columns
from waymark.tasks.metrics import Metric, binary_accuracy
from waymark.tasks.report import ClassScore, class_scores, label_report
from waymark.tasks.resampled import hits, macro


@settings
class Multilabel:
    """Any number of K labels for each example: a sigmoid for each output."""

    kind: ClassVar[str] = "multilabel"
    answer_names: ClassVar[AnswerNames] = AnswerNames("labels", "logits", "label_names")

    def prepare(self, data: Dataset) -> Dataset:
        """Return a data set whose labels are uint8 [N, K], 0 or 1; raise BadInput for others."""
        return prepare_columns(data, _labels, "labels")

    def losses(self, labels: Tensor, outputs: Tensor, training: bool) -> Tensor:
        """Return the sigmoid cross entropy, its mean over the labels, float32 [B]."""
        import tensorflow as tf

        truth = tf.cast(labels, tf.float32)
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(truth, outputs), 1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the labels of more than even probability, uint8 [B, K]."""
        import tensorflow as tf

        return tf.cast(outputs > 0, tf.uint8)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the sigmoid of the outputs, float32 [B, K]."""
        import tensorflow as tf

        return tf.nn.sigmoid(outputs)

    def metrics(self) -> Mapping[str, Metric]:
        """Return the mean of the labels' F1, and the share of all labels that are right."""
        return {
            "macro_f1": Metric("max", _macro_f1, resampled=partial(macro, "f1")),
            "binary_accuracy": Metric("max", binary_accuracy, resampled=hits),
        }

    def per_class(self, data: Dataset, predictions: np.ndarray) -> list[ClassScore]:
        """Return the scores of each label on the test set."""
        return _scores(data.y_test, predictions, data.class_names)

    def report(self, data: Dataset, predictions: np.ndarray) -> dict[str, Any]:
        """Return what the bars of the labels are drawn from."""
        return label_report(self.per_class(data, predictions))


def _scores(
    labels: np.ndarray, predictions: np.ndarray, names: tuple[str, ...] = ()
) -> list[ClassScore]:
    both = labels & predictions
    hits, predicted, support = (
        each.sum(axis=0, dtype=np.int64) for each in (both, predictions, labels)
    )
    return class_scores(hits, predicted, support, names)


def _macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.mean([each.f1 for each in _scores(labels, predictions)]))


def _labels(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biuf":
        raise BadInput(
            f"{name} is {array.dtype}{list(array.shape)}; allowed are numbers [N, K], each 0 or 1."
        )
    wrong = np.flatnonzero(((array != 0) & (array != 1)).any(axis=1))
    if wrong.size:
        row = array[wrong[0]]
        bad = row[(row != 0) & (row != 1)][0]
        raise BadInput(f"{name} has the value {bad} in row {wrong[0]}; allowed are 0 and 1.")
    return array.astype(np.uint8)
