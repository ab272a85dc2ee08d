"""Progress: the TF1 tutorial's lines, a bar, or nothing."""

import io
import sys
from typing import Any

import pytest

from pipeline.progress import Bar, Lines, Silent, watcher


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
    show = Lines(1000, 0)
    show.advanced(step, loss)
    assert capsys.readouterr() == ("", "")
    show.evaluated(step, loss, accuracy)
    assert capsys.readouterr() == (line, "")
    show.close()
    assert capsys.readouterr() == ("", "")


def test_a_line_is_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look through a buffer as a pipe has it: who follows a log must not wait for it to fill."""
    below = io.BytesIO()
    out = io.TextIOWrapper(io.BufferedWriter(below), write_through=False)  # type: ignore[type-var]
    monkeypatch.setattr(sys, "stdout", out)
    Lines(10, 0).evaluated(1, 1.0, 0.5)
    assert below.getvalue() == b"Step: 0001, Loss: 1.00000, Test_Acc: 0.50000\n"


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show = Silent(10, 0)
    show.advanced(1, 1.0)
    show.evaluated(1, 1.0, 0.5)
    show.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("wish", "terminal", "kind"),
    [
        ("auto", True, Bar),
        ("auto", False, Lines),
        (True, True, Bar),
        (True, False, Bar),
        (False, True, Silent),
        (False, False, Silent),
    ],
)
def test_watcher(wish: Any, terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal() if terminal else io.StringIO())
    show = watcher(wish, 10, 3)
    show.close()
    assert type(show) is kind
    assert (show.steps, show.done) == (10, 3)


def test_the_bar_shows_steps_loss_and_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    show = watcher(True, 1000, 200)
    for step in (250, 300, 1000):
        show.advanced(step, 1 / step)
    show.evaluated(1000, 0.001, 0.9115)
    show.close()
    text = out.getvalue()
    for part in ("1000/1000", "loss 0.001000", "acc 0.9115"):
        assert part in text
    assert text.endswith("\x1b[?25h") or "\x1b[?25h" in text  # the cursor is back


def test_a_bar_without_a_terminal_ends_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    show = watcher(True, 10, 0)
    show.advanced(10, float("nan"))
    show.close()
    assert "10/10" in out.getvalue()
    assert "loss nan" in out.getvalue()
