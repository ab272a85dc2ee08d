"""How a run ends: what its body raised becomes a status in MLflow, in one place."""

import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from waymark import names
from waymark.checkpoints.store import CheckpointWriteError
from waymark.comparison.repository import masked_lines
from waymark.comparison.rerun_report import RerunReport
from waymark.config.masking import as_interpolation
from waymark.config.resolve import Resolved
from waymark.errors import Failed, explain, printable, without_secrets
from waymark.execution.plan import own_modules
from waymark.files import replace_file
from waymark.processes.signals import GracefulShutdown, Interrupted
from waymark.tracking.active_run import ActiveRun
from waymark.tracking.history import NAME as HISTORY
from waymark.training.loop import Diverged


class Pruned(Exception):
    """A trial of a sweep was ended as hopeless, with a checkpoint."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__(f"pruned at step {step}")
        self.step, self.value = step, value


class RerunDiverged(Failed):
    """The loss of a rerun is not finite; `verdict` tells whether its original's was not either."""

    def __init__(self, sentence: str, verdict: RerunReport) -> None:
        super().__init__(sentence)
        self.verdict = verdict

    def __reduce__(self) -> Any:
        return RerunDiverged, (str(self), self.verdict)


@contextmanager
def recorded_end(
    run: ActiveRun, resolved: Resolved, stop: GracefulShutdown, wait: bool = True
) -> Iterator[None]:
    """Record how the body ended: FINISHED, also by Pruned; KILLED by Interrupted; else FAILED.

    Unless told to `wait`, `wait_for_ended_runs` waits until a FINISHED one is delivered.

    All but a whole run and a loss that is not finite can be resumed. Raises Failed for what
    FAILED, which RerunDiverged is, else what the body raised.
    """
    try:
        yield
    except Interrupted as error:
        print("to go on:", _resume_command(run, resolved), file=sys.stderr)
        _end(run, stop, "KILLED", str(error), resumable=True)
        raise
    except Pruned as error:
        run.set_tags({names.PRUNED: str(error.step)})
        _end(run, stop, "FINISHED", str(error), resumable=True, wait=wait)
        raise
    except Exception as error:
        resumable = not isinstance(error, Diverged | RerunDiverged)  # it would again
        foreseen = not resumable or isinstance(error, CheckpointWriteError)
        reason = str(error) if foreseen else explain(error).removesuffix(".")
        if not foreseen:
            _keep_traceback(run, error)
        _end(run, stop, "FAILED", reason, resumable)
        after = f"; to go on: {_resume_command(run, resolved)}" if resumable else ""
        sentence = f"run {run.info.id} failed: {reason}{after}"
        if isinstance(error, RerunDiverged):
            raise RerunDiverged(sentence, error.verdict) from error
        raise Failed(sentence) from error
    _end(run, stop, "FINISHED", wait=wait)


def _keep_traceback(run: ActiveRun, error: Exception) -> None:
    """Put the traceback among the artifacts, lines that look like secrets masked."""
    text = masked_lines(without_secrets("".join(traceback.format_exception(error))))
    with suppress(OSError):
        replace_file(run.info.folder / "traceback.txt", text.encode(errors="backslashreplace"))
        run.mark_artifacts_dirty()


_undelivered: list[ActiveRun] = []  # runs that have ended, and are not waited for yet


def wait_for_ended_runs(hurry: Callable[[], bool] = lambda: False) -> None:
    """Wait until all that has ended is delivered; say of what is not where it is kept."""
    while _undelivered:
        _wait(_undelivered.pop(0), hurry)


def _end(
    run: ActiveRun,
    stop: GracefulShutdown,
    status: str,
    reason: str = "",
    resumable: bool = False,
    wait: bool = True,
) -> None:
    """End the run in MLflow; wait for a server, but not long once a signal has come."""
    run_id, folder = run.info.id, run.info.folder
    with suppress(OSError):  # a full disk: the outbox has it all
        run.wait_for_earlier_history(stop.signalled)
        replace_file(folder / HISTORY, run.history.dump())
        run.mark_artifacts_dirty()
    if reason:
        run.set_tags({names.REASON: reason})
    if resumable:
        run.set_tags({names.RESUME: f"waymark resume {run_id}"})
    run.end(status)
    wait_for_ended_runs(stop.signalled)
    _undelivered.append(run)
    if wait:
        wait_for_ended_runs(stop.signalled)


def _wait(run: ActiveRun, hurry: Callable[[], bool]) -> None:
    run_id, folder = run.info.id, run.info.folder
    undelivered = run.wait_for_delivery(hurry)
    if run.refused:
        text = f"waymark: MLflow does not take of run {run_id}: {run.refused}"
        print(printable(text), file=sys.stderr)
    if undelivered:
        print(
            f"waymark: not all of run {run_id} has reached MLflow ({undelivered}); "
            f"it is kept in {folder.parent}, and waymark sync delivers it",
            file=sys.stderr,
        )


def _resume_command(run: ActiveRun, resolved: Resolved) -> str:
    words = ["waymark", "resume", run.info.id]
    uri = resolved.values["tracking"]["uri"]
    if uri:
        words.append(f"tracking.uri={as_interpolation(uri)}")
    own = own_modules(resolved.config)
    if own:
        words.append(f"trusted_modules=[{','.join(own)}]")
    return shlex.join(words)
