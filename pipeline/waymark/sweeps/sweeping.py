"""Sweeps: one parent run, its trials nested under it; the same command again completes it.

Hydra's own sweepers and launchers do the work. Before the first trial `begin` finds or makes the
parent and fixes the number of threads. A plugin of ours (`hydra_plugins.waymark`) stands before
the launcher and asks `Sweep.launch` to skip what is finished and to launch again what took its
process with it; at the end `conclude` records what came of it all.
"""

import csv
import io
import json
import math
import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from waymark import names
from waymark.comparison.report import Comparison
from waymark.comparison.runs import compare_found
from waymark.config.compose import PACKAGES, brought_by, hydra_errors, plain, refusal, searchpath
from waymark.config.masking import without_password
from waymark.config.resolve import Resolved
from waymark.config.values import flatten
from waymark.errors import BadInput, Sentence
from waymark.processes.signals import handling
from waymark.sweeps import trial
from waymark.sweeps.landscape import Point, landscape
from waymark.table import number, rate
from waymark.tracking.finder import select
from waymark.tracking.limits import reason_of
from waymark.tracking.opening import open_store
from waymark.tracking.parent_run import open_parent, withdraw
from waymark.tracking.recovery import mark_dead_runs_killed
from waymark.tracking.runs import RunRecord, RunSummary
from waymark.tracking.store import RunStore
from waymark.training.progress import NoSweepProgress, make_sweep_progress

# Tags of the parent.
MOST = 3  # attempts of one command at a trial that ends its process
LOOK = 2.0  # seconds after which the trials are looked at, unless one ends here before
SHARE = 5  # times as long as the last look took, at least, pass before the next one
BEAT = 20.0  # seconds between two signs of life of the parent
# What Ray is told unless the user does: a running cluster refuses the launcher's own memory size;
# the trials' lines are not repeated here; a trial has one core.
RAY = {"init.object_store_memory": "null", "init.log_to_driver": "false", "remote.num_cpus": "1"}
# Launchers whose trials see the files that this process sees.
HERE = ("BasicLauncher", "JoblibLauncher", "LocalLauncher")
OPTUNA = "hydra_plugins.waymark_optuna.OptunaSweeper"
PLUGIN, GRID = "hydra_plugins.waymark", "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"

Pair = tuple[RunRecord, RunSummary]


@dataclass
class Sweep:
    """A sweep that has a parent run, as one command carries it out."""

    tracking: RunStore
    parent: str
    id: str  # of this command: the value of its trials' tag
    metric: str  # the objective, and which way is better
    mode: str
    command: str  # that completes the sweep
    launcher: str  # the class that the user chose
    overrides: list[str]  # for each trial, behind the command's own
    progress: Any  # what the user asked for: auto, true or false
    before: RunRecord | None = None  # the parent as this command found it; None if it made it
    planned: int = 0  # trials that the sweeper will hand over, as far as it has told
    began: float = field(default_factory=time.monotonic)
    handed: set[str] = field(default_factory=set)  # trials handed over so far
    repeated: int = 0  # how often a trial was handed over again, or in other words
    skipped: dict[str, Pair] = field(default_factory=dict)  # trial -> its run, finished before
    _keys: dict[tuple[str, ...], tuple[str, Resolved] | None] = field(default_factory=dict)
    _refused: dict[tuple[str, ...], str] = field(default_factory=dict)
    _over: dict[str, Pair] | None = None
    _open: ExitStack = field(default_factory=ExitStack)  # what ends with the sweep: its bar

    def left(self, compose: Callable[..., Resolved], jobs: Sequence[Sequence[str]]) -> list[int]:
        """Return which trials are not finished yet; a job is a trial's overrides.

        Of a trial that cannot be identified here, or whose runs belong to another sweep, the
        process that does it will tell.
        """
        over, seen, left = self._finished(), set(), []
        for index, job in enumerate(jobs):
            found = self.identified(compose, tuple(job))
            if found is None:
                left.append(index)
                continue
            key, resolved = found
            pair = over.get(key)
            if pair and trial.is_over(pair[0], resolved.config):
                self.skipped[key] = pair
            elif key not in seen:  # or it is the same trial in other words
                seen.add(key)
                left.append(index)
        return left

    def recall(self) -> None:
        """Count the trials that earlier commands finished: this one's sweeper hands over others."""
        self.skipped |= self._finished()

    @property
    def total(self) -> int:
        """Return how many trials there are so far, each counted once."""
        return len(self.handed | self.skipped.keys())

    @property
    def expected(self) -> int:
        """Return how many trials there will be, as far as the sweeper has told."""
        return max(self.total, self.planned - self.repeated)

    def close(self) -> None:
        """Let the bar come to its end."""
        self.planned = 0  # of what was planned there is no more
        self._open.close()

    def withdraw(self) -> bool:
        """Leave no trace of a command that has come to no trial; tell whether it has not."""
        if any(self.came_to(record) for record, _ in self.members()):
            return False
        withdraw(self.tracking, self.parent, self.before)
        return True

    def _finished(self) -> dict[str, Pair]:
        """Return the finished trials of this sweep as they were found before the launch."""
        if self._over is None:
            every = select(
                self.tracking, None, None, f"tags.`{names.sweep_member_tag(self.parent)}` != ''"
            )
            done = [pair for pair in every if pair[0].status == "FINISHED"]
            self._over = {
                record.tags.get(names.TRIAL, ""): (record, facts) for record, facts in done
            }
        return self._over

    def identified(
        self, compose: Callable[..., Resolved], job: tuple[str, ...]
    ) -> tuple[str, Resolved] | None:
        """Return a trial's identity and configuration, None if its overrides allow none."""
        if job not in self._keys:
            self._keys[job] = None
            resolved = None
            try:
                resolved = compose(job)
                self._keys[job] = trial.identity(resolved), resolved
            except BadInput as error:
                if resolved is None or self.launcher.endswith(HERE):
                    self._refused[job] = str(error)
            except hydra_errors():
                pass  # the sweeper says why
        return self._keys[job]

    def check(self, compose: Callable[..., Resolved], jobs: Sequence[Sequence[str]]) -> None:
        """Raise BadInput if none of a sweep's trials can be done."""
        known = [self.identified(compose, tuple(job)) for job in jobs]
        reasons = [self._refused[tuple(job)] for job in jobs if tuple(job) in self._refused]
        if len(reasons) == len(known) > 0:
            raise BadInput(
                reasons[0]
                if len(set(reasons)) == 1
                else f"none of the {len(jobs)} trials can be done; the first one: {reasons[0]}"
            )

    def launch(
        self,
        launch: Callable[[Sequence[Sequence[str]], int], Sequence[Any]],
        compose: Callable[..., Resolved],
        jobs: Sequence[Sequence[str]],
        first: int,
    ) -> list[Any]:
        """Do trials by the user's launcher; return Hydra's JobReturns, in order.

        A worker that is killed takes the launcher's other workers with it, or their results:
        what is left is launched again, at last one by one, so that only the culprit is lost.
        """
        returns: dict[int, Any] = {}
        left = self.left(compose, jobs)
        keys = {self._key(job) for job in jobs}
        self.repeated += len(jobs) - len(keys - self.handed)
        if not self.handed:
            self._open.enter_context(self._watched())
        self.handed |= keys
        for attempt in range(MOST):
            batches = [left] if attempt < MOST - 1 else [[i] for i in left]
            for batch in filter(None, batches):
                try:
                    done = launch([jobs[i] for i in batch], first)
                    returns.update(zip(batch, done, strict=True))
                except Exception as error:
                    self._lost(error)
            left = [i for i in self.left(compose, jobs) if i not in returns]
        by_trial = {self._key(jobs[index]): value for index, value in returns.items()}
        return [
            returns.get(index) or by_trial.get(self._key(job)) or self._returned(job)
            for index, job in enumerate(jobs)
        ]

    def _key(self, job: Sequence[str]) -> str:
        """Return what names a trial: its identity, or its overrides where that is not known."""
        found = self._keys.get(tuple(job))
        return found[0] if found else " ".join(job)

    def _lost(self, error: Exception) -> None:
        """Note that a launcher gave up; raise what it raised if it had not even begun."""
        self._over = None
        mark_dead_runs_killed(self.tracking)
        if not any(self.came_to(record) for record, _ in self.members()):
            raise error

    def _returned(self, job: Sequence[str]) -> Any:
        from hydra.core.utils import JobReturn, JobStatus

        pair = self.skipped.get(self._key(job))
        value = trial.objective(*pair, self.metric) if pair else math.nan
        return JobReturn(overrides=list(job), status=JobStatus.COMPLETED, _return_value=value)

    def pace(self, found: "Outcome") -> str:
        """Say how many trials there are, and how many this command has done in a minute."""
        counts = [f"{count} {name}" for name, count in found.counts().items() if count]
        text = f"trials                {', '.join(counts) or 'none'}"
        done = sum(self.came_to(record) for record, _ in [*found.finished, *found.pruned])
        minutes = (time.monotonic() - self.began) / 60
        return f"{text}; {done} of them now, {rate(done / minutes)} a minute" if done else text

    def came_to(self, record: RunRecord) -> bool:
        """Tell whether this command came to a run last, and not another one."""
        return record.tags.get(names.sweep_member_tag(self.parent)) == self.id

    def members(self) -> list[Pair]:
        """Return the runs of the trials that this command has come to, or finds finished."""
        every = select(
            self.tracking, None, None, f"tags.`{names.sweep_member_tag(self.parent)}` != ''"
        )
        return [
            (record, facts)
            for record, facts in every
            if self.came_to(record)
            or (record.status == "FINISHED" and record.tags.get(names.TRIAL) in self.handed)
        ]

    def outcome(self) -> "Outcome":
        """Look what became of the trials: of several runs of one trial the finished one counts."""
        order = {"FINISHED": 0, "RUNNING": 1}
        counting = dict(self.skipped)
        for record, facts in self.members():
            key = record.tags.get(names.TRIAL, record.id)
            other = counting.get(key)
            if other is None or order.get(record.status, 2) < order.get(other[0].status, 2):
                counting[key] = record, facts
        runs = sorted(counting.values(), key=lambda pair: pair[0].start_time)
        over = [pair for pair in runs if pair[0].status == "FINISHED"]
        finished = [pair for pair in over if not pair[0].tags.get(names.PRUNED)]
        scored = [p for p in finished if not math.isnan(p[1].metrics.get(self.metric, math.nan))]
        pick: Callable[..., Any] = max if self.mode == "max" else min
        best = pick(scored, key=lambda pair: pair[1].metrics[self.metric], default=None)
        pruned = [pair for pair in over if pair not in finished]
        return Outcome(finished, pruned, [pair for pair in runs if pair not in over], best)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Show how the sweep goes, on the terminal and in the parent run, while it goes."""
        closing, bar = threading.Event(), make_sweep_progress(self.progress, self.expected)

        def watch() -> None:
            told, beat = "", time.monotonic()
            while not closing.is_set():
                trial.over.wait(LOOK)
                trial.over.clear()
                began = time.monotonic()
                with suppress(Exception):  # a store that does not answer: the next look will tell
                    told = self._tell(bar, told)
                    if began - beat > BEAT:
                        self.tracking.set_tags(self.parent, {names.HEARTBEAT: _now()})
                        beat = began
                closing.wait(SHARE * (time.monotonic() - began))

        watcher = threading.Thread(target=watch, name="sweep", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            closing.set()
            trial.over.set()
            watcher.join()
            with suppress(Exception):
                self._tell(bar, "")
            bar.close()

    def _tell(self, bar: NoSweepProgress, told: str) -> str:
        """Bring the bar and the parent's metrics up to date, if there is anything new."""
        found = self.outcome()
        counts = found.counts()
        bar.show(self.expected, counts, found.objective(self.metric))
        now = json.dumps([self.expected, counts, found.best and found.best[0].id])
        if now != told:
            self.record(found)
        return now

    def record(self, found: "Outcome") -> None:
        """Put progress and the best trial so far into the parent run."""
        counts = {**found.counts(), "trials": self.expected}
        step = sum(found.counts().values()) - counts["running"]
        metrics: dict[str, float] = {f"{names.PROGRESS}{k}": count for k, count in counts.items()}
        if found.best:
            self.tracking.set_tags(self.parent, {names.BEST_TRIAL: found.best[0].id})
            metrics[f"{names.BEST}{self.metric}"] = found.best[1].metrics[self.metric]
        self.tracking.log_metrics(self.parent, metrics, step)


@dataclass(frozen=True)
class Outcome:
    """What became of a sweep's trials: each trial's run that counts, the best of them."""

    finished: list[Pair]
    pruned: list[Pair]
    others: list[Pair]  # failed, killed, or running
    best: Pair | None

    def counts(self) -> dict[str, int]:
        """Return how many trials have finished, were pruned, are running, have failed."""
        running = sum(record.status == "RUNNING" for record, _ in self.others)
        failed = len(self.others) - running
        over = {"finished": len(self.finished), "pruned": len(self.pruned)}
        return {**over, "running": running, "failed": failed}

    def rows(self, metric: str) -> list[tuple[str, str, str, str, float | None]]:
        """Return name, run id, status, its reason and objective of every trial."""
        rows = []
        for record, facts in [*self.finished, *self.pruned, *self.others]:
            state = "PRUNED" if (record, facts) in self.pruned else record.status
            reason, value = record.tags.get(names.REASON, ""), facts.metrics.get(metric)
            rows.append((record.name, record.id, state, reason, value))
        return rows

    def objective(self, metric: str) -> float | None:
        return self.best[1].metrics[metric] if self.best else None


def _now() -> str:
    return str(int(time.time()))


def begin(overrides: Sequence[str], flags: Sequence[str], config_dir: str | None) -> Sweep:
    """Find or make the parent run of a sweep, and fix what its trials share.

    A sweep is the same one if its experiment, sweeper, objective, varied keys and all that is
    fixed are the same, whatever values it goes through. `config_dir` is a folder of the user's
    own YAML. Raises BadInput for what Hydra does not compose, and for an objective that pruning
    cannot follow.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        fixed = [str(item.input_line) for item in parsed if not item.is_sweep_override()]
        values = _composed(fixed, config_dir)
    except hydra_errors() as error:
        raise BadInput(refusal(error, list(overrides))) from None
    launcher, sweeper = values["hydra"]["launcher"], values["hydra"]["sweeper"]
    _check(launcher, sweeper, values["objective"]["metric"], values["prune"])
    varied = sorted(
        {item.key_or_group for item in parsed if item.is_sweep_override()}
        | set(sweeper.get("params") or {})
    )
    rest = flatten({k: v for k, v in values.items() if k not in ("hydra", *trial.ASIDE)})
    threads = rest.pop(trial.THREADS)
    own = {k: v for k, v in rest.items() if not any(f"{k}.".startswith(f"{v}.") for v in varied)}
    tracking = open_store(values["tracking"]["uri"], create=True)
    command = shlex.join(
        ["waymark", "run", *(str(without_password(word)) for word in [*flags, *overrides])]
    )
    keys, command_id = json.dumps(varied), uuid.uuid4().hex
    same = [varied, trial.by_content(own), sweeper["_target_"], values["objective"]]
    tags = {names.KIND: "sweep", names.SWEEP: trial.digest_of(same), names.VARIED: keys}
    tags |= {names.COMMAND: command, names.RESUME: command}
    parent, before = open_parent(
        tracking, values["experiment_name"], ", ".join(varied), tags, names.SWEEP
    )
    threads = threads or parent.tags.get(names.THREADS) or threads_of(launcher)
    tracking.set_tags(parent.id, {names.THREADS: str(threads)})
    variables = {trial.PARENT_ID: parent.id, trial.VARIED_KEYS: keys, trial.COMMAND_ID: command_id}
    more = [f"+hydra.job.env_set.{name}='{text}'" for name, text in variables.items()]
    more += [f"hydra.launcher._target_={PLUGIN}.TrialLauncher", "progress=false"]
    for key, value in RAY.items() if "ray" in launcher else ():
        part, _, name = key.partition(".")
        if name not in launcher["ray"][part]:
            more.append(f"+hydra.launcher.ray.{key}={value}")
    if sweeper["_target_"] == GRID:
        more.append(f"hydra.sweeper._target_={PLUGIN}.GridSweeper")
    if trial.THREADS not in varied:
        more.append(f"{trial.THREADS}={threads}")
    return Sweep(
        tracking,
        parent.id,
        command_id,
        values["objective"]["metric"],
        values["objective"]["mode"],
        command,
        launcher["_target_"],
        more,
        values["progress"],
        before,
    )


def _composed(overrides: list[str], config_dir: str | None) -> dict[str, Any]:
    import hydra

    from waymark.config.compose import CONF

    own = [searchpath([config_dir])] if config_dir else []
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(hydra.compose("config", [*overrides, *own], return_hydra_config=True))


def _check(
    launcher: Mapping[str, Any], sweeper: Mapping[str, Any], metric: str, prune: str | None
) -> None:
    """Raise BadInput for what only a sweep can find wrong."""
    from hydra.core.plugins import Plugins

    target = str(launcher["_target_"])
    if target not in Plugins.instance().class_name_to_class:
        names = {choice: choice.rpartition("=")[2] for choice in PACKAGES}
        hints = [brought_by(c) for c, name in names.items() if f".hydra_{name}_launcher." in target]
        raise BadInput(f"hydra.launcher._target_={target!r}: is not installed{''.join(hints)}.")
    if sweeper["_target_"] == OPTUNA and not find_spec("optuna"):
        raise BadInput(f"hydra/sweeper=optuna: needs Optuna{brought_by('hydra/sweeper=optuna')}.")
    if prune and metric.rpartition("/")[2] not in ("accuracy", "loss"):
        raise BadInput(
            f"prune={prune}: objective.metric={metric!r} is not evaluated during training; "
            f"an accuracy or a loss is."
        )


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


def carry_out(sweep: Sweep, launch: Callable[[], None]) -> int:
    """Hand a sweep over to Hydra by `launch`; return the command's exit status."""
    from hydra_plugins.waymark import TrialLauncher

    TrialLauncher.sweep, trial.in_parent = sweep, True
    with handling((signal.SIGTERM, signal.SIGHUP), _leave):
        try:
            launch()
        except KeyboardInterrupt:
            return conclude(sweep, 128 + signal.SIGINT)
        except SystemExit as leaving:  # a signal, or Hydra has said what is wrong
            if leaving.code == 1:
                return _refused(sweep)
            return conclude(sweep, int(leaving.code or 0))
        except BadInput:
            _refused(sweep)
            raise
        except hydra_errors() as error:
            _refused(sweep)
            raise BadInput(refusal(error, sys.argv[2:])) from None
        except Exception as error:  # the launcher could not even begin
            print(f"waymark: {reason_of(error)}", file=sys.stderr)
            return conclude(sweep, 1)
    return conclude(sweep)


def _refused(sweep: Sweep) -> int:
    """Leave no trace of a sweep that was refused, unless trials had begun; return the status."""
    with suppress(Exception):  # a store that does not answer
        sweep.close()
        if sweep.withdraw():
            return 2
    return conclude(sweep, 2)


def _leave(number: int, _: Any) -> None:
    """End the sweep in good order, its own child processes first."""
    for child in multiprocessing.active_children():
        child.terminate()
    sys.exit(128 + number)


def conclude(sweep: Sweep, status: int = 0) -> int:
    """Record in the parent, and print, what came of a sweep; return the command's exit status.

    `status` is not 0 if the sweep could not come to its end.
    """
    sweep.close()
    try:
        return _conclude(sweep, status)
    except Exception as error:  # of MLflow, the network
        reason = reason_of(error)
        print(f"waymark: the end of the sweep cannot be recorded ({reason})", file=sys.stderr)
        print("to complete the sweep:", sweep.command, file=sys.stderr)
        return status or 1


def _conclude(sweep: Sweep, status: int) -> int:
    tracking, parent = sweep.tracking, sweep.parent
    mark_dead_runs_killed(tracking)  # workers may have gone with the launcher
    found = sweep.outcome()
    known = tracking.metrics(parent)
    sweep.record(found)
    if len(found.finished) > 1:
        table = compare_found(tracking, found.finished)
        new = any(sweep.came_to(record) for record, _ in found.finished)
        if new or known.get(f"{names.PROGRESS}finished") != len(found.finished):
            _illustrate(sweep, table)
        print(table.text())
    if found.best:
        record, facts = found.best
        best = f"{sweep.metric} {number(facts.metrics[sweep.metric])}"
        print(Sentence(f"best                  {record.name} ({record.id[:8]}), {best}"))
    rows = found.rows(sweep.metric)
    for name, run_id, state, reason, _ in rows:
        if state != "FINISHED":
            print(Sentence(f"{state:21} {name} ({run_id[:8]}) {reason}"))
    tracking.log_text(parent, _csv(rows), "trials.csv")
    print(sweep.pace(found))
    lost, where = sweep.total - len(rows), without_password(tracking.address.display_uri)
    if lost > 0 and not status:
        print(f"waymark: {lost} trials left no trace in {where}", file=sys.stderr)
    status = status or (1 if found.others or lost > 0 else 0)
    end = "KILLED" if status > 128 else "FAILED" if status else "FINISHED"
    tracking.end(parent, end)
    tracking.set_tags(parent, {names.RESUME: sweep.command if status else ""})
    if status:
        print("to complete the sweep:", sweep.command, file=sys.stderr)
    return status


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerows([("name", "run_id", "status", "reason", "objective"), *rows])
    return text.getvalue()


def _illustrate(sweep: Sweep, table: Comparison) -> None:
    """Put the table and the pictures of a sweep into its parent run."""
    points = []
    for row in table.rows:
        known = row.metrics.get(sweep.metric)
        if known and all(key in row.values for key in table.keys):
            half = None if known.high is None else known.high - known.final
            mark = "*" if known.final_leads else "~" if known.ties else ""
            points.append(Point([row.values[key] for key in table.keys], known.final, half, mark))
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("sweep.html", "curves.png"):
            table.plot(Path(scratch) / name)
        (Path(scratch) / "sweep.csv").write_text(table.to_csv(), encoding="utf-8")
        if points and table.keys:
            (Path(scratch) / "sweep.png").write_bytes(landscape(table.keys, points, sweep.metric))
        sweep.tracking.log_files(sweep.parent, Path(scratch))
