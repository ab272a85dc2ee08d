"""The program: run a command, and end the process with its exit status."""

import atexit
import gc
import os
import signal
import sys
import threading
from typing import NoReturn

from waymark.cli import models as models
from waymark.cli import records as records
from waymark.cli import training as training
from waymark.cli.group import cli, complain, exit_status_of
from waymark.completion import complete
from waymark.processes import process_state
from waymark.processes.output import unfailing_output

# Commands whose work counts, whatever becomes of what they print; the others only print.
WORKING = ("run", "resume", "rerun", "export", "register", "serve", "sync", "ui")


def main() -> int:
    """Run the command line; return the exit status."""
    sys.path.append(os.getcwd())  # a user's own model or data class may lie in this folder
    works = sys.argv[1:2] and sys.argv[1] in WORKING
    try:
        with unfailing_output(silent=not works) as out:
            if sys.argv[1:2] and sys.argv[1] in ("-sc", "--shell-completion"):
                status = exit_status_of(lambda: complete(sys.argv[1:]))
            else:
                status = exit_status_of(
                    lambda: cli.main(prog_name="waymark", standalone_mode=False)
                )
            out.flush()
            if works or out.failure is None:
                return status
            if isinstance(out.failure, BrokenPipeError):
                return 128 + signal.SIGPIPE
            complain(f"standard output: {getattr(out.failure, 'strerror', out.failure)}")
            return status or 1
    except KeyboardInterrupt:  # before anything was begun
        return 130


def program() -> NoReturn:
    """Run the command line as a process of its own, to its end."""
    process_state.command_line = True
    # TensorFlow and MLflow make a million objects, none of which is garbage to be searched for.
    gc.set_threshold(100_000, 50, 100)
    status = main()
    _flush()
    if status == 128 + signal.SIGPIPE:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    if not {"tensorflow", "mlflow"} & sys.modules.keys():
        sys.exit(status)
    # What Python does when it ends, but for taking everything down piece by piece: that takes
    # a second where TensorFlow or MLflow is, and all that has ended is on disk already.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # Python would try again at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    program()
