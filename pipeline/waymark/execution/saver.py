"""Checkpoints are committed in the background, one at a time."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from waymark.checkpoints import State
from waymark.checkpoints.retention import Save
from waymark.checkpoints.store import CheckpointStore
from waymark.tracking.active_run import ActiveRun


class Saver:
    """Commit copies of the state in the background, one at a time, records first."""

    def __init__(self, store: CheckpointStore, tracked: ActiveRun) -> None:
        self._store, self._tracked = store, tracked
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None
        self.graph: Path | None = None
        self._newest = -1  # the step handed over last

    def save(
        self, step: int, state: State, metrics: Mapping[str, float], on_schedule: bool = True
    ) -> None:
        """Take a copy of the state; wait only for a save that is still in flight.

        One off the schedule only competes as the best: it is not written where it would have to be
        removed at once.
        """
        now = time.time()
        self.wait()
        save = Save(step, now, metrics, on_schedule)
        if self._store.would_keep(save):
            self._hand_over(save, state)

    def stop(self, step: int, state: Callable[[], State], metrics: Mapping[str, float]) -> None:
        """Save off the schedule, to go on from there, unless this step is saved."""
        now = time.time()
        self.wait()
        if self._newest != step:
            self._hand_over(Save(step, now, metrics, on_schedule=False), state())

    def _hand_over(self, save: Save, state: State) -> None:
        self._newest = save.step
        self._pending = self._pool.submit(self._commit, save, state)
        if not self._store.save.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait for the save in flight; raise what it raised."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _commit(self, save: Save, state: State) -> None:
        manifest = self._store.commit(save, state, self.graph)
        self._tracked.saved(save.step, manifest.digest)
