"""What a finished run is, and how it is shown."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from waymark.comparison.rerun_report import RerunReport
from waymark.table import duration, html_table, metric_value, rate, size

SHOWN_STEPS = 8


@dataclass(frozen=True)
class Result:
    """What a finished run is."""

    run_id: str
    training: Mapping[str, float]  # metrics of the last step, of the validation set if there is one
    restored: Mapping[str, float]  # of the test set; first the metric that the run is judged by
    checkpoints: list[int]
    state_digest: str
    folder: Path
    link: str = ""  # to the run in MLflow's UI, or the command that opens it
    verdict: RerunReport | None = None  # of a rerun
    evaluated: str = "test"  # the set that evaluations in training are on: val or test
    best: tuple[int, float] | None = None  # step and value of the best of these evaluations
    seconds: float = 0.0  # from the first line to the end
    steps_per_second: float | None = None  # of the loop; None if there was no step to train
    next_commands: tuple[str, ...] = ()  # what may be typed next
    # Of each metric the steps at which it was recorded, int64, and its values, float64.
    recorded: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def training_accuracy(self) -> float | None:
        """Return the accuracy in training, 0..1; None if the last step or the task has none."""
        return self.training.get("accuracy")

    @property
    def restored_accuracy(self) -> float | None:
        """Return the restored accuracy, 0..1; None if the task has none."""
        return self.restored.get("accuracy")

    @property
    def history(self) -> Any:
        """Return all that was recorded as a pandas frame: a row a step, a column a metric.

        The index is `step`; at a step without a value of a metric there is NaN.
        """
        import pandas as pd

        known = {key: pd.Series(x, steps) for key, (steps, x) in self.recorded.items()}
        return pd.DataFrame(known).sort_index().rename_axis("step")

    def summary(self) -> dict[str, str]:
        """Return what is said at the end of a run, in its order: label -> text."""
        name, restored = next(iter(self.restored.items()))
        evaluated = "validation" if self.evaluated == "val" else "test"
        folder = self.folder / "checkpoints"
        files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        lines = {
            f"{evaluated} {name}, last step": metric_value(name, self.training.get(name)),
            f"test {name}, restored": metric_value(name, restored),
        }
        if self.best:
            step, value = self.best
            lines[f"best {evaluated} {name}"] = f"{metric_value(name, value)} at step {step}"
        pace = f", {rate(self.steps_per_second)} steps/s" if self.steps_per_second else ""
        lines["time"] = f"{duration(self.seconds)}{pace}"
        lines["checkpoints"] = f"{_shown_steps(self.checkpoints)} ({size(files)})"
        lines |= {"folder": _shown_path(folder), "run": self.run_id, "in the UI": self.link}
        return lines | dict(zip(("next", ""), self.next_commands, strict=False))

    def _repr_html_(self) -> str:
        own = replace(self, next_commands=()).summary()  # a notebook takes no commands
        return html_table([], list(map(list, own.items())))


def _shown_steps(steps: list[int]) -> str:
    """Return the steps that are kept; of more than SHOWN_STEPS their number, first and last."""
    if len(steps) <= SHOWN_STEPS:
        return ", ".join(map(str, steps))
    return f"{len(steps)}, from step {steps[0]} to {steps[-1]}"


def _shown_path(path: Path) -> str:
    """Return a path relative to the current folder where it lies in it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
