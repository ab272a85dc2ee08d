"""Ask a recorded run's checkpoint about new examples, part by part."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from waymark.config.schema import Config
from waymark.data.columns import EncodedColumn
from waymark.data.picture_file import quiet
from waymark.errors import BadInput, printable
from waymark.evaluation.restore import (
    find_checkpoint,
    recorded_signature,
    scored_values,
)
from waymark.prediction.arrays import Arrays
from waymark.prediction.computing import Predictor
from waymark.prediction.inputs import NAMES, Given, Reader, look, taken
from waymark.prediction.labels import Labels, form_of
from waymark.prediction.mistakes import Mistakes, refuse_errors
from waymark.prediction.pictures import Pictures
from waymark.prediction.results import Answers, Layout, Predictions, joined
from waymark.prediction.tables import Rows
from waymark.prediction.writing import STANDARD_OUTPUT, WRITERS, checked_output, writing
from waymark.tasks import answer_names
from waymark.tasks.metrics import measured
from waymark.training.score import measure, needs_outputs
from waymark.training.streaming import ReadAhead


@dataclass(frozen=True)
class Request:
    """What is asked for, beside the run and the inputs."""

    output: str | Path | None = None  # None: predictions are kept, and not written
    top: int | None = None
    resize: bool = False
    invert: bool = False
    errors: str | Path | None = None  # a PNG file

    def checked(self, given: Given) -> "Request":
        """Return it with whole paths; raise BadInput for what the inputs do not allow."""
        if self.top is not None and self.top < 1:
            raise BadInput(f"--top {self.top}: must be 1 or more.")
        for option, asked in {"--resize": self.resize, "--invert": self.invert}.items():
            if asked and given.kind != "pictures":
                raise BadInput(f"{option}: is for pictures; {given.paths[0]} is none.")
        output, errors = self.output, self.errors
        if output not in (None, STANDARD_OUTPUT):
            output = checked_output(str(output), tuple(WRITERS))
            _refuse_input("-o", output, given)
        if errors is not None:
            errors = checked_output(errors, (".png",), "--errors")
            _refuse_input("--errors", errors, given)
        return replace(self, output=output, errors=errors)


def _refuse_input(option: str, path: Path, given: Given) -> None:
    """Raise BadInput for the path of an input, and of a file that is in a folder of inputs."""
    places = {path.resolve(), path.parent.resolve() / path.name}  # itself, what it is a link to
    for each in (found.resolve() for found in given.paths):
        if each in places:
            raise BadInput(f"{option} {path}: is one of the inputs.")
        if path.exists() and any(each in place.parents for place in places):
            raise BadInput(f"{option} {path}: is a file in the folder {each}, an input.")


def predict_run(
    text: str,
    inputs: Sequence[str | Path],
    step: str,
    overrides: Mapping[str, Any],
    request: Request,
) -> Predictions:
    """Predict by a run's checkpoint: a step, `best` or `latest`; raise BadInput, CorruptCheckpoint.

    What cannot be read of pictures is left out, and told by `wrong`.
    """
    given = look(inputs)
    request = request.checked(given)
    with find_checkpoint(text, step, overrides) as found:
        config = found.config
        signature = recorded_signature(found)
        labels = Labels(config.task, form_of(signature))
        reader = _opened(given, config, labels, signature.columns, request)
        known = labels.are_read and reader.labelled
        _refuse_top(labels, request.top)
        layout = Layout(
            kind=labels.kind,
            called=answer_names(config.task),
            names=signature.output_names,
            by_file=reader.from_files,
            top=request.top,
        )
        if request.errors is not None:
            refuse_errors(labels, known)
        unused = "" if labels.are_read else "; labels of a task of your own are not read"
        print(printable(f"waymark: reads {reader.said}{unused}"), file=sys.stderr)
        form, state = labels.form, found.read()[1]
        values = scored_values(config, form.spec, form.statistics, state)
        predictor = Predictor(config, form, values, known)
        facts = {
            "read": reader.said,
            "source": f"checkpoints/{found.store.path(found.step).name} of run {found.record.id}",
            "step": found.step,
        }
        return _predicted(config, predictor, reader, labels, layout, request, facts)


def _opened(
    given: Given, config: Config, labels: Labels, columns: Sequence[EncodedColumn], asked: Request
) -> Reader:
    """Look into the inputs; raise BadInput for what the run's model does not take."""
    path, form = given.paths[0], labels.form
    if (given.kind == "table") != bool(columns):
        takes = "the columns of a table" if columns else taken(form)
        raise BadInput(f"predict: {path} is {NAMES[given.kind]}; the run's model takes {takes}.")
    if given.kind == "table":
        return Rows(path, columns, config.data, labels.as_texts)
    if given.kind == "pictures":
        return Pictures(given.paths, form, asked.resize, asked.invert)
    return Arrays(path, form)


def _refuse_top(labels: Labels, top: int | None) -> None:
    """Raise BadInput for more of the best classes than there are."""
    count = labels.form.spec.outputs
    if top is not None and labels.kind != "classification":
        raise BadInput(f"--top {top}: is for task=classification, whose classes have an order.")
    if top is not None and top > count:
        raise BadInput(f"--top {top}: the run has {count} classes.")


class Tally:
    """What metrics are measured by, of all examples with labels."""

    def __init__(self, config: Config) -> None:
        self._metrics = measured(config.task, config.metrics)
        self._needs_outputs = needs_outputs(self._metrics)
        self._parts: list[list[np.ndarray]] = []

    def add(self, answers: Answers, losses: np.ndarray) -> None:
        """Remember what counts of some answers, and their losses [n]."""
        assert answers.truth is not None
        outputs = [answers.outputs] if self._needs_outputs else []
        self._parts.append([answers.truth, losses, answers.predicted, *outputs])

    def metrics(self) -> dict[str, float]:
        """Return what `evaluate` would tell of a test set of these examples; nothing of none."""
        if not any(len(part[0]) for part in self._parts):
            return {}
        truth, losses, *rest = map(np.concatenate, zip(*self._parts, strict=True))
        return measure(self._metrics, truth, losses, *rest)


def _predicted(
    config: Config,
    predictor: Predictor,
    reader: Reader,
    labels: Labels,
    layout: Layout,
    request: Request,
    facts: Mapping[str, Any],
) -> Predictions:
    """Predict part by part, write or keep what is predicted, and measure it."""
    kept: list[Answers] = []
    wrong: dict[str, str] = {}
    tally, mistakes, total = Tally(config), Mistakes(layout.names), 0
    with ExitStack() as stack:
        stack.enter_context(quiet())
        to = request.output
        add = kept.append if to is None else stack.enter_context(writing(to, layout))
        for part in stack.enter_context(closing(ReadAhead(reader.parts()))):
            for place, why in part.wrong.items():
                wrong[part.files[place]] = why
                print(printable(f"waymark: {part.files[place]}: {why}"), file=sys.stderr)
            right = np.array([i not in part.wrong for i in range(len(part))])
            truth = labels.truth(part, reader.source, reader.truth) if predictor.labelled else None
            answers, losses = predictor.answers(part, truth, right)
            add(answers)
            total += len(answers.rows)
            if losses is not None:
                tally.add(answers, losses)
            if request.errors is not None:
                mistakes.add(part.features[right], answers)
    drawn = mistakes.draw(Path(request.errors)) if request.errors is not None else 0
    return Predictions(
        answers=joined(kept) if kept else None,
        layout=layout,
        total=total,
        metrics=tally.metrics(),
        wrong=wrong,
        written=None if request.output in (None, STANDARD_OUTPUT) else Path(str(request.output)),
        drawn=drawn,
        **facts,
    )
