"""Metrics of resamples: those of the examples that were drawn, taken out and put together."""

from typing import Any

import numpy as np
import pytest
from waymark.tasks.classification import Classification
from waymark.tasks.metrics import TABLE, measured
from waymark.tasks.multilabel import Multilabel
from waymark.tasks.regression import Regression

TASKS: dict[str, Any] = {task.kind: task for task in (Classification(), Multilabel(), Regression())}
WITHOUT = {"loss", "roc_auc", "median_absolute_error"}  # the first is a mean of losses


def examples(kind: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, predictions and outputs [N, 7]; some classes are rare, one never predicted."""
    draw = np.random.default_rng(8)
    noisy = draw.normal(0, 1, (count, 7))
    outputs = (noisy + draw.normal(0, 1, noisy.shape)).astype(np.float32)
    outputs[:, 2] = -9
    if kind == "regression":
        return noisy.astype(np.float32), outputs, outputs
    if kind == "multilabel":
        return (noisy > 1.5).astype(np.uint8), (outputs > 0).astype(np.uint8), outputs
    labels = noisy.argmax(1).astype(np.int32)
    labels[labels == 5] = 4
    return labels, outputs.argmax(1), outputs


@pytest.mark.parametrize("kind", TASKS)
def test_counts_are_the_examples_that_often(kind: str) -> None:
    labels, predictions, outputs = examples(kind, 40)
    draw = np.random.default_rng(9)
    drawn = [np.arange(40), *draw.integers(0, 40, (20, 40)), np.repeat(draw.integers(0, 40, 2), 20)]
    if kind == "regression":
        del drawn[-1]  # of whose two values scikit-learn and the sums round r2 otherwise
    counts = np.array([np.bincount(rows, minlength=40) for rows in drawn], np.float64)
    known = measured(TASKS[kind], list(TABLE[kind]))
    assert {name for name, each in known.items() if not each or not each.resampled} <= WITHOUT
    for name, metric in known.items():
        if metric and metric.resampled:
            given = outputs if metric.of_outputs else predictions
            found = metric.resampled(labels, given)(counts)
            theirs = [metric(labels[rows], given[rows]) for rows in drawn]
            np.testing.assert_allclose(found, theirs, rtol=1e-9, atol=1e-12, err_msg=name)
