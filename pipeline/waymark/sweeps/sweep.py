"""A sweep as one command carries it out: which trials are left, and what became of them all."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from waymark import names
from waymark.config.compose import hydra_errors
from waymark.config.resolve import Resolved
from waymark.config.schema import Config, Fork
from waymark.errors import BadInput, printable
from waymark.sweeps import trial
from waymark.table import html_table, number, rate
from waymark.tracking.recovery import mark_dead_runs_killed
from waymark.tracking.runs import RunRecord, RunSummary
from waymark.tracking.store import RunStore
from waymark.training.progress import NoSweepProgress, make_sweep_progress

MAX_ATTEMPTS = 3  # of one command at a trial that ends its process
POLL_INTERVAL_S = 2.0  # after which the trials are looked at, unless one ends here before
PAUSE_FACTOR = 5  # the pause between two looks at the trials is this often as long as a look
HEARTBEAT_INTERVAL_S = 20.0  # between two signs of life of the parent
# Launchers whose trials see the files that this process sees.
SAME_MACHINE = ("BasicLauncher", "JoblibLauncher", "LocalLauncher")

Jobs = Sequence[Sequence[str]]  # each a trial's overrides
RunAndSummary = tuple[RunRecord, RunSummary]


class TrialResult(NamedTuple):
    """What became of a trial."""

    name: str
    run_id: str
    status: str  # MLflow's, or PRUNED
    reason: str  # of a status other than FINISHED; may be empty
    objective: float | None  # None if the trial did not record it


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to."""

    run_id: str  # of the parent
    best: TrialResult | None  # None if no trial has the objective
    trials: list[TrialResult]
    exit_status: int  # of the command: 0 if all trials have finished, 1 if not

    def _repr_html_(self) -> str:
        first = sorted(self.trials, key=lambda each: each is not self.best)
        rows = [[each.name, each.run_id[:8], each.status,
                 "-" if each.objective is None else number(each.objective), each.reason]
                for each in first]  # fmt: skip
        best = ["the best trial first"] if self.best else []
        return html_table(["trial", "run", "status", "objective", ""], rows, best)


@dataclass(eq=False)
class Sweep:
    """A sweep as one command carries it out; what is given was fixed before the first trial."""

    store: RunStore
    parent: str  # the id of the parent run
    name: str  # the parent run's
    link: str  # to it in MLflow's UI, or the command that opens it
    next_command: str  # that may be typed when it has ended
    before: RunRecord | None  # the parent as this command found it; None if it made it
    command_id: str  # the value of this command's tag at the trials that it comes to
    command: str  # that completes the sweep
    launcher: str  # the class that the user chose
    overrides: list[str]  # for each trial, behind the command's own
    progress: Any  # what the user asked for: auto, true or false
    selection: str  # what trials are selected on, where that is to be said
    metric: str  # the objective
    mode: str  # max or min: which way is better
    fork: Fork | None = None  # what each trial begins with
    log_best: bool = False  # the best trial's last checkpoint is to be a model of MLflow's
    varied: tuple[str, ...] = ()  # the keys

    def __post_init__(self) -> None:
        self._compose: Callable[..., Resolved] | None = None  # a job's configuration
        self.planned = 0  # trials that the sweeper will hand over, as far as it has told
        self.submitted: set[str] = set()  # trials handed over so far
        self.already_finished: dict[str, RunAndSummary] = {}  # by trial
        self._repeated = 0  # how often a trial was handed over again, or in other words
        self._began = time.monotonic()
        self._identities: dict[tuple[str, ...], tuple[str, Resolved] | None] = {}
        self._refused: dict[tuple[str, ...], str] = {}
        self.finished_before = cache(self._finished_before)
        self._open = ExitStack()  # what ends with the sweep: its bar
        self._told: set[str] = set()  # the trials' runs of which is said that they are over

    def compose_by(self, compose: Callable[..., Resolved]) -> None:
        """Take what composes the configuration of a job, which Hydra brings as it begins."""
        self._compose = compose

    def unfinished(self, jobs: Jobs) -> list[int]:
        """Return which trials are not finished yet.

        Of a trial that cannot be identified here, or whose runs belong to another sweep, the
        process that does it will tell.
        """
        over, seen, left = self.finished_before(), set(), []
        for index, job in enumerate(jobs):
            found, key = self.identity_of(job), self._key(job)
            pair = over.get(key)
            if not found:
                left.append(index)
            elif pair and trial.is_finished(pair[0], found[1].config):
                self.already_finished[key] = pair
            elif key not in seen:  # or it is the same trial in other words
                seen.add(key)
                left.append(index)
        return left

    @property
    def total(self) -> int:
        """Return how many trials there are so far, each counted once."""
        return len(self.submitted | self.already_finished.keys())

    @property
    def expected(self) -> int:
        """Return how many trials there will be, as far as the sweeper has told."""
        return max(self.total, self.planned - self._repeated)

    def close(self) -> None:
        """Let the bar come to its end."""
        self.planned = 0  # of what was planned there is no more
        self._open.close()

    def has_begun(self) -> bool:
        """Tell whether this command has come to a trial."""
        return any(self.belongs_to_this_command(record) for record, _ in self.members())

    def _finished_before(self) -> dict[str, RunAndSummary]:
        """Return the finished trials of this sweep as they were found before the launch."""
        return {
            record.tags.get(names.TRIAL, ""): (record, facts)
            for record, facts in trial.members(self.store, self.parent)
            if record.status == "FINISHED"
        }

    def identity_of(self, words: Sequence[str]) -> tuple[str, Resolved] | None:
        """Return a trial's identity and configuration, None if its overrides allow none."""
        job = tuple(words)
        if job not in self._identities:
            self._identities[job] = None
            resolved = None
            assert self._compose
            try:
                resolved = self._compose(job)
                self._identities[job] = trial.identity(resolved), resolved
            except BadInput as error:
                if resolved is None or self.launcher.endswith(SAME_MACHINE):
                    self._refused[job] = str(error)
            except hydra_errors():
                pass  # the sweeper says why
        return self._identities[job]

    def config_of(self, record: RunRecord) -> Config | None:
        """Return the configuration of a trial, None if this command has not come to it."""
        known = dict(filter(None, self._identities.values()))
        found = known.get(record.tags.get(names.TRIAL, ""))
        return found.config if found else None

    def check(self, jobs: Jobs) -> None:
        """Raise BadInput if none of a sweep's trials can be done."""
        reasons = [self._refused.get(tuple(job)) for job in jobs if not self.identity_of(job)]
        if jobs and len(reasons) == len(jobs) and None not in reasons:
            several = f"none of the {len(jobs)} trials can be done; the first one: "
            raise BadInput(f"{several if len(set(reasons)) > 1 else ''}{reasons[0]}")

    def launch(self, launch: Callable[..., Sequence[Any]], jobs: Jobs, first: int) -> list[Any]:
        """Do trials by the `launch` of the user's launcher; return Hydra's JobReturns, in order.

        A worker that is killed takes the launcher's other workers with it, or their results:
        what is left is launched again, at last one by one, so that only the culprit is lost.
        """
        returns: dict[int, Any] = {}
        left = self.unfinished(jobs)
        keys = {self._key(job) for job in jobs}
        self._repeated += len(jobs) - len(keys - self.submitted)
        if not self.submitted:
            self._told.update(record.id for record, _ in self.already_finished.values())
            print(printable(f"sweep {self.parent} {self.name.removeprefix('sweep: ')}"), flush=True)
            self._open.enter_context(self._report_progress())
        self.submitted |= keys
        for attempt in range(MAX_ATTEMPTS):
            batches = [left] if attempt < MAX_ATTEMPTS - 1 else [[i] for i in left]
            for batch in filter(None, batches):
                try:
                    done = launch([jobs[i] for i in batch], first)
                    returns.update(zip(batch, done, strict=True))
                except Exception:
                    self.finished_before.cache_clear()
                    mark_dead_runs_killed(self.store)
                    if not self.has_begun():
                        raise
            left = [i for i in self.unfinished(jobs) if i not in returns]
        by_trial = {self._key(jobs[index]): value for index, value in returns.items()}
        return [
            returns.get(index) or by_trial.get(self._key(job)) or self._skipped_return(job)
            for index, job in enumerate(jobs)
        ]

    def _key(self, job: Sequence[str]) -> str:
        """Return what names a trial: its identity, or its overrides where that is not known."""
        found = self._identities.get(tuple(job))
        return found[0] if found else " ".join(job)

    def _skipped_return(self, job: Sequence[str]) -> Any:
        from hydra.core.utils import JobReturn, JobStatus

        pair = self.already_finished.get(self._key(job))
        value = trial.objective(*pair, self.metric) if pair else math.nan
        return JobReturn(overrides=list(job), status=JobStatus.COMPLETED, _return_value=value)

    def summary_line(self, found: "Outcome") -> str:
        """Say how many trials there are, and how many this command has done in a minute."""
        counts = [f"{count} {name}" for name, count in found.counts().items() if count]
        text = ", ".join(counts) or "none"
        over = [*found.finished, *found.pruned]
        done = sum(self.belongs_to_this_command(record) for record, _ in over)
        minutes = (time.monotonic() - self._began) / 60
        return f"{text}; {done} new, {rate(done / minutes)} trials/min" if done else text

    def belongs_to_this_command(self, record: RunRecord) -> bool:
        """Tell whether this command came to a run last, and not another one."""
        return record.tags.get(names.sweep_member_tag(self.parent)) == self.command_id

    def members(self) -> list[RunAndSummary]:
        """Return the runs of the trials that this command has come to, or finds finished."""
        return [
            (record, facts)
            for record, facts in trial.members(self.store, self.parent)
            if self.belongs_to_this_command(record)
            or (record.status == "FINISHED" and record.tags.get(names.TRIAL) in self.submitted)
        ]

    def outcome(self) -> "Outcome":
        """Look what became of the trials: of several runs of one trial the finished one counts."""
        order = {"FINISHED": 0, "RUNNING": 1}
        counting = dict(self.already_finished)
        for record, facts in self.members():
            key = record.tags.get(names.TRIAL, record.id)
            other = counting.get(key)
            if other is None or order.get(record.status, 2) < order.get(other[0].status, 2):
                counting[key] = record, facts
        runs = sorted(counting.values(), key=lambda pair: pair[0].start_time)
        over = [pair for pair in runs if pair[0].status == "FINISHED"]
        finished = [pair for pair in over if not pair[0].tags.get(names.PRUNED)]
        metric = self.metric
        scored = [p for p in finished if not math.isnan(p[1].metrics.get(metric, math.nan))]
        pick: Callable[..., Any] = max if self.mode == "max" else min
        best = pick(scored, key=lambda pair: pair[1].metrics[metric], default=None)
        pruned = [pair for pair in over if pair not in finished]
        return Outcome(finished, pruned, [pair for pair in runs if pair not in over], best)

    @contextmanager
    def _report_progress(self) -> Iterator[None]:
        """Show how the sweep goes, on the terminal and in the parent run, while it goes."""
        closing, bar = threading.Event(), make_sweep_progress(self.progress, self.expected)

        def watch() -> None:
            shown, beat = "", time.monotonic()
            while not closing.is_set():
                trial.trial_ended.wait(POLL_INTERVAL_S)
                trial.trial_ended.clear()
                began = time.monotonic()
                with suppress(Exception):  # a store that does not answer: the next look will tell
                    shown = self._update_progress(bar, shown)
                    if began - beat > HEARTBEAT_INTERVAL_S:
                        now = str(int(time.time()))
                        self.store.set_tags(self.parent, {names.HEARTBEAT: now})
                        beat = began
                closing.wait(PAUSE_FACTOR * (time.monotonic() - began))

        watcher = threading.Thread(target=watch, name="sweep", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            closing.set()
            trial.trial_ended.set()
            watcher.join()
            with suppress(Exception):
                self._update_progress(bar, "")
            bar.close()

    def _update_progress(self, bar: NoSweepProgress, shown: str) -> str:
        """Bring the bar and the parent's metrics up to date, if there is anything new."""
        found = self.outcome()
        counts = found.counts()
        best = found.best[1].metrics[self.metric] if found.best else None
        for record, facts in [*found.finished, *found.pruned, *found.others]:
            if record.status != "RUNNING" and record.id not in self._told:
                self._told.add(record.id)
                bar.tell(self._over_line(record, facts))
        bar.show(self.expected, counts, best)
        now = json.dumps([self.expected, counts, found.best and found.best[0].id])
        if now != shown:
            self.record_progress(found)
        return now

    def _over_line(self, record: RunRecord, facts: RunSummary) -> str:
        """Say that a trial is over, how, and what it came to."""
        status = "PRUNED" if record.tags.get(names.PRUNED) else record.status
        value = facts.metrics.get(self.metric)
        reached = "" if value is None else f", {self.metric} {number(value)}"
        count = f"{len(self._told)} of {self.expected}"
        return printable(f"{status.lower()}: {record.name} ({record.id[:8]}){reached}; {count}")

    def record_progress(self, found: "Outcome") -> None:
        """Put progress and the best trial so far into the parent run."""
        counts = {**found.counts(), "trials": self.expected}
        step = sum(found.counts().values()) - counts["running"]
        metrics: dict[str, float] = {f"{names.PROGRESS}{k}": count for k, count in counts.items()}
        if found.best:
            self.store.set_tags(self.parent, {names.BEST_TRIAL: found.best[0].id})
            metrics[f"{names.BEST}{self.metric}"] = found.best[1].metrics[self.metric]
        self.store.log_metrics(self.parent, metrics, step)


@dataclass(frozen=True)
class Outcome:
    """What became of a sweep's trials: each trial's run that counts, the best of them."""

    finished: list[RunAndSummary]
    pruned: list[RunAndSummary]
    others: list[RunAndSummary]  # failed, killed, or running
    best: RunAndSummary | None

    def counts(self) -> dict[str, int]:
        """Return how many trials have finished, were pruned, are running, have failed."""
        running = sum(record.status == "RUNNING" for record, _ in self.others)
        failed = len(self.others) - running
        over = {"finished": len(self.finished), "pruned": len(self.pruned)}
        return {**over, "running": running, "failed": failed}

    def trials(self, metric: str) -> list[TrialResult]:
        """Return the result of every trial, with `metric` as its objective."""
        trials = []
        for record, facts in [*self.finished, *self.pruned, *self.others]:
            status = "PRUNED" if (record, facts) in self.pruned else record.status
            reason, value = record.tags.get(names.REASON, ""), facts.metrics.get(metric)
            trials.append(TrialResult(record.name, record.id, status, reason, value))
        return trials
