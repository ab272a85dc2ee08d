"""A run that this process trains: what it records goes to its outbox, and from there to MLflow."""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from waymark import names
from waymark.config.resolve import Resolved
from waymark.errors import BadInput, without_secrets
from waymark.tracking import history, outbox, ownership
from waymark.tracking.history import History
from waymark.tracking.limits import SHORTER, Deleted, fitted, store_errors
from waymark.tracking.liveness import this_process
from waymark.tracking.lock import acquire_run_lock, is_own, may_be_alive, owner_and_heartbeat
from waymark.tracking.outbox import Outbox, Points, RunCreation
from waymark.tracking.ownership import Life
from waymark.tracking.runs import RunRecord
from waymark.tracking.sender import Sender
from waymark.tracking.store import RunStore, user_name

FLUSH_AFTER_SIGNAL_S = 5.0  # that a run which was told to stop waits for a server


def create_run(
    store: RunStore, resolved: Resolved, tags: Mapping[str, str], data: Any
) -> "ActiveRun":
    """Create a run with its params, tags and data set, and start to track it.

    With a tracking server this returns at once; what the server is told follows.
    """
    config = resolved.config
    shapes = json.dumps({"x_train": data.x_train.shape, "x_test": data.x_test.shape})
    life = new_life(Life(), 0)
    creation = RunCreation(
        id=uuid.uuid4().hex,
        address=store.address.store_key,
        experiment=config.experiment_name,
        name=config.run_name,
        start=time.time_ns() // 1_000_000,
        tags={
            names.USER: user_name(),
            names.SOURCE: "waymark",
            **{key: str(value) for key, value in resolved.values["tags"].items()},
            **tags,
            **life.tags(),
            names.HEARTBEAT: str(int(time.time())),
        },
        params=resolved.params(),
        dataset={
            "name": data.name,
            "digest": data.digest[:36],
            "source": without_secrets(data.source).encode(errors="backslashreplace").decode(),
            "profile": shapes,
        },
    )
    if store.server:
        record = store.offline(creation, None, "RUNNING", store.root / "spool" / creation.id)
    else:
        with store_errors(f"{store.address.named}: takes no new run"):
            record = store.record(store.get_or_create(creation, None, may_exist=False))
        creation = replace(creation, id=record.id, name=record.name)
    return ActiveRun(store, record, creation, config.tracking, life)


def reopen_run(store: RunStore, record: RunRecord, config: Any, from_step: int = 0) -> "ActiveRun":
    """Go on with a run from a step: replay its outbox, skip from now on what is recorded.

    Raises BadInput if another process has the run.
    """
    process, beat = owner_and_heartbeat(record)
    if record.status == "RUNNING" and not is_own(process) and may_be_alive(record):
        raise BadInput(
            f"run {record.id}: a process on {process.get('host')} is training it; "
            f"its last sign of life is {max(0, time.time() - beat):.0f} s old."
        )
    content = outbox.read(record.outbox)
    before = ownership.owner(record.tags, record.status == "FINISHED")
    if content.lives and (record.offline or not record.known or content.is_of(before)):
        before = content.lives[-1]  # of which the store may not have heard yet
    creation = None if content.creation else _creation(store, record)
    earlier = None
    with suppress(OSError):  # there is none before the first words of a run
        earlier = history.load((record.folder / history.NAME).read_bytes())
    life = new_life(before, from_step)
    return ActiveRun(store, record, creation, config.tracking, life, before, earlier or History({}))


def _creation(store: RunStore, record: RunRecord) -> RunCreation:
    """Return what a run was created with, whose outbox lies on another machine."""
    experiment = store.client.get_experiment(record.experiment_id).name
    params, start = store.client.get_run(record.id).data.params, int(record.start_time * 1000)
    others = (names.LOCAL_ID, names.PROCESS, names.LIFE, names.FROM_STEP)
    own = {key: text for key, text in record.tags.items() if key not in others}
    return RunCreation(
        id=record.local,
        address=store.address.store_key,
        experiment=experiment,
        name=record.name,
        start=start,
        tags=own,
        params=dict(params),
        dataset={},
    )


class ActiveRun:
    """One run being trained, as the training code sees it: it holds no object of MLflow's."""

    def __init__(
        self,
        store: RunStore,
        record: RunRecord,
        creation: RunCreation | None,
        settings: Any,
        life: Life,
        before: Life | None = None,
        earlier: History | None = None,
    ) -> None:
        """Hold a run; `creation` is what its outbox lacks. Raise RunLocked if it is not free.

        `life` is this process's, `before` the one that it follows; `earlier` is what is known
        here of the run's life before, None if it has none.
        """
        new = earlier is None
        self._earlier = earlier
        self._waits = store.server and not new and record.known  # to learn what MLflow has
        self._left = float(settings.flush_seconds)  # seconds that may still be waited for it
        lock = acquire_run_lock(record)
        content = outbox.read(record.outbox)
        self._outbox = Outbox(record.outbox)
        self._recorded = content.metrics()  # key -> step -> value
        self.digests = content.digests  # of the states saved, by step; also of those removed since
        if creation:
            self._outbox.append("run", asdict(creation))
            if record.known:
                self._outbox.append("ids", [record.id, record.experiment_id])
        after = {"after": before.dump()} if before else {}
        self._outbox.append("begun", {**life.dump(), **after})
        self._sender = Sender(store, record, self._outbox, lock, new, settings.system_metrics)
        self._sender.start()

    @property
    def info(self) -> RunRecord:
        """Return the run as it is known now: its id is MLflow's once MLflow has the run."""
        return self._sender.delivery.info

    @property
    def refused(self) -> str:
        """Return what MLflow will never take of the run, and why; nothing if it takes all."""
        return self._sender.delivery.status.refused

    @property
    def points(self) -> dict[str, dict[int, float]]:
        """Return all that is recorded: key -> step -> value."""
        return {key: dict(values) for key, values in self.history.metrics.items()}

    @property
    def history(self) -> History:
        """Return all that is known of the run's life, the one before this process's too."""
        status = self._sender.delivery.status
        own = {key: dict(values) for key, values in self._recorded.items()}
        known = History(own, dict(self.digests), status.connected or not self._waits)
        return known.over(status.learned).over(self._earlier)

    def wait_for_earlier_history(self, hurry: Callable[[], bool]) -> None:
        """Wait, as long as the end of a run waits, for what MLflow has of its earlier life."""
        if self._waits:
            self._wait(lambda: self._sender.delivery.connected, hurry)

    def _wait(self, done: Callable[[], bool], hurry: Callable[[], bool]) -> None:
        """Wait for the sender, for `tracking.flush_seconds` in all, or less in a hurry."""
        began, most = time.monotonic(), self._left
        while self._sender.is_alive() and not (done() or isinstance(self._sender.error, Deleted)):
            self._sender.join(0.02)
            if time.monotonic() - began > (min(FLUSH_AFTER_SIGNAL_S, most) if hurry() else most):
                break
        self._left = max(0.0, most - (time.monotonic() - began))

    def wait_for_creation(self, seconds: float) -> None:
        """Wait a little for MLflow to know the run."""
        end = time.monotonic() + seconds
        while not self.info.known and time.monotonic() < end:
            time.sleep(0.01)

    def record(self, steps: Sequence[int], metrics: Mapping[str, Sequence[float]]) -> None:
        """Record values of metrics at steps; steps that are recorded already are skipped."""
        now, learned = time.time_ns() // 1_000_000, self._sender.delivery.learned
        for key, values in metrics.items():
            known = self._recorded.setdefault(key, {})
            there = learned.get(key, {})
            pairs = zip(steps, values, strict=True)
            new = {step: x for step, x in pairs if step not in known and step not in there}
            if new:
                self._outbox.add(Points(key, list(new), list(new.values()), now))
                known.update(new)

    def record_checkpoint_digest(self, step: int, digest: str) -> None:
        """Record the digest of the state that a checkpoint holds: retention may remove it."""
        if self.digests.get(step) != digest:
            self._outbox.append("digest", [step, digest])
            self.digests[step] = digest

    def flush(self) -> None:
        """Make everything recorded so far durable on this machine."""
        self._outbox.flush()

    def mark_artifacts_dirty(self) -> None:
        """Make the run's remote home, if it has one, follow its folder, in the background."""
        if self.info.remote:
            self._sender.delivery.changed = True
            self._sender.work_available.set()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, in the background."""
        short = {key: fitted(value, SHORTER["tags"]) for key, value in tags.items()}
        try:
            self._outbox.append("tags", short)
        except OSError:  # a full disk: the reason itself may be what follows
            self._sender.delivery.set_tags(short)
        self._sender.work_available.set()

    def finish(self, status: str, hurry: Callable[[], bool] = lambda: False) -> str | None:
        """Deliver what is left and end the run; return why not all could be, if so.

        This takes at most `tracking.flush_seconds`, and less if somebody is in a hurry.
        """
        end = time.time_ns() // 1_000_000
        with suppress(OSError):
            self._outbox.append("status", [status, end])
            self._outbox.flush()
        self._sender.finish(status, end)
        self._wait(lambda: False, hurry)
        return self._sender.close()


def new_life(before: Life, from_step: int) -> Life:
    """Return the life of a run that this process begins after another one."""
    return ownership.new_life(this_process(), before, from_step)
