"""MLflow's delivery: sends what stands in a run's outbox, and mirrors its files."""

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from waymark.names import DATA_CONTEXT, HEARTBEAT, PRUNED
from waymark.tracking import logged_models, ownership
from waymark.tracking.artifacts import list_files
from waymark.tracking.description import without_typed_over
from waymark.tracking.history import History
from waymark.tracking.limits import (
    SHORTER,
    TAG_LENGTH,
    Deleted,
    fitted,
    is_refusal,
    params,
    reason_of,
    requests,
    restore_infinity,
)
from waymark.tracking.liveness import HEARTBEAT_S
from waymark.tracking.outbox import OutboxReader, Points, RunCreation
from waymark.tracking.ownership import Lease
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore

# A checkpoint's file as Waymark names it; what else lies there is somebody else's.
CHECKPOINT = re.compile(
    r"checkpoints/\w+-(0|[1-9][0-9]*)\.(json|npz|index|data-00000-of-00001)", re.ASCII
)


@dataclass(frozen=True)
class DeliveryStatus:
    """What training hears of the delivery."""

    info: RunRecord  # as MLflow knows the run, once it does
    connected: bool = False  # what MLflow held before is known
    refused: str = ""  # what MLflow will never take, and why; nothing if it takes all
    learned: History = field(default=History({}), compare=False)  # the points that MLflow held
    error: str = ""  # why the last try failed; nothing if it did not
    ended: bool = False  # all is delivered but the pictures
    deleted: bool = False  # the run was deleted in MLflow: nothing will be delivered
    done: bool = False  # nothing more will be sent: all has arrived, or `error` says why not


class Delivery:
    """Sends what stands in a run's outbox and is not in MLflow yet; every step can be repeated."""

    def __init__(self, store: RunStore, record: RunRecord, new: bool) -> None:
        """Read the outbox."""
        self.info = record
        self.store, self._client = store, store.client
        self._new, self._tried = new, False
        self._reader = OutboxReader(record.outbox)
        self._content = self._reader.content  # whose leases tell whether the run is this outbox's
        self.owner: Lease | None = None  # the one that has taken the run from this outbox
        self.left_out = 0  # points, which are the owner's to make
        self._opened = time.time_ns()
        self.unsent: list[Points] = []
        self.tags: dict[str, str] = {}
        self._there: Mapping[str, str] = {}  # the run's tags as they were fetched last
        self.training = False  # this process trains the run: say so, and that it is alive
        self.changed = record.remote and not new  # files in the folder are other ones than there
        self.learned = History({})  # what MLflow had
        self.connected = False
        self.created: Callable[[RunRecord], Any] = lambda record: None
        self.on_connected: Callable[[], None] = lambda: None  # before any file is sent
        self._remote_files: dict[str, Any] | None = None  # artifact -> what it was made from
        self._last_heartbeat = -math.inf
        self.refused: dict[str, str] = {}  # what the store will never take -> why
        self._withheld: dict[str, tuple[int, int]] = {}  # files that it will not -> size and time
        self._read()

    def _read(self) -> None:
        """Take up what was added to the outbox."""
        self._reader.read()
        content = self._content
        self.unsent += [
            new for p in content.points for new in p.without(self.learned.metrics.get(p.key, ()))
        ]
        self.tags |= content.tags
        content.points, content.tags = [], {}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Send tags that the disk did not take."""
        self._read()
        self.tags |= tags

    def deliver(self) -> None:
        """Send what is waiting; raise Deleted for a run that was, and what MLflow raises."""
        try:
            self._deliver()
        except Exception as error:
            if self.info.known and is_refusal(error):
                self._check_there()
            raise

    def _deliver(self) -> None:
        was_connected = self.connected
        if not was_connected:
            self._read()
            self._resolve_run()
        # Listed before the points are read: no checkpoint arrives ahead of the losses up to it,
        # which are recorded before it is published. Another machine may go on from it.
        files = list_files(self.info.folder) if self.changed else {}
        self._read()
        if was_connected and (self.unsent or self.tags or self.changed or self._heartbeat_is_due()):
            run = self._fetch_run()
            lease = self.owner or [Lease(), *self._content.leases][-1]
            if any(step <= lease.from_step for p in self.unsent for step in p.steps):
                self.drop_already_logged(run)  # a former owner may have added it meanwhile
        if self.owner:
            self._leave_to_owner(self.owner)
            return
        self._send_points()
        self._send_heartbeat()
        self._set_tags(self.tags)
        self.tags = {}
        if self.changed:
            try:
                self._mirror(files)
            except BaseException:
                self._remote_files = None
                raise
            self.changed = False

    def _check_there(self) -> None:
        """Raise Deleted if the run or its experiment was, and what MLflow raises."""
        run = self._fetch_run()
        if self._client.get_experiment(run.info.experiment_id).lifecycle_stage != "active":
            raise Deleted("its experiment was deleted there, and can be restored")

    def _takes(self, what: str, send: Callable[..., Any], *arguments: Any) -> bool:
        """Send something; tell whether the store takes it, and note what it never will."""
        try:
            send(*arguments)
        except Exception as error:
            if not is_refusal(error):
                raise
            self._check_there()
            self.refused[what] = reason_of(error)
            return False
        return True

    def _fetch_run(self, run: Any = None) -> Any:
        """Return MLflow's run, and note who owns it; raise Deleted, and what MLflow raises."""
        run = run or self._client.get_run(self.info.id)
        if run.info.lifecycle_stage != "active":
            raise Deleted("it was deleted there, and can be restored")
        owner = ownership.owner(run.data.tags, run.info.status == "FINISHED")
        self.owner = None if self._content.may_write(owner) else owner
        self._there = run.data.tags
        return run

    def _leave_to_owner(self, owner: Lease) -> None:
        """Add the points that are missing before the owner's first; leave out all else."""
        every, self.unsent = self.unsent, []
        for p in every:
            late = [step for step in p.steps if step > owner.from_step]
            self.left_out += len(late)
            self.unsent += p.without(late)
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
                    self.refused[f"the {kind.removesuffix('s')} {names[0]!r}"] = reason_of(error)

    def _send_heartbeat(self) -> None:
        """Say that the run is being trained, if it is time for it."""
        if self._heartbeat_is_due():
            # Should another host have taken this run for dead, this says it is not.
            self._client.update_run(self.info.id, status="RUNNING")
            self._set_tags({HEARTBEAT: str(int(time.time()))})
            self._last_heartbeat = time.monotonic()

    def _heartbeat_is_due(self) -> bool:
        return self.training and time.monotonic() - self._last_heartbeat > HEARTBEAT_S

    @property
    def complete(self) -> bool:
        """Tell whether MLflow has all that the outbox holds."""
        self._read()
        return self.connected and not (self.unsent or self.tags or self.changed)

    def close(self, status: str, end: int) -> str:
        """Set the run's final status, if it is still this outbox's; return the one it has."""
        run = self._fetch_run()
        if self.owner:
            return str(run.info.status)
        end = max(end, int(self.info.start_time * 1000))  # the clock may have jumped back
        self._client.set_terminated(self.info.id, status, end)
        return status

    def deliver_models(self) -> None:
        """Make the models that wait, and delete those that retention has removed, if it may."""
        run = self._fetch_run()
        if not self.owner:
            logged_models.bring(self.store, self.info, run, self._takes)

    def _resolve_run(self) -> None:
        """Find or create the run in MLflow, own it, and only then learn what it holds.

        What others send after it was taken they leave out.
        """
        may_exist, self._tried = not self._new or self._tried, True
        run = self.store.get_or_create(self._content.creation, self.info, may_exist)
        if run.info.run_id != self.info.id:
            made = self.store.record(run)  # the folder stays the one that is written to
            self.info = replace(made, folder=self.info.folder, remote=self.info.remote)
            self.created(self.info)
        self._fetch_run(run)
        if not self.owner:
            if self.training:
                self._last_heartbeat = -math.inf if may_exist else time.monotonic()
            leases, there = self._content.leases, ownership.owner(run.data.tags)
            if leases and not (there.process and leases[-1].is_named_by(there)):
                self._set_tags(leases[-1].tags())
                run = self._client.get_run(self.info.id)
            self._send_heartbeat()
            if self._content.creation:
                self._send_creation(self._content.creation, run)
        if self.owner or not self._new:
            self.drop_already_logged(run)
        self.connected = True
        self.on_connected()

    def _send_creation(self, creation: RunCreation, run: Any) -> None:
        """Record params, data set and tags that a run was made with, as far as it lacks them."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        there, data = run.data, creation.dataset
        known = params(creation.params).items()
        self._send("params", [Param(key, v) for key, v in known if key not in there.params])
        if data and not (run.inputs and run.inputs.dataset_inputs):
            name, source = fitted(data["name"], 500), fitted(data["source"], 5000)
            schema, profile = data.get("schema"), data["profile"]
            entry = Dataset(name, data["digest"], "local", source, schema, profile)
            inputs = [DatasetInput(entry, [InputTag(DATA_CONTEXT, "training")])]
            try:
                self._client.log_inputs(self.info.id, inputs)
            except Exception:  # another process made the data set's row at the same moment
                self._takes("the data set", self._client.log_inputs, self.info.id, inputs)
        if not there.params:  # it was just made, maybe without a tag that was refused
            lost = creation.tags.keys() - there.tags.keys() - {HEARTBEAT}
            self.tags = {key: creation.tags[key] for key in sorted(lost)} | self.tags

    def drop_already_logged(self, run: Any) -> None:
        """Remove from what is unsent every point that MLflow already has."""
        have: dict[str, dict[int, float]] = {}
        for key in run.data.metrics:
            history = self._client.get_metric_history(run.info.run_id, key)
            have[key] = {point.step: restore_infinity(point.value) for point in history}
        self.learned = History(have)
        self.unsent = [new for p in self.unsent for new in p.without(have.get(p.key, ()))]

    def _send_points(self) -> None:
        from mlflow.entities import Metric

        points = [(p, *pair) for p in self.unsent for pair in zip(p.steps, p.values, strict=True)]
        self._send("metrics", [Metric(p.key, value, p.time, step) for p, step, value in points])
        self.unsent = []

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = without_typed_over(tags, self._there)
        self._send("tags", [RunTag(key, fitted(text, TAG_LENGTH)) for key, text in tags.items()])
        if tags.get(PRUNED) == "":  # it is not any more
            self._client.delete_tag(self.info.id, PRUNED)

    def _mirror(self, here: Mapping[str, tuple[int, int]]) -> None:
        """Make the checkpoints in the run's remote home those of the folder, and bring the rest.

        `here` is what `list_files` returned. Manifests are sent last and deleted first.
        """
        repository = self.store.artifacts(self.info)
        if self._remote_files is None:
            folders = ["checkpoints", *{"fork"} & {name.partition("/")[0] for name in here}]
            listed = [file for each in folders for file in repository.list_artifacts(each)]
            self._remote_files = {file.path: file.file_size for file in listed}
        for name in sorted(here, key=lambda name: (name.endswith(".json"), name)):
            facts, known = here[name], self._remote_files.get(name)
            # A checkpoint's file that was here before and has the same size is the same one.
            old = "-" in name and not name.endswith(".json") and facts[1] < self._opened
            if known != facts and not (old and known == facts[0]):
                with contextlib.suppress(FileNotFoundError):  # gone again by retention
                    if self._upload(repository, name, facts):
                        self._remote_files[name] = facts
        gone = [
            name for name in self._remote_files if name not in here and CHECKPOINT.fullmatch(name)
        ]
        if gone:
            self._fetch_run()
        if self.owner:
            return
        for name in sorted(gone, key=lambda name: not name.endswith(".json")):
            repository.delete_artifacts(name)
            del self._remote_files[name]

    def _upload(self, repository: Any, name: str, facts: tuple[int, int]) -> bool:
        """Send a file, but no manifest without its files; tell whether the store has taken it."""
        stem = name.partition(".")[0]
        held = (other.partition(".")[0] for other in self._withheld if "-" in other)
        if self._withheld.get(name) == facts or (name.endswith(".json") and stem in held):
            return False
        place = str(self.info.folder / name), os.path.dirname(name) or None
        taken = self._takes(f"the file {name}", repository.log_artifact, *place)
        if taken:
            self._withheld.pop(name, None)
        else:
            self._withheld[name] = facts
        return taken

    def refusals(self) -> str:
        """Return what a store will never take of the run, in words; nothing if it takes all."""
        refused, owner, count = dict(self.refused), self.owner, self.left_out
        if owner:
            points = f"{count} point{'s' * (count != 1)} after step {owner.from_step}, "
            went = "has finished it" if owner.finished else f"went on from step {owner.from_step}"
            host = owner.process.get("host", "another host")
            what = f"{points * bool(count)}status, tags and files"
            refused[what] = f"a process on {host} {went}"
        return "; ".join(f"{what} ({why})" for what, why in sorted(refused.items()))
