"""Regression: every example has one number, or several."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from waymark.config.schema import settings
from waymark.data.dataset import Dataset
from waymark.data.randomness import Tensor
from waymark.errors import BadInput
from waymark.tasks import AnswerNames, prepare_columns
from waymark.tasks.metrics import Metric, mae, rmse
from waymark.tasks.report import target_report
from waymark.tasks.resampled import mean_error, root_squared_error


@settings
class Regression:
    """T numbers for each example, the targets: the model's outputs are the predictions."""

    kind: ClassVar[str] = "regression"
    answer_names: ClassVar[AnswerNames] = AnswerNames(outputs=None, names="target_names")

    loss: Literal["mse", "mae", "huber"] = "mse"
    """`mse`, `mae` or `huber` (squared up to an error of 1, then absolute)"""

    def prepare(self, data: Dataset) -> Dataset:
        """Return a data set whose labels are float32 [N, T], finite; raise BadInput for others."""
        return prepare_columns(data, _targets, "targets")

    def losses(self, labels: Tensor, outputs: Tensor, training: bool) -> Tensor:
        """Return the loss that is set, its mean over the targets, float32 [B]."""
        import tensorflow as tf

        errors = tf.abs(outputs - labels)
        if self.loss == "mse":
            errors = tf.square(errors)
        elif self.loss == "huber":
            errors = tf.where(errors <= 1.0, 0.5 * tf.square(errors), errors - 0.5)
        return tf.reduce_mean(errors, 1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the outputs, float32 [B, T]."""
        return outputs

    def metrics(self) -> Mapping[str, Metric]:
        """Return the root of the mean squared error, and the mean absolute error."""
        return {
            "rmse": Metric("min", rmse, resampled=root_squared_error),
            "mae": Metric("min", mae, resampled=mean_error),
        }

    def report(self, data: Dataset, predictions: np.ndarray) -> dict[str, Any]:
        """Return what the residuals, and the predictions against the targets, are drawn from."""
        return target_report(data.y_test, predictions)


def _targets(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim not in (1, 2) or array.size == 0 or array.dtype.kind not in "iuf":
        raise BadInput(
            f"{name} is {array.dtype}{list(array.shape)}; allowed are numbers, [N] or [N, T]."
        )
    with np.errstate(over="ignore"):
        targets = array.reshape(len(array), -1).astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(targets).all(axis=1))
    if wrong.size:
        raise BadInput(f"{name} has a value in row {wrong[0]} that is not finite as a float32.")
    return targets
