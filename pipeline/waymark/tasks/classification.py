"""Classification: every example belongs to one of the classes."""

from dataclasses import replace
from typing import Any

import numpy as np

from waymark.config.schema import settings
from waymark.data.dataset import PARTS, Dataset
from waymark.errors import BadInput

MAX_CLASSES = 65_536  # a stray label must not become a matrix that fills the memory


@settings
class Classification:
    """One class for each example."""

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
        for part in PARTS:
            if len(labels := data.examples(part)[1]):
                texts = names if train.dtype.kind == "U" else ()
                changed[f"y_{part}"] = _labels(f"{data.source}: y_{part}", labels, texts)
        highest = max(int(labels.max()) for labels in changed.values())
        if highest == 0:
            only = repr(names[0]) if names else "0"
            given = " and ".join(changed)
            raise BadInput(
                f"{data.source}: {given} hold only label {only}; allowed are 2 classes up."
            )
        if all(changed[name] is vars(data)[name] for name in changed):
            return data
        return replace(data, class_names=names, **changed)


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
        raise BadInput(f"{name} has dtype {array.dtype}; allowed are {allowed}.")
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
            f"allowed are [N], [N, 1] and one-hot [N, K]."
        )
    return array.argmax(axis=1)


def _numbers(name: str, texts: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    unknown = np.flatnonzero(~np.isin(texts, names))
    if unknown.size:
        known = f"not among the {len(names)} of y_train" if names else "a text, unlike y_train's"
        raise BadInput(f"{name}: label {str(texts[unknown[0]])!r} in row {unknown[0]} is {known}.")
    return np.searchsorted(np.array(names), texts)
