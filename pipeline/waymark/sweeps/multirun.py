"""Sweeps: one parent run, its trials nested under it; the same command again completes it.

Before each launch of Hydra's, a plugin of ours (`hydra_plugins.waymark`) asks `Sweep.launch` to
skip finished trials and to launch again what took its process with it.
"""

import csv
import io
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from waymark import names
from waymark.comparison.report import better_value
from waymark.comparison.runs import compare_found
from waymark.config import compose
from waymark.config.compose import CONF, as_written, explain_hydra_error, hydra_errors
from waymark.config.masking import without_password
from waymark.config.own_hydra import composing_once, own_singletons, parse_flags
from waymark.config.resolve import build_group
from waymark.config.schema import Fork
from waymark.config.values import flatten
from waymark.config.yaml_source import install
from waymark.data.splits import evaluated_part
from waymark.errors import BadInput, printable
from waymark.execution.ending import wait_for_ended_runs
from waymark.execution.opening import tell_of_saves
from waymark.processes.process_state import set_variable
from waymark.processes.signals import Interrupted, handling
from waymark.sweeps import composing, trial
from waymark.sweeps.description import describe, parent_name
from waymark.sweeps.sweep import Sweep, SweepResult, TrialResult
from waymark.sweeps.sweep_files import log_files
from waymark.table import number, terminal_width
from waymark.tasks.metrics import modes
from waymark.tracking.limits import reason_of
from waymark.tracking.parent_run import open_parent, withdraw
from waymark.tracking.recovery import mark_dead_runs_killed
from waymark.tracking.remote_store import connect

# What Ray is told unless the user does: a running cluster refuses the launcher's own memory size;
# the trials' lines are not repeated here; a trial has one core.
RAY = {"init.object_store_memory": "null", "init.log_to_driver": "false", "remote.num_cpus": "1"}
OPTUNA = "hydra_plugins.waymark_optuna.OptunaSweeper"
PLUGIN, GRID = "hydra_plugins.waymark", "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def sweep(arguments: Sequence[str], fork: str | None = None) -> SweepResult:
    """Carry out a sweep by the arguments of `waymark run -m`, and record its end.

    With `fork`, RUN@STEP, its trials are forks. Raises BadInput as `prepare` does, and if no trial
    can be done; Interrupted after a signal.
    """
    arguments = as_written(arguments)
    set_variable("RAY_USAGE_STATS_ENABLED", "0")  # its telemetry, as MLflow's
    with own_singletons(for_all_threads=True):
        install(CONF)
        carried_out = prepare(arguments, fork)
        words = map(composing.added, arguments) if fork else arguments
        with _hydra_arguments([*words, *carried_out.overrides]):
            status = launch(carried_out)
    result = finish(carried_out, status)
    if status > 128:
        raise Interrupted(status - 128)
    return result


@contextmanager
def _hydra_arguments(words: list[str]) -> Iterator[None]:
    """Let Hydra find `words` as a command line, and raise its errors instead of printing them."""
    before, name = sys.argv, "HYDRA_FULL_ERROR"
    wanted = os.environ.get(name)
    sys.argv, os.environ[name] = ["waymark run", *words], "1"
    try:
        yield
    finally:
        sys.argv = before
        del os.environ[name]
        os.environ.update({name: wanted} if wanted is not None else {})


def prepare(arguments: Sequence[str], fork: str | None = None) -> Sweep:
    """Find or make the parent run of a sweep, and fix what its trials share.

    A sweep is the same one if its experiment, sweeper, objective, varied keys and all that is
    fixed are the same, whatever values it goes through. Raises BadInput for what Hydra does not
    compose, and for an objective that pruning cannot follow.
    """
    given = parse_flags(arguments)
    values, swept, begun = composing.shared_values(given.overrides, given.config_dir, fork)
    command = _command(arguments, given.overrides, begun)
    launcher, sweeper = values["hydra"]["launcher"], values["hydra"]["sweeper"]
    given_objective, part = values["objective"], _evaluated_part(values)
    measured = None if {"task", "metrics"} & set(swept) else _measured(values)
    values["objective"] = _objective(given_objective, part, measured)
    if measured:  # else each trial is checked by itself
        trial.refuse_unrecorded(values["objective"]["metric"], values["prune"], part, measured)
    _check(values)
    varied = sorted({*swept, *(sweeper.get("params") or {})})
    _tell_of_saves(varied, values)
    store = connect(values["tracking"]["uri"], create=True)
    tags = _tags(values, varied, command)
    count = composing.count_trials(given.overrides, sweeper)
    name, experiment = parent_name(varied, count), values["experiment_name"]
    parent, before = open_parent(store, experiment, name, tags, names.SWEEP)
    chosen = values["runtime"]["intra_op_threads"] or parent.tags.get(names.THREADS)
    threads = chosen or threads_of(launcher)
    said = {names.DESCRIPTION: describe(command)} if before is None else {}  # else it has a table
    store.set_tags(parent.id, {names.THREADS: str(threads), **said})
    command_id = uuid.uuid4().hex
    variables = {
        trial.PARENT_ID: parent.id,
        trial.VARIED_KEYS: json.dumps(varied),
        trial.COMMAND_ID: command_id,
    }
    if begun:
        facts = json.dumps({"begun": asdict(begun), "experiment": experiment})
        variables[trial.FORK] = re.sub(r"(\\*)'", r"\1\1\'", facts)
    more = _overrides(values["hydra"], variables)
    found = values["objective"].items()
    more += [f"objective.{key}={value}" for key, value in found if given_objective[key] is None]
    if trial.THREADS not in varied:
        more.append(f"{trial.THREADS}={threads}")
    return Sweep(
        store=store,
        parent=parent.id,
        name=parent.name,
        link=store.link(parent),
        next_command=_next_command(parent.id, values["tracking"]["uri"]),
        before=before,
        command_id=command_id,
        command=command,
        launcher=launcher["_target_"],
        overrides=more,
        progress=values["progress"],
        selection=_selection(values, part),
        fork=begun,
        log_best=values["save"]["log_model"] == "auto",
        varied=tuple(varied),
        **values["objective"],
    )


def _tell_of_saves(varied: Sequence[str], values: Mapping[str, Any]) -> None:
    """Say once for all trials, where that can be known, that only the last step is saved."""
    numbers = values["steps"], values["save"]["every"]
    if not trial.decides_saves(varied, values) and all(isinstance(x, int) for x in numbers):
        tell_of_saves(*numbers)


def _command(arguments: Sequence[str], overrides: Sequence[str], begun: Fork | None) -> str:
    """Return the command that makes the sweep, without passwords."""
    origin = ["--fork", f"{begun.run}@{begun.step}"] if begun else []
    flags = [word for word in arguments if word not in overrides]
    words = [str(without_password(word)) for word in (*flags, *overrides)]
    return shlex.join(["waymark", "run", *origin, *words])


def _evaluated_part(values: Mapping[str, Any]) -> str | None:
    """Return which set trials are evaluated on in training; None where only they will know."""
    with suppress(Exception):  # what is wrong with the data is said of each trial
        parts = [build_group(each, values, lambda key: "conf/", None) for each in ("data", "task")]
        return evaluated_part(*parts)
    return None


def _measured(values: Mapping[str, Any]) -> dict[str, str | None] | None:
    """Return what trials measure, and which way of it is better; None where they will say it."""
    with suppress(Exception):
        task = build_group("task", values, lambda key: "conf/", None)
        return modes(task, values["metrics"])
    return None


def _objective(
    given: Mapping[str, Any], part: str | None, measured: Mapping[str, str | None] | None
) -> dict[str, str]:
    """Return the metric and the mode of a sweep's objective.

    Raises BadInput for a metric that is no text, and for no mode of one of which nothing tells it.
    """
    metric = given["metric"]
    if metric is None:
        first = next(iter(measured or ["accuracy"]))
        metric = f"{names.VAL if part == 'val' else names.RESTORED}{first}"
    if not isinstance(metric, str):
        raise BadInput(f"objective.metric={metric!r}: must be a text, the name of a metric.")
    name = metric.rpartition("/")[2]
    mode = given["mode"] or (measured or {}).get(name, (better_value(metric) or max).__name__)
    if mode is None:
        raise BadInput(
            f"objective.metric={metric}: nothing tells whether more is better or less; "
            f"objective.mode=max or objective.mode=min does."
        )
    return {"metric": metric, "mode": mode}


def _selection(values: Mapping[str, Any], part: str | None) -> str:
    """Say if the best trial, or which ones are pruned, is decided on the test set; else nothing."""
    metric, prune = values["objective"]["metric"], values["prune"] and part == "test"
    if not prune and not metric.startswith((names.TEST, names.RESTORED)):
        return ""
    if part == "val":
        name = metric.rpartition("/")[2]
        return f"the test set; objective.metric={names.VAL}{name} is of the validation set"
    return "the test set; data.validation=0.1 holds out examples of the training set for that"


def _tags(values: Mapping[str, Any], varied: list[str], command: str) -> dict[str, str]:
    """Return the parent's tags, by which the same command finds it again."""
    excluded = ("hydra", *trial.NOT_PART_OF_IDENTITY)
    rest = flatten({key: value for key, value in values.items() if key not in excluded})
    del rest[trial.THREADS]
    fixed = {k: v for k, v in rest.items() if not any(f"{k}.".startswith(f"{v}.") for v in varied)}
    sweeper = values["hydra"]["sweeper"]["_target_"]
    same = [varied, trial.by_content(fixed), sweeper, values["objective"]]
    return {
        names.KIND: "sweep",
        names.SWEEP: trial.digest_of(same),
        names.VARIED: json.dumps(varied),
        names.COMMAND: command,
        names.RESUME: command,
    }


def _overrides(hydra: Mapping[str, Any], variables: Mapping[str, str]) -> list[str]:
    """Return what each trial is told behind the command's own overrides."""
    more = [f"+hydra.job.env_set.{name}='{text}'" for name, text in variables.items()]
    more += [f"hydra.launcher._target_={PLUGIN}.TrialLauncher", "progress=false"]
    for key, value in RAY.items() if "ray" in hydra["launcher"] else ():
        part, _, name = key.partition(".")
        if name not in hydra["launcher"]["ray"][part]:
            more.append(f"+hydra.launcher.ray.{key}={value}")
    if hydra["sweeper"]["_target_"] == GRID:
        more.append(f"hydra.sweeper._target_={PLUGIN}.GridSweeper")
    return more


def _check(values: Mapping[str, Any]) -> None:
    """Raise BadInput for what only a sweep can find wrong."""
    from hydra.core.plugins import Plugins

    target = str(values["hydra"]["launcher"]["_target_"])
    if target not in Plugins.instance().class_name_to_class:
        launchers = {f".hydra_{c.rpartition('=')[2]}_launcher.": c for c in compose.PACKAGES}
        hints = [compose.brought_by(choice) for n, choice in launchers.items() if n in target]
        raise BadInput(f"hydra.launcher._target_={target!r}: is not installed{''.join(hints)}.")
    if values["hydra"]["sweeper"]["_target_"] == OPTUNA and not find_spec("optuna"):
        choice = "hydra/sweeper=optuna"
        raise BadInput(f"{choice}: needs Optuna{compose.brought_by(choice)}.")


def threads_of(launcher: Mapping[str, Any]) -> int:
    """Return how many threads a trial gets, so that those beside each other share the cores."""
    cores = os.cpu_count() or 1
    if str(launcher["_target_"]).endswith("BasicLauncher"):
        return cores
    if "cpus_per_task" in launcher:  # submitit's
        return int(launcher["cpus_per_task"] or 1)
    if "ray" in launcher:
        return max(1, int(launcher["ray"]["remote"].get("num_cpus") or 1))
    beside = launcher.get("n_jobs") or -1
    return max(1, cores // beside) if beside > 0 else 1


def launch(sweep: Sweep) -> int:
    """Hand a sweep over to Hydra; return 0, or the exit status if it did not come to its end.

    Raises BadInput for a sweep that Hydra refuses; that leaves no trace unless trials had begun.
    """
    import hydra
    from hydra_plugins.waymark import TrialLauncher

    TrialLauncher.sweep, trial.in_parent = sweep, True
    refusals: tuple[type[Exception], ...] = (BadInput, *hydra_errors())
    carry_out = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    try:
        with composing_once(), handling((signal.SIGTERM, signal.SIGHUP), _leave):
            carry_out(trial.run_trial)()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except trial.SweepInterrupted as stopped:
        return stopped.status
    except refusals as error:
        with suppress(Exception):  # a store that does not answer
            sweep.close()
            if sweep.has_begun():
                finish(sweep, 2)
            else:
                withdraw(sweep.store, sweep.parent, sweep.before)
        if isinstance(error, BadInput):
            raise
        raise BadInput(explain_hydra_error(error, sys.argv[1:])) from None
    except (Exception, SystemExit) as error:  # the launcher could not even begin; a trial's exit()
        print(f"waymark: {reason_of(error)}", file=sys.stderr)
        return 1
    return 0


def _leave(number: int, _: Any) -> None:
    """End the sweep in good order, its own child processes first."""
    for child in multiprocessing.active_children():
        child.terminate()
    raise trial.SweepInterrupted(128 + number)


def finish(sweep: Sweep, status: int = 0) -> SweepResult:
    """Record in the parent, and print, what came of a sweep; `status` is what `launch` returned."""
    wait_for_ended_runs()
    sweep.close()
    try:
        return _finish(sweep, status)
    except Exception as error:  # of MLflow, the network
        reason = reason_of(error)
        print(f"waymark: the end of the sweep cannot be recorded ({reason})", file=sys.stderr)
        print("to complete the sweep:", sweep.command, file=sys.stderr)
        return SweepResult(sweep.parent, None, [], status or 1)


def _finish(sweep: Sweep, status: int) -> SweepResult:
    tracking, parent = sweep.store, sweep.parent
    mark_dead_runs_killed(tracking)  # workers may have gone with the launcher
    found = sweep.outcome()
    known = tracking.metrics(parent)
    sweep.record_progress(found)
    if len(found.finished) > 1:
        table = compare_found(tracking, found.finished)
        new = any(sweep.belongs_to_this_command(record) for record, _ in found.finished)
        if new or known.get(f"{names.PROGRESS}finished") != len(found.finished):
            log_files(sweep, table, found)
        print(table.text(terminal_width()))
    trials = found.trials(sweep.metric)
    best = next((each for each in trials if found.best and each.run_id == found.best[0].id), None)
    if best and best.objective is not None:
        reached = f"{sweep.metric} {number(best.objective)}"
        _say("best", f"{best.name} ({best.run_id[:8]}), {reached}")
        if sweep.selection:
            _say("selected on", sweep.selection)
    if found.best and sweep.log_best and status < 128:
        trial.log_model(found.best[0], sweep.config_of(found.best[0]))
    for each in trials:
        if each.status != "FINISHED":
            _say(each.status, f"{each.name} ({each.run_id[:8]}) {each.reason}")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([TrialResult._fields, *trials])
    tracking.log_text(parent, text.getvalue(), "trials.csv")
    _say("trials", sweep.summary_line(found))
    _say("sweep", parent)
    _say("in the UI", sweep.link)
    if len(found.finished) > 1 and sweep.next_command:
        _say("next", sweep.next_command)
    lost, where = sweep.total - len(trials), without_password(tracking.address.display_uri)
    if lost > 0 and not status:
        print(f"waymark: {lost} trials left no trace in {where}", file=sys.stderr)
    status = status or (1 if found.others or lost > 0 else 0)
    end = "KILLED" if status > 128 else "FAILED" if status else "FINISHED"
    tracking.end(parent, end)
    again = sweep.command if status else ""
    said = describe(sweep.command, found, sweep)
    tracking.set_tags(parent, {names.RESUME: again, names.DESCRIPTION: said})
    if status:
        print("to complete the sweep:", sweep.command, file=sys.stderr)
    return SweepResult(parent, best, trials, status)


def _next_command(parent: str, uri: str | None) -> str:
    """Return the command line that compares a sweep's trials; "" if it would take a secret."""
    words = ["waymark", "compare", "--sweep", parent, *([f"tracking.uri={uri}"] if uri else [])]
    return "" if uri and without_password(uri) != uri else shlex.join(words)


def _say(label: str, text: str) -> None:
    print(printable(f"{label:11} {text}"))
