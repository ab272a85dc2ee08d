"""Compare runs: configuration, results, data, code and environment."""

import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from waymark import names
from waymark.comparison.environment import Difference
from waymark.comparison.recorded_run import (
    OTHER_WEIGHTS,
    RecordedRun,
    all_differences,
    load_recorded_run,
)
from waymark.comparison.report import Best, Comparison, Metric, Row, better_value
from waymark.comparison.rerun_report import first_divergences
from waymark.config.old_names import CLASSES, with_classes
from waymark.config.schema import (
    DATA_DEFAULTS,
    KERAS_DEFAULTS,
    KERAS_OPTIMIZERS,
    OPTIMIZER_DEFAULTS,
    SCHEDULE,
)
from waymark.errors import BadInput
from waymark.processes.process_state import taken_back
from waymark.table import short_keys, short_setting
from waymark.tracking.finder import find_single, select
from waymark.tracking.history import foreign, is_timing
from waymark.tracking.limits import store_errors
from waymark.tracking.opening import open_store
from waymark.tracking.runs import RunRecord, RunSummary
from waymark.tracking.store import RunStore

Run = tuple[RecordedRun, RunSummary]

CONFIDENCE = 0.95
OF_WEIGHTS = ("model", "seed", "init_from", "fork")  # settings that the initial weights follow
# Settings that older records have not, and what was done before.
ADDED_LATER = {"epochs": "None", "stop": "None", "metrics": "[]", "task": "classification"}
ADDED_LATER |= {"fork": "None", "save.log_model": "False"}
ADDED_LATER |= {f"data.{key}": str(value) for key, value in DATA_DEFAULTS.items()}
ADDED_LATER |= {"data.scale": "uint8", "model.file": "None"}
ADDED_LATER |= {f"optimizer.{key}": str(value) for key, value in OPTIMIZER_DEFAULTS.items()}
OF_KERAS = {f"optimizer.{key}": str(value) for key, value in KERAS_DEFAULTS.items()}
CLASSIFICATION = {
    "task.class_weights": "None",
    "task.label_smoothing": "0.0",
}
# Settings of Waymark's that decide what is shown and where it is sent, not what comes out.
FOR_SHOW = (
    *("progress", "tracking", "record", "trusted_modules", "rerun_finished"),
    "objective",
)


@taken_back()
def compare_runs(
    runs: Sequence[str],
    uri: str | None = None,
    experiment: str | None = None,
    sweep: str | None = None,
    where: str | None = None,
) -> Comparison:
    """Compare the runs that are named, and those that fit all of the conditions.

    Raises BadInput for a run or condition that does not exist, and for fewer than two runs.
    """
    tracking = open_store(uri, reading=True)
    records = [find_single(tracking, text) for text in runs]
    found = [(record, tracking.summary(record)) for record in records]
    if experiment is not None or sweep is not None or where is not None:
        runs_and_sweeps = reversed(select(tracking, experiment, sweep, where))
        found += [pair for pair in runs_and_sweeps if pair[0].tags.get(names.KIND) != "sweep"]
    chosen = {pair[0].id: pair for pair in found}
    if len(chosen) < 2:
        conditions = (experiment, sweep, where) != (None, None, None)
        count = f"the selection matched {len(chosen)}" if conditions else f"found {len(chosen)}"
        raise BadInput(f"compare takes two runs or more; {count}.")
    return compare_found(tracking, list(chosen.values()))


def compare_found(tracking: RunStore, chosen: Sequence[tuple[RunRecord, RunSummary]]) -> Comparison:
    """Compare runs that were found; raise BadInput for what cannot be read."""
    with ThreadPoolExecutor(8 if tracking.server else 1) as pool:  # to wait for a server
        return compare_recorded(list(pool.map(partial(_load, tracking), chosen)))


def _load(tracking: RunStore, run: tuple[RunRecord, RunSummary]) -> Run:
    record, facts = run
    if names.VERSION in record.tags:
        return load_recorded_run(tracking, record), with_current_steps(record, facts)
    with store_errors(f"run {record.id}: cannot be read"):  # another program's: what MLflow has
        return RecordedRun(record, foreign(tracking, record, facts.metrics), {}), facts


def with_current_steps(record: RunRecord, facts: RunSummary) -> RunSummary:
    """Leave out what is for show, and put the steps right: MLflow's param stays at an extension.

    What a fork began with is one setting.

    Of another program's run nothing is known to be for show.
    """
    if names.VERSION not in record.tags:
        return facts
    params = facts.params.items()
    shown = {k: CLASSES.get(v, v) for k, v in params if k.partition(".")[0] not in FOR_SHOW}
    own = with_classes(shown)
    begun = [own.pop(f"fork.{part}", "") for part in ("run", "step", "digest")]
    if any(begun):
        own["fork"] = f"{begun[0][:8]}@{begun[1]} {begun[2][:8]}"  # RUN@STEP, digest
    steps = {"steps": record.tags[names.STEPS]} if names.STEPS in record.tags else {}
    classes = own.get("task", "classification") == "classification"
    added = ADDED_LATER | (CLASSIFICATION if classes else {})
    if shown.get("optimizer._target_", "").startswith(KERAS_OPTIMIZERS):
        added |= OF_KERAS
    later = {
        key: text
        for key, text in added.items()
        if not any(name.startswith(f"{key}.") for name in own)
    }
    return replace(facts, params={**later, **own, **steps})


def compare_recorded(runs: Sequence[Run]) -> Comparison:
    """Compare runs of which everything is read."""
    found = [run for run, _ in runs]
    groups = group_by_seed(runs)
    keys = differing_keys(groups)
    rows = [_row(members, keys) for members in groups]
    for i, row in enumerate(rows):  # what only their data or repetition tells apart
        if [other.label for other in rows].count(row.label) > 1:
            rows[i] = replace(row, label=f"{row.label} {row.runs[0][:8]}")
    others = {each[0].record.id: _differences(runs[0], each) for each in runs[1:]}
    curves = [
        (row.label, run.history.metrics.get(names.TRAIN_LOSS, {}), run.evaluations)
        for row, members in zip(rows, groups, strict=True)
        for run, _ in members
    ]
    return Comparison(
        mark_best(rows),
        keys,
        [ids for ids in index_by_tag(found, names.STATE_DIGEST).values() if len(ids) > 1],
        index_by_tag(found, names.DATA_DIGEST),
        {run_id: differences for run_id, differences in others.items() if differences},
        first_divergences(found[0].history, found[1].history)[0] if len(found) == 2 else None,
        {each.record.id: each.record.name for each in found},
        curves,
        ", ".join(dict.fromkeys(each.metric for each in found)),
    )


def index_by_tag(found: list[RecordedRun], tag: str) -> dict[str, list[str]]:
    """Return for each value of a tag the ids of the runs that have it."""
    index: dict[str, list[str]] = {}
    for each in found:
        if tag in each.record.tags:
            index.setdefault(each.record.tags[tag], []).append(each.record.id)
    return index


def _differences(first: Run, other: Run) -> list[Difference]:
    """Return what differs beside the configuration, and is not what has to, given that."""
    (old, was), (new, now) = first, other
    found = all_differences(old, new)
    keys = [key for key in {**was.params, **now.params} if key.partition(".")[0] in OF_WEIGHTS]
    if all(was.params.get(key) == now.params.get(key) for key in keys):
        return found
    return [each for each in found if each[0] != OTHER_WEIGHTS]


def differing_keys(groups: list[list[Run]]) -> list[str]:
    """Return the keys of the configuration that differ between groups of runs."""
    params = [members[0][1].params for members in groups]
    left_out = {"run_name"} | ({"seed"} if any(len(members) > 1 for members in groups) else set())
    keys = dict.fromkeys(key for known in params for key in known if key not in left_out)
    differing = [key for key in keys if len({known.get(key) for known in params}) > 1]
    return [key for key in differing if not _implied(key, differing, params)]


def _implied(key: str, keys: list[str], params: list[dict[str, str]]) -> bool:
    """Tell whether a setting only says again which member of its group was chosen."""
    group = SCHEDULE if key.startswith(f"{SCHEDULE}.") else key.partition(".")[0]
    shared = not key.endswith(".class") and all(key in known for known in params)
    if group == key or group not in keys or shared:
        return False
    pairs = {(known.get(group), known.get(key)) for known in params}
    return len(pairs) == len({member for member, _ in pairs})


def group_by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs that make a row each: they differ only by their seeds.

    A second run of the same seed (a rerun, say) is no further sample: it comes into another row.
    """
    rows: dict[Any, list[Run]] = {}
    seen: dict[Any, int] = {}
    for index, (each, known) in enumerate(runs):
        seed = known.params.get("seed")
        kept = {k: v for k, v in known.params.items() if k not in ("seed", "run_name")}
        same = (tuple(sorted(kept.items())), each.record.tags.get(names.DATA_DIGEST))
        count = seen[same, seed] = seen.get((same, seed), -1) + 1
        # Without a seed nothing says what two runs of one configuration differ by.
        lonely = None if "seed" in known.params else index
        rows.setdefault((same, count, lonely), []).append((each, known))
    return list(rows.values())


def _row(members: list[Run], keys: list[str]) -> Row:
    records, known = [run.record for run, _ in members], [facts for _, facts in members]
    seconds = [max(0.0, f.end - run.record.start_time) for run, f in members if f.end]
    paces = [pace for f in known if (pace := f.metrics.get(names.STEPS_PER_SECOND)) is not None]
    metrics = {}
    shown = [key for f in known for key in f.metrics if not is_timing(key)]
    for key in dict.fromkeys(key for key in shown if key != names.LEARNING_RATE):  # no result
        having = [m for m in members if key in m[1].metrics]
        seeds = [facts.params.get("seed", "") for _, facts in having]
        metrics[key] = _metric([_final_and_best(key, *m) for m in having], seeds)
    config = {key: known[0].params[key] for key in keys if key in known[0].params}
    short = short_keys(config)
    shared = [f"{short[key]}={short_setting(value)}" for key, value in config.items()]
    first = f"{records[0].name} {records[0].id[:8]}"
    return Row(
        first if len(members) == 1 else " ".join(shared) or f"{len(members)} seeds from {first}",
        records[0].name,
        [record.id for record in records],
        ", ".join(dict.fromkeys(record.status for record in records)),
        config,
        metrics,
        statistics.mean(seconds) if seconds else None,
        statistics.mean(paces) if paces else None,
        [r.tags[names.STATE_DIGEST] for r in records if names.STATE_DIGEST in r.tags],
        records[0].tags.get(names.DATA_DIGEST),
    )


def _final_and_best(key: str, run: RecordedRun, facts: RunSummary) -> tuple[float, float]:
    """Return a metric's last and best value; the last is the best where neither way is better."""
    known = run.history.metrics.get(key, {})
    final = known[max(known)] if known else facts.metrics[key]
    better, values = better_value(key), [v for v in known.values() if not math.isnan(v)]
    return final, better(values) if better and values else final


def _mean(values: list[float]) -> float:
    return values[0] if len(set(map(str, values))) == 1 else statistics.mean(values)  # -0.0 too


def _metric(values: list[tuple[float, float]], seeds: list[str]) -> Metric:
    finals = [final for final, _ in values]
    mean, best = _mean(finals), _mean([best for _, best in values])
    if len(values) < 2 or not all(map(math.isfinite, finals)):
        return Metric(mean, best, len(values))
    from scipy.special import stdtrit  # Student's t; scipy.stats takes a second to import

    try:
        std = statistics.stdev(finals)
    except OverflowError:
        std = math.inf
    t = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    ci_half_width = t * std / math.sqrt(len(values))
    low, high = mean - ci_half_width, mean + ci_half_width
    own = dict(zip(seeds, finals, strict=True))
    return Metric(mean, best, len(values), std, low, high, seeds=own)


def mark_best(rows: list[Row]) -> list[Row]:
    """Return the rows with the best of each metric marked, and what ties with it."""
    for key in dict.fromkeys(key for row in rows for key in row.metrics):
        better = better_value(key)
        known = {i: row.metrics[key] for i, row in enumerate(rows) if key in row.metrics}
        if not better or len(known) < 2:
            continue
        final = best_or_none(better, [m.final for m in known.values()])
        best = best_or_none(better, [m.best for m in known.values()])
        leads = [m for m in known.values() if m.final == final]
        for i, m in known.items():
            tests = [] if m in leads else [tied_by(m, lead) for lead in leads]
            rows[i].metrics[key] = replace(
                m,
                final_leads=m in leads,
                best_leads=m.best == best,
                ties=next(filter(None, tests), ""),
            )
    return rows


def best_or_none(better: Best, values: Sequence[float]) -> float | None:
    """Return the best of some values; None where all are equal, and none is better."""
    known = [value for value in values if not math.isnan(value)]
    return better(known) if len(set(known)) > 1 or 0 < len(known) < len(values) else None


def tied_by(a: Metric, b: Metric) -> str:
    """Return the test that does not tell two means over seeds apart; "" if it does, or none can.

    Over shared seeds, two at least, it is the paired t test of their differences, else Welch's t
    test; both are two-sided, at the level 1 - CONFIDENCE.
    """
    shared = [seed for seed in a.seeds if seed in b.seeds]
    if len(shared) > 1:
        name, values = "paired t test over shared seeds", [a.seeds[s] - b.seeds[s] for s in shared]
        error = statistics.stdev(values) / math.sqrt(len(values))
        difference, freedom = statistics.mean(values), len(values) - 1.0
    elif len(a.seeds) > 1 and len(b.seeds) > 1:
        name, difference = "Welch's t test", a.final - b.final
        parts = [statistics.variance(m.seeds.values()) / len(m.seeds) for m in (a, b)]
        error = math.sqrt(sum(parts))
        terms = [v**2 / (len(m.seeds) - 1) for v, m in zip(parts, (a, b), strict=True)]
        freedom = sum(parts) ** 2 / sum(terms) if sum(terms) else 1.0
    else:
        return ""
    if not math.isfinite(difference) or not math.isfinite(error):
        return ""
    from scipy.special import stdtrit

    return name if abs(difference) <= stdtrit(freedom, (1 + CONFIDENCE) / 2) * error else ""
