"""One run on its way to MLflow: what is recorded, what has arrived, and who sends it."""

import contextlib
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import BadInput, first_line, without_password
from pipeline.names import DATA_CONTEXT, HEARTBEAT, PRUNED
from pipeline.tracking import lives, outbox
from pipeline.tracking.alive import HEARTBEAT_S, this_process
from pipeline.tracking.history import History
from pipeline.tracking.limits import (
    SHORTER,
    TAG,
    Deleted,
    exact,
    fitted,
    is_refusal,
    params,
    requests,
)
from pipeline.tracking.lives import Life
from pipeline.tracking.local_store import other_version
from pipeline.tracking.outbox import Birth, Content, Outbox, Points

if TYPE_CHECKING:
    from pipeline.tracking import Tracking

PAUSE = 1.0  # seconds between two sendings
GONE = ".gone-"
# A checkpoint's file as Waymark names it; what else lies there is somebody else's.
CHECKPOINT = re.compile(
    r"checkpoints/\w+-(0|[1-9][0-9]*)\.(json|npz|index|data-00000-of-00001)", re.ASCII
)
PATIENCE = 0.3  # seconds to wait for a run's lock: to ask for it is to hold it for a moment
HURRY = 5.0  # seconds that a run which was told to stop waits for a server
# Of a sweep's parent: what it is, and the command that carried it out last; of a trial: at which
# step it was ended as hopeless.


class Busy(BadInput):
    """Say that another process has a run."""


@dataclass(frozen=True)
class RunRecord:
    """What is recorded of a run; `folder` is where its artifacts lie on this machine."""

    id: str  # MLflow's, or the local one while MLflow knows nothing of the run
    local: str  # the name of the run's folder on the machines that train it
    name: str
    experiment_id: str  # "" while MLflow knows nothing of the run
    status: str
    start_time: float  # seconds since the epoch
    tags: dict[str, str]
    folder: Path
    remote: bool  # the artifacts' home is elsewhere; `folder` is a spool
    offline: bool = False  # what is here is all that can be had of it now

    @property
    def known(self) -> bool:
        """Tell whether MLflow has made the run."""
        return bool(self.experiment_id)

    @property
    def outbox(self) -> Path:
        return self.folder.parent / outbox.NAME

    def recorded_tag(self, key: str) -> str | None:
        """Return a tag; the one the run was created with, if its outbox is here and MLflow lost it.

        None if nothing tells.
        """
        if key in self.tags:
            return self.tags[key]
        birth = outbox.read(self.outbox).birth
        return birth.tags.get(key) if birth else None


@dataclass(frozen=True)
class Facts:
    """What is known of a run as a whole, beside its record."""

    params: dict[str, str]
    metrics: dict[str, float]  # the last value of each
    end: float | None  # seconds since the epoch; None while it goes on


class Delivery:
    """What MLflow does not have yet of one run; every step of sending it can be repeated."""

    def __init__(self, tracking: "Tracking", record: RunRecord, content: Content, new: bool):
        self.info = record
        self._tracking, self._client = tracking, tracking.client
        self._birth, self._new, self._tried = content.birth, new, False
        self._content = content  # whose lives tell whether the run is still this outbox's
        self.owner: Life | None = None  # the one that has taken the run from this outbox
        self.left_out = 0  # points, which are the owner's to make
        self._opened = time.time_ns()
        self.waiting = list(content.points)
        self.tags = dict(content.tags)
        self.training = False  # this process trains the run: say so, and that it is alive
        self.changed = record.remote and not new  # files in the folder are other ones than there
        self.mutex = threading.Lock()
        self.points: dict[str, dict[int, float]] = {}  # key -> step -> value, all recorded
        for points in content.points:
            self._known(points.key, zip(points.steps, points.values, strict=True))
        self.connected = False
        self.created: Callable[[RunRecord], None] = lambda record: None
        self.learned: Callable[[], None] = lambda: None  # all that MLflow has is in `points`
        self._there: dict[str, Any] | None = None  # remote artifact -> what it was made from
        self._beat = -math.inf
        self.refused: dict[str, str] = {}  # what the store will never take -> why
        self._withheld: dict[str, tuple[int, int]] = {}  # files that it will not -> size and time

    def _known(self, key: str, pairs: Any) -> None:
        self.points.setdefault(key, {}).update(pairs)

    def deliver(self) -> None:
        """Send what is waiting; raise Deleted for a run that was, and what MLflow raises."""
        try:
            self._deliver()
        except Exception as error:
            if self.info.known and is_refusal(error):
                self._check_there()
            raise

    def _deliver(self) -> None:
        if not self.connected:
            self._connect()
        elif self.waiting or self.tags or self.changed or self._beat_is_due():
            run = self._look()
            if any(step <= self._from_step for p in self.waiting for step in p.steps):
                self._learn(run)  # a former owner may have added it meanwhile
        if self.owner:
            self._leave_to_owner(self.owner)
            return
        # Listed before the points are sent: no checkpoint arrives ahead of the losses up to it,
        # which are recorded before it is published. Another machine may go on from it.
        changed, self.changed = self.changed, False
        files = _listed(self.info.folder) if changed else {}
        try:
            self._send_points()
            self._send_words()
            if changed:
                self._mirror(files)
        except BaseException:
            if changed:
                self.changed, self._there = True, None
            raise

    def _check_there(self) -> None:
        """Raise Deleted if the run or its experiment was, and what MLflow raises."""
        run = self._look()
        if self._client.get_experiment(run.info.experiment_id).lifecycle_stage != "active":
            raise Deleted("its experiment was deleted there, and can be restored")

    def _look(self) -> Any:
        """Return MLflow's run, and note who owns it; raise Deleted, and what MLflow raises."""
        return self._looked_at(self._client.get_run(self.info.id))

    def _looked_at(self, run: Any) -> Any:
        if run.info.lifecycle_stage != "active":
            raise Deleted("it was deleted there, and can be restored")
        owner = lives.owner(run.data.tags, run.info.status == "FINISHED")
        self.owner = None if self._content.may_write(owner) else owner
        return run

    @property
    def _from_step(self) -> int:
        """Return the step from which the run's owner goes on: earlier points may be others'."""
        life = self.owner or (self._content.lives[-1] if self._content.lives else Life())
        return life.from_step

    def _leave_to_owner(self, owner: Life) -> None:
        """Add the points that are missing before the owner's first; leave out all else."""
        with self.mutex:
            every, self.waiting[:] = [*self.waiting], []
            for p in every:
                early = [pair for pair in _pairs(p) if pair[0] <= owner.from_step]
                self.left_out += len(p.steps) - len(early)
                self.waiting += _points(p, early)
            self.tags, self.changed = {}, False
        self._send_points()

    def _send(self, kind: str, items: Sequence[Any]) -> None:
        """Send metrics, params or tags; set aside those that the store will never take."""
        for part in requests(kind, items):
            try:
                self._client.log_batch(self.info.id, **{kind: part})
            except Exception as error:  # else one word would keep all behind it from arriving
                if not is_refusal(error):
                    raise
                self._check_there()
                names = list(dict.fromkeys(item.key for item in part))
                shorter = SHORTER.get(kind, math.inf)
                if len(names) > 1:
                    for name in names:
                        self._send(kind, [item for item in part if item.key == name])
                elif len(str(part[0].value)) > shorter:
                    text = fitted(part[0].value, int(shorter))
                    self._send(kind, [type(part[0])(part[0].key, text)])
                else:
                    self._set_aside(f"the {kind.removesuffix('s')} {names[0]!r}", error)

    def _set_aside(self, what: str, error: Exception) -> None:
        self.refused[what] = reason_of(error)

    def _send_words(self) -> None:
        """Send a sign of life, if it is time for one, and the tags that are waiting."""
        self._live()
        if self.tags:
            sent = dict(self.tags)
            self._set_tags(sent)
            with self.mutex:
                self.tags = {k: v for k, v in self.tags.items() if sent.get(k) != v}

    def _live(self) -> None:
        """Say that the run is being trained, if it is time for it."""
        if self._beat_is_due():
            # Should another host have taken this run for dead, this says it is not.
            self._client.update_run(self.info.id, status="RUNNING")
            self._set_tags({HEARTBEAT: str(int(time.time()))})
            self._beat = time.monotonic()

    def _beat_is_due(self) -> bool:
        return self.training and time.monotonic() - self._beat > HEARTBEAT_S

    @property
    def complete(self) -> bool:
        return self.connected and not (self.waiting or self.tags or self.changed)

    def close(self, status: str, end: int) -> str:
        """Set the run's final status, if it is still this outbox's; return the one it has."""
        run = self._look()
        if self.owner:
            return str(run.info.status)
        end = max(end, int(self.info.start_time * 1000))  # the clock may have jumped back
        self._client.set_terminated(self.info.id, status, end)
        return status

    def _connect(self) -> None:
        """Find or create the run in MLflow, and own it; of one that was there, learn what it holds.

        The run is taken before it is looked at: what others send afterwards they leave out.
        """
        lookup, self._tried = not self._new or self._tried, True
        run = self._tracking.ensure(self._birth, self.info, lookup)
        if run.info.run_id != self.info.id:
            self.info = self._tracking.record(run)
            self.created(self.info)
        self._looked_at(run)
        if not self.owner:
            if self.training:
                self._beat = -math.inf if lookup else time.monotonic()
            if self._own(run):
                run = self._client.get_run(run.info.run_id)
            if self._birth:
                self._describe(self._birth, run)
        if self.owner or not self._new:
            self._learn(run)
        self.connected = True
        self.learned()

    def _own(self, run: Any) -> bool:
        """Make the last life that began here the run's owner; tell whether it was not."""
        if not self._content.lives:
            return False
        life = self._content.lives[-1]
        there = lives.owner(run.data.tags)
        taken = not (there.process and life.is_named_by(there))
        if taken:
            self._set_tags(life.tags())
        self._live()
        return taken

    def _describe(self, birth: Birth, run: Any) -> None:
        """Record params, data set and tags that a run was made with, as far as it lacks them."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        there, data = run.data, birth.dataset
        known = params(birth.params).items()
        self._send("params", [Param(key, v) for key, v in known if key not in there.params])
        if len(data) == 4 and not (run.inputs and run.inputs.dataset_inputs):
            name, source = fitted(data["name"], 500), fitted(data["source"], 5000)
            entry = Dataset(name, data["digest"], "local", source, profile=data["profile"])
            inputs = [DatasetInput(entry, [InputTag(DATA_CONTEXT, "training")])]
            try:
                self._client.log_inputs(run.info.run_id, inputs)
            except Exception:  # another process made the data set's row at the same moment
                try:
                    self._client.log_inputs(run.info.run_id, inputs)
                except Exception as error:
                    if not is_refusal(error):
                        raise
                    self._check_there()
                    self._set_aside("the data set", error)
        if not there.params:  # it was just made, maybe without a tag that was refused
            lost = {k: v for k, v in birth.tags.items() if k not in there.tags and k != HEARTBEAT}
            with self.mutex:
                self.tags = {**lost, **self.tags}

    def _learn(self, run: Any) -> None:
        """Wait no longer to send what MLflow has already, from here or from another machine."""
        have: dict[str, dict[int, float]] = {}
        for key in run.data.metrics:
            history = self._client.get_metric_history(run.info.run_id, key)
            have[key] = {point.step: exact(point.value) for point in history}
        with self.mutex:
            for key, known in have.items():
                self._known(key, {**known, **self.points.get(key, {})})
            self.waiting[:] = [
                new for p in self.waiting for new in _points(p, _unknown(p, have.get(p.key, {})))
            ]

    def _send_points(self) -> None:
        from mlflow.entities import Metric

        waiting = list(self.waiting)
        flat = [
            Metric(p.key, value, p.time, step)
            for p in waiting
            for step, value in zip(p.steps, p.values, strict=True)
        ]
        self._send("metrics", flat)
        with self.mutex:
            del self.waiting[: len(waiting)]

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._send("tags", [RunTag(key, fitted(text, TAG)) for key, text in tags.items()])
        if tags.get(PRUNED) == "":  # it is not any more
            self._client.delete_tag(self.info.id, PRUNED)

    def _mirror(self, here: Mapping[str, tuple[int, int]]) -> None:
        """Make the checkpoints in the run's remote home those of the folder, and bring the rest.

        `here` is what the folder held, see `_listed`. Manifests are sent last and deleted first.
        """
        repository = self._tracking.artifacts(self.info)
        if self._there is None:
            listed = repository.list_artifacts("checkpoints")
            self._there = {file.path: file.file_size for file in listed}
        describing = {name for name in here if name.endswith(".json")}
        order = sorted(here, key=lambda name: (name in describing, name))
        for name in order:
            facts, known = here[name], self._there.get(name)
            # A checkpoint's file that was here before and has the same size is the same one.
            old = "-" in name and name not in describing and facts[1] < self._opened
            if known != facts and not (old and known == facts[0]):
                with contextlib.suppress(FileNotFoundError):  # gone again by retention
                    if self._bring(repository, name, facts):
                        self._there[name] = facts
        gone = [name for name in self._there if name not in here and CHECKPOINT.fullmatch(name)]
        if gone:
            self._look()
        if self.owner:
            return
        for name in sorted(gone, key=lambda name: not name.endswith(".json")):
            repository.delete_artifacts(name)
            del self._there[name]

    def _bring(self, repository: Any, name: str, facts: tuple[int, int]) -> bool:
        """Send a file; tell whether it is there, and not one that the store will never take.

        Without all of its files a checkpoint has no manifest there.
        """
        stem = name.partition(".")[0]
        held = (other.partition(".")[0] for other in self._withheld if "checkpoints/" in other)
        if self._withheld.get(name) == facts or (name.endswith(".json") and stem in held):
            return False
        try:
            repository.log_artifact(str(self.info.folder / name), _parent(name))
        except Exception as error:
            if not is_refusal(error):
                raise
            self._check_there()
            self._withheld[name] = facts
            self._set_aside(f"the file {name}", error)
            return False
        self._withheld.pop(name, None)
        return True


class TrackedRun:
    """One run being trained; the training code sees record, saved, flush, tag and finish."""

    def __init__(
        self,
        tracking: "Tracking",
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
        self._tracking, self._settings = tracking, settings
        self._earlier = earlier
        self._waits = tracking.server and not new and record.known  # to learn what MLflow has
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
        self._delivery = Delivery(tracking, record, content, new)
        self._delivery.training = True
        self._delivery.created = self._created
        self._error: Exception | None = None
        self._monitor: Any = None
        self._wake, self._patience = threading.Event(), threading.Event()
        self._finish: tuple[str, int] | None = None
        self._delivered = False
        if not (tracking.server or new):  # what it holds is known before the first step
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
            if past > (min(HURRY, most) if hurry() else most) or isinstance(self._error, Deleted):
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
                new = _unknown(whole, delivery.points.get(key, {}))
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
            if time.monotonic() - began > (min(HURRY, most) if hurry() else most):
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
        delivery, reaped = self._delivery, not self._tracking.server
        while True:
            self._wake.wait(PAUSE if delivery.connected else 0)
            self._wake.clear()
            if self._patience.is_set():
                return
            finish = self._finish  # read first: what is recorded before it is then sent
            try:
                delivery.deliver()
                if not reaped:
                    self._tracking.reap()
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
            self._monitor = self._tracking.system_metrics(self.info.id)


def last_sign(record: RunRecord, beat: float) -> int:
    """Return the latest time (ms) at which a run is known to have lived, by no clock ahead."""
    with contextlib.suppress(OSError):
        beat = max(beat, record.outbox.stat().st_mtime)
    return int(min(beat, time.time()) * 1000)


def reason_of(error: BaseException) -> str:
    """Say in a few words what is wrong with a store, without any password."""
    text = str(error)
    revision = re.search(r"found version (\w+)|identified by '(\w+)'", text)
    if revision:
        return other_version(revision[1] or revision[2])
    if "database is locked" in text:
        return "another program has locked it for long"
    if re.search(r"file is not a database|disk image is malformed", text):
        return "it is damaged; move it away, and waymark sync makes its runs from their folders"
    inside = re.search(r"\[Errno -?\d+\] ([^'\")]+)|\(sqlite3\.\w+\) ([^\n]+)|(timed out)", text)
    if inside:  # of a long chain
        return inside[1] or inside[2] or "no answer in time"
    return without_password(first_line(error)) or ""


def refusals(delivery: Delivery) -> str:
    """Return what a store will never take of a run, in words; nothing if it takes all."""
    refused, owner, count = dict(delivery.refused), delivery.owner, delivery.left_out
    if owner:
        points = f"{count} point{'s' * (count != 1)} after step {owner.from_step}, " * bool(count)
        went = "has finished it" if owner.finished else f"went on from step {owner.from_step}"
        host = owner.process.get("host", "another host")
        refused[f"{points}status, tags and files"] = f"a process on {host} {went}"
    return "; ".join(f"{what} ({why})" for what, why in sorted(refused.items()))


def settled(box: Outbox, record: RunRecord, status: str) -> None:
    """Note that MLflow has all; a finished run's spool is needed no longer."""
    with contextlib.suppress(OSError):
        box.append("delivered", None)
    if record.remote and status == "FINISHED":
        forget(record.folder.parent)


def forget(home: Path) -> None:
    """Remove the spool of a run whose all is elsewhere; a kill leaves all of it or none."""
    os.rename(home, home.with_name(GONE + home.name))
    sweep(home.parent)


def sweep(spool: Path) -> None:
    """Remove what `forget` was kept from removing."""
    for gone in spool.glob(f"{GONE}*"):
        shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def locked(record: RunRecord) -> Iterator[None]:
    """Hold a run for this process; raise Busy if another one has it."""
    lock = hold(record)
    try:
        yield
    finally:
        lock.release()


def hold(record: RunRecord, patience: float = PATIENCE) -> Any:
    """Hold a run until the lock that is returned is released; raise Busy as `locked` does.

    Raises BadInput if this user may not write to the run.
    """
    from filelock import FileLock, Timeout

    home = record.folder.parent
    lock = FileLock(home / "lock", thread_local=False)
    try:
        record.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(patience, poll_interval=0.02)
        if record.outbox.exists():
            record.outbox.open("ab").close()
    except Timeout:
        raise Busy(f"run {record.id}: another process is training it.") from None
    except OSError as error:
        lock.release()
        reason = f"{home}: cannot be written to ({error.strerror})"
        raise BadInput(f"run {record.id}: {reason}.") from None
    return lock


def is_held(record: RunRecord) -> bool | None:
    """Tell whether a process has a run whose outbox is here; None if that cannot be asked."""
    try:
        hold(record, 0).release()
    except Busy:
        return True
    except BadInput:  # a store that may only be read
        return None
    return False


def begun(before: Life, from_step: int) -> Life:
    """Return the life of a run that this process begins after another one."""
    return lives.begun(this_process(), before, from_step)


def this_process_text() -> str:
    """Return what names this process, as a tag."""
    return json.dumps(this_process())


def _pairs(points: Points) -> list[tuple[int, float]]:
    return [*zip(points.steps, points.values, strict=True)]


def _points(points: Points, pairs: Sequence[tuple[int, float]]) -> list[Points]:
    """Return those of some points that `pairs` tells, in a list; none if there are none."""
    steps, values = [s for s, _ in pairs], [v for _, v in pairs]
    return [Points(points.key, steps, values, points.time)] if steps else []


def _unknown(points: Points, known: Mapping[int, float]) -> list[tuple[int, float]]:
    return [(step, value) for step, value in _pairs(points) if step not in known]


def _listed(folder: Path) -> dict[str, tuple[int, int]]:
    """Return `_files`, manifests and other JSON files as they were before the rest was listed.

    They describe files that were there before them.
    """
    describing = {name: facts for name, facts in _files(folder).items() if name.endswith(".json")}
    others = {name: facts for name, facts in _files(folder).items() if not name.endswith(".json")}
    return others | describing


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of each file below a folder, but temporary ones."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.name.startswith("."):
                facts = path.stat()
                found[path.relative_to(folder).as_posix()] = (facts.st_size, facts.st_mtime_ns)
    return found


def _parent(name: str) -> str | None:
    return os.path.dirname(name) or None
