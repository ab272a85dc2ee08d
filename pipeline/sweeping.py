"""Sweeps: one parent run, its trials nested under it; the same command again completes it.

Hydra's own sweepers and launchers do the work. Before the first trial `begin` finds or makes the
parent and fixes the number of threads; each trial, in whatever process it is launched, is done,
resumed, or skipped because it is there (`trial`); at the end `conclude` records what came of it.
"""

import hashlib
import json
import math
import os
import shlex
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import comparing, running
from pipeline.compose import hydra_errors, plain, refusal
from pipeline.compose import resolved as checked
from pipeline.config import NAME, BadInput, Resolved, Sentence, first_line, flatten
from pipeline.environment import code, fingerprint
from pipeline.evaluation import load_data
from pipeline.stopping import Stopped
from pipeline.tracking import REASON, RESUME, Facts, RunRecord, Tracking
from pipeline.work import Failed, own_modules

# Variables of a trial's process.
PARENT_ID, VARIED_KEYS, COMMAND_ID = "WAYMARK_SWEEP", "WAYMARK_VARIED", "WAYMARK_COMMAND"
# Tags: what a run is, which sweep, which trial, who began it last, and MLflow's own for nesting.
KIND, SWEEP, TRIAL, ATTEMPT = "waymark.kind", "waymark.sweep", "waymark.trial", "waymark.attempt"
MOST = 3  # attempts of one command at a trial that ends its process
THREADS, BEST, PARENT = "waymark.threads", "waymark.best", "mlflow.parentRunId"
# What says nothing of a trial's numbers and files.
ASIDE = (
    *("tracking", "record", "progress", "experiment_name", "run_name", "tags"),
    *("trusted_modules", "objective", "rerun_finished"),
)


@dataclass(frozen=True)
class Sweep:
    """A sweep that has a parent run."""

    tracking: Tracking
    parent: str
    id: str  # of this command: the tag of the trials that are part of it
    metric: str  # the objective, and which way is better
    mode: str
    command: str  # that completes the sweep
    jobs: bool  # the launcher runs as many beside each other as `n_jobs` says
    overrides: list[str]  # for each trial, behind the command's own


def begin(overrides: Sequence[str], flags: Sequence[str], config_dir: str | None) -> Sweep:
    """Find or make the parent run of a sweep, and fix what its trials share.

    A sweep is the same one if its varied keys and all that is fixed are the same, whatever
    values it goes through. `config_dir` is a folder of the user's own YAML. Raises BadInput for
    what Hydra does not compose.
    """
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from pipeline.compose import CONF

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        fixed = [str(item.input_line) for item in parsed if not item.is_sweep_override()]
        own_yaml = (
            [f"hydra.searchpath=['file://{Path(config_dir).absolute()}']"] if config_dir else []
        )
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("config", [*fixed, *own_yaml], return_hydra_config=True)
    except hydra_errors() as error:
        raise BadInput(refusal(error, list(overrides))) from None
    values = plain(cfg)
    launcher, sweeper = values["hydra"]["launcher"], values["hydra"]["sweeper"]
    varied = sorted(
        {item.key_or_group for item in parsed if item.is_sweep_override()}
        | set(sweeper.get("params") or {})
    )
    rest = flatten({k: v for k, v in values.items() if k not in ("hydra", *ASIDE)})
    threads = rest.pop("runtime.intra_op_threads")
    own = {k: v for k, v in rest.items() if not any(f"{k}.".startswith(f"{v}.") for v in varied)}
    tracking = Tracking(values["tracking"]["uri"], create=True)
    command = shlex.join(["waymark", "run", *flags, *overrides])
    tags = {KIND: "sweep", SWEEP: _hash([varied, own]), RESUME: command}
    parent = tracking.parent(values["experiment_name"], ", ".join(varied), tags, SWEEP)
    threads = threads or parent.tags.get(THREADS) or _threads(launcher)
    tracking.client.set_tag(parent.id, THREADS, str(threads))
    keys = json.dumps(varied)
    command_id = uuid.uuid4().hex
    variables = {PARENT_ID: parent.id, VARIED_KEYS: keys, COMMAND_ID: command_id}
    more = [f"+hydra.job.env_set.{name}='{text}'" for name, text in variables.items()]
    if "runtime.intra_op_threads" not in varied:
        more.append(f"runtime.intra_op_threads={threads}")
    goal = values["objective"]
    return Sweep(
        tracking,
        parent.id,
        command_id,
        goal["metric"],
        goal["mode"],
        command,
        "n_jobs" in launcher,
        more,
    )


def _threads(launcher: Mapping[str, Any]) -> int:
    """Return how many threads a trial gets, so that those beside each other share the cores."""
    cores = os.cpu_count() or 1
    if str(launcher["_target_"]).endswith("BasicLauncher"):
        return cores
    beside = launcher.get("n_jobs") or -1
    return max(1, cores // beside) if beside > 0 else 1


def trial(cfg: Any) -> float:
    """Do one trial of a sweep in this process; return its objective, NaN if it has none.

    A trial that is finished is skipped, one that was interrupted goes on. What goes wrong is
    recorded and not raised, so that the others are done; a signal ends the process.
    """
    from hydra.core.hydra_config import HydraConfig

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own classes, in a launcher's worker
    task = list(HydraConfig.get().overrides.task)
    try:
        resolved = checked(cfg, HydraConfig.get().runtime.choices, task)
        return _trial(resolved, _name(task))
    except Stopped as stopped:
        sys.exit(stopped.status)
    except Failed as failed:  # its run tells
        print(f"waymark: {failed}", file=sys.stderr)
    except Exception as error:
        known = isinstance(error, BadInput)
        reason = str(error) if known else f"{type(error).__name__}: {first_line(error)}"
        print(f"waymark: {_name(task)}: {reason}", file=sys.stderr)
        _stillborn(plain(cfg), task, reason)
    return math.nan


def _trial(resolved: Resolved, name: str) -> float:
    config, parent, command = resolved.config, os.environ[PARENT_ID], os.environ[COMMAND_ID]
    tracking, key = Tracking(config.tracking.uri, create=True), _identity(resolved)
    known = tracking.select(None, None, f"tags.`{TRIAL}` = '{key}'")
    member = f"{SWEEP}.{parent}"
    finished = [pair for pair in known if pair[0].status == "FINISHED"]
    if finished and not config.rerun_finished:
        record, facts = finished[0]
        tracking.client.set_tag(record.id, member, command)
        return facts.metrics.get(config.objective.metric, math.nan)
    open_ = [record for record, _ in known if record.tags.get(RESUME)]
    before = [record.tags.get(ATTEMPT, "").partition(":") for record in open_]
    tries = max((int(n) for id_, _, n in before if id_ == command), default=0)
    if tries >= MOST:
        return math.nan  # it takes its process with it each time
    tags = {PARENT: parent, TRIAL: key, ATTEMPT: f"{command}:{tries + 1}", member: command}
    if open_ and not finished:
        for tag, text in tags.items():
            tracking.client.set_tag(open_[0].id, tag, text)
        trusted = own_modules(config)  # the command itself names them
        given = {"tracking.uri": config.tracking.uri, "trusted_modules": trusted}
        running.resume(open_[0].id, given)
        run_id = open_[0].id
    else:
        values = {**resolved.values, "run_name": resolved.values["run_name"] or name}
        named = replace(
            resolved, values=values, config=replace(config, run_name=values["run_name"])
        )
        result = running.run(named, tags=tags)
        run_id = result.run_id
    facts = tracking.facts(tracking.find(run_id))
    return facts.metrics.get(config.objective.metric, math.nan)


def _identity(resolved: Resolved) -> str:
    """Return what makes two trials the same one: configuration, data, code, environment."""
    values = {k: v for k, v in flatten(resolved.values).items() if k.partition(".")[0] not in ASIDE}
    values.pop("data.path", None)
    data = load_data(resolved.config).digest
    return _hash([values, data, code(own_modules(resolved.config)), fingerprint()])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _name(task: Sequence[str]) -> str:
    """Return a trial's name: what was varied, with the last part of each key."""
    varied = json.loads(os.environ[VARIED_KEYS])
    pairs = [text.lstrip("+").partition("=") for text in task]
    words = [f"{k.rpartition('.')[2]}={v}" for k, _, v in pairs if k in varied]
    return " ".join(words)[: NAME[1]]


def _stillborn(values: dict[str, Any], task: Sequence[str], reason: str) -> None:
    """Record a trial that failed before it had a run of its own."""
    tracking = Tracking(values["tracking"]["uri"], create=True)
    parent, member = os.environ[PARENT_ID], f"{SWEEP}.{os.environ[PARENT_ID]}"
    tags = {
        PARENT: parent,
        TRIAL: _hash(sorted(task)),
        member: os.environ[COMMAND_ID],
        REASON: reason,
    }
    tracking.stillborn(values["experiment_name"], _name(task), tags)


@dataclass(frozen=True)
class Outcome:
    """What became of a sweep's trials: each trial's run that counts, the best of them."""

    finished: list[tuple[RunRecord, Facts]]
    others: list[tuple[RunRecord, Facts]]  # failed, killed, or running elsewhere
    best: tuple[RunRecord, Facts] | None


def _members(sweep: Sweep) -> list[tuple[RunRecord, Facts]]:
    """Return the runs of the trials that this command has come to."""
    query = f"tags.`{SWEEP}.{sweep.parent}` = '{sweep.id}'"
    return sweep.tracking.select(None, None, query)


def outcome(sweep: Sweep) -> Outcome:
    """Look what became of the trials: of several runs of one trial the finished one counts."""
    order = {"FINISHED": 0, "RUNNING": 1}
    counting: dict[str, tuple[RunRecord, Facts]] = {}
    for record, facts in _members(sweep):
        key = record.tags.get(TRIAL, record.id)
        other = counting.get(key)
        if other is None or order.get(record.status, 2) < order.get(other[0].status, 2):
            counting[key] = record, facts
    runs = sorted(counting.values(), key=lambda pair: pair[0].start_time)
    finished = [pair for pair in runs if pair[0].status == "FINISHED"]
    scored = [p for p in finished if not math.isnan(p[1].metrics.get(sweep.metric, math.nan))]
    pick: Callable[..., Any] = max if sweep.mode == "max" else min
    best = pick(scored, key=lambda pair: pair[1].metrics[sweep.metric], default=None)
    return Outcome(finished, [pair for pair in runs if pair not in finished], best)


def carry_out(sweep: Sweep, launch: Callable[[list[str]], None]) -> int:
    """Launch a sweep's trials until all were tried; return the command's exit status.

    `launch(overrides)` hands over to Hydra. A worker that is killed takes joblib's other workers
    with it: what is left is launched again, at last one by one, so that only the culprit is lost.
    """
    tried: list[int] = []
    while True:
        alone = ["hydra.launcher.n_jobs=1"] if len(tried) > 1 and sweep.jobs else []
        try:
            launch([*sweep.overrides, *alone])
        except SystemExit as leaving:  # a signal, or Hydra has said what is wrong
            status = 2 if leaving.code == 1 else int(leaving.code or 0)
            return conclude(sweep, status) or status
        except hydra_errors() as error:
            conclude(sweep, 2)
            raise BadInput(refusal(error, sys.argv[2:])) from None
        except Exception as error:
            sweep.tracking.reap()
            tries = sum(
                int(r.tags.get(ATTEMPT, "0:0").partition(":")[2]) for r, _ in _members(sweep)
            )
            if tries in tried:  # nothing was even begun
                print(f"waymark: {first_line(error)}", file=sys.stderr)
                return conclude(sweep, 1)
            tried.append(tries)
        else:
            return conclude(sweep)


def conclude(sweep: Sweep, status: int = 0) -> int:
    """Record in the parent, and print, what came of a sweep; return the command's exit status.

    `status` is not 0 if the sweep could not come to its end.
    """
    found, client, parent = outcome(sweep), sweep.tracking.client, sweep.parent
    counts = {"sweep/finished": len(found.finished), "sweep/unfinished": len(found.others)}
    for key, count in counts.items():
        client.log_metric(parent, key, count)
    if len(found.finished) > 1:
        table = comparing.compare([record.id for record, _ in found.finished], sweep.tracking.uri)
        with tempfile.TemporaryDirectory() as scratch:
            for name in ("sweep.html", "curves.png"):
                table.plot(Path(scratch) / name)
            (Path(scratch) / "sweep.csv").write_text(table.to_csv(), encoding="utf-8")
            for path in sorted(Path(scratch).iterdir()):
                client.log_artifact(parent, str(path))
        print(table.text())
    if found.best:
        record, facts = found.best
        client.set_tag(parent, BEST, record.id)
        client.log_metric(parent, f"best/{sweep.metric}", facts.metrics[sweep.metric])
        best = f"{sweep.metric} {facts.metrics[sweep.metric]:.4f}"
        print(Sentence(f"best                  {record.name} ({record.id[:8]}), {best}"))
    for record, _ in found.others:
        reason = record.tags.get(REASON, "")
        print(Sentence(f"{record.status:21} {record.name} ({record.id[:8]}) {reason}"))
    status = status or (1 if found.others else 0)
    end = "KILLED" if status > 128 else "FAILED" if status else "FINISHED"
    client.set_terminated(parent, end)
    client.set_tag(parent, RESUME, sweep.command if status else "")
    if status:
        print("to complete the sweep:", sweep.command, file=sys.stderr)
    return status
