"""What a run reports of its test set beside metrics: by class or label, and for its pictures.

A task's `report` holds what the pictures are drawn from, as lists of numbers and texts:

    confusion_matrix, confusion_classes, class_names     the confusion matrix
    label_names, label_precision, label_recall, label_f1 bars for each label
    true, predicted                                      residuals, and predictions against targets
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

MAX_CONFUSION_CLASSES = 200  # classes of which each has a row in the confusion matrix
MOST_CONFUSED = 20  # the most confused ones, which alone have one where there are more classes
MAX_POINTS = 2000  # of a regression's pictures; of more examples every n-th is drawn
CLASS_COLUMNS = ("class", "precision", "recall", "f1", "support")


@dataclass(frozen=True)
class ClassScore:
    """How well one class, or label, is found; 0 where there is nothing to divide by."""

    name: str
    precision: float  # hits / predictions
    recall: float  # hits / support
    f1: float  # 2 hits / (predictions + support)
    support: int  # how many examples have it


def class_scores(
    hits: np.ndarray, predicted: np.ndarray, support: np.ndarray, names: Sequence[str] = ()
) -> list[ClassScore]:
    """Return the scores of K classes by their counts, int [K], as scikit-learn defines them."""
    both = predicted + support
    shares = [
        np.divide(over, under, out=np.zeros(len(over)), where=under > 0)
        for over, under in ((hits, predicted), (hits, support), (2 * hits, both))
    ]
    rows = zip(*(each.tolist() for each in (*shares, support)), strict=True)
    return [ClassScore(name_of(names, i), *row) for i, row in enumerate(rows)]


def name_of(names: Sequence[str], number: int) -> str:
    """Return the name of a class, its number where it has none."""
    return names[number] if number < len(names) else str(number)


def class_table(scores: Sequence[ClassScore]) -> str:
    """Return the text of evaluation/classes.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CLASS_COLUMNS)
    writer.writerows(astuple(each) for each in scores)
    return text.getvalue()


def label_report(scores: Sequence[ClassScore]) -> dict[str, Any]:
    """Return what the bars of a multilabel run are drawn from."""
    columns = ("name", "precision", "recall", "f1")
    return {f"label_{c}".replace("name", "names"): [getattr(s, c) for s in scores] for c in columns}


def target_report(truth: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
    """Return targets and predictions, float32 [N, T], of at most MAX_POINTS examples."""
    every = -(-len(truth) // MAX_POINTS)
    return {"true": truth[::every].tolist(), "predicted": predictions[::every].tolist()}


def confusion_report(
    truth: np.ndarray, predictions: np.ndarray, classes: int, names: Sequence[str]
) -> dict[str, Any]:
    """Return what the confusion matrix is drawn from."""
    shown, counts = confusion(truth, predictions, classes)
    named = bool(names) and shown[-1] < len(names)
    return {
        "confusion_matrix": counts.tolist(),
        "confusion_classes": shown,
        **({"class_names": [names[each] for each in shown]} if named else {}),
    }


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
