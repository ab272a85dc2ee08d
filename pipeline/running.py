"""One run from configuration to recorded result, and going on with one that was interrupted."""

import json
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
from pipeline import environment, graph, pictures
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
from pipeline.config import (
    BadInput,
    Config,
    Resolved,
    Sentence,
    first_line,
    from_record,
    without_password,
)
from pipeline.data import Dataset
from pipeline.digest import digest
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
from pipeline.tracking.recovery import settle
from pipeline.train import Diverged, Machine, train

GREETING = 0.5  # seconds that training waits, in all, for a tracking server

# What decides the numbers or the files; a resume refuses to change it. (`data.path` may move:
# the digest of the data decides.)
FROZEN = (
    *("model", "data", "optimizer", "batch_size", "seed", "precision", "init_from", "runtime"),
    *("save._target_", "save.meta_graph"),
)


class Failed(Sentence):
    """Say in one sentence why the work failed; the command exits 1."""


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


def run(resolved: Resolved) -> Result:
    """Train, save, restore, evaluate and record a new run.

    Raises BadInput before anything is written, Stopped after a signal, Failed otherwise.
    """
    config = resolved.config
    with Stop() as stop:
        data = load_data(config)
        parameters = _initial_parameters(config, data)
        tracking = Tracking(config.tracking.uri, create=True)
        tags = _tags(resolved, data)
        if parameters:
            tags["waymark.init_digest"] = digest(parameters)
        tracked = tracking.create(resolved, tags, data)
        replace_file(tracked.info.folder / "config.yaml", resolved.record())
        return _Work(resolved, data, tracking, tracked, parameters, None, stop).run()


def resume(text: str, overrides: Mapping[str, Any]) -> Result | None:
    """Go on with a run in its own MLflow run; None if nothing was left to do.

    Raises BadInput for an unknown run or an override that would change the numbers, Failed if
    no published checkpoint is whole.
    """
    with Stop() as stop:
        return _resume(text, dict(overrides), stop)


def recorded(text: str, overrides: Mapping[str, Any]) -> Resolved:
    """Return the configuration that a run was recorded with, with overrides put on top.

    Raises BadInput for an unknown run, a damaged record, or an override that does not fit.
    """
    given = {"tracking.uri": None, **overrides}
    trusted = given.pop("trusted_modules", [])
    tracking = Tracking(given["tracking.uri"])
    record = tracking.find(text)
    refuse_links(record.folder)
    with tempfile.TemporaryDirectory() as scratch:
        folder = record.folder
        if not (folder / "config.yaml").exists() and record.remote:
            folder = Path(scratch) / "run"
            tracking.fetch(record, "config.yaml", folder)
        return from_record(folder / "config.yaml", given, trusted, ())


def _resume(text: str, overrides: dict[str, Any], stop: Stop) -> Result | None:
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
    if data.digest != record.tags.get("waymark.data_digest"):
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
    parameters = None if found else _initial_parameters(config, data)
    if parameters and digest(parameters) != record.tags.get("waymark.init_digest"):
        raise BadInput(f"init_from={config.init_from!r}: is not what the run started from.")
    tracked = tracking.reopen(record, config)
    replace_file(record.folder / "config.yaml", resolved.record())
    tracked.tag({"waymark.steps": str(config.steps), REASON: "", RESUME: ""})
    return _Work(resolved, data, tracking, tracked, parameters, found, stop).run()


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
        "waymark.data_digest": data.digest,
        "waymark.save_format": resolved.choices.get("save", ""),
        "waymark.steps": str(resolved.config.steps),
    }
    commit = environment.git_commit()
    return {**tags, "mlflow.source.git.commit": commit} if commit else tags


def _fetch(tracking: Tracking, record: RunRecord) -> None:
    """Bring what a resume needs and the run's remote home has; what is here and newer stays."""
    newer = tracking.newer(record)
    if newer or not (record.folder / "config.yaml").exists():
        tracking.fetch(record, "config.yaml", record.folder)
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
    ) -> None:
        self.resolved, self.config, self.data = resolved, resolved.config, data
        self.tracking, self.tracked = tracking, tracked
        self.parameters, self.found = parameters, found
        self.folder = tracked.info.folder
        self.stop = stop

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
            self._end("FAILED", reason, resumable)
            after = f"; to go on: {self._resume_command()}" if resumable else ""
            raise Failed(f"run {self.tracked.info.id} failed: {reason}{after}") from error
        self._end("FINISHED")
        return replace(result, link=self.tracking.link(self.tracked.info))

    def _end(self, status: str, reason: str = "", resumable: bool = False) -> None:
        """Record how the run ended; wait for a server, but not long once a signal has come."""
        run_id = self.tracked.info.id
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
        parts = (config.model, config.data, config.optimizer, config.save)
        modules = {type(part).__module__ for part in parts}
        own = sorted(name for name in modules if not name.startswith("pipeline."))
        if own:
            words.append(f"trusted_modules=[{','.join(own)}]")
        return shlex.join(words)

    def _work(self) -> Result:
        config, tracked = self.config, self.tracked
        start_tensorflow(config.runtime.intra_op_threads)
        tracked.wait(GREETING)  # a server has had the time of TensorFlow's start as well
        print(Sentence(f"run {tracked.info.id} ({tracked.info.name})"), flush=True)
        self._describe()
        self.stop.check()
        machine = Machine(config, self.data)
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
        return self._conclude(trained)

    def _describe(self) -> None:
        facts = environment.environment(self.config.runtime.intra_op_threads)
        files = {"environment.json": json.dumps(facts, indent=1)}
        patch = environment.changes() if self.config.record.changes else None
        if patch:
            files["changes.patch"] = patch
        for name, text in files.items():
            replace_file(self.folder / name, text)
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

    def _conclude(self, trained: Score | None) -> Result:
        """Restore the last checkpoint from disk, evaluate it, record and draw."""
        step = self.config.steps
        manifest, state = self.store.read(step)
        score = score_state(self.config, self.data, state)
        restored = {f"restored/{name}": [value] for name, value in score.metrics.items()}
        self.tracked.record([step], restored)
        self.tracked.tag({"waymark.state_digest": manifest.digest})
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
        (folder / "metrics.json").write_text(json.dumps(body))
        points = self.tracked.points
        losses, accuracies = points.get("train/loss", {}), points.get("test/accuracy", {})
        pictures.loss_curve(folder / "loss.png", losses, accuracies)
        pictures.confusion_matrix(folder / "confusion_matrix.png", counts)
        self.tracked.changed()
