"""Metrics of resamples of a set: each example counts as often as it was drawn.

    value = hits(labels, predictions)
    print(value(np.ones((1, len(labels)))))  # of the set itself

Each function here takes the labels and predictions, or outputs, of a set of N examples, and returns
a Value, which is cheap for many resamples: it takes their `counts`, float64 [B, N], how often each
example was drawn, and returns the metric of each resample, float64 [B].
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

Value = Callable[[np.ndarray], np.ndarray]
Resampled = Callable[[np.ndarray, np.ndarray], Value]


def mean(values: np.ndarray) -> Value:
    """Return the mean of values [N]."""
    wide = values.astype(np.float64)
    return lambda counts: counts @ wide / counts.sum(1)


def hits(labels: np.ndarray, predictions: np.ndarray) -> Value:
    """Return the share of labels that are right: of one each, [N], or several, [N, K]."""
    return mean((labels == predictions).reshape(len(labels), -1).mean(1))


def all_right(labels: np.ndarray, predictions: np.ndarray) -> Value:
    """Return the share of examples all of whose labels [N, K] are right."""
    return mean((labels == predictions).all(1))


def among_top(k: int, labels: np.ndarray, outputs: np.ndarray) -> Value:
    """Return the share of examples whose label [N] has one of the k highest outputs [N, K]."""
    highest = np.argsort(outputs, axis=1, kind="stable")[:, : -k - 1 : -1]
    return mean((highest == labels[:, None]).any(1))


def log_loss(labels: np.ndarray, shares: np.ndarray) -> Value:
    """Return the mean of minus the logarithm of the probability [N, K] of the label [N]."""
    least = np.finfo(np.float64).eps  # as scikit-learn has it
    right = shares[np.arange(len(labels)), labels]
    return mean(-np.log(np.clip(right, least, 1 - least)))


def mean_error(labels: np.ndarray, predictions: np.ndarray) -> Value:
    """Return the mean absolute error of predictions [N, T]."""
    return mean(np.abs(_errors(labels, predictions)).mean(1))


def squared_error(labels: np.ndarray, predictions: np.ndarray) -> Value:
    """Return the mean squared error of predictions [N, T]."""
    return mean(np.square(_errors(labels, predictions)).mean(1))


def root_squared_error(labels: np.ndarray, predictions: np.ndarray) -> Value:
    """Return the root of the mean squared error of predictions [N, T], its mean over targets."""
    squares = np.square(_errors(labels, predictions))
    return lambda counts: np.sqrt(_means(counts, squares)).mean(1)


def r2(labels: np.ndarray, predictions: np.ndarray) -> Value:
    """Return the coefficient of determination of predictions [N, T], its mean over targets."""
    squares = np.square(_errors(labels, predictions))
    wide = labels.astype(np.float64)
    moved = wide - wide[0]  # so that the squares of a far mean do not take all digits

    def value(counts: np.ndarray) -> np.ndarray:
        variance = _means(counts, np.square(moved)) - np.square(_means(counts, moved))
        return (1 - _means(counts, squares) / variance).mean(1)

    return value


def _errors(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return predictions.astype(np.float64) - labels.astype(np.float64)


def _means(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    return counts @ values / counts.sum(1, keepdims=True)


def macro(share: str, labels: np.ndarray, predictions: np.ndarray, rest: bool = True) -> Value:
    """Return the mean over the classes [N], or labels [N, K], of a share, which is 0 for 0 / 0.

    It is `precision`, `recall` or `f1`. Of classes those count that occur in a resample, with
    `rest` those that are only predicted there as well; of labels all.
    """
    several = labels.ndim == 2
    both = [labels, predictions]
    if not several:
        count = 1 + max(int(each.max()) for each in both)
        one_hot = partial(_one_hot, count)
        right = np.where(labels == predictions, labels, -1)
        sums = [_sums(one_hot(each)) for each in (right, predictions, labels)]
    else:
        sums = [_sums(each) for each in (labels & predictions, predictions, labels)]

    def value(counts: np.ndarray) -> np.ndarray:
        found, predicted, support = (each(counts) for each in sums)
        parts = {"precision": (found, predicted), "recall": (found, support)}
        part, whole = parts.get(share, (2 * found, predicted + support))
        shares = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        there = support + predicted * rest > 0 if not several else np.ones_like(shares)
        return (shares * there).sum(1) / there.sum(1)

    return value


def _one_hot(count: int, classes: np.ndarray) -> Any:
    """Return classes [N] as a sparse array [N, count]; those of -1 are none."""
    from scipy.sparse import csr_array

    rows = np.flatnonzero(classes >= 0)
    return csr_array((np.ones(len(rows)), (rows, classes[rows])), (len(classes), count))


def _sums(matrix: Any) -> Value:
    """Return the sums over the examples of each column [N, K]: float64 [B, K]."""
    from scipy.sparse import csr_array

    columns = csr_array(matrix, dtype=np.float64).T.tocsr()
    return lambda counts: np.asarray(columns @ counts.T).T
