"""What is printed decides over no work: readers that leave, full disks, closed streams."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waymark import run
from waymark.processes.output import unfailing_output

from tests.support.processes import Done

SMOKE = ["+experiment=smoke", "data=arrays", "batch_size=20", "record.changes=false"]


class Broken(io.StringIO):
    """A stream that takes some texts before it raises."""

    def __init__(self, error: Exception, texts: int = 0) -> None:
        super().__init__()
        self.error, self.texts = error, texts

    def write(self, text: str) -> int:
        if not self.texts:
            raise self.error
        self.texts -= 1
        return super().write(text)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (ValueError("I/O operation on closed file."), "I/O operation on closed file."),
    ],
)
def test_a_stream_that_fails_is_given_up_and_that_is_said_once(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = Broken(error, texts=2), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with unfailing_output() as stream:
        for line in ("one", "two", "three"):
            print(line, flush=True)
    assert (out.getvalue(), stream.failure) == ("one\n", error)
    assert err.getvalue() == f"waymark: standard output is given up ({reason}); the work goes on\n"
    assert (sys.stdout, sys.stderr) == (out, err)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_beside_another_process_s_bar_clears_it_on_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", out)
    with unfailing_output() as stream:
        print("one")
        stream.clears_line = True
        with unfailing_output():  # as a run in a trial has its own
            print("two", "three")
            print("four")
    clear = "\r\x1b[K" if terminal else ""
    assert out.getvalue() == f"one\n{clear}two three\n{clear}four\n"


def test_where_nothing_can_be_said_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for out, err in ((None, None), (closed, closed), (Broken(OSError()), Broken(OSError()))):
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with unfailing_output():
            assert not sys.stdout.isatty()
            print("nobody hears this")
            print("nor this", file=sys.stderr, flush=True)


def test_a_logger_that_closes_its_stream_leaves_ours_open(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with unfailing_output():
        kept = sys.stderr
    kept.close()
    assert not err.closed


@pytest.mark.parametrize(
    ("encoding", "text"), [("latin-1", "\\ud55c\\uad6d \xe4"), ("ascii", "\\ud55c\\uad6d \\xe4")]
)
def test_what_the_encoding_has_not_is_escaped(
    encoding: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(below, encoding=encoding))
    with unfailing_output():
        print("\ud55c\uad6d \xe4")
    assert below.getvalue().decode(encoding) == f"{text}\n"


def test_a_run_goes_on_without_its_output_and_its_name_is_printable_everywhere(
    place: Path,
    small: Path,
    main: Callable[..., Done],
    client: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = Broken(BrokenPipeError(32, "Broken pipe"), texts=1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        result = run(*SMOKE, f"data.path={small}", 'run_name="\ud55c\uad6d"')
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        again = run(*SMOKE, f"data.path={small}", "progress=true")
    assert pipe.getvalue().startswith(f"run {result.run_id}")
    for run_id in (result.run_id, again.run_id):
        assert client(place).get_run(run_id).info.status == "FINISHED"
    below = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(below, encoding="latin-1"))
    assert main("runs").returncode == 0
    assert b"\\ud55c\\uad6d" in below.getvalue()


def shell(line: str, environment: dict[str, str], place: Path) -> Done:
    """Run a line of bash in which $W is the program; return what came of it."""
    program = {**environment, "W": f"{sys.executable} -m waymark"}
    return subprocess.run(
        ["bash", "-c", line], cwd=place, env=program, capture_output=True, text=True, timeout=120
    )


@pytest.mark.long
def test_a_sweep_whose_reader_leaves_is_completed(
    place: Path, small: Path, environment: dict[str, str], client: Callable[[Path], Any]
) -> None:
    words = " ".join([*SMOKE, f"data.path={small}", "seed=1,2"])
    done = shell(f"$W run -m {words} | head -c 5; exit ${{PIPESTATUS[0]}}", environment, place)
    assert (done.returncode, done.stdout[:4]) == (0, "swee")
    assert done.stderr.count("standard output is given up (Broken pipe)") == 1
    runs = client(place).search_runs(["1"])
    assert [each.info.status for each in runs] == ["FINISHED"] * 3


def test_what_only_prints_ends_as_other_programs_do(
    place: Path, small: Path, environment: dict[str, str], client: Callable[[Path], Any]
) -> None:
    """With descriptors 1 and 2 closed, no file of the store may get their numbers."""
    words = " ".join([*SMOKE, f"data.path={small}"])
    assert shell(f"$W run {words} >&- 2>&-", environment, place).returncode == 0
    (only,) = client(place).search_runs(["1"])
    assert only.info.status == "FINISHED"
    line = "mkfifo p; exec 3<>p 4>p 3<&-; $W runs >&4"  # a pipe that nobody reads
    gone = shell(line, environment, place)
    assert (gone.returncode, gone.stderr) == (128 + signal.SIGPIPE, "")
    full = Path("/dev/full")
    if full.exists():
        done = shell("$W runs > /dev/full", environment, place)
        reason = os.strerror(28)
        assert (done.returncode, done.stderr) == (1, f"waymark: standard output: {reason}\n")
