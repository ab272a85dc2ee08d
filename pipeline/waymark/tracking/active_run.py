"""A run that this process trains: what it records goes to its outbox, and from there to MLflow."""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from waymark import names
from waymark.config.masking import without_secrets
from waymark.config.settings import BadInput, Resolved
from waymark.tracking import history, lives, outbox
from waymark.tracking.alive import this_process
from waymark.tracking.delivery import Delivery, points_not_yet_recorded, refusals, settled
from waymark.tracking.history import History
from waymark.tracking.limits import SHORTER, Deleted, fitted, reason_of
from waymark.tracking.lives import Life
from waymark.tracking.lock import Busy, hold, is_own, may_be_alive, owner_and_heartbeat
from waymark.tracking.outbox import Birth, Outbox, Points
from waymark.tracking.recovery import reap
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore, user_name

SEND_INTERVAL_S = 1.0  # between two sendings
FLUSH_AFTER_SIGNAL_S = 5.0  # that a run which was told to stop waits for a server


def create_run(
    store: RunStore, resolved: Resolved, tags: Mapping[str, str], data: Any
) -> "ActiveRun":
    """Create a run with its params, tags and data set, and start to track it.

    With a tracking server this returns at once; what the server is told follows.
    """
    config = resolved.config
    shapes = json.dumps({"x_train": data.x_train.shape, "x_test": data.x_test.shape})
    life = begun(Life(), 0)
    birth = Birth(
        id=uuid.uuid4().hex,
        address=store.address.key,
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
        record = store.offline(birth, None, "RUNNING", store.root / "spool" / birth.id)
    else:
        try:
            record = store.record(store.get_or_create(birth, None, may_exist=False))
        except Exception as error:
            raise BadInput(
                f"{store.address.named}: takes no new run ({reason_of(error)})."
            ) from None
        birth = replace(birth, id=record.id, name=record.name)
    return ActiveRun(store, record, birth, config.tracking, life)


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
    before = lives.owner(record.tags, record.status == "FINISHED")
    if content.lives and (record.offline or not record.known or content.is_of(before)):
        before = content.lives[-1]  # of which the store may not have heard yet
    birth = None if content.birth else _creation(store, record)
    earlier = None
    with suppress(OSError):  # there is none before the first words of a run
        earlier = history.load((record.folder / history.NAME).read_bytes())
    life = begun(before, from_step)
    return ActiveRun(store, record, birth, config.tracking, life, before, earlier or History({}))


def _creation(store: RunStore, record: RunRecord) -> Birth:
    """Return what a run was created with, whose outbox lies on another machine."""
    experiment = store.client.get_experiment(record.experiment_id).name
    params, start = store.client.get_run(record.id).data.params, int(record.start_time * 1000)
    others = (names.LOCAL_ID, names.PROCESS, names.LIFE, names.FROM_STEP)
    own = {key: text for key, text in record.tags.items() if key not in others}
    return Birth(
        id=record.local,
        address=store.address.key,
        experiment=experiment,
        name=record.name,
        start=start,
        tags=own,
        params=dict(params),
        dataset={},
    )


class ActiveRun:
    """One run being trained; the training code sees record, saved, flush, tag and finish."""

    def __init__(
        self,
        store: RunStore,
        record: RunRecord,
        birth: Birth | None,
        settings: Any,
        life: Life,
        before: Life | None = None,
        earlier: History | None = None,
    ) -> None:
        """Hold a run; `birth` is what its outbox lacks. Raise Busy if it is not free.

        `life` is this process's, `before` the one that it follows; `earlier` is what is known
        here of the run's life before, None if it has none.
        """
        new = earlier is None
        self._store, self._settings = store, settings
        self._earlier = earlier
        self._waits = store.server and not new and record.known  # to learn what MLflow has
        self._left = float(settings.flush_seconds)  # seconds that may still be waited for it
        self._lock = hold(record)
        content = outbox.read(record.outbox)
        self._outbox = Outbox(record.outbox)
        self.digests = content.digests  # of the states saved, by step; also of those removed since
        if birth:
            content.birth = birth
            self._outbox.append("run", asdict(birth))
            if record.known:
                self._created(record)
        after = {"after": before.dump()} if before else {}
        self._outbox.append("begun", {**life.dump(), **after})
        content.begin(life, before)
        self._delivery = Delivery(store, record, content, new)
        self._delivery.training = True
        self._delivery.created = self._created
        self._error: Exception | None = None
        self._monitor: Any = None
        self._wake, self._patience = threading.Event(), threading.Event()
        self._finish: tuple[str, int] | None = None
        self._delivered = False
        if not (store.server or new):  # what it holds is known before the first step
            try:
                self._delivery.deliver()
                if self._delivery.owner:
                    raise Busy(f"run {record.id}: another process has taken it meanwhile.")
            except Exception:
                self._lock.release()
                raise
        self._sender = threading.Thread(target=self._sending, name="tracking", daemon=True)
        self._sender.start()

    @property
    def info(self) -> RunRecord:
        return self._delivery.info

    @property
    def refused(self) -> str:
        """Return what MLflow will never take of the run, and why; nothing if it takes all."""
        return refusals(self._delivery)

    @property
    def points(self) -> dict[str, dict[int, float]]:
        """Return all that is recorded: key -> step -> value."""
        return {key: dict(values) for key, values in self.history.metrics.items()}

    @property
    def history(self) -> History:
        """Return all that is known of the run's life, the one before this process's too."""
        whole = self._delivery.connected or not self._waits
        with self._delivery.mutex:
            own = {key: dict(values) for key, values in self._delivery.points.items()}
        return History(own, dict(self.digests), whole).over(self._earlier)

    def learn(self, hurry: Callable[[], bool]) -> None:
        """Wait, as long as the end of a run waits, for what MLflow has of its earlier life."""
        began, most = time.monotonic(), self._left
        while self._waits and not self._delivery.connected and self._sender.is_alive():
            past = time.monotonic() - began
            if past > (min(FLUSH_AFTER_SIGNAL_S, most) if hurry() else most) or isinstance(
                self._error, Deleted
            ):
                break
            time.sleep(0.02)
        self._left = max(0.0, most - (time.monotonic() - began))

    def _created(self, record: RunRecord) -> None:
        self._outbox.append("ids", [record.id, record.experiment_id])

    def wait(self, seconds: float) -> None:
        """Wait a little for MLflow to know the run."""
        end = time.monotonic() + seconds
        while not self.info.known and time.monotonic() < end:
            time.sleep(0.01)

    def record(self, steps: Sequence[int], metrics: Mapping[str, Sequence[float]]) -> None:
        """Record values of metrics at steps; steps that are recorded already are skipped."""
        now = time.time_ns() // 1_000_000
        delivery = self._delivery
        for key, values in metrics.items():
            with delivery.mutex:
                whole = Points(key, steps, values, now)
                new = points_not_yet_recorded(whole, delivery.points.get(key, {}))
                if new:
                    points = Points(key, [s for s, _ in new], [v for _, v in new], now)
                    self._outbox.add(points)
                    delivery.points.setdefault(key, {}).update(new)
                    delivery.waiting.append(points)

    def saved(self, step: int, digest: str) -> None:
        """Record the digest of the state that a checkpoint holds: retention may remove it."""
        if self.digests.get(step) != digest:
            self._outbox.append("digest", [step, digest])
            self.digests[step] = digest

    def flush(self) -> None:
        """Make everything recorded so far durable on this machine."""
        self._outbox.flush()

    def changed(self) -> None:
        """Make the run's remote home, if it has one, follow its folder, in the background."""
        if self.info.remote:
            self._delivery.changed = True
            self._wake.set()

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags, in the background."""
        short = {key: fitted(value, SHORTER["tags"]) for key, value in tags.items()}
        with contextlib.suppress(OSError):  # a full disk: the reason itself may be what follows
            self._outbox.append("tags", short)
        with self._delivery.mutex:
            self._delivery.tags = {**self._delivery.tags, **short}
        self._wake.set()

    def finish(self, status: str, hurry: Callable[[], bool] = lambda: False) -> str | None:
        """Deliver what is left and end the run; return why not all could be, if so.

        This takes at most `tracking.flush_seconds`, and less if somebody is in a hurry.
        """
        if self._monitor:
            self._monitor.finish()
        end = time.time_ns() // 1_000_000
        with contextlib.suppress(OSError):
            self._outbox.append("status", [status, end])
            self._outbox.flush()
        self._finish = status, end
        self._wake.set()
        began, most = time.monotonic(), self._left
        while self._sender.is_alive():
            self._sender.join(0.05)
            if time.monotonic() - began > (min(FLUSH_AFTER_SIGNAL_S, most) if hurry() else most):
                break
            if isinstance(self._error, Deleted):  # there is nothing to wait for
                break
        self._patience.set()
        self._wake.set()
        self._sender.join(0.5)  # all but a call that hangs ends now
        if self._delivered:
            return None
        return reason_of(self._error) if self._error else "no answer in time"

    def _sending(self) -> None:
        """Send; hold the run until nothing more can be sent, or two would send at once."""
        try:
            self._send()
        finally:
            self._outbox.close()
            self._lock.release()

    def _send(self) -> None:
        """Send what comes until the run has ended and all has arrived, or patience has."""
        delivery, reaped = self._delivery, not self._store.server
        while True:
            self._wake.wait(SEND_INTERVAL_S if delivery.connected else 0)
            self._wake.clear()
            if self._patience.is_set():
                return
            finish = self._finish  # read first: what is recorded before it is then sent
            try:
                delivery.deliver()
                if not reaped:
                    reap(self._store)
                    reaped = True
                self._monitored()
                self._error = None
                if finish and delivery.complete:
                    settled(self._outbox, self.info, delivery.close(*finish))
                    self._delivered = True
                    return
            except Exception as error:  # whatever it is, training goes on and the outbox keeps
                self._error = error
                self._patience.wait(0.5)

    def _monitored(self) -> None:
        """Let MLflow watch the machine as long as the run is this process's."""
        if self._monitor and self._delivery.owner:
            self._monitor.finish()
            self._monitor = None
        elif self._settings.system_metrics and not (self._monitor or self._delivery.owner):
            self._monitor = _system_metrics(self._store, self.info.id)


def _system_metrics(store: RunStore, run_id: str) -> Any:
    """Start MLflow's monitor of CPU and memory for a run."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=store.uri)
    monitor.start()
    return monitor


def begun(before: Life, from_step: int) -> Life:
    """Return the life of a run that this process begins after another one."""
    return lives.begun(this_process(), before, from_step)
