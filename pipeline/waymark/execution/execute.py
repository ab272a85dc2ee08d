"""One run, carried out: trained, saved, restored, evaluated, compared, and its end recorded."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from waymark import names
from waymark.comparison import rerun_report
from waymark.comparison.recorded_run import RecordedRun
from waymark.comparison.rerun_report import RerunReport
from waymark.config.record import recorded_model
from waymark.config.resolve import Resolved
from waymark.config.values import json_text
from waymark.data.signature import FILE as SIGNATURE
from waymark.errors import BadInput, printable
from waymark.evaluation.restore import choose_step, refuse_foreign, score_state, use_architecture
from waymark.execution import mlflow_model
from waymark.execution.description import best, description
from waymark.execution.ending import Pruned, RerunDiverged, command_on, recorded_end
from waymark.execution.opening import data_lines, environment_line, model_lines, tell_of_saves
from waymark.execution.origin import Origin, origin_of
from waymark.execution.plan import RunPlan, own_modules, plan_new, plan_resume
from waymark.execution.recorded_environment import RecordedEnvironment, record_environment
from waymark.execution.result import Result
from waymark.execution.saver import Saver, restore_or_initialise
from waymark.execution.scores import write_scores
from waymark.files import replace_file
from waymark.keras_file import ARCHITECTURE
from waymark.processes.output import unfailing_output
from waymark.processes.signals import GracefulShutdown
from waymark.tasks.metrics import judged_by
from waymark.tracking import artifacts, history
from waymark.tracking.active_run import ActiveRun, create_run, reopen_run
from waymark.tracking.finder import find_single
from waymark.tracking.recovery import deliver_ended_run
from waymark.tracking.remote_store import connect
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore
from waymark.training.loop import Diverged, Trainer, reuse_or_compile, train
from waymark.training.progress import make_progress
from waymark.training.pruning import Pruner
from waymark.training.runtime import import_tensorflow, start_tensorflow
from waymark.training.score import Score, make_scorer
from waymark.training.stopping import Stopped, early_stop

CONNECT_GRACE_S = 0.5  # that training waits, in all, for a tracking server
# That a run may have beside config.yaml.
SMALL = ("environment.json", ARCHITECTURE, SIGNATURE, history.NAME)


@unfailing_output()
def run(
    resolved: Resolved,
    summary: bool = False,
    original: RecordedRun | None = None,
    tags: Mapping[str, str] | None = None,
    pruner: Pruner | None = None,
    began: Callable[[], None] | None = None,
    wait: bool = True,
    origin: Origin | None = None,
) -> Result:
    """Train, save, restore, evaluate and record a new run; compare it with its original, if any.

    `began` is called when the run is recorded, before it is compiled or trains: others wait for
    a trial's. Unless told to `wait`, `wait_for_ended_runs` waits until the run is delivered.
    `origin` is what a fork begins with, unless its record tells. With `summary` a table of the
    model's parameters is printed.

    Raises BadInput before anything is written, Interrupted after a signal, Pruned if the `pruner`
    of a sweep finds it hopeless, RerunDiverged, Failed otherwise.
    """
    with GracefulShutdown() as stop:
        store = connect(resolved.config.tracking.uri, create=True)
        begin = origin or origin_of(store, resolved)
        plan = plan_new(resolved, original, tags, began is None, begin)
        start = partial(start_tensorflow, **vars(resolved.config.runtime))
        active = create_run(store, plan.resolved, plan.tags, plan.data, meanwhile=start)
        execution = RunExecution(plan, store, active, stop, pruner, summary)
        return execution.to_recorded_end(began, wait)


@unfailing_output()
def resume(
    text: str,
    overrides: Mapping[str, Any],
    allow_drift: bool = False,
    pruner: Pruner | None = None,
    began: Callable[[], None] | None = None,
    wait: bool = True,
) -> Result | None:
    """Go on with a run in its own MLflow run; None if nothing was left to do.

    Raises BadInput for an unknown run, an override that would change the numbers, or (without
    `allow_drift`) a numerical environment that would; Failed if no published checkpoint is whole;
    what `run` raises.
    """
    given = dict(overrides)
    with GracefulShutdown() as stop:
        store = connect(given.pop("tracking.uri", None))
        record = store.ask(import_tensorflow, find_single, text)
        refuse_foreign(store, record)
        if record.remote and not record.offline:
            _fetch(store, record)
        plan = plan_resume(store, record, given, allow_drift, compile_now=began is None)
        if plan is None:
            deliver_ended_run(store, record)
            return None
        active = reopen_run(store, record, plan.resolved.config, plan.step)
        replace_file(record.folder / "config.yaml", plan.resolved.record())
        active.set_tags(plan.tags)
        return RunExecution(plan, store, active, stop, pruner).to_recorded_end(began, wait)


def _fetch(store: RunStore, record: RunRecord) -> None:
    """Bring what a resume needs and the run's remote home has; what is here and newer stays."""
    newer, there = artifacts.newer(store, record), artifacts.listed(store, record)
    # There is no environment.json, and no history, before the first words of a run.
    small = ["config.yaml", *(name for name in SMALL if name in there)]
    for name in [*small, *newer]:
        if (newer and name in small) or not (record.folder / name).exists():
            artifacts.fetch(store, record, name, record.folder)


@dataclass(frozen=True)
class RunExecution:
    """What carries out a plan in a run that is recorded; the `pruner` is a trial's."""

    plan: RunPlan
    store: RunStore
    run: ActiveRun
    stop: GracefulShutdown
    pruner: Pruner | None = None
    summary: bool = False

    def to_recorded_end(self, began: Callable[[], None] | None, wait: bool) -> Result:
        """Call `began`, execute the plan and record how it ended; raise as `recorded_end` does."""
        began_at = time.monotonic()
        if began:
            began()
        self.stop.can_finish_gracefully = True
        with recorded_end(self.run, self.plan.resolved, self.stop, wait):
            result = self.stop.run(self.execute)
        link, seconds = self.store.link(self.run.info), time.monotonic() - began_at
        resolved, config = self.plan.resolved, self.plan.resolved.config
        longer = f"epochs={2 * config.epochs}" if config.epochs else f"steps={2 * config.steps}"
        on = partial(command_on, self.run, resolved)
        follow = on("evaluate"), on("resume", longer)
        points = {k: _arrays(v) for k, v in self.run.history.metrics.items()}
        return replace(result, link=link, seconds=seconds, next_commands=follow, recorded=points)

    def execute(self) -> Result:
        """Carry out the plan, all but the record of its end.

        Raises Interrupted, Pruned, Diverged, RerunDiverged, CheckpointWriteError, and what the
        user's own classes raise.
        """
        plan, run, config = self.plan, self.run, self.plan.resolved.config
        start_tensorflow(**vars(config.runtime))
        run.wait_for_creation(CONNECT_GRACE_S)
        on = f", resumed after step {plan.step}" if plan.checkpoint else ""
        told = f"run {run.info.id} ({run.info.name}){on}{self._spooled()}"
        print(printable(told), flush=True)
        run.set_tags(self._description(), at_once=False)
        self._tell_of_data()
        with record_environment(run, config) as recorded:
            self.stop.check()
            with reuse_or_compile(config, plan.data, plan.trainer) as trainer:
                self._tell_of_model(trainer, recorded)
                saver = restore_or_initialise(plan, run, trainer, recorded.refresh)
                self.stop.check()
                try:
                    trained = self.train_and_save(trainer, saver)
                except Diverged as error:
                    verdict = self._verdict(recorded, trainer)
                    if verdict is None:
                        raise
                    raise RerunDiverged(str(error), verdict) from error
                if not isinstance(trained, Pruned):  # whose trainer is good for the next trial
                    result = self.restore_and_evaluate(trainer, saver, trained)
            if isinstance(trained, Pruned):
                raise trained
            verdict = self._verdict(recorded, trainer)
        return replace(result, verdict=verdict)

    def _tell_of_data(self) -> None:
        """Say what the data are, and what the best checkpoint is chosen by."""
        config, data = self.plan.resolved.config, self.plan.data
        lines = data_lines(data)
        for line in lines[1:] if self._is_trial else lines:
            print(line, flush=True)
        if not self._is_trial and self.plan.original is None:
            tell_of_saves(config.steps, config.save.every)
        rules = {"save.keep_best": config.save.keep_best, "stop": config.stop}
        by = " and ".join(key for key, rule in rules.items() if rule)
        if by and data.evaluated == "test" and not self._is_trial:
            print(
                f"waymark: {by} selects on the test set; data.validation=0.1 holds out examples "
                f"of the training set to select on",
                file=sys.stderr,
            )

    def _tell_of_model(self, trainer: Trainer, recorded: RecordedEnvironment) -> None:
        """Say what is trained, and where."""
        if self._is_trial:
            return
        resolved = self.plan.resolved
        lines = model_lines(resolved, trainer.shapes, self.summary)
        print(*lines, environment_line(resolved, recorded.facts), sep="\n", flush=True)

    @property
    def _is_trial(self) -> bool:
        """Tell whether the run is one of a sweep's, of which all would say the same."""
        return names.PARENT_RUN in self.plan.tags

    def _spooled(self) -> str:
        """Say where a run is kept for which a local store has given no answer; else nothing."""
        if not (self.store.database and self.run.info.remote):
            return ""
        where = f"{self.run.info.folder.parent}, and waymark sync delivers it"
        return f"; {self.store.address.named} gives no answer: it is kept in {where}"

    def train_and_save(self, trainer: Trainer, saver: Saver) -> Score | Pruned | Stopped | None:
        """Train to the last step; return its evaluation, None if there was no step to train.

        Return Pruned, with a checkpoint, for a trial that is to end, Stopped for a run that has
        not improved. Raises Interrupted, with a
        checkpoint, after a signal; Diverged, CheckpointWriteError.
        """
        config, run = self.plan.resolved.config, self.run
        named = trainer.evaluated, judged_by(config.task)[0]
        progress = make_progress(config.progress, config.steps, trainer.step, *named)
        try:
            if config.stop:
                run.wait_for_earlier_history(self.stop.signalled)
            score: Score | None = None
            decision: Pruned | Stopped | bool | None = self._stop_early(trainer.step)
            if not decision:
                score, decision = train(
                    config, trainer, run.record, saver.save, progress, self._decide
                )
            if decision:
                step, points = trainer.step, run.points.items()
                part = f"{trainer.evaluated}/"
                tested = {k: v[step] for k, v in points if k.startswith(part) and step in v}
                saver.stop(step, trainer.state, tested)
        finally:
            progress.close()
            saver.wait()
        run.flush()
        self.stop.check()
        return decision if isinstance(decision, Pruned | Stopped) else score

    def _stop_early(self, step: int) -> Stopped | None:
        """Return the stop that is due at an evaluation, by those that are recorded."""
        config = self.plan.resolved.config
        rule, every = config.stop, int(config.eval_every)
        if not rule or step % every:
            return None
        found = early_stop(self.run.points.get(rule.metric, {}), rule, step, every)
        return replace(found, step=step) if found else None  # a resume may have less patience

    def _decide(self, step: int) -> Pruned | Stopped | bool | None:
        """Tell whether to end: by a signal, the run's own evaluations, or the other trials'."""
        pruner = self.pruner
        if self.stop.signalled():
            return True
        if stopped := self._stop_early(step):
            return stopped
        if not pruner or step not in pruner.steps:
            return None
        values = self.run.points[pruner.metric]
        self.run.set_tags({names.PRUNING_VALUES: json_text(pruner.values(values))})
        return Pruned(step, values[step]) if pruner(step, values) else None

    def restore_and_evaluate(
        self, trainer: Trainer, saver: Saver, trained: Score | Stopped | None
    ) -> Result:
        """Restore the last checkpoint from disk into a new model, evaluate it and record that.

        Where the run stopped early and the best one is kept, it is the best one that is scored.

        The model is made from config.yaml and compiled anew, so that nothing comes from training
        but what is on disk; trials that share a trainer are scored with what its first compiled.
        """
        config, data, run = self.plan.resolved.config, self.plan.data, self.run
        last = step = trainer.step
        if isinstance(trained, Stopped):
            step = self._best_step(saver, last)
            facts = {names.STOPPED: last, names.SCORED: step, names.REASON: trained.reason}
            run.set_tags({name: str(fact) for name, fact in facts.items()})
            print(f"{trained.reason}; step {step} is scored", flush=True)
        manifest, state = saver.store.read(step)
        model = recorded_model(run.info.folder / "config.yaml", config.model, own_modules(config))
        use_architecture(model, run.info.folder)
        fresh = replace(config, model=model)
        if trainer.restored_scorer is None:
            trainer.restored_scorer = make_scorer(fresh, data)
        score = score_state(fresh, data, state, trainer.restored_scorer)
        restored = {f"{names.RESTORED}{name}": [value] for name, value in score.metrics.items()}
        run.record([last], restored)
        state_digest = saver.store.manifest(last).digest
        reason = trained.reason if isinstance(trained, Stopped) else ""
        run.set_tags({names.STATE_DIGEST: state_digest, **self._description(reason)})
        write_scores(run, config, data, manifest, score)
        if mlflow_model.wanted(config, run.info, self.plan.tags):
            known = {step: (manifest, state)}
            for at in {last, self._best_step(saver, last)}:
                mlflow_model.write_beside(
                    run, fresh, data, *(known.get(at) or saver.store.read(at))
                )
        points = {name: run.points.get(f"{data.evaluated}/{name}", {}) for name in score.metrics}
        training = {name: known[last] for name, known in points.items() if last in known}
        judged = f"{data.evaluated}/{judged_by(config.task)[0]}"
        paces = run.points.get(names.STEPS_PER_SECOND, {})
        return Result(
            run.info.id,
            training,
            score.metrics,
            saver.store.steps(),
            state_digest,
            run.info.folder,
            evaluated=data.evaluated,
            best=best(run.points.get(judged, {}), judged_by(config.task)[1]),
            steps_per_second=paces[max(paces)] if paces else None,
        )

    def _best_step(self, saver: Saver, last: int) -> int:
        """Return the step of the checkpoint that is kept as the best, else the last one."""
        config = self.plan.resolved.config
        if config.save.keep_best:
            with suppress(BadInput):  # no evaluation was a number
                return choose_step(saver.store, "best", self.run.info.id, config.task)
        return last

    def _verdict(self, recorded: RecordedEnvironment, trainer: Trainer) -> RerunReport | None:
        """Compare a rerun with its original, and record the verdict; None for another run."""
        if self.plan.original is None:
            return None
        run = self.run
        recorded.refresh()
        patches = recorded.own_code.patches()
        new = RecordedRun(run.info, run.history, recorded.facts, patches)
        verdict = rerun_report.compare_rerun(self.store, self.plan.original, new, trainer.shapes)
        replace_file(run.info.folder / rerun_report.NAME, verdict.dump())
        run.mark_artifacts_dirty()
        word = "identical" if verdict.identical else "different"
        run.set_tags({names.VERDICT: word, **self._description(verdict=verdict)})
        return verdict

    def _description(self, reason: str = "", verdict: RerunReport | None = None) -> dict[str, str]:
        """Return the tag with the run's description, as things are."""
        again = command_on(self.run, self.plan.resolved, "rerun")
        return description(self.run, self.plan.resolved.config, again, reason, verdict)


def _arrays(points: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and the values of a metric, which take less memory so."""
    return np.fromiter(points.keys(), np.int64), np.fromiter(points.values(), np.float64)
