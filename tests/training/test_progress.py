"""Progress: the TF1 tutorial's lines, a bar, or nothing."""

import io
import sys
from typing import Any

import pytest
from waymark.training.progress import LogLines, NoProgress, ProgressBar, make_progress


class Terminal(io.StringIO):
    """A standard output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("step", "loss", "accuracy", "line"),
    [
        (200, 0.59659, 0.8773, "Step: 0200, Loss: 0.59659, Test_Acc: 0.87730\n"),
        (1000, 0.2512345, 0.91154999, "Step: 1000, Loss: 0.25123, Test_Acc: 0.91155\n"),
        (1, 12.0, 1.0, "Step: 0001, Loss: 12.00000, Test_Acc: 1.00000\n"),
        (123456, float("nan"), 0.0, "Step: 123456, Loss: nan, Test_Acc: 0.00000\n"),
        (7, float("inf"), 0.098, "Step: 0007, Loss: inf, Test_Acc: 0.09800\n"),
    ],
)
def test_lines_are_the_tutorials(
    step: int, loss: float, accuracy: float, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = LogLines(1000, 0)
    progress.on_steps(step, loss)
    assert capsys.readouterr() == ("", "")
    progress.on_evaluation(step, loss, accuracy)
    assert capsys.readouterr() == (line, "")
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_a_line_is_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look through a buffer as a pipe has it: who follows a log must not wait for it to fill."""
    below = io.BytesIO()
    out = io.TextIOWrapper(io.BufferedWriter(below), write_through=False)  # type: ignore[type-var]
    monkeypatch.setattr(sys, "stdout", out)
    LogLines(10, 0).on_evaluation(1, 1.0, 0.5)
    assert below.getvalue() == b"Step: 0001, Loss: 1.00000, Test_Acc: 0.50000\n"


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = NoProgress(10, 0)
    progress.on_steps(1, 1.0)
    progress.on_evaluation(1, 1.0, 0.5)
    progress.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("mode", "terminal", "kind"),
    [
        ("auto", True, ProgressBar),
        ("auto", False, LogLines),
        (True, True, ProgressBar),
        (True, False, ProgressBar),
        (False, True, NoProgress),
        (False, False, NoProgress),
    ],
)
def test_make_progress(
    mode: Any, terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal() if terminal else io.StringIO())
    progress = make_progress(mode, 10, 3)
    progress.close()
    assert type(progress) is kind
    assert (progress.steps, progress.done) == (10, 3)


def test_the_bar_shows_steps_loss_and_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    progress = make_progress(True, 1000, 200)
    for step in (250, 300, 1000):
        progress.on_steps(step, 1 / step)
    progress.on_evaluation(1000, 0.001, 0.9115)
    progress.close()
    text = out.getvalue()
    for part in ("1000/1000", "loss 0.001000", "acc 0.9115"):
        assert part in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


def test_a_bar_without_a_terminal_ends_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    progress = make_progress(True, 10, 0)
    progress.on_steps(10, float("nan"))
    progress.close()
    assert "10/10" in out.getvalue()
    assert "loss nan" in out.getvalue()
