"""What a task is: what the labels are, and so what a model is trained for and judged by.

A task is a settings dataclass with four methods (a user's own needs nothing else):

    prepare(data)                      the data set with labels as the task has them, and `outputs`
    losses(labels, outputs, training)  float32 [B], the loss of each example of a batch
    predict(outputs)                   what the outputs of a batch say, [B, ...]
    metrics()                          name -> Metric: what is measured without being asked for

`losses` and `predict` compute on the device: `outputs` are float32 [B, data.outputs], the model's.
The first metric is the one that a run is judged by where nothing else is said; `loss` is measured
beside them. What acts on training alone (smoothing, say) is for `training`. Besides, if it has it:

    weights(data)                    float32 [N]: what each training example counts by its label
    report(data, predictions)        what evaluation/metrics.json says of the test set's predictions
    per_class(data, predictions)     a ClassScore for each class or label
    probabilities(outputs)           float32 [B, K]: those of each class or label
    answer_names                     an AnswerNames: what an exported model and an npz call these

`report` decides which pictures a run gets, by what is in it: see `waymark.tasks.report`.

    from waymark.config.compose import compose_config
    from waymark.data import splits

    config = compose_config(["data=mnist_5k"]).config
    digits = splits.load(config.data, config.task)
    print(digits.y_train.dtype, digits.spec.outputs, *config.task.metrics())
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from waymark.data.dataset import PARTS, Dataset
from waymark.data.randomness import Tensor
from waymark.errors import BadInput, Failed
from waymark.tasks.report import ClassScore
from waymark.users_code import defined


@dataclass(frozen=True)
class AnswerNames:
    """What is told of new examples is called so, in an exported model and in an npz."""

    predictions: str = "predictions"  # what `predict` returns
    outputs: str | None = "outputs"  # the model's; None: they are the predictions
    names: str = "names"  # of the classes, labels or targets


def answer_names(task: Any) -> AnswerNames:
    """Return what a task calls its answers."""
    names: AnswerNames = getattr(task, "answer_names", AnswerNames())
    return names


def answers(task: Any, outputs: Tensor) -> dict[str, Tensor]:
    """Return by name what a task tells of a model's outputs, float32 [B, K]."""
    names, probabilities = answer_names(task), getattr(task, "probabilities", None)
    found = {names.outputs: outputs} if names.outputs else {}
    if probabilities:
        found["probabilities"] = probabilities(outputs)
    return {**found, names.predictions: task.predict(outputs)}


def prepare_columns(
    data: Dataset, convert: Callable[[str, np.ndarray], np.ndarray], what: str
) -> Dataset:
    """Return a data set with an output for each of the columns that its labels, [N, K], have.

    `convert(name, labels)` makes them of what was read. Raises BadInput, which calls the columns
    `what`, where sets differ in their number.
    """
    changed: dict[str, Any] = {
        f"y_{part}": convert(f"{data.source}: y_{part}", labels)
        for part in PARTS
        if len(labels := data.examples(part)[1])
    }
    count = changed["y_train"].shape[1]
    for name, columns in changed.items():
        if columns.shape[1] != count:
            raise BadInput(
                f"{data.source}: {name} has {columns.shape[1]} {what}, but y_train {count}."
            )
    return replace(data, outputs=count, **changed)


def training_truth(task: Any, data: Dataset) -> list[np.ndarray]:
    """Return the training set's labels [N, ...] and, unless all count 1, its weights float32 [N].

    What an example counts is its own weight times that of its label.
    """
    weights = getattr(task, "weights", lambda _: None)(data)
    if len(data.sample_weight):
        weights = data.sample_weight if weights is None else data.sample_weight * weights
    return [data.y_train] if weights is None else [data.y_train, weights]


def scores_of_classes(task: Any, data: Dataset, predictions: np.ndarray) -> list[ClassScore]:
    """Return how well each class or label of the test set is found; none if there are none."""
    scores: list[ClassScore] = getattr(task, "per_class", lambda *_: [])(data, predictions)
    return scores


def example_losses(task: Any, labels: Tensor, outputs: Tensor, training: bool) -> Tensor:
    """Return the loss of each example of a batch, float32 [B]; raise Failed for another shape."""
    import tensorflow as tf

    losses = tf.cast(task.losses(labels, outputs, training=training), tf.float32)
    if losses.shape.rank not in (None, 1):
        raise Failed(
            f"losses() of the task must return one loss for each example, [B]; it returns "
            f"{losses.shape}{defined(task.losses)}"
        )
    return losses
