"""Classification: every example belongs to one of the classes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat

from waymark.config.schema import settings
from waymark.data.dataset import PARTS, Dataset
from waymark.data.randomness import Tensor
from waymark.errors import BadInput
from waymark.tasks import AnswerNames
from waymark.tasks.metrics import Metric, accuracy
from waymark.tasks.report import ClassScore, class_scores, confusion_report
from waymark.tasks.resampled import hits

MAX_CLASSES = 65_536  # a stray label must not become a matrix that fills the memory


@settings
class Classification:
    """One class for each example: softmax over the outputs, the highest one is the prediction."""

    kind: ClassVar[str] = "classification"
    answer_names: ClassVar[AnswerNames] = AnswerNames("classes", "logits", "class_names")

    # The defaults stand in conf/task/classification.yaml; these are for records made before, and
    # for code that makes a task itself.
    class_weights: Literal["balanced"] | list[NonNegativeFloat] | None = None
    """what an example of each class counts in the training loss: `balanced` (examples / (classes *
    examples of the class), of the training set), or a list with a number for each class"""
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 to 1: of the training loss, the share of it in which all classes are equally right"""

    def prepare(self, data: Dataset) -> Dataset:
        """Return a data set whose labels are int32 [N], from 0, whatever form they were read in.

        That is [N], [N, 1] or one-hot [N, K]; texts are the names of the classes, numbered in
        sorted order. Raises BadInput naming the labels, what they are and what is allowed.
        """
        train = data.y_train
        names = data.class_names
        if train.dtype.kind == "U":
            names = tuple(np.unique(train).tolist())
        changed: dict[str, Any] = {}
        widths = {}  # of labels that are one-hot
        for part in PARTS:
            if len(labels := data.examples(part)[1]):
                if labels.ndim == 2 and labels.shape[1] > 1:
                    widths[f"y_{part}"] = labels.shape[1]
                texts = names if train.dtype.kind == "U" else ()
                changed[f"y_{part}"] = _labels(f"{data.source}: y_{part}", labels, texts)
        if len(set(widths.values())) > 1:
            said = " and ".join(f"{name} {width}" for name, width in widths.items())
            raise BadInput(f"{data.source}: one-hot labels have columns for {said} classes.")
        highest = max(int(labels.max()) for labels in changed.values())
        if highest == 0:
            only = repr(names[0]) if names else "0"
            given = " and ".join(changed)
            raise BadInput(
                f"{data.source}: {given} have only the label {only}; allowed are 2 classes up."
            )
        weights = self.class_weights
        if isinstance(weights, list) and (len(weights) != highest + 1 or not any(weights)):
            raise BadInput(
                f"task.class_weights={weights}: must be {highest + 1} numbers, one a class of "
                f"{data.source}, not all of them 0."
            )
        if all(changed[name] is vars(data)[name] for name in changed):
            return data
        wide = max(widths.values(), default=0)
        outputs = wide if wide > highest + 1 else data.outputs
        return replace(data, class_names=names, outputs=outputs, **changed)

    def losses(self, labels: Tensor, outputs: Tensor, training: bool) -> Tensor:
        """Return the softmax cross entropy, float32 [B], in training with smoothed labels."""
        import tensorflow as tf

        if not training or self.label_smoothing == 0:
            return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)
        classes = outputs.shape[-1]
        off = self.label_smoothing / classes
        smoothed = tf.one_hot(labels, classes, 1 - self.label_smoothing + off, off)
        return tf.nn.softmax_cross_entropy_with_logits(smoothed, outputs)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the class of the highest output, int64 [B]."""
        import tensorflow as tf

        return tf.argmax(outputs, 1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the softmax of the outputs, float32 [B, K]."""
        import tensorflow as tf

        return tf.nn.softmax(outputs)

    def metrics(self) -> Mapping[str, Metric]:
        """Return the accuracy."""
        return {"accuracy": Metric("max", accuracy, resampled=hits)}

    def weights(self, data: Dataset) -> np.ndarray | None:
        """Return the weight of each training example's class, float32 [N]; None without any."""
        if self.class_weights is None:
            return None
        by_class: Any = self.class_weights
        if by_class == "balanced":  # as scikit-learn's compute_class_weight
            counts = np.bincount(data.y_train)
            by_class = len(data.y_train) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return np.asarray(by_class, np.float32)[data.y_train]

    def per_class(self, data: Dataset, predictions: np.ndarray) -> list[ClassScore]:
        """Return the scores of each class on the test set."""
        truth, count = data.y_test, max(data.spec.outputs, int(predictions.max()) + 1)
        hits, predicted, support = (
            np.bincount(each, minlength=count)
            for each in (truth[truth == predictions], predictions, truth)
        )
        return class_scores(hits, predicted, support, data.class_names)

    def report(self, data: Dataset, predictions: np.ndarray) -> dict[str, Any]:
        """Return what the confusion matrix is drawn from."""
        classes = data.spec.outputs
        return confusion_report(data.y_test, predictions, classes, data.class_names)


def _labels(name: str, array: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Return labels as int32 [N], from 0; texts as their places among the `names`."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    elif array.ndim == 2 and array.dtype.kind in "biuf" and array.size:
        array = _decode_one_hot(name, array)
    if array.ndim != 1 or array.size == 0:
        raise BadInput(
            f"{name} has shape {list(array.shape)}; "
            f"allowed are [N], [N, 1] and one-hot [N, K], none of them 0."
        )
    if array.dtype.kind == "U":
        array = _numbers(name, array, names)
    elif names or array.dtype.kind not in "iu":
        allowed = "texts, as in y_train" if names else "integers and texts"
        hint = "; task=regression takes numbers" if array.dtype.kind == "f" else ""
        raise BadInput(f"{name} has dtype {array.dtype}; allowed are {allowed}{hint}.")
    low, high = array.min(), array.max()
    if low < 0 or high >= MAX_CLASSES:
        raise BadInput(
            f"{name} has labels from {low} to {high}; allowed are 0 to {MAX_CLASSES - 1}."
        )
    return array.astype(np.int32)


def _decode_one_hot(name: str, array: np.ndarray) -> np.ndarray:
    wrong = np.flatnonzero(((array != 0) & (array != 1)).any(axis=1) | (array.sum(axis=1) != 1))
    if wrong.size:
        raise BadInput(
            f"{name} has shape {list(array.shape)}, but row {wrong[0]} is not one-hot; "
            f"allowed are [N], [N, 1] and one-hot [N, K]; task=multilabel takes several."
        )
    return array.argmax(axis=1)


def _numbers(name: str, texts: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    unknown = np.flatnonzero(~np.isin(texts, names))
    if unknown.size:
        known = f"not among the {len(names)} of y_train" if names else "a text, unlike y_train's"
        raise BadInput(f"{name}: label {str(texts[unknown[0]])!r} in row {unknown[0]} is {known}.")
    return np.searchsorted(np.array(names), texts)
