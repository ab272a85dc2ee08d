"""A run that this process trains: what it records goes to its outbox, and from there to MLflow."""

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from waymark import names
from waymark.config.resolve import Resolved
from waymark.errors import BadInput, without_secrets
from waymark.files import replace_file
from waymark.tracking import history, outbox, ownership
from waymark.tracking.delivery import DeliveryStatus
from waymark.tracking.history import History
from waymark.tracking.limits import SHORTER, fitted
from waymark.tracking.liveness import this_process
from waymark.tracking.lock import is_own, may_be_alive, owner_and_heartbeat, run_lock
from waymark.tracking.outbox import Outbox, Points, RunCreation
from waymark.tracking.ownership import Lease
from waymark.tracking.questions import StoreError
from waymark.tracking.remote_store import ANSWER_S, ENDED, Ended, RemoteStore, numbers
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore, user_name

PICTURES_S = 60.0  # that the drawing of a run's pictures may take
FLUSH_AFTER_SIGNAL_S = 5.0  # that a run which was told to stop waits for a server


def create_run(
    store: RemoteStore,
    resolved: Resolved,
    tags: Mapping[str, str],
    data: Any,
    meanwhile: Callable[[], Any] = lambda: None,
) -> "ActiveRun":
    """Create a run with its params, tags, data set and config.yaml, and start to track it.

    A local store is waited for; without its answer, as with a server, the run is in a spool and
    delivered later. `meanwhile` is called beside this: a process that is killed in it leaves a
    run that can be resumed. Raises BadInput if the store takes no run.
    """
    config = resolved.config
    lease = ownership.new_lease(this_process(), Lease(), 0)
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
            **lease.tags(),
            names.HEARTBEAT: str(int(time.time())),
        },
        params=resolved.params(),
        dataset={
            "name": data.name,
            "digest": data.digest[:8],
            "source": without_secrets(data.source).encode(errors="backslashreplace").decode(),
            "profile": json.dumps(data.profile),
            "schema": json.dumps(data.schema),
        },
    )
    spooled = store.offline(creation, None, "RUNNING", store.root / "spool" / creation.id)

    def begin() -> ActiveRun:
        record, known = spooled, creation
        if store.database:
            with suppress(StoreError, TimeoutError):
                record = store.begin(RunStore.create, creation).result(ANSWER_S)
                known = replace(creation, id=record.id, name=record.name)
        run = ActiveRun(store, record, known, config.tracking, lease)
        replace_file(record.folder / "config.yaml", resolved.record())
        return run

    with ThreadPoolExecutor(1) as beside:
        run = beside.submit(begin)
        meanwhile()
    return run.result()


def reopen_run(
    store: RemoteStore, record: RunRecord, config: Any, from_step: int = 0
) -> "ActiveRun":
    """Go on with a run from a step, skipping what is recorded; raise BadInput if another has it."""
    process, beat = owner_and_heartbeat(record)
    if record.status == "RUNNING" and not is_own(process) and may_be_alive(record):
        raise BadInput(
            f"run {record.id}: a process on {process.get('host')} is training it; "
            f"its last sign of life is {max(0, time.time() - beat):.0f} s old."
        )
    content = outbox.read(record.outbox)
    before = ownership.owner(record.tags, record.status == "FINISHED")
    if content.leases and (record.offline or not record.known or content.is_of(before)):
        before = content.leases[-1]  # of which the store may not have heard yet
    creation = None
    if not content.creation:  # its outbox lies on another machine
        others = (names.LOCAL_ID, names.DESCRIPTION, *names.OWNERSHIP)
        creation = RunCreation(
            id=record.local,
            address=store.address.store_key,
            experiment=store.experiment_name(record),
            name=record.name,
            start=int(record.start_time * 1000),
            tags={key: text for key, text in record.tags.items() if key not in others},
            params=store.summary(record).params,
            dataset={},
        )
    earlier = None
    with suppress(OSError):  # there is none before the first words of a run
        earlier = history.load((record.folder / history.NAME).read_bytes())
    lease = ownership.new_lease(this_process(), before, from_step)
    return ActiveRun(
        store, record, creation, config.tracking, lease, before, earlier or History({})
    )


class ActiveRun:
    """One run being trained, as the training code sees it; the delivery process delivers it."""

    def __init__(
        self,
        store: RemoteStore,
        record: RunRecord,
        creation: RunCreation | None,
        settings: Any,
        lease: Lease,
        before: Lease | None = None,
        earlier: History | None = None,
    ) -> None:
        """Hold a run; `creation` is what its outbox lacks. Raise RunLocked if it is not free.

        `lease` is this process's, `before` the one that it follows; `earlier` is what is known
        here of that one, None if there is none. What a local store holds of a run is waited for.
        """
        new, self._earlier = earlier is None, earlier
        self._store, self._settings = store, settings
        self.status = DeliveryStatus(record)
        self._end: tuple[str, int] | None = None  # status and time (ms), once it has ended
        self._restarts = 1  # of the delivery that are left
        self._waits = store.server and not new and record.known  # to learn what MLflow has
        self._left = float(settings.flush_seconds)  # seconds that may still be waited for it
        self.lock = run_lock(record)
        content = outbox.read(record.outbox)
        self._outbox = Outbox(record.outbox)
        self._recorded = content.metrics()  # key -> step -> value
        self.digests = content.digests  # of the states saved, by step; also of those removed since
        if creation:
            self._outbox.append("run", asdict(creation))
            if record.known:
                self._outbox.append("ids", [record.id, record.experiment_id])
        after = {"after": before.dump()} if before else {}
        self._outbox.append("begun", lease.dump() | after)
        try:
            self._process, self._number = store.process(), next(numbers)
            self._begun: Future[None] = Future()  # the answer to the handing over
            self._begin(new, at_once=not (store.server or new))
            for _ in range(0 if store.server else 2):
                with suppress(Ended, TimeoutError):
                    self._begun.result(ANSWER_S)
                    break
        except BaseException:
            self._close()
            raise

    def _begin(self, new: bool, at_once: bool) -> None:
        """Hand the run and its lock over; `at_once`: the answer tells what the store holds."""
        self._process, self._number = self._store.process(), next(numbers)
        self._process.runs[self._number] = self
        how = self._store.key, self.info, new, at_once, self._settings.system_metrics
        lock = self.lock.descriptor
        self._begun = self._process.ask("track", self._number, *how, descriptor=lock)
        self._begun.add_done_callback(self._note_failure)

    def _note_failure(self, answer: "Future[None]") -> None:
        error = answer.exception()
        if error and not isinstance(error, Ended):
            self._stop(str(error))

    def _stop(self, reason: str) -> None:
        self.take(replace(self.status, error=reason, done=True))

    def take(self, status: DeliveryStatus) -> None:
        """Take note of how the delivery stands."""
        before, self.status = self.status.info, status
        if status.info.id != before.id:
            with suppress(OSError, ValueError):  # a full disk; a run that has ended
                self._outbox.append("ids", [status.info.id, status.info.experiment_id])
        if status.done:
            self._forget()

    def restart(self) -> None:
        """Begin again in a new delivery process, once."""
        self._forget()
        if not self._restarts:
            return self._stop(ENDED)
        self._restarts -= 1
        try:
            self._begin(new=False, at_once=False)
        except BadInput as error:  # the system starts no process
            return self._stop(str(error))
        if self._end:
            self._tell("finish", *self._end)

    def _forget(self) -> None:
        """Take no more note of the delivery."""
        self._process.runs.pop(self._number, None)

    def _tell(self, name: str, *arguments: Any) -> None:
        """Call a method of `RunDelivery`."""
        self._process.tell("call", self._number, name, *arguments)

    def _close(self) -> None:
        self._outbox.close()
        self.lock.release()

    @property
    def info(self) -> RunRecord:
        """Return the run as it is known now: its id is MLflow's once MLflow has the run."""
        return self.status.info

    @property
    def refused(self) -> str:
        """Return what MLflow will never take of the run, and why; nothing if it takes all."""
        return self.status.refused

    @property
    def points(self) -> Mapping[str, Mapping[int, float]]:
        """Return all that is recorded: key -> step -> value."""
        return self.history.metrics

    @property
    def history(self) -> History:
        """Return all that is known of the run's life, the one before this process's too."""
        status = self.status
        known = History(self._recorded, self.digests, status.connected or not self._waits)
        return known.over(status.learned).over(self._earlier)

    def wait_for_earlier_history(self, hurry: Callable[[], bool]) -> None:
        """Wait, as long as the end of a run waits, for what MLflow has of its earlier life."""
        if not self._waits:
            return
        self._wait(lambda: self.status.connected or self.status.deleted or self.status.done, hurry)

    def _wait(self, done: Callable[[], Any], hurry: Callable[[], bool]) -> None:
        """Wait for the delivery, for `tracking.flush_seconds` in all, or less in a hurry."""
        began, most = time.monotonic(), self._left
        while not done():
            time.sleep(0.01)
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
        now, learned = time.time_ns() // 1_000_000, self.status.learned
        for key, values in metrics.items():
            known = self._recorded.setdefault(key, {})
            there = learned.metrics.get(key, {})
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
            self._tell("look", True)

    def set_tags(self, tags: Mapping[str, str], at_once: bool = True) -> None:
        """Set tags, in the background; unless `at_once`, with what is sent next."""
        short = {key: fitted(value, SHORTER["tags"]) for key, value in tags.items()}
        try:
            self._outbox.append("tags", short)
        except OSError:  # a full disk: the reason itself may be what follows
            self._tell("set_tags", short)
        if at_once:
            self._tell("look", False)

    def finish(self, status: str) -> str | None:
        """End the run, and wait as `wait_for_delivery` does."""
        self.end(status)
        return self.wait_for_delivery(lambda: False)

    def end(self, status: str) -> None:
        """End the run, and have delivered what is left."""
        end = status, time.time_ns() // 1_000_000
        with suppress(OSError):
            self._outbox.append("status", end)
            self._outbox.flush()
        self._end = end
        self._tell("finish", *end)

    def wait_for_delivery(self, hurry: Callable[[], bool]) -> str | None:
        """Wait until all of a run that has ended is delivered; return why not, if so.

        This takes at most `tracking.flush_seconds`, and less in a hurry; for the pictures of a run
        of a local store, which need no server, there is more time.
        """
        self._wait(lambda: self.status.done or self.status.ended, hurry)
        local = self.status.ended and not self.info.remote
        if local:
            self._left = PICTURES_S
        self._wait(lambda: self.status.done or (local and self.status.error), hurry)
        undelivered = self.give_up()
        self._close()
        return undelivered

    def give_up(self) -> str | None:
        """Send no more; return why not all was sent, if so."""
        if self.status.done:
            return self.status.error or None
        self._forget()
        self._process.kill()
        return self.status.error or "no answer in time"
