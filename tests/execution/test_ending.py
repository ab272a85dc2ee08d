"""How a run's body ended is recorded in one place."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waymark.checkpoints.store import CheckpointWriteError
from waymark.comparison.rerun_report import RerunReport
from waymark.config.compose import compose_config
from waymark.errors import Failed
from waymark.execution.ending import Pruned, RerunDiverged, recorded_end
from waymark.processes.signals import GracefulShutdown, Interrupted
from waymark.training.loop import Diverged

REPORT = RerunReport(True, "b" * 32, "a" * 32, 3, 0, 0, {}, None, {}, (None, None))
LOSS = "the loss at step 3 is nan"


class Run:
    """What an ActiveRun is asked at its end."""

    refused = ""
    points: Mapping[str, Any] = {}
    history = SimpleNamespace(dump=lambda: "{}")

    def __init__(self, folder: Path) -> None:
        self.info = SimpleNamespace(id="a" * 32, folder=folder)
        self.tags: dict[str, str] = {}
        self.ended: list[str] = []

    def wait_for_earlier_history(self, hurry: Callable[[], bool]) -> None:
        pass

    def mark_artifacts_dirty(self) -> None:
        pass

    def set_tags(self, tags: Mapping[str, str]) -> None:
        assert not self.ended
        self.tags |= tags

    def end(self, status: str) -> None:
        self.ended.append(status)

    def wait_for_delivery(self, hurry: Callable[[], bool]) -> None:
        assert self.ended


@pytest.mark.parametrize(
    ("error", "status", "reason", "resumable", "raised"),
    [
        (None, "FINISHED", None, False, None),
        (Pruned(3, 0.5), "FINISHED", "pruned at step 3", True, Pruned),
        (Interrupted(15), "KILLED", "stopped by SIGTERM", True, Interrupted),
        (Diverged(LOSS), "FAILED", LOSS, False, Failed),
        (RerunDiverged(LOSS, REPORT), "FAILED", LOSS, False, RerunDiverged),
        (CheckpointWriteError("the disk is full"), "FAILED", "the disk is full", True, Failed),
        (ValueError("too much"), "FAILED", "ValueError: too much", True, Failed),
    ],
)
def test_how_the_body_ended_becomes_a_status(
    error: Exception | None,
    status: str,
    reason: str | None,
    resumable: bool,
    raised: type[Exception] | None,
    tmp_path: Path,
) -> None:
    run: Any = Run(tmp_path)
    caught: Exception | None = None
    try:
        with recorded_end(run, compose_config([]), GracefulShutdown()):
            if error:
                raise error
    except Exception as found:
        caught = found
    assert type(caught) is (raised or type(None))
    assert run.ended == [status]
    recorded = run.tags.get("waymark.reason")
    if error:
        said = f"`waymark {'resume' if resumable else 'rerun'} {run.info.id}`"
        assert f"- {reason}" in run.tags["mlflow.note.content"]
        assert said in run.tags["mlflow.note.content"]
    assert recorded == reason or (reason and recorded.startswith(f"{reason} ("))  # and the place
    assert ("waymark.resume" in run.tags) == resumable
    assert (run.tags.get("waymark.pruned") == "3") == isinstance(error, Pruned)
    assert (tmp_path / "history.json").read_text() == "{}"
    assert (tmp_path / "traceback.txt").exists() == isinstance(error, ValueError)
    if isinstance(caught, Failed):
        assert str(caught).startswith(f"run {run.info.id} failed: {reason}")
        assert ("; resume with: waymark resume " in str(caught)) == resumable
    if isinstance(caught, RerunDiverged):
        again = pickle.loads(pickle.dumps(caught))  # as a new process's answer is
        assert (str(again), again.verdict) == (str(caught), REPORT)
