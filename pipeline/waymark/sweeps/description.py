"""What MLflow's UI says of a sweep: its name, its trials, and the command that completes it."""

import math
from collections.abc import Sequence

from waymark import names
from waymark.sweeps.sweep import Outcome, RunAndSummary, Sweep
from waymark.table import metric_value, setting, short_keys
from waymark.tracking.address import page_of
from waymark.tracking.description import MOST, code, escaped, signed
from waymark.tracking.limits import param_name

MOST_TRIALS = 20  # in the table
MARGIN = 30  # characters, for what stands between and below
CELL = 40  # characters


def parent_name(varied: Sequence[str], count: int | None) -> str:
    """Return the name of a sweep's parent run, as "sweep: lr x seed (6)"."""
    keys = " x ".join(short_keys(varied).values())
    return f"sweep: {keys}" + (f" ({count})" if count is not None else "")


def describe(command: str, found: Outcome | None = None, sweep: Sweep | None = None) -> str:
    """Return the description of a sweep: its trials, if any, and the command that completes it."""
    shown = code(command)
    table = trials_table(found, sweep, room=MOST - len(shown)) if found and sweep else ""
    return signed(table, shown)


def trials_table(found: Outcome, sweep: Sweep, room: int) -> str:
    """Return the trials as a table in Markdown, the best first, those without objective last.

    It has as many of them as fit `room` characters.
    """
    runs = sorted(
        [*found.finished, *found.pruned, *found.others], key=lambda run: _rank(run, sweep)
    )
    keys = short_keys(sweep.varied)
    told = found.pruned or found.others  # else all have finished
    rows = [["run", *map(escaped, keys.values()), escaped(sweep.metric), *["status"] * bool(told)]]
    rows.append(["---"] * len(rows[0]))
    for record, facts in runs[:MOST_TRIALS]:
        page = page_of(f"experiments/{record.experiment_id}/runs/{record.id}")
        own = [setting(facts.params.get(param_name(key), "-")) for key in keys]
        judged = metric_value(sweep.metric.rpartition("/")[2], facts.metrics.get(sweep.metric))
        status = "PRUNED" if record.tags.get(names.PRUNED) else record.status
        cells = [*(escaped(text, CELL) for text in own), judged, *[status] * bool(told)]
        rows.append([f"[{record.id[:8]}]({page})", *(f"&ensp;{cell}" for cell in cells)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    while len(lines) > 2 and sum(len(line) + 1 for line in lines) > room - MARGIN:
        del lines[-1]
    more = len(runs) + 2 - len(lines)
    return "\n".join([*lines, *([f"\nand {more} more"] if more > 0 else [])])


def _rank(run: RunAndSummary, sweep: Sweep) -> tuple[bool, float]:
    value = run[1].metrics.get(sweep.metric, math.nan)
    sign = -1 if sweep.mode == "max" else 1
    return (True, 0.0) if math.isnan(value) else (False, sign * value)
