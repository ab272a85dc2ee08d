"""One run from configuration to recorded result, and going on with one that was interrupted."""

import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import pipeline
from pipeline import graph, pictures
from pipeline.checkpoints import State
from pipeline.checkpoints.foreign import read_parameters
from pipeline.checkpoints.retention import Memory, start
from pipeline.checkpoints.store import (
    CheckpointStore,
    Damaged,
    Manifest,
    NotSaved,
    refuse_links,
    replace_file,
)
from pipeline.compose import switched
from pipeline.config import (
    BadInput,
    Config,
    Resolved,
    Sentence,
    first_line,
    from_record,
    json_text,
    read_record,
    with_overrides,
    without_password,
)
from pipeline.data import Dataset
from pipeline.digest import digest
from pipeline.environment import (
    changes,
    differences,
    environment,
    git_commit,
    numerical,
    read_environment,
)
from pipeline.evaluation import (
    load_data,
    log_parameters,
    parameter_shapes,
    score_state,
)
from pipeline.progress import watcher
from pipeline.runtime import start_tensorflow
from pipeline.score import Score
from pipeline.stopping import Stop, Stopped
from pipeline.tracking import REASON, RESUME, RunRecord, TrackedRun, Tracking
from pipeline.tracking.history import NAME as HISTORY
from pipeline.tracking.history import History, load
from pipeline.tracking.recovery import settle
from pipeline.train import Diverged, Machine, train
from pipeline.verdict import (
    DATA,
    INIT,
    RERUN_OF,
    STATE,
    VERDICT,
    Evidence,
    Verdict,
    evidence,
    judge,
    told,
)
from pipeline.verdict import NAME as REPORT

GREETING = 0.5  # seconds that training waits, in all, for a tracking server

# What decides the numbers or the files; a resume refuses to change it. (`data.path` may move:
# the digest of the data decides.)
FROZEN = (
    *("model", "data", "optimizer", "batch_size", "seed", "precision", "init_from", "runtime"),
    *("save._target_", "save.meta_graph"),
)


class Failed(Sentence):
    """Say in one sentence why the work failed; the command exits 1."""

    verdict: Verdict | None = None  # of a rerun that diverged, as its original may have


@dataclass(frozen=True)
class Result:
    """What a finished run is: accuracies are fractions of the whole test set."""

    run_id: str
    trained: float | None  # None if a resume had no step left to train
    restored: float
    checkpoints: list[int]
    state_digest: str
    folder: Path
    link: str  # to the run in MLflow's UI, or the command that opens it
    verdict: Verdict | None = None  # of a rerun


class Saver:
    """Publish copies of the state in the background, one at a time, records first."""

    def __init__(self, store: CheckpointStore, tracked: TrackedRun, memory: Memory) -> None:
        self._store, self._tracked, self._memory = store, tracked, memory
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None
        self.graph: Path | None = None
        self.newest = -1  # the step handed over last

    def save(
        self, step: int, state: State, metrics: Mapping[str, float], regular: bool = True
    ) -> None:
        """Take a copy of the state; wait only for a save that is still in flight."""
        now = time.time()
        self.wait()
        self.newest = step
        self._pending = self._pool.submit(self._publish, step, now, state, metrics, regular)
        if not self._store.save.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait for the save in flight; raise what it raised."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _publish(
        self, step: int, now: float, state: State, metrics: Mapping[str, float], regular: bool
    ) -> None:
        self._tracked.flush()  # record before publish
        self._memory = self._store.publish(
            step, now, state, metrics, self._memory, regular, self.graph
        )
        if self._store.newest:
            self._tracked.saved(step, self._store.newest.digest)


def run(resolved: Resolved, original: Evidence | None = None) -> Result:
    """Train, save, restore, evaluate and record a new run; compare it with its original, if any.

    Raises BadInput before anything is written, Stopped after a signal, Failed otherwise.
    """
    config = resolved.config
    with Stop() as stop:
        data = load_data(config)
        parameters = _initial_parameters(config, data)
        tracking = Tracking(config.tracking.uri, create=True)
        tags = _tags(resolved, data)
        if parameters:
            tags[INIT] = digest(parameters)
        if original:
            tags[RERUN_OF] = original.record.id
        tracked = tracking.create(resolved, tags, data)
        replace_file(tracked.info.folder / "config.yaml", resolved.record())
        return _Work(resolved, data, tracking, tracked, parameters, None, stop, original).run()


def resume(text: str, overrides: Mapping[str, Any], allow_drift: bool = False) -> Result | None:
    """Go on with a run in its own MLflow run; None if nothing was left to do.

    Raises BadInput for an unknown run, an override that would change the numbers, or (without
    `allow_drift`) a numerical environment that would; Failed if no published checkpoint is whole.
    """
    with Stop() as stop:
        return _resume(text, dict(overrides), stop, allow_drift)


def recorded(text: str, overrides: Mapping[str, Any]) -> Resolved:
    """Return the configuration that a run was recorded with, with overrides put on top.

    Raises BadInput for an unknown run, a damaged record, or an override that does not fit.
    """
    given = {"tracking.uri": None, **overrides}
    trusted = given.pop("trusted_modules", [])
    tracking = Tracking(given["tracking.uri"])
    return record_of(tracking, tracking.find(text), given, trusted)


def record_of(
    tracking: Tracking, record: RunRecord, overrides: Mapping[str, Any], trusted: list[str]
) -> Resolved:
    """Return the configuration of a run that was found; see `recorded`."""
    refuse_links(record.folder)
    with tempfile.TemporaryDirectory() as scratch:
        folder = record.folder
        if not (folder / "config.yaml").exists() and record.remote:
            folder = Path(scratch) / "run"
            tracking.fetch(record, "config.yaml", folder)
        values, choices = read_record(folder / "config.yaml")
    members = {key: str(overrides[key]) for key in choices if key in overrides}
    others = {key: value for key, value in overrides.items() if key not in members}
    values, choices = switched(values, choices, members)
    return with_overrides(values, choices, others, trusted, f"recorded by run {record.id}")


def _resume(text: str, overrides: dict[str, Any], stop: Stop, allow_drift: bool) -> Result | None:
    tracking = Tracking(overrides.pop("tracking.uri", None))
    record = tracking.find(text)
    refuse_links(record.folder)
    if record.remote and not record.offline:
        _fetch(tracking, record)
    trusted = overrides.pop("trusted_modules", [])
    resolved = from_record(record.folder / "config.yaml", overrides, trusted, FROZEN)
    config = resolved.config
    store = CheckpointStore(record.folder / "checkpoints", config.save)
    data = load_data(config)
    if data.digest != record.tags.get(DATA):
        raise BadInput(f"data: {data.source} is not the data that run {record.id} was trained on.")
    start_tensorflow(config.runtime.intra_op_threads)
    found, damage = store.newest_whole()
    for line in damage:
        print(f"waymark: {line}", file=sys.stderr)
    if found is None and (store.steps() or record.status == "FINISHED"):
        state = "published checkpoints, but none is whole" if store.steps() else "lost them all"
        raise Failed(
            f"run {record.id} has {state}; to start afresh: waymark run --config-from {record.id}"
        )
    reached = found[0].step if found else 0
    if config.steps < reached:
        raise BadInput(f"steps={config.steps}: run {record.id} has already reached {reached}.")
    if record.status == "FINISHED" and reached == config.steps:
        settle(tracking, record)
        return None
    if not allow_drift:
        _refuse_drift(record, config)
    parameters = None if found else _initial_parameters(config, data)
    if parameters and digest(parameters) != record.tags.get(INIT):
        raise BadInput(f"init_from={config.init_from!r}: is not what the run started from.")
    original = _original(tracking, record)
    tracked = tracking.reopen(record, config)
    replace_file(record.folder / "config.yaml", resolved.record())
    tracked.tag({"waymark.steps": str(config.steps), REASON: "", RESUME: ""})
    return _Work(resolved, data, tracking, tracked, parameters, found, stop, original).run()


def _refuse_drift(record: RunRecord, config: Config) -> None:
    """Raise BadInput if the next steps would be computed by other means than the last ones."""
    old = read_environment(record.folder / "environment.json")
    drift = numerical(differences(old, environment(config.runtime.intra_op_threads)))
    if drift:
        raise BadInput(
            f"run {record.id}: was trained in another numerical environment, so that its bits "
            f"would not be repeatable ({'; '.join(map(told, drift))}); "
            f"waymark resume --allow-drift goes on all the same."
        )


def _original(tracking: Tracking, record: RunRecord) -> Evidence | None:
    """Return what an interrupted rerun is to be compared with, if that is still there."""
    if RERUN_OF not in record.tags:
        return None
    try:
        return evidence(tracking, tracking.find(record.tags[RERUN_OF]))
    except BadInput as error:
        print(f"waymark: no verdict: {error}", file=sys.stderr)
        return None


def _initial_parameters(config: Config, data: Dataset) -> State | None:
    if config.init_from is None:
        return None
    start_tensorflow(config.runtime.intra_op_threads)
    shapes = parameter_shapes(config, data.spec)
    parameters = read_parameters(Path(config.init_from).expanduser(), shapes, "init_from")
    log_parameters(parameters)
    return parameters


def _tags(resolved: Resolved, data: Dataset) -> dict[str, str]:
    tags = {
        "waymark.version": pipeline.__version__,
        DATA: data.digest,
        "waymark.save_format": resolved.choices.get("save", ""),
        "waymark.steps": str(resolved.config.steps),
    }
    commit = git_commit()
    return {**tags, "mlflow.source.git.commit": commit} if commit else tags


def _fetch(tracking: Tracking, record: RunRecord) -> None:
    """Bring what a resume needs and the run's remote home has; what is here and newer stays."""
    newer = tracking.newer(record)
    if newer or not (record.folder / "config.yaml").exists():
        tracking.fetch(record, "config.yaml", record.folder)
    for name in ("environment.json", HISTORY):  # there is none before the first words of a run
        if newer or not (record.folder / name).exists():
            with suppress(BadInput):
                tracking.fetch(record, name, record.folder)
    for name in newer:
        if not (record.folder / name).exists():
            tracking.fetch(record, name, record.folder)


class _Work:
    """What one process does for a run, from its configuration to its recorded end."""

    def __init__(
        self,
        resolved: Resolved,
        data: Dataset,
        tracking: Tracking,
        tracked: TrackedRun,
        parameters: State | None,
        found: tuple[Manifest, State] | None,
        stop: Stop,
        original: Evidence | None = None,
    ) -> None:
        self.resolved, self.config, self.data = resolved, resolved.config, data
        self.tracking, self.tracked = tracking, tracked
        self.parameters, self.found = parameters, found
        self.folder = tracked.info.folder
        self.stop = stop
        self.original = original  # what this run is to be compared with

    def run(self) -> Result:
        """Do the work; whatever happens, the run in MLflow ends with a status and a reason."""
        self.stop.begun = True
        try:
            result = self.stop.run(self._work)
        except Stopped as error:
            print("to go on:", self._resume_command(), file=sys.stderr)
            self._end("KILLED", str(error), resumable=True)
            raise
        except Exception as error:
            own = isinstance(error, (Diverged, NotSaved))
            reason = ("" if own else f"{type(error).__name__}: ") + first_line(error)
            resumable = not isinstance(error, Diverged)  # it would again
            verdict = self._judge() if isinstance(error, Diverged) else None
            self._end("FAILED", reason, resumable)
            after = f"; to go on: {self._resume_command()}" if resumable else ""
            failed = Failed(f"run {self.tracked.info.id} failed: {reason}{after}")
            failed.verdict = verdict
            raise failed from error
        self._end("FINISHED")
        return replace(result, link=self.tracking.link(self.tracked.info))

    def _end(self, status: str, reason: str = "", resumable: bool = False) -> None:
        """Record how the run ended; wait for a server, but not long once a signal has come."""
        run_id = self.tracked.info.id
        with suppress(OSError):  # a full disk: the outbox has it all
            history = History(self.tracked.points, self.tracked.digests)
            replace_file(self.folder / HISTORY, history.dump())
            self.tracked.changed()
        if reason:
            self.tracked.tag({REASON: reason})
        if resumable:
            self.tracked.tag({RESUME: f"waymark resume {run_id}"})
        left = self.tracked.finish(status, lambda: self.stop.signal is not None)
        if left:
            print(
                f"waymark: not all of run {run_id} has reached MLflow ({left}); "
                f"it is kept in {self.folder.parent}, and waymark sync delivers it",
                file=sys.stderr,
            )

    def _resume_command(self) -> str:
        config, words = self.config, ["waymark", "resume", self.tracked.info.id]
        if config.tracking.uri:
            words.append(f"tracking.uri={without_password(config.tracking.uri)}")
        own = self._own_modules()
        if own:
            words.append(f"trusted_modules=[{','.join(own)}]")
        return shlex.join(words)

    def _own_modules(self) -> list[str]:
        """Return the modules outside Waymark whose classes take part."""
        parts = (self.config.model, self.config.data, self.config.optimizer, self.config.save)
        modules = {type(part).__module__ for part in parts}
        return sorted(name for name in modules if not name.startswith("pipeline."))

    def _work(self) -> Result:
        config, tracked = self.config, self.tracked
        start_tensorflow(config.runtime.intra_op_threads)
        tracked.wait(GREETING)  # a server has had the time of TensorFlow's start as well
        print(Sentence(f"run {tracked.info.id} ({tracked.info.name})"), flush=True)
        self._describe()
        self.stop.check()
        machine = Machine(config, self.data)
        self.shapes = machine.shapes
        saver = self._saver(machine)
        self.stop.check()
        show = watcher(config.progress, config.steps, machine.step)

        def stopping(step: int) -> bool:
            if self.stop.signal is None:
                return False
            if saver.newest != step:
                saver.save(step, machine.state(), {}, regular=False)
            return True

        try:
            trained = train(config, machine, tracked, saver.save, show, stopping)
        finally:
            show.close()
            saver.wait()
        tracked.flush()
        self.stop.check()
        result = self._conclude(trained)
        return replace(result, verdict=self._judge())

    def _judge(self) -> Verdict | None:
        """Compare a rerun with its original, and record the verdict."""
        if self.original is None:
            return None
        known = History(self.tracked.points, self.tracked.digests)
        new = Evidence(self.tracked.info, known, self.facts, self.patch)
        verdict = judge(self.tracking, self.original, new, self.shapes)
        replace_file(self.folder / REPORT, verdict.dump())
        self.tracked.changed()
        self.tracked.tag({VERDICT: "identical" if verdict.identical else "different"})
        return verdict

    def _describe(self) -> None:
        """Record environment and code; those of the processes before this one, where others."""
        place = self.folder / "environment.json"
        old = read_environment(place)
        self.facts = environment(self.config.runtime.intra_op_threads, self._own_modules())
        earlier = old.pop("earlier", [])
        if differences(old, self.facts):
            earlier = [*earlier, old]
        if earlier:
            self.facts["earlier"] = earlier
        self.patch = changes() if self.config.record.changes else None
        replace_file(place, json_text(self.facts, indent=1))
        if self.patch:
            replace_file(self.folder / "changes.patch", self.patch.encode(errors="surrogateescape"))
        self.tracked.changed()

    def _saver(self, machine: Machine) -> Saver:
        """Prepare the checkpoints' folder and put the machine where the run stands."""
        folder, save = self.folder / "checkpoints", self.config.save
        folder.mkdir(exist_ok=True)
        store = CheckpointStore(folder, save, self.tracked.changed)
        graph_is_whole = False
        if self.found:
            manifest, state = self.found
            self.found = None
            machine.load(state)
            memory = store.recover(manifest)
            self._recall(store)
            with suppress(Damaged):
                store.verify_graph(manifest)
                graph_is_whole = bool(manifest.graph)
        else:
            store.sweep()
            machine.replace(self.parameters or {})
            memory = start(self.tracked.info.start_time, save.policy)
        saver = Saver(store, self.tracked, memory)
        saver.newest = machine.step
        if save.graph:
            saver.graph = folder / save.graph
            if not graph_is_whole:
                body = graph.export(self.config, self.data.spec, machine.shapes)
                replace_file(saver.graph, body)
        self.store = store
        return saver

    def _recall(self, store: CheckpointStore) -> None:
        """Record the digests that stand elsewhere: another machine's, one just before a kill."""
        known: dict[int, str] = {}
        with suppress(OSError):
            old = load((self.folder / HISTORY).read_bytes())
            known |= old.digests if old else {}
        for step in store.steps():
            with suppress(Damaged):
                known[step] = store.manifest(step).digest
        for step, text in known.items():
            self.tracked.saved(step, text)

    def _conclude(self, trained: Score | None) -> Result:
        """Restore the last checkpoint from disk, evaluate it, record and draw."""
        step = self.config.steps
        manifest, state = self.store.read(step)
        score = score_state(self.config, self.data, state)
        restored = {f"restored/{name}": [value] for name, value in score.metrics.items()}
        self.tracked.record([step], restored)
        self.tracked.tag({STATE: manifest.digest})
        self._report(step, manifest, score)
        accuracy = self.tracked.points.get("test/accuracy", {}).get(step)
        return Result(
            self.tracked.info.id,
            trained.accuracy if trained else accuracy,
            score.accuracy,
            self.store.steps(),
            manifest.digest,
            self.folder,
            self.tracking.link(self.tracked.info),
        )

    def _report(self, step: int, manifest: Manifest, score: Score) -> None:
        folder = self.folder / "evaluation"
        folder.mkdir(exist_ok=True)
        classes = self.data.spec.classes
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (self.data.y_test, score.predictions), 1)
        body = {
            "step": step,
            "state_digest": manifest.digest,
            "accuracy": score.accuracy,
            "hits": score.hits,
            "total": len(score.predictions),
            "loss": score.loss,
            "confusion_matrix": counts.tolist(),
        }
        (folder / "metrics.json").write_text(json_text(body))
        points = self.tracked.points
        losses, accuracies = points.get("train/loss", {}), points.get("test/accuracy", {})
        pictures.loss_curve(folder / "loss.png", losses, accuracies)
        pictures.confusion_matrix(folder / "confusion_matrix.png", counts)
        self.tracked.changed()
