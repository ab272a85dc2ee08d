"""A restored model's outputs for parts of new examples, by what `evaluate` computes with."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from waymark.config.schema import Config
from waymark.data.dataset import Dataset
from waymark.data.rows import each
from waymark.prediction.inputs import Part
from waymark.prediction.results import Answers
from waymark.tasks import example_losses
from waymark.training.hidden_state import trace
from waymark.training.score import compute_outputs, in_batches, kind_of_predictions


class Predictor:
    """A compiled function of parts of examples, whose batches are those of `evaluate`."""

    def __init__(
        self, config: Config, form: Dataset, values: Mapping[str, np.ndarray], labelled: bool
    ) -> None:
        """Compile it for features, and labels if any, of a form; raise HiddenState."""
        import tensorflow as tf

        model, task = config.model, config.task
        probabilities = getattr(task, "probabilities", None)
        self.labelled, self._converted = labelled, probabilities is not None
        kinds = [kind_of_predictions(task, form.spec.outputs), tf.float32]
        kinds += [tf.float32] * (self._converted + labelled)

        @tf.function(autograph=False)
        def compute(values: dict[str, tf.Tensor], images: Any, *labels: tf.Tensor) -> list[Any]:
            def batch(rows: slice) -> list[tf.Tensor]:
                pixels = tf.nest.map_structure(lambda array: array[rows], images)
                outputs = compute_outputs(model, config.precision, form, task, values, pixels)
                found = [task.predict(outputs), outputs]
                found += [probabilities(outputs)] if probabilities else []
                for truth in labels:
                    found.append(example_losses(task, truth[rows], outputs, training=False))
                return found

            return in_batches(tf.shape(tf.nest.flatten(images)[0])[0], kinds, batch)

        self._values = {name: tf.constant(value) for name, value in values.items()}
        shapes = {n: tf.TensorSpec(value.shape, value.dtype) for n, value in self._values.items()}
        specs = [each(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), form.x_train)]
        if labelled:
            specs.append(tf.TensorSpec([None, *form.y_train.shape[1:]], form.y_train.dtype))
        self._compiled = trace(compute, (model, task), (), shapes, *specs)

    def answers(
        self, part: Part, truth: np.ndarray | None, chosen: np.ndarray
    ) -> tuple[Answers, np.ndarray | None]:
        """Return the answers for the examples of a part that are chosen, bool [n], and losses.

        There are losses, float32 [n], where there is a truth, labels [n, ...].
        """
        import tensorflow as tf

        given = [part.features] if truth is None else [part.features, truth]
        tensors = [tf.nest.map_structure(tf.constant, array) for array in given]
        found = [a.numpy()[chosen] for a in self._compiled(self._values, *tensors)]
        predicted, outputs, *rest = found
        answers = Answers(
            rows=(part.first + np.arange(len(part)))[chosen],
            files=[part.files[i] for i in np.flatnonzero(chosen).tolist()] if part.files else [],
            truth=None if truth is None else truth[chosen],
            predicted=predicted,
            outputs=outputs,
            probabilities=rest[0] if self._converted else None,
        )
        return answers, rest[-1] if self.labelled else None
