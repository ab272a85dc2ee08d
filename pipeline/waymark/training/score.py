"""Score a model on a whole set of examples, in batches: in training and restored, alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from waymark.config.schema import Config
from waymark.data.dataset import Dataset
from waymark.data.randomness import Tensor
from waymark.data.rows import each
from waymark.models import Tensors, as_logits, check_outputs, forward, scale
from waymark.tasks import example_losses
from waymark.tasks.metrics import Metric, measured
from waymark.training import streaming
from waymark.training.hidden_state import trace

IMAGES_PER_BATCH = 250  # images: ten thousand at once take the CNN gigabytes, and longer


@dataclass(frozen=True)
class Score:
    """What a model scored on a whole set of N examples."""

    predictions: np.ndarray  # [N, ...], as the task predicts: int64 classes, for example
    metrics: Mapping[str, float]  # first the one that the run is judged by
    losses: np.ndarray | None = None  # float32 [N], of each example
    outputs: np.ndarray | None = None  # float32 [N, outputs], if a metric is measured of them

    @property
    def judged(self) -> float:
        """Return the value of the metric that the run is judged by."""
        return next(iter(self.metrics.values()))


def compute_outputs(
    model: Any, precision: str, data: Dataset, task: Any, values: Tensors, images: Tensors
) -> Tensor:
    """Return a model's outputs for a batch of features as they were read, as the task takes them.

    `values` are its parameters, and the statistics of the training set that `data` names.
    """
    statistics = {name: values[name] for name in data.statistics}
    parameters = {name: values[name] for name in values if name not in statistics}
    outputs = forward(model, precision, parameters, scale(images, data.divide, statistics))
    check_outputs(model, outputs, data)
    return as_logits(model, task, outputs)


def in_batches(
    count: Tensor | int, kinds: Sequence[Any], batch: Callable[[slice], Sequence[Tensor]]
) -> list[Tensor]:
    """Return what `batch` makes of the rows of each batch of `count` examples, in one piece.

    That is a tensor for each of the dtypes `kinds`; what it makes besides is left out.
    """
    import tensorflow as tf

    batches = -(-count // IMAGES_PER_BATCH)

    def body(i: Tensor, arrays: list[Any]) -> tuple[Tensor, list[Any]]:
        found = batch(slice(i * IMAGES_PER_BATCH, (i + 1) * IMAGES_PER_BATCH))
        return i + 1, [array.write(i, found[k]) for k, array in enumerate(arrays)]

    arrays = [tf.TensorArray(kind, batches, infer_shape=False) for kind in kinds]
    _, arrays = tf.while_loop(
        lambda i, _: i < batches,
        body,
        (tf.constant(0), arrays),
        parallel_iterations=2,  # on two cores no slower than more
    )
    return [array.concat() for array in arrays]


def needs_outputs(metrics: Mapping[str, Metric | None]) -> bool:
    """Tell whether any metric is measured by a model's outputs, not by the predictions alone."""
    return any(metric and metric.of_outputs for metric in metrics.values())


def measure(
    metrics: Mapping[str, Metric | None],
    labels: np.ndarray,
    losses: np.ndarray,
    predictions: np.ndarray,
    outputs: Any = None,
) -> dict[str, float]:
    """Return what is measured of a whole set of N examples, by name; None is the mean loss."""
    loss = float(losses.astype(np.float64).mean())
    return {
        name: metric(labels, outputs if metric.of_outputs else predictions) if metric else loss
        for name, metric in metrics.items()
    }


class Scorer:
    """A compiled function of the parameters, over a set that stays on the device, or is read.

    With them may come the statistics of the training set, which are else those of the data.
    """

    def __init__(
        self,
        model: Any,
        precision: str,
        data: Dataset,
        part: Literal["val", "test"] = "test",
        *,
        task: Any,
        metrics: Sequence[str] = (),
    ) -> None:
        import tensorflow as tf

        x, y = data.examples(part)
        self._chunked = streaming.is_large(x)
        resident = () if self._chunked else tf.nest.map_structure(tf.constant, (x[:], y))
        self._measured = measured(task, metrics)
        kinds = [tf.float32, kind_of_predictions(task, data.spec.outputs)]
        if needs_outputs(self._measured):
            kinds.append(tf.float32)

        @tf.function(autograph=False)
        def score(values: dict[str, tf.Tensor], *chunk: tf.Tensor) -> list[tf.Tensor]:
            images, labels = chunk or resident

            def batch(rows: slice) -> Sequence[tf.Tensor]:
                pixels = tf.nest.map_structure(lambda array: array[rows], images)
                outputs = compute_outputs(model, precision, data, task, values, pixels)
                losses = example_losses(task, labels[rows], outputs, training=False)
                return losses, task.predict(outputs), outputs

            return in_batches(tf.shape(labels)[0] if chunk else len(y), kinds, batch)

        self._parts, self._score, self._part = (model, task), score, part
        self._statistics = data.statistics
        self._compiled: Any = None
        self._images, self._labels = x, y

    def read_from(self, data: Dataset) -> None:
        """Read the examples, if they are not on the device, from here on where they are now."""
        self._images, self._labels = data.examples(self._part)

    def compile(self, parameters: Tensors) -> None:
        """Compile for parameters of these shapes; raise HiddenState."""
        import tensorflow as tf

        shapes = {n: tf.TensorSpec(value.shape, value.dtype) for n, value in parameters.items()}
        # Asked for by name: TensorFlow then counts no retracing.
        chunk = (self._images, self._labels) if self._chunked else ()
        specs = [each(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), x) for x in chunk]
        self._compiled = trace(self._score, self._parts, (), shapes, *specs)

    def __call__(self, parameters: Tensors) -> Score:
        import tensorflow as tf

        given = {**self._statistics, **parameters}
        values = {name: tf.convert_to_tensor(value) for name, value in given.items()}
        if self._compiled is None:
            self.compile(values)
        losses, predictions, *outputs = map(
            np.concatenate, zip(*self._outputs(values), strict=True)
        )
        found = measure(self._measured, self._labels, losses, predictions, *outputs)
        return Score(predictions, found, losses, *outputs)

    def _outputs(self, values: dict[str, Any]) -> Iterator[list[np.ndarray]]:
        """Yield losses, predictions and, if they are measured, outputs, in one chunk or several."""
        if not self._chunked:
            yield [part.numpy() for part in self._compiled(values)]
            return
        with streaming.in_order(self._images, self._labels, IMAGES_PER_BATCH) as chunks:
            for chunk in chunks:
                yield [part.numpy() for part in self._compiled(values, *chunk)]


def make_scorer(config: Config, data: Dataset, part: Literal["val", "test"] = "test") -> Scorer:
    """Return a new scorer of what a configuration trains and measures."""
    how = {"task": config.task, "metrics": config.metrics}
    return Scorer(config.model, config.precision, data, part, **how)


def kind_of_predictions(task: Any, outputs: int) -> Any:
    """Return the dtype of what a task predicts."""
    import tensorflow as tf

    with tf.Graph().as_default():
        return task.predict(tf.zeros([1, outputs])).dtype
