"""How a run ends: what its body raised becomes a status in MLflow, in one place."""

import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from waymark import names
from waymark.checkpoints.store import CheckpointWriteError
from waymark.comparison.repository import masked_lines
from waymark.comparison.rerun_report import RerunReport
from waymark.config.masking import as_interpolation
from waymark.config.resolve import Resolved
from waymark.errors import Failed, explain, printable, without_secrets
from waymark.execution.description import description
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

    Unless told to `wait`, `wait_for_ended_runs` waits until a FINISHED one is delivered. Raises
    Failed, or RerunDiverged, for what FAILED, else what the body raised.
    """
    go_on = {names.RESUME: f"waymark resume {run.info.id}"}

    def said(reason: str, command: str, verdict: RerunReport | None = None) -> dict[str, str]:
        typed = command_on(run, resolved, command)
        return description(run, resolved.config, typed, reason, verdict)

    try:
        yield
    except Interrupted as error:
        print("resume with:", command_on(run, resolved, "resume"), file=sys.stderr)
        _end(run, stop, "KILLED", {names.REASON: str(error), **go_on, **said(str(error), "resume")})
        raise
    except Pruned as error:
        tags = {names.PRUNED: str(error.step), names.REASON: str(error), **go_on}
        _end(run, stop, "FINISHED", tags | said(str(error), "resume"), wait)
        raise
    except Exception as error:
        resumable = not isinstance(error, Diverged | RerunDiverged)  # it would again
        foreseen = not resumable or isinstance(error, CheckpointWriteError)
        reason = str(error) if foreseen else explain(error).removesuffix(".")
        if not foreseen:
            text = masked_lines(without_secrets("".join(traceback.format_exception(error))))
            body = text.encode(errors="backslashreplace")
            with suppress(OSError):
                replace_file(run.info.folder / "traceback.txt", body)
                run.mark_artifacts_dirty()
        verdict = error.verdict if isinstance(error, RerunDiverged) else None
        tags = said(reason, "resume" if resumable else "rerun", verdict)
        _end(run, stop, "FAILED", {names.REASON: reason, **(go_on if resumable else {}), **tags})
        after = f"; resume with: {command_on(run, resolved, 'resume')}" if resumable else ""
        sentence = f"run {run.info.id} failed: {reason}{after}"
        if isinstance(error, RerunDiverged):
            raise RerunDiverged(sentence, error.verdict) from error
        raise Failed(sentence) from error
    _end(run, stop, "FINISHED", {}, wait)


_undelivered: list[ActiveRun] = []  # runs that have ended, and are not waited for yet


def wait_for_ended_runs(hurry: Callable[[], bool] = lambda: False) -> None:
    """Wait until all that has ended is delivered; say of what is not where it is kept."""
    while _undelivered:
        run = _undelivered.pop(0)
        undelivered = run.wait_for_delivery(hurry)
        if run.refused:
            text = f"waymark: MLflow does not take of run {run.info.id}: {run.refused}"
            print(printable(text), file=sys.stderr)
        if undelivered:
            print(
                f"waymark: not all of run {run.info.id} has reached MLflow ({undelivered}); "
                f"it is kept in {run.info.folder.parent}, and waymark sync delivers it",
                file=sys.stderr,
            )


def _end(
    run: ActiveRun, stop: GracefulShutdown, status: str, tags: Mapping[str, str], wait: bool = True
) -> None:
    """End the run in MLflow; wait for a server, but not long once a signal has come."""
    with suppress(OSError):  # a full disk: the outbox has it all
        run.wait_for_earlier_history(stop.signalled)
        replace_file(run.info.folder / HISTORY, run.history.dump())
        run.mark_artifacts_dirty()
    if tags:
        run.set_tags(tags)
    run.end(status)
    wait_for_ended_runs(stop.signalled)
    _undelivered.append(run)
    if wait:
        wait_for_ended_runs(stop.signalled)


def command_on(run: ActiveRun, resolved: Resolved, command: str, *overrides: str) -> str:
    """Return a command line that does something with a run, as a shell takes it."""
    words = ["waymark", command, run.info.id, *overrides]
    if uri := resolved.values["tracking"]["uri"]:
        words.append(f"tracking.uri={as_interpolation(uri)}")
    if own := own_modules(resolved.config):
        words.append(f"trusted_modules=[{','.join(own)}]")
    return shlex.join(words)
