"""Metrics: numbers that are computed on the host from the predictions for a whole split."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any, Literal

import numpy as np

from waymark.errors import BadInput, Failed
from waymark.tasks import resampled
from waymark.tasks.resampled import Resampled
from waymark.users_code import defined, place

LOSS = "loss"  # is measured with every task
TOP = 5


@dataclass(frozen=True)
class Metric:
    """A function of the labels and the predictions, or else the model's outputs, of a split.

    Labels [N, ...] and predictions [N, ...] are as the task has them, outputs float32 [N, outputs].
    """

    mode: Literal["max", "min"] | None  # which way is better; None: a user's own, of which to ask
    function: Callable[[np.ndarray, np.ndarray], float]
    of_outputs: bool = False
    resampled: Resampled | None = None
    """the same of resampled examples (see `waymark.tasks.resampled`); None: it has no interval"""

    def __call__(self, labels: np.ndarray, given: np.ndarray) -> float:
        """Return the value; not a number where what is given is none."""
        if given.dtype.kind == "f" and not np.isfinite(given).all():
            return math.nan
        return float(self.function(labels, given))


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the share of hits: one integer divided by another."""
    return int(np.count_nonzero(predictions == labels)) / len(labels)


def binary_accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the share of hits among all labels of all examples, as Keras's BinaryAccuracy."""
    return int(np.count_nonzero(predictions == labels)) / labels.size


def rmse(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the root of the mean squared error, its mean over the targets."""
    return float(np.sqrt(np.square(_errors(labels, predictions)).mean(axis=0)).mean())


def mae(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return the mean absolute error, its mean over the targets."""
    return float(np.abs(_errors(labels, predictions)).mean())


def _errors(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return predictions.astype(np.float64) - labels.astype(np.float64)


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """Return the softmax of outputs [N, K], float64."""
    shifted = outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True)
    exponents = np.exp(shifted)
    return exponents / exponents.sum(axis=1, keepdims=True)


def _roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean area under the ROC curve over the columns in which there are 0 and 1."""
    from sklearn.metrics import roc_auc_score

    mixed = [k for k in range(labels.shape[1]) if 0 < labels[:, k].sum() < len(labels)]
    areas = [roc_auc_score(labels[:, k], scores[:, k]) for k in mixed]
    return float(np.mean(areas)) if areas else math.nan


def _one_versus_rest(labels: np.ndarray, outputs: np.ndarray) -> float:
    return _roc_auc(labels[:, None] == np.arange(outputs.shape[1]), probabilities(outputs))


def _by_sklearn(name: str, **options: Any) -> Callable[[np.ndarray, np.ndarray], float]:
    def function(labels: np.ndarray, given: np.ndarray) -> float:
        from sklearn import metrics

        if given.dtype.kind == "f":  # of float32 it would take float32 means
            labels, given = labels.astype(np.float64), given.astype(np.float64)
        with warnings.catch_warnings():  # of a class that is never predicted, or never there
            warnings.simplefilter("ignore")
            return float(getattr(metrics, name)(labels, given, **options))

    return function


def _log_loss(labels: np.ndarray, outputs: np.ndarray) -> float:
    function = _by_sklearn("log_loss", labels=np.arange(outputs.shape[1]))
    return function(labels, probabilities(outputs))


def _resampled_log_loss(labels: np.ndarray, outputs: np.ndarray) -> resampled.Value:
    return resampled.log_loss(labels, probabilities(outputs))


def _top(labels: np.ndarray, outputs: np.ndarray) -> float:
    classes = np.arange(outputs.shape[1])
    return _by_sklearn("top_k_accuracy_score", k=TOP, labels=classes)(labels, outputs)


_F1 = {"average": "macro", "zero_division": 0.0}


def _macro(share: str) -> Metric:
    """Return the mean over classes or labels of `precision`, `recall` or `f1`."""
    again = partial(resampled.macro, share)
    return Metric("max", _by_sklearn(f"{share}_score", **_F1), resampled=again)


def _balanced() -> Metric:
    again = partial(resampled.macro, "recall", rest=False)
    return Metric("max", _by_sklearn("balanced_accuracy_score"), resampled=again)


# What can be asked for: the kind of task, the name, the metric.
TABLE: Mapping[str, Mapping[str, Metric]] = {
    "classification": {
        "balanced_accuracy": _balanced(),
        "macro_f1": _macro("f1"),
        "macro_precision": _macro("precision"),
        "macro_recall": _macro("recall"),
        f"top_{TOP}": Metric("max", _top, True, partial(resampled.among_top, TOP)),
        "roc_auc": Metric("max", _one_versus_rest, of_outputs=True),
        "log_loss": Metric("min", _log_loss, True, _resampled_log_loss),
    },
    "multilabel": {
        "macro_precision": _macro("precision"),
        "macro_recall": _macro("recall"),
        "subset_accuracy": Metric(
            "max", _by_sklearn("accuracy_score"), resampled=resampled.all_right
        ),
        "roc_auc": Metric("max", _roc_auc, of_outputs=True),
    },
    "regression": {
        "mse": Metric("min", _by_sklearn("mean_squared_error"), resampled=resampled.squared_error),
        "r2": Metric("max", _by_sklearn("r2_score"), resampled=resampled.r2),
        "median_absolute_error": Metric("min", _by_sklearn("median_absolute_error")),
    },
}


def measured(task: Any, asked: Sequence[str] = ()) -> dict[str, Metric | None]:
    """Return all that is measured of a run: the task's own, the loss (None), what is asked for.

    Raises BadInput for a name that stands for nothing, or for two things.
    """
    found: dict[str, Metric | None] = {**_own_metrics(task), LOSS: None}
    known = TABLE.get(getattr(task, "kind", ""), {})
    for text in asked:
        name = text.rpartition(".")[2]
        if "." in text:
            if name in found or name in known:
                raise BadInput(f"metrics={text!r}: {name} is the name of another metric.")
            found[name] = _own(text)
        elif name in known:
            found[name] = known[name]
        elif name not in found:
            allowed = ", ".join([*task.metrics(), LOSS, *known])
            raise BadInput(
                f"metrics={text!r}: there is no such metric of this task; there are {allowed}, and "
                f"functions of your own by their dotted names."
            )
    return found


def modes(task: Any, asked: Sequence[str] = ()) -> dict[str, str | None]:
    """Return which way is better, `max` or `min`, of all that is measured; None: ask the user."""
    return {name: m.mode if m else "min" for name, m in measured(task, asked).items()}


def judged_by(task: Any) -> tuple[str, Literal["max", "min"]]:
    """Return the name of a task's first metric, by which a run is judged, and its mode."""
    name, metric = next(iter(_own_metrics(task).items()))
    mode: Any = metric.mode  # of a task's own it is never None
    return name, mode


def _own_metrics(task: Any) -> Mapping[str, Metric]:
    """Return what a task measures without being asked; raise BadInput for what is no Metric."""
    found = task.metrics()
    right = isinstance(found, Mapping) and found
    if not right or not all(isinstance(each, Metric) for each in found.values()):
        raise BadInput(
            f"task._target_: {task.metrics.__qualname__}(){defined(task.metrics)} must return a "
            f"mapping of names to waymark.tasks.metrics.Metric, one at least."
        )
    return found


def refuse_few_outputs(asked: Sequence[str], outputs: int) -> None:
    """Raise BadInput for a metric that says nothing about so few outputs."""
    if f"top_{TOP}" in asked and outputs <= TOP:
        raise BadInput(
            f"metrics: top_{TOP} takes more than {TOP} classes; the data have {outputs}."
        )


def _own(text: str) -> Metric:
    """Return the metric that a dotted name stands for: `resolve` has checked the name."""

    def value(labels: np.ndarray, outputs: np.ndarray) -> float:
        try:
            return float(resolve_name(text)(labels, outputs))  # as it is now, in a notebook too
        except Exception as error:
            said = f"{type(error).__name__}: {error}{place(error)}"
            raise Failed(f"metrics={text!r}: {said}") from error

    return Metric(None, value, of_outputs=True)
