"""Show how a run goes: a bar on a terminal, the TF1 tutorial's lines elsewhere, or nothing."""

import sys
from collections.abc import Mapping
from math import inf
from typing import Any

from waymark.table import metric_value, number, rate
from waymark.training.loop import NoProgress

TASK = 0  # the only one of a bar


class LogLines(NoProgress):
    """Print one line at each evaluation."""

    def on_evaluation(self, step: int, loss: float, value: float) -> None:
        """Print the line."""
        # As the TF1 tutorial has it, where that shows a loss.
        shown = number(loss) if 0 < abs(loss) < 1e-3 or 1e4 <= abs(loss) < inf else f"{loss:.5f}"
        own = self.metric != "accuracy"
        name, text = (self.metric, number(value)) if own else ("Acc", f"{value:.5f}")
        said = f"{self.evaluated.title()}_{name}: {text}"
        print(f"Step: {step:04d}, Loss: {shown}, {said}", flush=True)


class ProgressBar(NoProgress):
    """Draw a bar with steps per second, loss, last accuracy and time left, at the end taken."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        name = "acc" if self.metric == "accuracy" else self.metric
        text = f"{{task.fields[rate]}} loss {{task.fields[loss]}} {name} {{task.fields[value]}}"
        fields = ("rate", "loss", "value")
        self._bar = _draw(text, fields, self.steps, self.done, elapsed_when_finished=True)

    def on_steps(self, step: int, loss: float) -> None:
        """Show the step, its loss and the steps per second."""
        speed = self._bar.tasks[0].speed
        step_rate = f"{rate(speed)} steps/s" if speed else "-"
        self._bar.update(TASK, completed=step, loss=number(loss), rate=step_rate)

    def on_evaluation(self, step: int, loss: float, value: float) -> None:
        """Show the metric."""
        self._bar.update(TASK, value=metric_value(self.metric, value))

    def close(self) -> None:
        """Stop drawing; the bar stays as it is."""
        self._bar.stop()


def _draw(
    text: str, fields: tuple[str, ...], total: int, done: int, period_s: float = 30, **left: Any
) -> Any:
    """Return a bar that is drawn, with a text of fields; `left` says how the time left is shown."""
    from rich import progress

    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TextColumn(text))
    remaining = progress.TimeRemainingColumn(**left)
    bar: Any = progress.Progress(*columns, remaining, speed_estimate_period=period_s)
    bar.add_task("", total=total, completed=done, **dict.fromkeys(fields, "-"))
    bar.start()
    return bar


def make_progress(mode: Any, steps: int, done: int, *named: str) -> NoProgress:
    """Return what `progress=` asks for: auto, true (a bar even without a terminal), false.

    `named` are the set that is evaluated and the metric that is shown.
    """
    if mode is False:
        return NoProgress(steps, done)
    kind = ProgressBar if mode is True or sys.stdout.isatty() else LogLines
    return kind(steps, done, *named)


class NoSweepProgress:
    """Show nothing of a sweep."""

    def show(self, total: int, counts: Mapping[str, int], best: float | None) -> None:
        """Show how many of `total` trials are finished, pruned, running, failed, and the best."""

    def close(self) -> None:
        """Leave the terminal as it should be."""


class SweepProgressBar(NoSweepProgress):
    """Draw a bar with finished, running and failed trials, the best so far and time left."""

    def __init__(self, total: int) -> None:
        text = "{task.fields[counts]}, best {task.fields[best]}"
        self._bar = _draw(text, ("counts", "best"), total, 0, period_s=600, compact=True)

    def show(self, total: int, counts: Mapping[str, int], best: float | None) -> None:
        """Show the numbers that are not 0, and the best value."""
        text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        over = sum(counts.values()) - counts["running"]
        shown = "-" if best is None else number(best)
        self._bar.update(TASK, completed=over, total=total, counts=text or "-", best=shown)

    def close(self) -> None:
        """Stop drawing; the bar stays as it is."""
        self._bar.stop()


def make_sweep_progress(mode: Any, total: int) -> NoSweepProgress:
    """Return what `progress=` asks for during a sweep: a bar on a terminal, or nothing."""
    bar = mode is True or (mode == "auto" and sys.stdout.isatty())
    return SweepProgressBar(total) if bar else NoSweepProgress()
