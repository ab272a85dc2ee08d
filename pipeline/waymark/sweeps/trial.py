"""One trial of a sweep: done, resumed, or skipped, in whatever process a launcher starts it.

Since a launcher passes its workers nothing but a configuration, the parent run, the varied keys
and the command come as variables of the environment, from `hydra.job.env_set`, and what else the
trials share as overrides.
"""

import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from waymark import names
from waymark.checkpoints.external import files_of
from waymark.comparison.environment import code, fingerprint
from waymark.config.compose import resolved as checked
from waymark.config.compose import to_plain
from waymark.config.resolve import Resolved
from waymark.config.schema import RUN_NAMES, SCHEDULE, SCHEDULES, Config, Fork
from waymark.config.values import flatten
from waymark.data.dataset import Dataset
from waymark.digest import file_digest
from waymark.errors import BadInput, Failed, explain, listed, printable
from waymark.evaluation.restore import in_steps, load_data
from waymark.execution import execute, forking, new_process
from waymark.execution.ending import Pruned
from waymark.execution.mlflow_model import log_checkpoint
from waymark.execution.opening import tell_of_saves
from waymark.execution.plan import own_modules
from waymark.processes import process_state
from waymark.processes.output import Output, unfailing_output
from waymark.processes.signals import GracefulShutdown, Interrupted, end_with_parent
from waymark.table import elided, short_keys, short_setting
from waymark.tasks.metrics import modes
from waymark.tracking.finder import find, select, tagged
from waymark.tracking.parent_run import record_failed_trial
from waymark.tracking.questions import StoreError
from waymark.tracking.recovery import mark_dead_runs_killed
from waymark.tracking.remote_store import connect
from waymark.tracking.runs import RunRecord, RunSummary
from waymark.tracking.store import RunStore
from waymark.training.pruning import Pruner, pruning_steps
from waymark.training.runtime import NeedsNewProcess

# Variables of a trial's process.
PARENT_ID, VARIED_KEYS, COMMAND_ID = "WAYMARK_SWEEP", "WAYMARK_VARIED", "WAYMARK_COMMAND"
FORK = "WAYMARK_FORK"  # of a sweep of forks: what they begin with, and the experiment, as JSON
THREADS = "runtime.intra_op_threads"
# What does not tell one trial from another. (The experiment does: what another one holds is
# not looked for there.)
NOT_PART_OF_IDENTITY = (
    *("tracking", "record", "progress", "run_name", "tags"),
    *("trusted_modules", "objective", "prune", "rerun_finished"),
)
# Whose settings may name files to read.
READS_FILES = ("model", "data", "task", "optimizer", "init_from")
PRUNING_ANSWER_S = 30.0  # that the other trials' values are waited for: this one goes on then
POLL_INTERVAL_S = 1.0  # seconds between two looks at a trial that another process is training

trial_ended = threading.Event()  # a trial that this process does, or waits for, has ended
_orphaned = threading.Event()
_end_with_parent = cache(end_with_parent)  # once in a process
in_parent = False  # this process is the sweep's own, not a launcher's worker


class SweepInterrupted(BaseException):
    """A signal ends the sweep; Hydra would take any Exception for the failure of a trial."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status  # of the command


class PrunedObjective(float):
    """The objective of a pruned trial: NaN, with the step and the value at which it ended."""

    step: int
    value: float

    def __new__(cls, step: int, value: float) -> "PrunedObjective":
        self = super().__new__(cls, math.nan)
        self.step, self.value = step, value
        return self

    def __getnewargs__(self) -> tuple[int, float]:  # type: ignore[override]
        return self.step, self.value


@unfailing_output()
def run_trial(cfg: Any) -> float:
    """Do one trial of a sweep; return its objective, NaN if it has none.

    A trial that is finished is skipped, one that was interrupted goes on. What goes wrong is
    recorded and not raised, so that the others are done; a signal ends the sweep's own process.
    """
    from hydra.core.hydra_config import HydraConfig

    if not in_parent:  # a launcher's worker
        process_state.command_line = True
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Output):
                stream.clears_line = True  # on which the sweep's process draws its bar
        sys.path.append(os.getcwd())  # where a user's own classes may stand
    task = list(HydraConfig.get().overrides.task)
    forked = json.loads(os.environ.get(FORK, "{}"))
    try:
        if forked:
            resolved = forking.trial(Fork(**forked["begun"]), task)
        else:
            resolved = checked(cfg, HydraConfig.get().runtime.choices, task)
        GracefulShutdown.last_signal = None
        name = trial_name(task)
        try:
            value = claim_and_run(resolved, name)
        except NeedsNewProcess as needed:
            value = new_process.call(str(needed), claim_and_run, resolved, name)
        if GracefulShutdown.last_signal is not None:  # it came too late to stop this one
            raise Interrupted(GracefulShutdown.last_signal)
        return value
    except Interrupted as stopped:
        if in_parent:
            raise SweepInterrupted(stopped.status) from None
        raise  # a job's time is up, say: the parent launches what is left of it again
    except Failed as failed:  # its run tells
        print(f"waymark: {failed}", file=sys.stderr)
    except Exception as error:
        reason = explain(error)
        print(f"waymark: {trial_name(task)}: {reason}", file=sys.stderr)
        with suppress(Exception):  # a store that does not answer: the parent will miss the trial
            experiment = forked.get("experiment") or str(to_plain(cfg)["experiment_name"])
            _record_failure(to_plain(cfg)["tracking"]["uri"], experiment, task, reason)
    finally:
        trial_ended.set()
    return math.nan


def claim_and_run(resolved: Resolved, name: str) -> float:
    """Come to a trial's end, by this process or another; return its objective.

    What is left of it is done here, others waiting until its run says that this process trains it.
    """
    if not in_parent:  # joblib's workers would go on as long as there is something left
        _end_with_parent(_orphaned.set)
    config, parent, command = resolved.config, os.environ[PARENT_ID], os.environ[COMMAND_ID]
    data = load_data(config)
    tracking, key = connect(config.tracking.uri, create=True), identity(resolved, data)
    says = decides_saves(json.loads(os.environ[VARIED_KEYS]), vars(config))
    resolved = in_steps(resolved, data)
    config = resolved.config
    tags = {names.PARENT_RUN: parent, names.TRIAL: key, names.sweep_member_tag(parent): command}
    lock = FileLock(tracking.root / "trials.lock")
    try:
        known = wait_until_free(tracking, config.experiment_name, key, name, lock)
        finished = [pair for pair in known if is_finished(pair[0], config)]
        if finished:
            tracking.set_tags(finished[0][0].id, {names.sweep_member_tag(parent): command})
            return objective(*finished[0], str(config.objective.metric))
        if says:
            tell_of_saves(config.steps, config.save.every)
        unfinished = [r for r, _ in known if r.tags.get(names.RESUME) and not config.rerun_finished]
        bounded = tracking.with_bound(PRUNING_ANSWER_S)
        pruner = _pruner(bounded, config, data.evaluated, parent, key)
        doing: dict[str, Any] = {"pruner": pruner, "began": lock.release, "wait": not in_parent}
        if unfinished:
            run_id = unfinished[0].id
            tracking.set_tags(run_id, tags)
            given = {**resolved.secrets(), "tracking.uri": config.tracking.uri}
            given["trusted_modules"] = own_modules(config)  # the command itself names them
            execute.resume(run_id, given, **doing)
        else:
            values = {**resolved.values, "run_name": resolved.values["run_name"] or name or None}
            own = replace(config, run_name=values["run_name"])
            named = replace(resolved, config=own, values=values)
            run_id = execute.run(named, tags=tags, **doing).run_id
        record = find(tracking, run_id)
        return objective(record, tracking.summary(record), str(config.objective.metric))
    except Pruned as pruned:
        return PrunedObjective(pruned.step, pruned.value)
    finally:
        lock.release()
        if _orphaned.is_set():
            os._exit(128 + signal.SIGTERM)


def decides_saves(varied: Iterable[str], values: Mapping[str, Any]) -> bool:
    """Tell whether each trial must say by itself which steps it saves."""
    return values["epochs"] is not None or bool({"steps", "save", "save.every"} & {*varied})


def wait_until_free(
    tracking: RunStore, experiment: str, key: str, name: str, lock: FileLock
) -> list[tuple[RunRecord, RunSummary]]:
    """Return the runs of a trial, holding `lock`, as soon as no other process trains one of them.

    No other process of this machine begins a trial until this one has recorded that it does.
    """
    announced = False
    while True:
        lock.acquire()
        known = tagged(tracking, experiment, names.TRIAL, key)
        if any(record.status == "RUNNING" for record, _ in known):
            mark_dead_runs_killed(tracking)
            known = tagged(tracking, experiment, names.TRIAL, key)
        elsewhere = [record.id for record, _ in known if record.status == "RUNNING"]
        if not elsewhere:
            return known
        lock.release()
        if not announced:
            print(f"{name}: another process is training run {elsewhere[0]}; waiting", flush=True)
        announced = True
        time.sleep(POLL_INTERVAL_S)


def is_finished(record: RunRecord, config: Config) -> bool:
    """Tell whether a trial need not be done again; a pruned one must where pruning is off."""
    again = config.rerun_finished or (record.tags.get(names.PRUNED) and not config.prune)
    return record.status == "FINISHED" and not again


def log_model(record: RunRecord, config: Config | None) -> None:
    """Make the last checkpoint of a trial a model of MLflow's; say so if it cannot be.

    `config` is None where this process has not come to the trial.
    """
    if config is None:
        return
    given = {"tracking.uri": config.tracking.uri, "trusted_modules": own_modules(config)}
    try:
        try:
            log_checkpoint(record.id, given)
        except NeedsNewProcess as needed:
            new_process.call(str(needed), log_checkpoint, record.id, given)
    except Exception as error:  # of the store, the disk, the user's own model
        said = f"waymark: the best trial is no model of MLflow's: {explain(error)}"
        print(printable(said), file=sys.stderr)


def objective(record: RunRecord, facts: RunSummary, metric: str) -> float:
    """Return what a finished trial's run achieved, NaN if it did not record that."""
    if record.tags.get(names.PRUNED):
        step = int(record.tags[names.PRUNED])
        return PrunedObjective(step, judged_values(record).get(step, math.nan))
    return facts.metrics.get(metric, math.nan)


def _pruner(tracking: RunStore, config: Config, part: str, parent: str, key: str) -> Pruner | None:
    if config.prune is None:
        return None
    metric = f"{part}/{str(config.objective.metric).rpartition('/')[2]}"
    sign = 1 if config.objective.mode == "max" else -1
    steps = pruning_steps(config.prune, config.steps, int(config.eval_every))

    def recorded(run_id: str) -> Mapping[int, float]:
        return dict(tracking.metric_history(run_id, metric))

    ended = cache(recorded)  # by a trial that was not judged itself, and has ended

    def other_trials() -> list[Mapping[int, float]]:
        found: list[Mapping[int, float]] = []
        try:
            for record, _ in members(tracking, parent):
                if record.tags.get(names.TRIAL) == key:
                    continue
                if record.tags.get(names.PRUNING_VALUES):
                    found.append(judged_values(record) or recorded(record.id))
                elif record.status == "FINISHED":
                    found.append(ended(record.id))
        except (BadInput, StoreError):  # a store that does not answer: this trial goes on
            return []
        return found

    return Pruner(config.prune, metric, sign, steps, other_trials)


def members(store: RunStore, parent: str) -> list[tuple[RunRecord, RunSummary]]:
    """Return the runs that a command of a sweep has come to, by the id of the parent run."""
    return select(store, None, None, f"tags.`{names.sweep_member_tag(parent)}` != ''")


def judged_values(record: RunRecord) -> dict[int, float]:
    """Return a trial's value at each step at which it was judged; none if too many for a tag."""
    try:
        values = json.loads(record.tags.get(names.PRUNING_VALUES) or "{}")
    except ValueError:
        return {}
    return {int(step): float(value) for step, value in values.items()}


def identity(resolved: Resolved, data: Dataset | None = None) -> str:
    """Return what makes two trials one: experiment, configuration, data, code, environment.

    Files that settings name count by what they hold. Raises BadInput for data that cannot be
    loaded or do not fit the model, and for an objective that the trial would not record.
    """
    config = resolved.config
    data = data or load_data(config)
    if metric := config.objective.metric:
        measured = modes(config.task, config.metrics)
        refuse_unrecorded(metric, config.prune, data.evaluated, measured)
    known = {**flatten(resolved.values), **resolved.hidden}  # in which secrets differ as well
    left_out = NOT_PART_OF_IDENTITY
    values = {k: v for k, v in known.items() if k.partition(".")[0] not in left_out}
    values.pop("data.path", None)
    own = tuple(own_modules(config))
    return digest_of([by_content(values), data.digest, code_and_environment_digest(own)])


def refuse_unrecorded(
    metric: str, prune: str | None, part: str | None, measured: Collection[str]
) -> None:
    """Raise BadInput for an objective that a trial does not record, or pruning cannot follow.

    `part` is the set that training is evaluated on, if that is known, and `measured` what is
    measured of it.
    """
    name, of_training = metric.rpartition("/")[2], metric.startswith(names.TRAIN)
    recorded = [f"{each}/{known}" for each in (part, "restored") for known in measured]
    if part and not of_training and metric not in recorded:
        raise BadInput(f"objective.metric={metric}: is not recorded, where {listed(recorded)} are.")
    if prune and (of_training or name not in measured):
        raise BadInput(
            f"prune={prune}: objective.metric={metric!r} is not evaluated during training; "
            f"{listed(list(measured))} are."
        )


def by_content(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings (dotted keys) with a digest in the place of each file or folder they name.

    A folder around the current one is left as it stands: the runs themselves may lie in it. Where
    the cache is says nothing of what is read, and what it holds changes.
    """

    def content(key: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [content(key, inner) for inner in value]
        if not isinstance(value, str) or not value or key.partition(".")[0] not in READS_FILES:
            return value
        with suppress(OSError, ValueError, RuntimeError):  # no path, no such user, not readable
            path = Path(value).expanduser()
            files = files_of(path) if key == "init_from" else [path]
            around = Path.cwd(), *Path.cwd().parents
            plain = [f for f in files if f.is_file() or (f.is_dir() and f.resolve() not in around)]
            return {"content": file_digest(plain)} if plain else value
        return value

    return {key: content(key, value) for key, value in values.items() if key != "data.cache"}


@cache
def code_and_environment_digest(own: tuple[str, ...]) -> str:
    """Return the digest of code and environment; the code is what this process has imported."""
    return digest_of([code(own), fingerprint()])


def digest_of(value: Any) -> str:
    """Return the SHA-256 digest, in hexadecimal, of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def trial_name(task: Sequence[str]) -> str:
    """Return a trial's name: what was varied, as "lr=1e-3 bs=50"."""
    shown = short_keys(json.loads(os.environ[VARIED_KEYS]))
    pairs = [text.lstrip("+").replace(SCHEDULES, SCHEDULE, 1).partition("=") for text in task]
    words = [f"{shown[k]}={short_setting(v)}" for k, _, v in pairs if k in shown]
    return elided(" ".join(words), RUN_NAMES.longest)


def _record_failure(uri: str | None, experiment: str, task: Sequence[str], reason: str) -> None:
    tracking, parent = connect(uri, create=True), os.environ[PARENT_ID]
    own = {names.PARENT_RUN: parent, names.TRIAL: digest_of(sorted(task)), names.REASON: reason}
    tags = {**own, names.sweep_member_tag(parent): os.environ[COMMAND_ID]}
    record_failed_trial(tracking, experiment, trial_name(task), tags)
