"""The group that the commands belong to, and what they share."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from waymark.errors import BadInput, explain
from waymark.package import __version__

FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"  # tracebacks, as Hydra's users know
CONFIG_DIR = click.option("--config-dir", metavar="FOLDER", help="A folder of your own YAML files.")
OVERRIDES = click.argument("overrides", nargs=-1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Train TensorFlow models that can be trusted, compared and repeated.

    RUN is a run's id, the beginning of one (4 characters or more), a unique run name, or
    `latest`. OVERRIDES are Hydra's: key=value.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def store_uri(overrides: tuple[str, ...]) -> Any:
    """Return tracking.uri, the only override of some commands; raise BadInput for others."""
    if not overrides:  # Hydra takes a tenth of a second to import
        return None
    from waymark.config.compose import parse_overrides

    given = parse_overrides(overrides)
    if unknown := sorted(set(given) - {"tracking.uri"}):
        raise BadInput(f"{unknown[0]}: there is no such key; the only one here is tracking.uri.")
    return given.get("tracking.uri")


def with_folder(overrides: tuple[str, ...], config_dir: str | None) -> tuple[str, ...]:
    """Return overrides with the one for a folder of the user's own YAML, if there is one."""
    from waymark.config.compose import searchpath

    return overrides if config_dir is None else (*overrides, searchpath([config_dir]))


def show(text: str) -> None:
    """Print a text, by a pager where it is longer than the terminal."""
    if sys.stdout.isatty() and text.count("\n") >= os.get_terminal_size().lines:
        click.echo_via_pager(text)
    else:
        print(text)


def exit_status_of(work: Any) -> int:
    """Do a command's work; turn what can go wrong into one line and an exit status."""
    try:
        return int(work() or 0)
    except BadInput as error:
        complain(str(error))
        return 2
    except (KeyboardInterrupt, click.Abort):
        return 130
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code
    except Exception as error:
        status = getattr(error, "status", 1)  # a signal's is 128 + its number
        if status == 1:
            complain(explain(error))
        if FULL_ERROR:
            raise
        return int(status)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal end the work in good order: raise Interrupted, and so exit with 128 + it."""
    from waymark.processes.signals import Interrupted, handling

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)  # which no library takes for an error of its own

    try:
        with handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), stop):
            yield
    except KeyboardInterrupt as stopped:
        raise Interrupted(*stopped.args or (signal.SIGINT,)) from None


def status_of_server(status: int) -> int:
    """Return the exit status for the end of MLflow's server; say which signal has ended it."""
    if status < 0:
        complain(f"MLflow's server was ended by signal {-status}.")
    return 128 - status if status < 0 else status


def complain(message: str) -> None:
    """Say it in one line, whatever line breaks a name or a library put into it."""
    print("waymark:", " ".join(message.split()), file=sys.stderr)
