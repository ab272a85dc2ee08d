"""Work in a process of its own, whose lines appear here and whose result or error comes back."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TextIO

from waymark.errors import BadInput, Failed, first_line
from waymark.package import FOLDER
from waymark.processes import process_state
from waymark.processes.signals import SIGNALS, Interrupted, end_with_parent, handling

HOME = str(FOLDER.parent)
# Not by `-m`: where the process is to find its modules is known only when it begins.
PROGRAM = "import json, sys; sys.path[:], sys.argv, *given = json.loads(sys.argv[1]); "
PROGRAM += "from waymark.execution.new_process import main; main(*given)"

Tell = Callable[[str], None]  # is called with each line


def call(why: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, for a reason; return what it returns, raise what it raises.

    Raises BadInput for arguments that another process cannot have, such as a class of a script.
    """
    with tempfile.TemporaryDirectory(prefix="waymark-") as scratch:
        task = Path(scratch) / "task"
        try:
            content = pickle.dumps((function, arguments))
        except Exception as error:  # pickle lets through what the object raises
            raise _not_portable(why, error) from None
        try:
            task.write_bytes(content)
        except OSError as error:
            raise BadInput(f"{scratch}: cannot be written to ({error.strerror}).") from None
        given = json.dumps([[HOME, *map(str, sys.path)], sys.argv, str(task), why])
        command = [sys.executable, "-P", "-c", PROGRAM, given]
        status = run(command, partial(show, stream=sys.stdout), partial(show, stream=sys.stderr))
        answer = task.with_name("answer")
        if not answer.exists():
            raise ended(status) or Failed(f"the new process ended with status {status}")
        value, problem = pickle.loads(answer.read_bytes())
    if problem is not None:
        raise problem
    return value


def show(line: str, stream: TextIO | None) -> None:
    """Print a line of the other process, whose work goes on where that fails."""
    with suppress(OSError, ValueError):
        print(line, end="", file=stream, flush=True)


def _not_portable(why: str, error: Exception) -> BadInput:
    return BadInput(
        f"{why} A new process cannot do the work, since it cannot have all that was given "
        f"({first_line(error)}); a class of one's own has to stand in a module."
    )


def main(place: str, why: str) -> None:
    """Do the task in a file, and put the answer beside it."""
    end_with_parent(_be_silent)
    process_state.command_line = True
    task = Path(place)
    try:
        function, arguments = pickle.loads(task.read_bytes())
    except Exception as error:
        answer = pickle.dumps((None, _not_portable(why, error)))
    else:
        answer = _outcome(function, arguments)
    try:
        task.with_name("answer.part").write_bytes(answer)
    except OSError as error:
        sys.exit(f"waymark: {task.parent}: cannot be written to ({error.strerror})")
    task.with_name("answer.part").rename(task.with_name("answer"))


def _outcome(function: Callable[..., Any], arguments: Sequence[Any]) -> bytes:
    """Return what a function returns, and what it raises, one of the two None, pickled."""
    try:
        return pickle.dumps((function(*arguments), None))
    except Exception as error:
        with suppress(Exception):  # one that cannot be made anew from its parts
            answer = pickle.dumps((None, error))
            pickle.loads(answer)
            return answer
        return pickle.dumps((None, Failed(f"{type(error).__name__}: {first_line(error)}")))


def _be_silent() -> None:
    """Leave standard output and standard error, which nobody reads any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def run(command: Sequence[str], out: Tell, err: Tell, env: Mapping[str, str] = os.environ) -> int:
    """Run a command to its end; return its status, or minus the signal that ended it.

    `out` and `err` are for its standard output and standard error.
    """
    with (
        # A session of its own: else a terminal's Ctrl-C would reach it besides what we pass on.
        subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as child,
        handling(SIGNALS, lambda number, _: child.send_signal(number)),
    ):
        reader = threading.Thread(target=_each_line, args=(child.stdout, out))
        reader.start()
        _each_line(child.stderr, err)
        reader.join()
        return child.wait()


def _each_line(lines: IO[str] | None, tell: Tell) -> None:
    for line in lines or ():
        tell(line)


def ended(status: int) -> Exception | None:
    """Return the error of a process that a signal has ended, if one has."""
    number = status - 128 if status > 128 else -status
    if number in SIGNALS:
        return Interrupted(number)
    return Failed(f"the new process was ended by signal {number}") if number > 0 else None
