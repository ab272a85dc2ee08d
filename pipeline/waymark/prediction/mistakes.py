"""The most confident mistakes among pictures whose labels are known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from waymark.errors import BadInput
from waymark.files import replacing, writes
from waymark.plots.pictures import titled_pictures
from waymark.prediction.inputs import is_picture, taken
from waymark.prediction.labels import Labels
from waymark.prediction.results import Answers
from waymark.tasks.report import name_of

MOST = 25  # that are drawn


def refuse_errors(labels: Labels, known: bool) -> None:
    """Raise BadInput unless mistakes can be drawn: of classes, of pictures, with labels."""
    x = labels.form.x_train
    if labels.kind != "classification":
        raise BadInput("--errors: mistakes are drawn of task=classification alone.")
    if not is_picture(x):
        raise BadInput(f"--errors: the run's model takes {taken(labels.form)}; drawn are pictures.")
    if not known:
        raise BadInput("--errors: labels are not known, so nothing tells what is a mistake.")


class Mistakes:
    """Those of the highest probability, of which the pictures are kept."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._found: list[tuple[float, int, str, np.ndarray]] = []

    def add(self, pictures: np.ndarray, answers: Answers) -> None:
        """Look at more answers, and at their pictures [n, H, W, C]."""
        assert answers.truth is not None and answers.probabilities is not None
        sure = answers.probabilities.max(axis=1)
        wrong = np.flatnonzero(answers.truth != answers.predicted)
        for at in wrong[np.argsort(-sure[wrong], kind="stable")][:MOST]:
            true, seen = (
                name_of(self._names, int(x[at])) for x in (answers.truth, answers.predicted)
            )
            text = f"true: {true}\npredicted: {seen}\n{sure[at]:.4f}"
            self._found.append((-float(sure[at]), int(answers.rows[at]), text, pictures[at].copy()))
        self._found = sorted(self._found, key=lambda each: each[:2])[:MOST]

    def draw(self, path: Path) -> int:
        """Draw them as a PNG file; return how many; of none there is no file. Raises BadInput."""
        if not self._found:
            with writes(path.parent):
                path.unlink(missing_ok=True)
            return 0
        pictures = np.stack([picture for *_, picture in self._found])
        if pictures.dtype != np.uint8:
            low, high = float(pictures.min()), float(pictures.max())
            pictures = ((pictures - low) / ((high - low) or 1) * 255).astype(np.uint8)
        texts = [text for *_, text, _ in self._found]
        with writes(path.parent), replacing(path) as file:
            titled_pictures(file, list(zip(texts, pictures, strict=True)))
        return len(texts)
