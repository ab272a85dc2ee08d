"""Show how a run goes: a bar on a terminal or in a notebook, the TF1 tutorial's lines elsewhere."""

import io
import sys
import time
from collections.abc import Mapping
from math import inf
from typing import Any

from waymark.processes.process_state import in_notebook
from waymark.table import metric_value, number, rate
from waymark.training.loop import NoProgress

TASK = 0  # the only one of a bar
NOTEBOOK_PERIOD_S = 0.2  # between two states of a bar in a notebook


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


class NotebookBar:
    """Show a bar of rich's in the output of a notebook's cell, where its state is replaced."""

    def __init__(self, bar: Any) -> None:
        from IPython.display import DisplayHandle
        from rich.console import Console

        self.tasks, self._bar, self._handle = bar.tasks, bar, DisplayHandle()
        self._console = Console(
            file=io.StringIO(), record=True, width=100, force_terminal=True, force_jupyter=False
        )
        self._handle.display(self._content(), raw=True)
        self._shown = time.monotonic()

    def update(self, task: Any, **fields: Any) -> None:
        """Take new numbers; show them, unless others were shown just before."""
        self._bar.update(task, **fields)
        if time.monotonic() - self._shown > NOTEBOOK_PERIOD_S:
            self.stop()

    def stop(self) -> None:
        """Show the numbers as they are."""
        self._handle.update(self._content(), raw=True)
        self._shown = time.monotonic()

    def _content(self) -> dict[str, str]:
        self._console.print(self._bar.get_renderable())
        text = self._console.export_text(clear=False).rstrip()
        body = self._console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
        return {"text/plain": text, "text/html": body}


def _draw(
    text: str, fields: tuple[str, ...], total: int, done: int, period_s: float = 30, **left: Any
) -> Any:
    """Return a bar that is drawn, with a text of fields; `left` says how the time left is shown."""
    from rich import progress

    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TextColumn(text))
    remaining = progress.TimeRemainingColumn(**left)
    bar: Any = progress.Progress(*columns, remaining, speed_estimate_period=period_s)
    bar.add_task("", total=total, completed=done, **dict.fromkeys(fields, "-"))
    if in_notebook():
        return NotebookBar(bar)
    bar.start()
    return bar


def _can_draw() -> bool:
    return sys.stdout.isatty() or in_notebook()


def make_progress(mode: Any, steps: int, done: int, *named: str) -> NoProgress:
    """Return what `progress=` asks for: auto, true (a bar even without a terminal), false.

    `named` are the set that is evaluated and the metric that is shown.
    """
    if mode is False:
        return NoProgress(steps, done)
    kind = ProgressBar if mode is True or _can_draw() else LogLines
    return kind(steps, done, *named)


class NoSweepProgress:
    """Show nothing of a sweep."""

    def show(self, total: int, counts: Mapping[str, int], best: float | None) -> None:
        """Show how many of `total` trials are finished, pruned, running, failed, and the best."""

    def tell(self, line: str) -> None:
        """Say in a line that a trial is over."""

    def close(self) -> None:
        """Leave the terminal as it should be."""


class SweepLines(NoSweepProgress):
    """Print one line for each trial that is over."""

    def tell(self, line: str) -> None:
        """Print the line."""
        print(line, flush=True)


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
    """Return what `progress=` asks for during a sweep: auto, true (a bar anywhere), false."""
    if mode is False:
        return NoSweepProgress()
    return SweepProgressBar(total) if mode is True or _can_draw() else SweepLines()
