"""Standard output and standard error whose failure never ends the work.

The reader goes away, the disk of a log is full, the stream is closed or there is none.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

CLEAR_LINE = "\r\x1b[K"


class Output:
    """Stand for a text stream; give it up at the first text that it does not take."""

    def __init__(self, stream: TextIO, told: "Output | None" = None) -> None:
        """Stand for `stream`; tell `told` when it is given up."""
        self._stream, self._told = stream, told
        # Before each line: the terminal's line is cleared, on which another process draws a bar.
        self.clears_line, self._at_start = False, True
        self.failure: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write a text, what is outside the encoding as backslash escapes; return its length."""
        cleared = CLEAR_LINE if self.clears_line and self._at_start and self.isatty() else ""
        self._at_start = text.endswith("\n") if text else self._at_start
        self._try(lambda: self._write(cleared + text))
        return len(text)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        """Wait until what was written has left this process."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        if self.failure is not None:
            return
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.failure = error
            reason = getattr(error, "strerror", None) or str(error)
            if self._told:
                text = f"waymark: standard output is given up ({reason}); the work goes on\n"
                self._told.write(text)

    def isatty(self) -> bool:
        """Tell whether the stream is a terminal."""
        with suppress(ValueError):  # it is closed
            return self._stream.isatty()
        return False

    def close(self) -> None:
        """Leave the stream open, which is its owner's: loggers close what they have written to."""
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def unfailing_output(silent: bool = False) -> Iterator[Output]:
    """Put streams that never raise in place of `sys.stdout` and `sys.stderr`; yield the first.

    Unless `silent`, standard error is told once that standard output was given up.
    """
    old = sys.stdout, sys.stderr
    for number in range(3):  # else a file would get the number, and then what TensorFlow prints
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        err = Output(old[1] or nothing)
        out = Output(old[0] or nothing, None if silent else err)
        sys.stdout, sys.stderr = out, err
        try:
            yield out
        finally:
            out.flush()
            err.flush()
            sys.stdout, sys.stderr = old
