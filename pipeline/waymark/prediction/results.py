"""What is predicted, as columns that a person reads and as arrays that a program does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from waymark.tasks import AnswerNames
from waymark.tasks.report import name_of


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says of some examples, in their order."""

    rows: np.ndarray  # int64 [n], from 0
    files: Sequence[str]  # [n], where each example is a file
    truth: np.ndarray | None  # [n, ...], labels as the task has them, where they are known
    predicted: np.ndarray  # [n, ...], as the task predicts
    outputs: np.ndarray  # float32 [n, K]
    probabilities: np.ndarray | None  # float32 [n, K], of a task with classes or labels


@dataclass(frozen=True)
class Layout:
    """How answers are laid out."""

    kind: str  # of the task
    called: AnswerNames  # by the task
    names: Sequence[str]  # of classes, labels or targets, as far as they are known
    by_file: bool = False  # whether each example is a file
    top: int | None = None  # how many of the best classes have columns; None: each has one

    def columns(self, answers: Answers) -> dict[str, Any]:
        """Return columns [n] by their names."""
        by: dict[str, Any] = {"row": answers.rows}
        if self.by_file:
            by = {"file": np.array(answers.files, str)}
        if self.kind == "classification":
            return by | self._classes(answers)
        parts = {"true": answers.truth, "predicted": answers.predicted, "p": answers.probabilities}
        for part, array in parts.items():
            if array is not None:
                by |= self._by_name(part, array.reshape(len(array), -1))
        return by

    def _classes(self, answers: Answers) -> dict[str, Any]:
        count, p = answers.outputs.shape[1], answers.probabilities
        names = np.array([name_of(self.names, i) for i in range(count)])
        assert p is not None
        # By the outputs, of which more differ than of the probabilities; the first of equals.
        best = np.argsort(-answers.outputs, axis=1, kind="stable")[:, : self.top or 1]
        found: dict[str, Any] = {}
        if answers.truth is not None:
            found["true"] = names[answers.truth]
        for place in range(best.shape[1]):
            ending = f"_{place + 1}" if place else ""
            found[f"predicted{ending}"] = names[best[:, place]]
            found[f"probability{ending}"] = np.take_along_axis(p, best[:, [place]], 1)[:, 0]
        if self.top is None:
            found |= {f"p_{name}": p[:, i] for i, name in enumerate(names)}
        return found

    def _by_name(self, part: str, array: np.ndarray) -> dict[str, np.ndarray]:
        if array.shape[1] == 1 and not self.names:
            return {part: array[:, 0]}
        return {f"{part}_{name_of(self.names, i)}": each for i, each in enumerate(array.T)}

    def arrays(self, answers: Answers) -> dict[str, np.ndarray]:
        """Return arrays [n, ...] by their names, as the model that is exported has them."""
        found: dict[str, Any] = {"files": np.array(answers.files, str)} if self.by_file else {}
        if answers.truth is not None:
            found["true"] = answers.truth
        if self.called.outputs:
            found[self.called.outputs] = answers.outputs
        if answers.probabilities is not None:
            found["probabilities"] = answers.probabilities
        return found | {self.called.predictions: answers.predicted}


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a checkpoint says of N new examples.

    Where they were written to a file, the arrays are not here: `answers` is None.
    """

    answers: Answers | None
    layout: Layout
    read: str  # what was read
    source: str  # which files were restored
    step: int
    total: int  # how many examples there are predictions for
    metrics: Mapping[str, float] = field(default_factory=dict)  # where labels are known
    wrong: Mapping[str, str] = field(default_factory=dict)  # files that were not read, and why
    written: Path | None = None
    drawn: int = 0  # how many mistakes

    @property
    def predicted(self) -> np.ndarray:
        """Return numbers of classes int64 [N], labels uint8 [N, K] or targets float32 [N, T]."""
        return self._kept.predicted

    @property
    def probabilities(self) -> np.ndarray | None:
        """Return float32 [N, K] of classes or labels; None of a task without them."""
        return self._kept.probabilities

    @property
    def outputs(self) -> np.ndarray:
        """Return the model's outputs, float32 [N, K]: logits, of a task with classes or labels."""
        return self._kept.outputs

    @property
    def truth(self) -> np.ndarray | None:
        """Return the labels as the task has them, [N, ...], where they are known."""
        return self._kept.truth

    def to_frame(self) -> Any:
        """Return a pandas frame, with the columns that a CSV file has."""
        import pandas as pd

        return pd.DataFrame(self.layout.columns(self._kept))

    @property
    def _kept(self) -> Answers:
        if self.answers is None:
            raise ValueError(f"these predictions were written to {self.written}, and are not here")
        return self.answers


def joined(parts: Sequence[Answers]) -> Answers:
    """Return the answers of all parts as one."""

    def whole(name: str) -> Any:
        found = [vars(part)[name] for part in parts]
        return None if found[0] is None else np.concatenate(found)

    files = [file for part in parts for file in part.files]
    names = ("rows", "truth", "predicted", "outputs", "probabilities")
    return Answers(files=files, **{name: whole(name) for name in names})
