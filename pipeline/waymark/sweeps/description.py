"""What MLflow's UI says of a sweep: its name, its trials, and the command that completes it."""

import math
from collections.abc import Sequence

from waymark import names
from waymark.sweeps.sweep import Outcome, RunAndSummary, Sweep
from waymark.table import metric_value, setting, short_keys
from waymark.tracking.address import page_of
from waymark.tracking.description import code, escaped, signed
from waymark.tracking.limits import param_name

MOST = 20  # trials in the table
CELL = 40  # characters


def parent_name(varied: Sequence[str], count: int | None) -> str:
    """Return the name of a sweep's parent run, as "sweep: lr x seed (6)"."""
    keys = " x ".join(short_keys(varied).values())
    return f"sweep: {keys}" + (f" ({count})" if count is not None else "")


def describe(command: str, *parts: str) -> str:
    """Return the description of a sweep: what is known of it, and the command that completes it."""
    return signed(*parts, code(command))


def trials_table(found: Outcome, sweep: Sweep) -> str:
    """Return the trials as a table in Markdown, the best first, those without objective last."""
    runs = sorted(
        [*found.finished, *found.pruned, *found.others], key=lambda run: _rank(run, sweep)
    )
    keys = short_keys(sweep.varied)
    told = found.pruned or found.others  # else all have finished
    rows = [["run", *map(escaped, keys.values()), escaped(sweep.metric), *["status"] * bool(told)]]
    rows.append(["---"] * len(rows[0]))
    for record, facts in runs[:MOST]:
        page = page_of(f"experiments/{record.experiment_id}/runs/{record.id}")
        own = [setting(facts.params.get(param_name(key), "-")) for key in keys]
        judged = metric_value(sweep.metric.rpartition("/")[2], facts.metrics.get(sweep.metric))
        status = "PRUNED" if record.tags.get(names.PRUNED) else record.status
        cells = [*(escaped(text, CELL) for text in own), judged, *[status] * bool(told)]
        rows.append([f"[{record.id[:8]}]({page})", *(f"&ensp;{cell}" for cell in cells)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    more = len(runs) - MOST
    return "\n".join([*lines, *([f"\nand {more} more"] if more > 0 else [])])


def _rank(run: RunAndSummary, sweep: Sweep) -> tuple[bool, float]:
    value = run[1].metrics.get(sweep.metric, math.nan)
    sign = -1 if sweep.mode == "max" else 1
    return (True, 0.0) if math.isnan(value) else (False, sign * value)
