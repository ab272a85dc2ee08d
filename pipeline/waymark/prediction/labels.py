"""Labels of new examples, which become those that the run's task has."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from waymark.data.dataset import Dataset
from waymark.data.rows import Inputs
from waymark.data.signature import Signature
from waymark.errors import BadInput
from waymark.prediction.inputs import Part

KINDS = ("classification", "multilabel", "regression")  # tasks whose labels are known to be read


def form_of(signature: Signature) -> Dataset:
    """Return a data set of one example, of zeros, in the form of those that a run was trained on.

    Its labels are not the task's yet, and its statistics are zeros as well.
    """
    arrays = {f.name: np.zeros((1, *f.shape), f.dtype) for f in signature.features}
    features: Any = arrays.get("", Inputs(arrays))
    with_names = signature.task in ("classification", "multilabel")
    found = Dataset(
        name="form",
        source="",
        x_train=features,
        y_train=np.zeros(1),
        outputs=signature.outputs,
        class_names=signature.output_names if with_names else (),
        statistics={name: np.zeros_like(features[0]) for name in signature.statistics},
    )
    scales: Any = ("uint8", "auto", "none", 255)
    forms = [replace(found, scale=scale) for scale in scales]
    return next(form for form in forms if form.divide == signature.divide)


class Labels:
    """What brings labels into the form of a task that has so many outputs."""

    def __init__(self, task: Any, form: Dataset) -> None:
        """Take a data set of one example, whose `outputs` and names are those of the run's."""
        self.kind = getattr(task, "kind", "")
        self.are_read = self.kind in KINDS
        count = form.spec.outputs
        example: np.ndarray = np.zeros((1, count), np.uint8)
        if self.kind == "regression":
            example = example.astype(np.float32)
        elif self.kind != "multilabel":
            example = np.arange(count, dtype=np.int32)
        self._task, self._raw = task, replace(form, y_train=example)
        self.form = task.prepare(self._raw) if self.are_read else self._raw

    @property
    def as_texts(self) -> bool:
        """Tell whether the classes are texts, and not the numbers that they have."""
        names = self.form.class_names
        return self.kind == "classification" and names != tuple(map(str, range(len(names))))

    def truth(self, part: Part, source: str, name: str) -> np.ndarray:
        """Return the labels of a part as the task has them, [n, ...].

        Texts are the names of classes. Raises BadInput for what the training set's cannot be, which
        says that it stands in `name` of `source`.
        """
        labels = part.labels
        assert labels is not None
        said = f"{source}: {name}"
        one_hot = labels.size != len(labels)
        if self.kind == "classification" and labels.dtype.kind == "U":
            labels = self._numbers(labels.reshape(-1), source, part.first)
        elif self.kind == "classification" and labels.dtype.kind in "iu" and not one_hot:
            self._refuse_others(labels.reshape(-1), said, part.first)
        try:
            prepared = self._task.prepare(replace(self._raw, source=source, y_test=labels))
        except BadInput as error:  # which calls them y_test
            raise BadInput(str(error).replace(": y_test", f": {name}", 1)) from None
        truth: np.ndarray = prepared.y_test
        if self.kind == "classification":
            self._refuse_others(truth, said, part.first)
        return truth

    def _refuse_others(self, labels: np.ndarray, said: str, first: int) -> None:
        """Raise BadInput for a number [n] that is no class of the run's."""
        count = self.form.spec.outputs
        wrong = np.flatnonzero((labels < 0) | (labels >= count))
        if wrong.size:
            raise BadInput(
                f"{said} has the label {labels[wrong[0]]} in row {first + wrong[0]}; the run has "
                f"{count} classes, 0 to {count - 1}."
            )

    def _numbers(self, texts: np.ndarray, source: str, first: int) -> np.ndarray:
        names: Sequence[str] = self.form.class_names
        places = {name: place for place, name in enumerate(names)}
        found, codes = np.unique(texts, return_inverse=True)
        numbers = np.array([places.get(text, -1) for text in found.tolist()], np.int32)[codes]
        if (numbers < 0).any():
            row = int((numbers < 0).argmax())
            known = ", ".join(names[:9]) + (", ..." if len(names) > 9 else "")
            raise BadInput(
                f"{source}: label {str(texts[row])!r} in row {row + first} is not a class of the "
                f"run, which has {known or 'none with a name'}."
            )
        return numbers
