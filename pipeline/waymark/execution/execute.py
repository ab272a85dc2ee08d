"""What one process does for a run, from its configuration to its recorded end."""

import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from waymark import names
from waymark.checkpoints import State
from waymark.checkpoints.store import (
    TEMPORARY,
    CheckpointStore,
    CheckpointWriteError,
    CorruptCheckpoint,
    Manifest,
    replace_file,
)
from waymark.comparison import plots
from waymark.comparison.environment import differences, environment, has_bfloat16, read_environment
from waymark.comparison.own_code import OwnCode
from waymark.comparison.recorded_run import RecordedRun
from waymark.comparison.repository import diffstat, masked_lines
from waymark.comparison.rerun_report import NAME as REPORT
from waymark.comparison.rerun_report import RerunReport, compare_rerun
from waymark.config.masking import as_interpolation, without_secrets
from waymark.config.settings import (
    BadInput,
    Resolved,
    Sentence,
    from_record,
    json_text,
    recorded_model,
)
from waymark.data.sources import Dataset
from waymark.digest import digest
from waymark.evaluation import graph
from waymark.evaluation.restore import load_data, refuse_foreign, refuse_other_data, score_state
from waymark.execution.plan import (
    RESUME_FIXED,
    fetch,
    initial_parameters,
    new_run_tags,
    original_of,
    own_modules,
    prepared,
    refuse_drift,
)
from waymark.execution.saver import Saver
from waymark.failure import Failed, explained
from waymark.processes.output import unfailing_output
from waymark.processes.signals import GracefulShutdown, Interrupted
from waymark.tracking.active_run import ActiveRun, create_run, reopen_run
from waymark.tracking.finder import find_single
from waymark.tracking.history import NAME as HISTORY
from waymark.tracking.history import load
from waymark.tracking.opening import open_store
from waymark.tracking.recovery import settle
from waymark.tracking.store import RunStore
from waymark.training.loop import Diverged, Trainer, reuse_or_compile, train
from waymark.training.progress import make_progress
from waymark.training.pruning import Pruner
from waymark.training.runtime import start_if_imported, start_tensorflow
from waymark.training.score import Score, Scorer, confusion

CONNECT_GRACE_S = 0.5  # seconds that training waits, in all, for a tracking server


class Pruned(Exception):
    """A trial of a sweep was ended as hopeless, with a checkpoint."""

    def __init__(self, run_id: str, step: int, value: float) -> None:
        super().__init__(f"pruned at step {step}")
        self.run_id, self.step, self.value = run_id, step, value


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
    verdict: RerunReport | None = None  # of a rerun


@unfailing_output()
def run(
    resolved: Resolved,
    original: RecordedRun | None = None,
    tags: Mapping[str, str] | None = None,
    pruner: Pruner | None = None,
    began: Callable[[], None] | None = None,
) -> Result:
    """Train, save, restore, evaluate and record a new run; compare it with its original, if any.

    `began` is called when the run is recorded, before it trains: a trial's, for which others
    wait, so that it is not compiled before.

    Raises BadInput before anything is written, Interrupted after a signal, Pruned if the `pruner`
    of a sweep finds it hopeless, Failed otherwise.
    """
    config = resolved.config
    with GracefulShutdown() as stop:
        start_if_imported(**vars(config.runtime))
        data = load_data(config)
        start_if_imported(**vars(config.runtime))  # by the user's own classes
        parameters = initial_parameters(config, data)
        trainer = None if began else prepared(config, data)
        tracking = open_store(config.tracking.uri, create=True)
        tags = {**new_run_tags(resolved, data), **(tags or {})}
        if parameters:
            tags[names.INIT_DIGEST] = digest(parameters)
        if original:
            tags[names.RERUN_OF] = original.record.id
        tracked = create_run(tracking, resolved, tags, data)
        replace_file(tracked.info.folder / "config.yaml", resolved.record())
        if began:
            began()
        given = resolved, data, tracking, tracked, parameters, None, stop
        return Work(*given, original, pruner, trainer).run()


@unfailing_output()
def resume(
    text: str,
    overrides: Mapping[str, Any],
    allow_drift: bool = False,
    pruner: Pruner | None = None,
    began: Callable[[], None] | None = None,
) -> Result | None:
    """Go on with a run in its own MLflow run; None if nothing was left to do.

    Raises BadInput for an unknown run, an override that would change the numbers, or (without
    `allow_drift`) a numerical environment that would; Failed if no published checkpoint is whole.
    """
    with GracefulShutdown() as stop:
        return _resume(text, dict(overrides), stop, allow_drift, pruner, began)


def _resume(
    text: str,
    overrides: dict[str, Any],
    stop: GracefulShutdown,
    allow_drift: bool,
    pruner: Pruner | None,
    began: Callable[[], None] | None,
) -> Result | None:
    tracking = open_store(overrides.pop("tracking.uri", None))
    record = find_single(tracking, text)
    refuse_foreign(tracking, record)
    if record.remote and not record.offline:
        fetch(tracking, record)
    trusted = overrides.pop("trusted_modules", [])
    path = record.folder / "config.yaml"
    resolved = from_record(path, overrides, trusted, RESUME_FIXED, record.id)
    config = resolved.config
    store = CheckpointStore(record.folder / "checkpoints", config.save)
    start_if_imported(**vars(config.runtime))
    data = load_data(config)
    refuse_other_data(record, data)
    start_tensorflow(**vars(config.runtime))
    found, damage = store.latest_valid()
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
        refuse_drift(record, config)
    parameters = None if found else initial_parameters(config, data)
    if parameters and digest(parameters) != record.recorded_tag(names.INIT_DIGEST):
        raise BadInput(f"init_from={config.init_from!r}: is not what the run started from.")
    original = original_of(tracking, record)
    trainer = None if began else prepared(config, data)
    tracked = reopen_run(tracking, record, config, reached)
    replace_file(record.folder / "config.yaml", resolved.record())
    pruned = {names.PRUNED: ""} if names.PRUNED in record.tags else {}
    tracked.tag({names.STEPS: str(config.steps), names.REASON: "", names.RESUME: "", **pruned})
    if began:
        began()
    given = resolved, data, tracking, tracked, parameters, found, stop
    return Work(*given, original, pruner, trainer).run()


class Work:
    """What one process does for a run, from its configuration to its recorded end."""

    def __init__(
        self,
        resolved: Resolved,
        data: Dataset,
        tracking: RunStore,
        tracked: ActiveRun,
        parameters: State | None,
        found: tuple[Manifest, State] | None,
        stop: GracefulShutdown,
        original: RecordedRun | None = None,
        pruner: Pruner | None = None,
        trainer: Trainer | None = None,
    ) -> None:
        self.resolved, self.config, self.data = resolved, resolved.config, data
        self.tracking, self.tracked = tracking, tracked
        self.parameters, self.found = parameters, found
        self.folder = tracked.info.folder
        self.stop = stop
        self.original = original  # what this run is to be compared with
        self.pruner = pruner  # if this is a trial of a sweep that ends hopeless ones
        self.pruned: Pruned | None = None
        self.own_code: OwnCode | None = None
        self.trainer = trainer  # if there is one already

    def run(self) -> Result:
        """Do the work; whatever happens, the run in MLflow ends with a status and a reason."""
        self.stop.can_finish_gracefully = True
        try:
            result = self.stop.run(self._work)
        except Interrupted as error:
            print("to go on:", self._resume_command(), file=sys.stderr)
            self._end("KILLED", str(error), resumable=True)
            raise
        except Pruned as error:
            self.tracked.tag({names.PRUNED: str(error.step)})
            self._end("FINISHED", str(error), resumable=True)
            raise
        except Exception as error:
            own = isinstance(error, (Diverged, CheckpointWriteError))
            reason = str(error) if own else explained(error).removesuffix(".")
            if not own:
                self._keep_traceback(error)
            resumable = not isinstance(error, Diverged)  # it would again
            verdict = self._compare_rerun() if isinstance(error, Diverged) else None
            self._end("FAILED", reason, resumable)
            after = f"; to go on: {self._resume_command()}" if resumable else ""
            failed = Failed(f"run {self.tracked.info.id} failed: {reason}{after}")
            failed.verdict = verdict
            raise failed from error
        self._end("FINISHED")
        return replace(result, link=self.tracking.link(self.tracked.info))

    def _keep_traceback(self, error: Exception) -> None:
        """Put the traceback among the artifacts, lines that look like secrets masked."""
        text = masked_lines(without_secrets("".join(traceback.format_exception(error))))
        with suppress(OSError):
            replace_file(self.folder / "traceback.txt", text.encode(errors="backslashreplace"))
            self.tracked.changed()

    def _end(self, status: str, reason: str = "", resumable: bool = False) -> None:
        """Record how the run ended; wait for a server, but not long once a signal has come."""
        run_id = self.tracked.info.id
        with suppress(OSError):  # a full disk: the outbox has it all
            self.tracked.learn(self._in_a_hurry)
            replace_file(self.folder / HISTORY, self.tracked.history.dump())
            self.tracked.changed()
        with suppress(OSError):
            self._describe_again()
        if reason:
            self.tracked.tag({names.REASON: reason})
        if resumable:
            self.tracked.tag({names.RESUME: f"waymark resume {run_id}"})
        left = self.tracked.finish(status, self._in_a_hurry)
        if self.tracked.refused:
            print(
                Sentence(f"waymark: MLflow does not take of run {run_id}: {self.tracked.refused}"),
                file=sys.stderr,
            )
        if left:
            print(
                f"waymark: not all of run {run_id} has reached MLflow ({left}); "
                f"it is kept in {self.folder.parent}, and waymark sync delivers it",
                file=sys.stderr,
            )

    def _in_a_hurry(self) -> bool:
        return self.stop.signal is not None

    def _resume_command(self) -> str:
        words = ["waymark", "resume", self.tracked.info.id]
        uri = self.resolved.values["tracking"]["uri"]
        if uri:
            words.append(f"tracking.uri={as_interpolation(uri)}")
        own = own_modules(self.config)
        if own:
            words.append(f"trusted_modules=[{','.join(own)}]")
        return shlex.join(words)

    def _work(self) -> Result:
        config, tracked = self.config, self.tracked
        start_tensorflow(**vars(config.runtime))
        tracked.wait(CONNECT_GRACE_S)  # a server has had the time of TensorFlow's start as well
        print(Sentence(f"run {tracked.info.id} ({tracked.info.name})"), flush=True)
        self._describe()
        self.stop.check()
        with reuse_or_compile(config, self.data, self.trainer) as trainer:
            trained = self._train(trainer)
            result = None if self.pruned else self._conclude(trained, trainer)
        if self.pruned:
            raise self.pruned
        assert result
        return replace(result, verdict=self._compare_rerun())

    def _train(self, trainer: Trainer) -> Score | None:
        config, tracked = self.config, self.tracked
        self.shapes = trainer.shapes
        saver = self._saver(trainer)
        self.stop.check()
        progress = make_progress(config.progress, config.steps, trainer.step)

        def stopping(step: int) -> bool:
            if self.stop.signal is None and not self._hopeless(step):
                return False
            evaluated = {
                key: values[step]
                for key, values in tracked.points.items()
                if key.startswith(names.TEST) and step in values
            }
            saver.stop(step, trainer.state, evaluated)
            return True

        def save(*arguments: Any) -> None:
            self._describe_again()  # what was imported in training may be needed after a kill
            saver.save(*arguments)

        try:
            trained = train(config, trainer, tracked, save, progress, stopping)
        finally:
            progress.close()
            saver.wait()
        tracked.flush()
        self.stop.check()
        return trained

    def _hopeless(self, step: int) -> bool:
        """Ask, where trials of a sweep are judged, whether to end; tell the others of this one."""
        if not self.pruner or step not in self.pruner.steps:
            return False
        values = self.tracked.points[self.pruner.metric]
        self.tracked.tag({names.PRUNING_VALUES: json_text(self.pruner.values(values))})
        if self.pruner(step, values):
            self.pruned = Pruned(self.tracked.info.id, step, values[step])
        return self.pruned is not None

    def _compare_rerun(self) -> RerunReport | None:
        """Compare a rerun with its original, and record the verdict."""
        if self.original is None:
            return None
        self._describe_again()
        assert self.own_code
        new = RecordedRun(
            self.tracked.info,
            self.tracked.history,
            self.facts,
            self.own_code.patch,
            self.own_code.patches(),
        )
        verdict = compare_rerun(self.tracking, self.original, new, self.shapes)
        replace_file(self.folder / REPORT, verdict.dump())
        self.tracked.changed()
        self.tracked.tag({names.VERDICT: "identical" if verdict.identical else "different"})
        return verdict

    def _describe(self) -> None:
        """Record environment and code; those of the processes before this one, where others."""
        self._old = read_environment(self.folder / "environment.json")
        self._facts = environment(self.config.runtime.intra_op_threads, own_modules(self.config))
        self.own_code = OwnCode(with_changes=self.config.record.changes)
        self._record_environment()

    def _describe_again(self) -> None:
        """Record the user's own modules that were imported since, as training may do."""
        if self.own_code and self.own_code.look_again():
            self._record_environment()

    def _record_environment(self) -> None:
        own, with_changes = self.own_code, self.config.record.changes
        assert own
        self.facts = {**self._facts, "code": {**self._facts["code"], **own.digests}}
        self.facts |= {"own": own.facts(), "changes": diffstat(own.patch) if with_changes else None}
        old = {key: value for key, value in self._old.items() if key != "earlier"}
        earlier = self._old.get("earlier", [])
        if differences(old, self.facts):
            earlier = [*earlier, old]
        if earlier:
            self.facts["earlier"] = earlier
        if self.config.precision == "mixed_bfloat16" and has_bfloat16(self.facts) is False:
            print(
                "waymark: precision=mixed_bfloat16: this processor has no instructions for it, so "
                "that a step can take longer than in float32; on one without them a step of the "
                "CNN took 930 ms, and 120 ms in float32",
                file=sys.stderr,
            )
        patches = own.patches() | ({"changes.patch": own.patch} if own.patch else {})
        for name, patch in patches.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            replace_file(self.folder / name, patch.encode(errors="surrogateescape"))
        replace_file(self.folder / "environment.json", json_text(self.facts, indent=1))
        self.tracked.changed()

    def _saver(self, trainer: Trainer) -> Saver:
        """Prepare the checkpoints' folder and put the trainer where the run stands."""
        folder, save = self.folder / "checkpoints", self.config.save
        folder.mkdir(exist_ok=True)
        store = CheckpointStore(folder, save, self.tracked.changed, self.tracked.info.outbox)
        store.parameters = list(trainer.shapes)
        began, now = self.tracked.info.start_time, time.time()
        graph_is_whole = False
        if self.found:
            manifest, state = self.found
            self.found = None
            trainer.load(state)
            store.repair_and_prune(manifest, began, now)
            self._recall(store)
            with suppress(CorruptCheckpoint):
                store.verify_graph(manifest)
                graph_is_whole = bool(manifest.graph)
        else:
            store.begin(began, now)
            trainer.assign_parameters(self.parameters or {})
        saver = Saver(store, self.tracked)
        if save.graph:
            saver.graph = folder / save.graph
            if not graph_is_whole:
                body = graph.export(self.config, self.data.spec, trainer.shapes)
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
            with suppress(CorruptCheckpoint):
                known[step] = store.manifest(step).digest
        for step, text in known.items():
            self.tracked.saved(step, text)

    def _conclude(self, trained: Score | None, trainer: Trainer) -> Result:
        """Restore the last checkpoint from disk into a new model, evaluate it, record and draw.

        The model is made from config.yaml and its functions are compiled anew, so that nothing
        comes from training but what is on disk. The trials of a sweep for which Waymark's own
        models are compiled once in a process are scored with what the first one compiled here.
        """
        step, recorded = self.config.steps, self.folder / "config.yaml"
        manifest, state = self.store.read(step)
        model = recorded_model(recorded, self.config.model, own_modules(self.config))
        fresh = replace(self.config, model=model)
        trainer.restored_scorer = trainer.restored_scorer or Scorer(
            fresh.model, fresh.precision, self.data
        )
        score = score_state(fresh, self.data, state, trainer.restored_scorer)
        restored = {f"{names.RESTORED}{name}": [value] for name, value in score.metrics.items()}
        self.tracked.record([step], restored)
        self.tracked.tag({names.STATE_DIGEST: manifest.digest})
        self.tracked.learn(self._in_a_hurry)
        self._report(step, manifest, score)
        accuracy = self.tracked.points.get(names.TEST_ACCURACY, {}).get(step)
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
        classes, counts = confusion(self.data.y_test, score.predictions, self.data.spec.classes)
        body = {
            "step": step,
            "state_digest": manifest.digest,
            "accuracy": score.accuracy,
            "hits": score.hits,
            "total": len(score.predictions),
            "loss": score.loss,
            "confusion_matrix": counts.tolist(),
            "confusion_classes": classes,
        }
        points = self.tracked.points
        losses, accuracies = points.get(names.TRAIN_LOSS, {}), points.get(names.TEST_ACCURACY, {})
        write: dict[str, Callable[[Path], Any]] = {
            "metrics.json": lambda path: path.write_text(json_text(body)),
            "loss.png": lambda path: plots.loss_curve(path, losses, accuracies),
            "confusion_matrix.png": lambda path: plots.confusion_matrix(path, counts, classes),
        }
        for name in write:  # as new files: a copy of the store may be of hard links
            write[name](folder / f"{TEMPORARY}{name}")
            os.replace(folder / f"{TEMPORARY}{name}", folder / name)
        self.tracked.changed()
